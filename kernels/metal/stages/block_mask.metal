// block_mask.metal: mask_mod -> the lists of a BlockMask: for every block of query rows, in ascending order, the
// blocks of keys that it attends to in part, and those that it attends to whole.
//
// A threadgroup has one row of blocks. Its simdgroups ask mask_mod about 32 blocks at a time; two words of 32 bits then
// say of each whether any of its scores is kept, and whether all are, and counting bits gives an entry its place.
#include "../mod/mod.h"
#include "../tile/matrix.h"
#include "../tile/words.h"

constexpr constant int SIMDGROUPS = 4;
constexpr constant int SLAB = 64;  // rows that are numbered together: numbers fit an int
constexpr constant int IN_HAND = 32 / SIMDGROUPS;  // blocks that a simdgroup looks at before the next barrier

struct BlockState {
  bool any, all;
};

// What mask_mod says of the rows and keys of one block; the same in all lanes.
template <typename Captured>
INLINE BlockState look_at(Range rows, Range keys, const thread Captured& mods, int b, int h, uint lane) {
  constexpr int AT_ONCE = 8;  // elements of a lane between two looks at what is known already
  const int width = keys.end - keys.first;
  BlockState state;
  state.any = false;
  state.all = true;
  for (int top = rows.first; top < rows.end; top += SLAB) {
    const int size = metal::min(SLAB, rows.end - top) * width;
    for (int first = 0; first < size; first += AT_ONCE * LANES) {
      bool kept = false, dropped = false;
      for (int i = first + int(lane); i < metal::min(size, first + AT_ONCE * LANES); i += LANES) {
        bool keep = mods.mask_mod(b, h, top + i / width, keys.first + i % width);
        kept = kept || keep;
        dropped = dropped || !keep;
      }
      state.any = metal::simd_any(kept) || state.any;
      state.all = !metal::simd_any(dropped) && state.all;
      if (state.any && !state.all) return state;
    }
  }
  return state;
}

// Writes the entries whose bit is set, behind the `count` that are there; the blocks in hand begin at `base`.
INLINE int append(device int* list, int count, uint bits, int base, uint index) {
  if (index < 32 && ((bits >> index) & 1))
    list[count + int(metal::popcount(bits & ((1u << index) - 1)))] = base + int(index);
  return count + int(metal::popcount(bits));
}

struct BlockMaskParams {
  int q_len;
  int kv_len;
  int q_block;  // rows and columns of a block
  int kv_block;
  int kv_blocks;
};
constexpr constant int BLOCK_MASK_WORDS = 5;
static_assert(sizeof(BlockMaskParams) == 4 * BLOCK_MASK_WORDS, "every field is a word");

// params: BlockMaskParams; kv_num_blocks, full_kv_num_blocks: [batch, heads, q_blocks];
// kv_indices, full_kv_indices: the same and kv_blocks. votes: two words for each simdgroup, twice.
// at.group: (block of query rows, head, batch).
template <typename Captured>
INLINE void block_mask(device int* kv_num_blocks, device int* kv_indices, device int* full_kv_num_blocks,
                       device int* full_kv_indices, const device int* params, const thread Captured& mods,
                       threadgroup uint* votes, Thread at) {
  const BlockMaskParams p = read_params<BlockMaskParams>(params);
  const uint index = at.index();
  const int64_t row = (int64_t(at.group.z) * at.groups.y + at.group.y) * at.groups.x + at.group.x;
  device int* list = kv_indices + row * p.kv_blocks;
  device int* full_list = full_kv_indices + row * p.kv_blocks;
  const Range rows = block_of(int(at.group.x), p.q_block, p.q_len);

  int partial = 0, full = 0, turn = 0;
  for (int base = 0; base < p.kv_blocks; base += 32) {
    uint any = 0, all = 0;
    for (int i = int(at.simdgroup) * IN_HAND; i < int(at.simdgroup + 1) * IN_HAND && base + i < p.kv_blocks; i++) {
      const Range keys = block_of(base + i, p.kv_block, p.kv_len);
      BlockState state = look_at(rows, keys, mods, int(at.group.z), int(at.group.y), at.lane);
      any |= uint(state.any) << i;
      all |= uint(state.all) << i;
    }
    // The words of two turns lie apart, so that one barrier a turn is enough.
    threadgroup uint* words = votes + turn * 2 * SIMDGROUPS;
    if (at.lane == 0) {
      words[2 * at.simdgroup] = any;
      words[2 * at.simdgroup + 1] = all;
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    any = all = 0;
    for (int s = 0; s < SIMDGROUPS; s++) {
      any |= words[2 * s];
      all |= words[2 * s + 1];
    }
    partial = append(list, partial, any & ~all, base, index);
    full = append(full_list, full, all, base, index);
    turn ^= 1;
  }

  for (int i = partial + int(index); i < p.kv_blocks; i += SIMDGROUPS * LANES) list[i] = 0;
  for (int i = full + int(index); i < p.kv_blocks; i += SIMDGROUPS * LANES) full_list[i] = 0;
  if (index == 0) {
    kv_num_blocks[row] = partial;
    full_kv_num_blocks[row] = full;
  }
}

// -- body: what MLX puts between the braces --
threadgroup uint votes[4 * SIMDGROUPS];
const auto mods = captured_by_mods(params + BLOCK_MASK_WORDS CAPTURED_ARRAYS);
block_mask(kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices, params, mods, votes,
           thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
                     thread_index_in_simdgroup));
