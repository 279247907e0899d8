// plan.h: how a block of a gradient kernel cuts its work, and its template: kernels/cuda/backward/plan.py chooses the
// numbers, as they lie here for float16 of 64 columns.
#pragma once
#include "../tile/types.h"

// {{ element
typedef float16_t T;
// }}
constexpr int HEAD_DIM = 64;
constexpr int VALUE_DIM = 64;
constexpr int WARPS = 4;
constexpr int ROW_TILES = 2;     // of 16 own rows each, of a warp
constexpr int BK = 32;           // rows of a tile that passes by
constexpr int SLICES = 1;        // blocks that share the columns of the gradients of one tile of rows
constexpr int STAGES = 2;        // tiles in shared memory, of which all but one are on their way
constexpr bool WITH_MAX = false; // max_scores has a gradient
constexpr int BLOCKS = 0;        // enum Blocks of walk.h
constexpr int PATTERN = 0;       // enum Pattern of pair_sums.h

constexpr int THREADS = WARPS * LANES;
constexpr int BQ = WARPS * ROW_TILES * 16;  // own rows of a block
constexpr int HEADS = (HEAD_DIM + 15) / 16 * 16, VALUES = (VALUE_DIM + 15) / 16 * 16;  // columns in shared memory
// A row is an odd number of 16 bytes: eight of them lie in different banks.
constexpr int PAD = 16 / sizeof(T);
constexpr int LD_HEADS = HEADS + PAD, LD_VALUES = VALUES + PAD;
constexpr int OTHERS = BK / 8;  // tiles of 8 of those rows
// Tiles of 8 columns of a slice.
constexpr int HEAD_SUMS = 2 * ((HEADS / 16 + SLICES - 1) / SLICES);
constexpr int VALUE_SUMS = 2 * ((VALUES / 16 + SLICES - 1) / SLICES);
constexpr int TERMS = WITH_MAX ? 4 : 2;  // of RowTerms in differentiate.h
