// plan.h: how a block of a Hopper gradient kernel cuts its work, and its template: kernels/cuda/backward/hopper/plan.py
// chooses the numbers, as they lie here for float16 of 64 columns.
#pragma once
#include "../../hopper/slabs.h"

// {{ element
typedef float16_t T;
// }}
constexpr int HEAD_DIM = 64;
constexpr int VALUE_DIM = 64;
constexpr int CONSUMERS = 2;   // warpgroups, of 64 own rows each
constexpr int BK = 64;         // rows of a tile that passes by
constexpr int STAGES = 2;      // tiles of those in shared memory
constexpr bool DEFERRED = true;  // the sums of a tile are made beside the products of the next
constexpr int HEAD_GROUP = 4;  // heads whose tiles of rows run beside one another, so that what passes by stays in L2
constexpr int CONSUMER_REGISTERS = 240;
constexpr int PRODUCER_REGISTERS = 24;
constexpr bool WITH_MAX = false;  // max_scores has a gradient
constexpr int BLOCKS = 0;         // enum Blocks of walk.h

constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP;
constexpr int BQ = 64 * CONSUMERS, BOX = 64;  // own rows of a block; rows that TMA brings at once
constexpr int HEAD_SLABS = (HEAD_DIM + SLAB - 1) / SLAB, VALUE_SLABS = (VALUE_DIM + SLAB - 1) / SLAB;
constexpr int HEADS = (HEAD_DIM + 15) / 16 * 16, VALUES = (VALUE_DIM + 15) / 16 * 16;  // columns that products take
constexpr int ROW_TILES = 1, OTHERS = BK / 8;  // of a warp: 16 own rows, tiles of 8 of those that pass by
constexpr int HEAD_SUMS = HEAD_SLABS * SLAB / 8, VALUE_SUMS = VALUE_SLABS * SLAB / 8;
constexpr int TERMS = WITH_MAX ? 4 : 2;  // of RowTerms in differentiate.h
