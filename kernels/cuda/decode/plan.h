// plan.h: how a block of the kernel for few query rows cuts its work, and its template: kernels/cuda/decode/plan.py
// chooses the numbers, as they lie here for float16 of 64 columns.
#pragma once
#include "../tile/types.h"

// {{ elements
typedef float16_t T;  // of q and of the result
typedef float16_t K;  // of k: T, or int8_t
typedef float16_t V;  // of v
// }}
constexpr int HEAD_DIM = 64;
constexpr int VALUE_DIM = 64;
constexpr int COLUMN_TILES = 1;  // of 8 query rows each, of a block
constexpr int VALUES = 64;       // columns of v of a block
constexpr int RESIDENT = 2;      // blocks that a multiprocessor is to hold at a time
constexpr int BLOCKS = 0;        // enum Blocks of walk.h
constexpr bool MEANS = false;    // keys lack a mean, whose product with a query is a term of its row's scores
constexpr bool ADD_BACK = false; // the score_mod is to see that term

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * LANES;
constexpr int BK = 16;  // keys of a tile, which is a warp's own
constexpr int ROWS = 8 * COLUMN_TILES;
constexpr int SLICES = (VALUE_DIM + VALUES - 1) / VALUES;  // blocks that share the columns of v
