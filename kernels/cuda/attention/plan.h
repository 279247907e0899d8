// plan.h: how a block cuts its work, and its template: kernels/cuda/attention/plan.py chooses the numbers, as they lie
// here for float16 of 64 columns.
#pragma once
#include "../tile/types.h"

// {{ elements
typedef float16_t T;  // of v and of the result
typedef float16_t K;  // of q and k: T, or int8_t
// }}
constexpr int HEAD_DIM = 64;
constexpr int VALUE_DIM = 64;
constexpr int WARPS = 4;
constexpr int ROW_TILES = 2;   // of 16 query rows each, of a warp
constexpr int BK = 64;         // keys of a tile
constexpr int VALUES = 64;     // columns of v of a block: a multiple of 16
constexpr int BLOCKS = 0;      // enum Blocks of walk.h
// Of q and k in int8 (kernels/cuda/int8/operands.py): each row has a term of its scores before the score_mod; and scores
// of the mean that q lacks.
constexpr bool ADD_BACK = false;
constexpr bool SMOOTHED_Q = false;

constexpr int THREADS = WARPS * LANES;
constexpr int BQ = WARPS * ROW_TILES * 16;
constexpr bool QUANTISED = sizeof(K) == 1;
constexpr int STEP = QUANTISED ? 32 : 16;                   // columns of one product
constexpr int HEADS = (HEAD_DIM + STEP - 1) / STEP * STEP;  // columns of q and k in shared memory
// A row is an odd number of 16 bytes: eight of them lie in different banks.
constexpr int LD_HEADS = HEADS + 16 / sizeof(K), LD_VALUES = VALUES + 16 / sizeof(T);
constexpr int SLICES = (VALUE_DIM + VALUES - 1) / VALUES;  // blocks that share the columns of v of one tile of rows
constexpr int KEY_TILES = BK / 8, VALUE_TILES = VALUES / 8;
