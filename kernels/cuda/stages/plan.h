// plan.h: what a stage reads and writes, how a product is cut, and its template: kernels/cuda/stages/plan.py chooses.
#pragma once
#include "../tile/types.h"

// {{ elements
typedef float T;  // of what is read
typedef float O;  // of the result
// }}
constexpr bool LISTED = false;       // there are states of blocks
constexpr bool TRANSPOSE_B = false;  // b: [.., n, k]
constexpr bool SAMPLED = false;      // -inf in blocks that are not listed; else they count as zeros of a
constexpr int BM = 64;               // rows of a tile of the result
constexpr int BN = 64;               // its columns
constexpr int BK = 32;               // columns of a that are multiplied at once
constexpr int THREADS = 128;
