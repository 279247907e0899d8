// score_mod.metal: mask(score_mod(scores)), element by element, -inf where the mask does not attend.
//
// With a BlockMask a threadgroup has some rows of one listed block; mask_mod is asked in partial ones only, and blocks
// in no list keep the -inf that the output starts with.
#include "../mod/mod.h"
#include "../attention/softmax.h"
#include "elementwise.h"
#include "lists.h"

template <typename Captured>
INLINE float modified(float score, const thread Captured& mods, bool ask, int b, int h, int q_idx, int kv_idx) {
  if (HAS_MASK_MOD && ask && !mods.mask_mod(b, h, q_idx, kv_idx)) return minus_infinity();
  return HAS_SCORE_MOD ? mods.score_mod(score, b, h, q_idx, kv_idx) : score;
}

// scores: [batch, heads, q_len, kv_len], which is p; any strides. out: contiguous.
template <typename Captured>
INLINE void modify_all(Tensor<float> scores, device float* out, ShapeParams p, const thread Captured& mods,
                       metal::uint3 group, metal::uint3 in_group, metal::uint3 group_size) {
  const Place place = place_in(group, in_group, group_size, p.heads);
  if (place.row >= p.rows) return;
  const Matrix<float> from = scores.head(place.b, place.h);
  device float* to = out + row_start(place, p.heads, p.rows, p.columns);
  UNROLL
  for (int i = 0; i < ITEMS; i++) {
    int kv_idx = place.column + i * place.step;
    if (kv_idx < p.columns)
      to[kv_idx] = modified(*from.at(place.row, kv_idx), mods, true, place.b, place.h, place.row, kv_idx);
  }
}

constexpr constant int SLAB = 16;  // rows of a block that one threadgroup has

// group: (entry of the lists, block of query rows and slab of it, batch and head).
template <typename Captured>
INLINE void modify_listed(Tensor<float> scores, device float* out, ShapeParams p, Lists lists, ListParams of_lists,
                          const thread Captured& mods, metal::uint3 group, uint index, uint threads) {
  const int slabs = (of_lists.q_block + SLAB - 1) / SLAB, q_block = int(group.y) / slabs;
  const int entry = int(group.x), b = int(group.z) / p.heads, h = int(group.z) % p.heads;
  const ListedBlocks blocks = listed_blocks(lists, of_lists, b, h, q_block);
  if (entry >= blocks.all) return;
  const Range keys = blocks.keys(entry, p.columns);
  const Range rows = cut(block_of(q_block, of_lists.q_block, p.rows), int(group.y) % slabs, SLAB);
  const int width = keys.end - keys.first, size = (rows.end - rows.first) * width;
  const Matrix<float> from = scores.head(b, h);
  for (int i = int(index); i < size; i += int(threads)) {
    int q_idx = rows.first + i / width, kv_idx = keys.first + i % width;
    float score = *from.at(q_idx, kv_idx);
    out[(int64_t(group.z) * p.rows + q_idx) * p.columns + kv_idx] =
        modified(score, mods, entry < blocks.partial, b, h, q_idx, kv_idx);
  }
}

// -- body: what MLX puts between the braces --
const ShapeParams p = read_params<ShapeParams>(params);
const auto mods = captured_by_mods(params + SHAPE_WORDS + LIST_WORDS CAPTURED_ARRAYS);
if (LISTED) {
  modify_listed(tensor(scores, scores_strides), out, p,
                lists(kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices),
                read_params<ListParams>(params + SHAPE_WORDS), mods, threadgroup_position_in_grid,
                thread_index_in_threadgroup, threads_per_threadgroup.x);
} else {
  modify_all(tensor(scores, scores_strides), out, p, mods, threadgroup_position_in_grid,
             thread_position_in_threadgroup, threads_per_threadgroup);
}
