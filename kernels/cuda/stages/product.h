// product.h: out = a b of one batch and head, a tile of BM rows and BN columns by each block of threads, with the tiles
// of the attention kernels:
//
//   for each BK columns of a, and rows of b
//     A, B = those of the tile's rows and columns, in shared memory                Staged
//     where a has blocks: what is not listed is 0; a 0 leaves its row of b out     clear_unlisted, add_special_rows
//     C = C + A B, each warp 16 rows, in registers                                 Step
//   out = C; -inf outside of the listed blocks of out
#pragma once
#include "plan.h"
#include "../tile/products.h"
#include "../tile/staging.h"
#include "blocks.h"

// a: [batch, heads, m, k]; b: [b_batches, b_heads, k, n], or [.., n, k] with TRANSPOSE_B; out: [batch, heads, m, n].
struct ProductParams {
  int heads, b_batches, b_heads, m, n, k;
};

constexpr int ROWS = (BM + 15) / 16 * 16, COLUMNS = (BN + 15) / 16 * 16, DEPTH = (BK + 15) / 16 * 16;
// A row is an odd number of 16 bytes: eight of them lie in different banks.
constexpr int B_ROWS = TRANSPOSE_B ? COLUMNS : DEPTH, B_COLUMNS = TRANSPOSE_B ? DEPTH : COLUMNS;
constexpr int LD_A = DEPTH + 16 / sizeof(T), LD_B = B_COLUMNS + 16 / sizeof(T);
static_assert(THREADS == ROWS / 16 * LANES, "a warp for 16 rows");
static_assert(BM % 8 == 0 && BN % 8 == 0 && BK % 8 == 0, "16 bytes are of one tile");
// Columns are counted from the end of those that exist, which only a call knows.
typedef Staged<T, ROWS, 0, DEPTH, LD_A, THREADS> StagedA;
typedef Staged<T, B_ROWS, 0, B_COLUMNS, LD_B, THREADS> StagedB;

// Rows [row, end_row) and columns [column, end_column) of a matrix; zeros behind them.
template <typename Matrix>
INLINE void stage(T* to, const T* matrix, int columns, int row, int end_row, int column, int end_column) {
  Matrix::load(to, rows_of(matrix + end_column, columns, end_row), row, column - end_column, threadIdx.x);
}

// Zeros in A where its blocks are not listed.
INLINE void clear_unlisted(T* a, const Blocks& blocks, int row, int end_row, int step, int end_step) {
  const int width = end_step - step, count = (end_row - row) * width;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const int r = i / width, c = i % width;
    if (blocks.of(row + r, step + c) == UNLISTED) a[r * LD_A + c] = narrowed<T>(0.0f);
  }
}

// C += A B of the rows of B that hold something infinite or nan, a bit each, where A is not 0.
INLINE void add_special_rows(Sums (&sums)[COLUMNS / 8], const T* a, const T* b, const uint* special_rows, int lane) {
  ROLLED
  for (int k = 0; k < DEPTH; k++) {
    if (!((special_rows[k / 32] >> (k % 32)) & 1)) continue;
    UNROLL
    for (int half = 0; half < 2; half++) {
      const float factor = a[(8 * half + lane / 4) * LD_A + k];
      if (factor == 0.0f) continue;
      UNROLL
      for (int j = 0; j < COLUMNS / 8; j++) {
        UNROLL
        for (int e = 0; e < 2; e++) sums[j].at[2 * half + e] += factor * float(b[k * LD_B + 8 * j + 2 * (lane & 3) + e]);
      }
    }
  }
}

// C += A B
INLINE void multiply_tiles(Sums (&sums)[COLUMNS / 8], const T* a, const T* b, int lane) {
  for (int k = 0; k < DEPTH; k += Step<T>::K) {
    typename Step<T>::Left left;
    Step<T>::template load_left<LD_A>(left, a + k, lane);
    UNROLL
    for (int j = 0; j < COLUMNS / 8; j += 2) {
      typename Step<T>::Right right;
      if constexpr (TRANSPOSE_B) Step<T>::template load_keys<LD_B>(right, b + 8 * j * LD_B + k, lane);
      else Step<T>::template load_values<LD_B>(right, b + k * LD_B + 8 * j, lane);
      Step<T>::multiply_pair(sums[j], sums[j + 1], left, right);
    }
  }
}

// states: of the blocks of the scores, which are a, or with SAMPLED out. They are read where LISTED.
INLINE void product(const T* a, const T* b, const uint8_t* states, O* out, const ProductParams& p, const BlockSizes& sizes) {
  extern __shared__ __align__(16) unsigned char memory[];
  T *a_tile = (T*)memory, *b_tile = a_tile + ROWS * LD_A;
  constexpr int SPECIAL_WORDS = (DEPTH + 31) / 32;
  __shared__ uint special_rows[SPECIAL_WORDS];

  const int across = (p.n + BN - 1) / BN, tiles = across * ((p.m + BM - 1) / BM);
  const int thread = threadIdx.x, warp = thread / LANES, lane = thread % LANES;
  const int head = blockIdx.x / tiles, tile = blockIdx.x % tiles, batch = head / p.heads, h = head % p.heads;
  const int row = tile / across * BM, end_row = smaller(p.m, row + BM);
  const int column = tile % across * BN, end_column = smaller(p.n, column + BN);
  const int64_t b_head = int64_t(p.b_batches == 1 ? 0 : batch) * p.b_heads + h / (p.heads / p.b_heads);
  const Blocks blocks(states, sizes, batch, h);
  a += int64_t(head) * p.m * p.k;
  b += b_head * p.n * p.k;
  out += int64_t(head) * p.m * p.n;

  bool some = true, all = true;
  if constexpr (LISTED && SAMPLED) blocks.look(row, end_row, column, end_column, some, all);
  const T* own_rows = a_tile + warp * 16 * LD_A;
  Sums sums[COLUMNS / 8];
  UNROLL
  for (int j = 0; j < COLUMNS / 8; j++) sums[j] = Sums();
  for (int step = 0; some && step < p.k; step += BK) {
    const int end_step = smaller(p.k, step + BK);
    if constexpr (LISTED && !SAMPLED) {
      bool listed;
      blocks.look(row, end_row, step, end_step, listed, all);
      if (!listed) continue;
    }
    stage<StagedA>(a_tile, a, p.k, row, end_row, step, end_step);
    if constexpr (TRANSPOSE_B) stage<StagedB>(b_tile, b, p.k, column, end_column, step, end_step);
    else stage<StagedB>(b_tile, b, p.n, step, end_step, column, end_column);
    ptx::cp_async_commit_group();
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    if constexpr (LISTED && !SAMPLED) {
      if (!all) clear_unlisted(a_tile, blocks, row, end_row, step, end_step);
      if (thread < SPECIAL_WORDS) special_rows[thread] = 0;
      if (__syncthreads_or(StagedB::holds_special(b_tile, thread))) {
        StagedB::mark_special(special_rows, b_tile, thread);
        __syncthreads();
        add_special_rows(sums, own_rows, b_tile, special_rows, lane);
        __syncthreads();
        StagedB::clear(special_rows, b_tile, thread);
        __syncthreads();
      }
    }
    multiply_tiles(sums, own_rows, b_tile, lane);
    __syncthreads();
  }
  UNROLL
  for (int i = 0; i < 4; i++) {
    const int r = row + warp * 16 + lane / 4 + i / 2 * 8;
    if (r >= end_row) continue;
    UNROLL
    for (int j = 0; j < COLUMNS / 8; j++) {
      const int c = column + 8 * j + 2 * (lane & 3) + i % 2;
      if (c >= end_column) continue;
      const bool listed = !(LISTED && SAMPLED) || all || (some && blocks.of(r, c) != UNLISTED);
      out[int64_t(r) * p.n + c] = narrowed<O>(listed ? sums[j].at[i] : -INFINITY);
    }
  }
}
