// plan.h: how a block cuts its work, and its template: kernels/cuda/hopper/plan.py chooses the numbers, as they lie here
// for float16 of 64 columns.
#pragma once
#include "slabs.h"

// {{ element
typedef float16_t T;
// }}
constexpr int HEAD_DIM = 64;
constexpr int VALUE_DIM = 64;
constexpr int CONSUMERS = 2;   // warpgroups, of 64 query rows each
constexpr int BK = 128;        // keys of a tile
constexpr int STAGES = 2;      // tiles of keys and of values in shared memory
constexpr int HEAD_GROUP = 4;  // heads whose tiles of rows run beside one another, so that their keys stay in L2
constexpr int CONSUMER_REGISTERS = 240;
constexpr int PRODUCER_REGISTERS = 24;
constexpr int BLOCKS = 0;      // enum Blocks of walk.h

constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP;
constexpr int BQ = 64 * CONSUMERS;
constexpr int HEAD_SLABS = (HEAD_DIM + SLAB - 1) / SLAB, VALUE_SLABS = (VALUE_DIM + SLAB - 1) / SLAB;
constexpr int HEADS = (HEAD_DIM + 15) / 16 * 16;  // columns of q and k that products take
constexpr int VALUES = VALUE_SLABS * SLAB;
constexpr int KEY_TILES = BK / 8, VALUE_TILES = VALUES / 8;
