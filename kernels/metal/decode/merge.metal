// merge.metal: partial results of splits of keys -> attention, in the order of the splits:
// out = sum of exp(max of split - max) O of split / sum; lse = max + log(sum).
//
// partial: [batch, kv_heads, splits, rows, columns], statistics: [.., rows, 2], as decode.metal writes them; a split
// whose sum is 0 is not read. value_means: [kv_batches, kv_heads, columns], what all values lack, where MEANS.
// out: [batch, query_heads, q_len, columns]; lse, max_scores: [batch, query_heads, q_len], float32, natural.
// A simdgroup takes columns of one row, COLUMNS neighbours in each lane; group: (slice of columns, row of a head of
// keys, head and batch of them).
#include "../attention/softmax.h"
#include "../tile/words.h"

constexpr constant int COLUMNS = 4;  // of launch.py

struct MergeSizes {
  int kv_heads;
  int rows;  // of one head of keys
  int splits;
  int columns;
  int kv_batches;
};
INLINE MergeSizes merge_sizes(const constant int64_t* words) {
  MergeSizes p;
  p.kv_heads = word(words, 0);
  p.rows = word(words, 1);
  p.splits = word(words, 2);
  p.columns = word(words, 3);
  p.kv_batches = word(words, 4);
  return p;
}

template <bool MEANS, typename T>
INLINE void merge_splits(const device float* partial, const device float* statistics, const device float* value_means,
                         device T* out, device float* lse, device float* max_scores, MergeSizes p, metal::uint3 group,
                         uint lane) {
  const int64_t unit = int64_t(group.z);  // batch and head of keys
  const int row = int(group.y), first_column = (int(group.x) * LANES + int(lane)) * COLUMNS;
  const device float* of_row = statistics + 2 * (unit * p.splits * p.rows + row);
  const int64_t step = 2 * int64_t(p.rows);  // to the next split

  float largest = LOWEST;
  for (int split = int(lane); split < p.splits; split += LANES)
    if (of_row[split * step + 1] != 0.0f) largest = metal::max(largest, of_row[split * step]);
  largest = metal::simd_max(largest);

  float total = 0.0f, sums[COLUMNS];
  UNROLL
  for (int i = 0; i < COLUMNS; i++) sums[i] = 0.0f;
  for (int first = 0; first < p.splits; first += LANES) {  // a lane has the share of one split
    const int mine = first + int(lane);
    const float of_split = mine < p.splits ? of_row[mine * step + 1] : 0.0f;
    const float my_share = of_split == 0.0f ? 0.0f : metal::fast::exp2((of_row[mine * step] - largest) * LOG2_E);
    total += of_split * my_share;
    for (int split = first; split < metal::min(first + LANES, p.splits); split++) {
      const float share = metal::simd_shuffle(my_share, ushort(split - first));
      if (share == 0.0f) continue;
      const device float* from = partial + (((unit * p.splits + split) * p.rows + row) * p.columns + first_column);
      UNROLL
      for (int i = 0; i < COLUMNS; i++)
        if (first_column + i < p.columns) sums[i] += from[int64_t(i)] * share;
    }
  }
  total = metal::simd_sum(total);

  const int64_t at = unit * p.rows + row;
  UNROLL
  for (int i = 0; i < COLUMNS; i++) {
    const int column = first_column + i;
    if (column >= p.columns) continue;
    float value = total == 0.0f ? 0.0f : sums[i] * (1.0f / total);
    if (MEANS && total != 0.0f) {
      const int64_t batch = metal::min(unit / p.kv_heads, int64_t(p.kv_batches - 1));
      value += value_means[(batch * p.kv_heads + unit % p.kv_heads) * p.columns + column];
    }
    out[at * p.columns + column] = T(value);
  }
  if (first_column == 0) {
    lse[at] = total == 0.0f ? minus_infinity() : largest + metal::precise::log(total);
    max_scores[at] = total == 0.0f ? minus_infinity() : largest;
  }
}

// -- body: what MLX puts between the braces --
merge_splits<MEANS>(partial, statistics, value_means, out, lse, max_scores, merge_sizes(sizes),
                    threadgroup_position_in_grid, thread_index_in_simdgroup);
