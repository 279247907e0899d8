// merge.cu: partial results of splits of keys -> attention, in the order of the splits:
// out = sum of exp(reference of split - largest reference) O of split / sum; lse = reference + log(sum).
//
// A block takes 4 LANES columns of one row, each of its warps some of the splits. Blocks: (row of all, columns).
#include "merge_plan.h"
#include "../tile/types.h"
#include "../attention/softmax.h"

// As kernels/cuda/decode/launch.py packs it.
struct MergeParams {
  int kv_heads, kv_batches, rows, splits, columns;  // rows: of one head of keys
};

// partial: [batch, kv_heads, splits, rows, columns], statistics: [.., rows], as decode.cu writes them; a split whose sum
// is 0 is not read. v_means: [kv_batches, kv_heads, columns], what all values lack. out: [batch, query_heads, q_len,
// columns]; lse, max_scores: [batch, query_heads, q_len], float32, natural.
struct MergeTensors {
  const float* partial;
  const float4* statistics;
  const float* v_means;
  T* out;
  float *lse, *max_scores;
};

constexpr int WARPS = THREADS / LANES;
constexpr int COLUMNS = 4;  // of a lane

INLINE void merge_splits(const MergeTensors& tensors, const MergeParams& p) {
  __shared__ float4 parts[WARPS][LANES];
  __shared__ float totals[WARPS];
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const int first_column = (blockIdx.y * LANES + lane) * COLUMNS;
  const int64_t line = blockIdx.x / p.rows, row = blockIdx.x % p.rows;
  const float4* of_row = tensors.statistics + line * p.splits * p.rows + row;

  float reference = LOWEST, largest = LOWEST, term = 0.0f;
  ROLLED
  for (int split = lane; split < p.splits; split += LANES) {
    const float4 of_split = of_row[int64_t(split) * p.rows];
    if (of_split.y == 0.0f) continue;
    reference = fmaxf(reference, of_split.x), largest = fmaxf(largest, of_split.z);
    term = of_split.w;
  }
  UNROLL
  for (int i = 1; i < LANES; i *= 2) {
    reference = fmaxf(reference, __shfl_xor_sync(EVERY_LANE, reference, i));
    largest = fmaxf(largest, __shfl_xor_sync(EVERY_LANE, largest, i));
    const float other = __shfl_xor_sync(EVERY_LANE, term, i);
    term = term == 0.0f ? other : term;  // the same in every split that has some
  }

  // Warp w takes splits w, w + WARPS, ...
  float total = 0.0f, sums[COLUMNS] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
  for (int split = warp; split < p.splits; split += WARPS) {
    const float4 of_split = of_row[int64_t(split) * p.rows];
    if (of_split.y == 0.0f) continue;
    const float share = ptx::ex2_approx_ftz((of_split.x - reference) * LOG2_E);
    total += of_split.y * share;
    const float* from = tensors.partial + ((line * p.splits + split) * p.rows + row) * p.columns + first_column;
    if (p.columns % COLUMNS == 0) {
      const float4 some = first_column < p.columns ? *(const float4*)from : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      sums[0] += some.x * share, sums[1] += some.y * share, sums[2] += some.z * share, sums[3] += some.w * share;
    } else {
      UNROLL
      for (int c = 0; c < COLUMNS; c++) {
        if (first_column + c < p.columns) sums[c] += from[c] * share;
      }
    }
  }
  parts[warp][lane] = make_float4(sums[0], sums[1], sums[2], sums[3]);
  if (lane == 0) totals[warp] = total;
  __syncthreads();
  if (warp != 0) return;
  UNROLL
  for (int w = 1; w < WARPS; w++) {
    const float4 more = parts[w][lane];
    sums[0] += more.x, sums[1] += more.y, sums[2] += more.z, sums[3] += more.w;
    total += totals[w];
  }

  const int64_t at = line * p.rows + row;
  const float inverse = total == 0.0f ? 0.0f : __fdiv_rn(1.0f, total);
  const float* means = tensors.v_means;
  if (VALUE_MEANS) means += (smaller(int(line / p.kv_heads), p.kv_batches - 1) * int64_t(p.kv_heads) + line % p.kv_heads) * p.columns;
  UNROLL
  for (int c = 0; c < COLUMNS; c++) {
    const int column = first_column + c;
    if (column >= p.columns) continue;
    float value = sums[c] * inverse;
    if (VALUE_MEANS && total != 0.0f) value += means[column];
    tensors.out[at * p.columns + column] = narrowed<T>(value);
  }
  if (first_column == 0) {
    tensors.lse[at] = total == 0.0f ? -INFINITY : reference + logf(total) + term;
    tensors.max_scores[at] = total == 0.0f ? -INFINITY : largest + term;
  }
}
