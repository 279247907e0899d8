// lists.h: which blocks of keys a block of query rows reads, from the lists of a BlockMask.
#pragma once
#include "../tile/matrix.h"
#include "../tile/words.h"

// The shape of the lists: each kernel that has some reads these words behind its own.
struct ListParams {
  int mask_batches;  // 1 to broadcast
  int mask_heads;
  int q_blocks;
  int columns;  // that the lists of partial blocks have
  int full_columns;
  int q_block;  // rows and columns of a block
  int kv_block;
};
constexpr constant int LIST_WORDS = 7;
static_assert(sizeof(ListParams) == 4 * LIST_WORDS, "every field is a word");

// One row of blocks: entries 0 to partial - 1 are partial blocks, those from there to all - 1 full ones.
struct ListedBlocks {
  const device int* indices;
  const device int* full_indices;
  int partial, all;
  int kv_block;

  // The keys of entry i; none where it names no block.
  Range keys(int i, int kv_len) const thread {
    int block = i < partial ? indices[i] : full_indices[i - partial];
    Range range;
    range.first = range.end = 0;
    if (block >= 0 && block <= (kv_len - 1) / kv_block) range = block_of(block, kv_block, kv_len);
    return range;
  }
};

// The lists of partial blocks and of full ones, all contiguous. kv_num_blocks, full_kv_num_blocks: [mask_batches,
// mask_heads, q_blocks]; kv_indices, full_kv_indices: the same and their columns.
struct Lists {
  const device int* kv_num_blocks;
  const device int* kv_indices;
  const device int* full_kv_num_blocks;
  const device int* full_kv_indices;
};
INLINE Lists lists(const device int* kv_num_blocks, const device int* kv_indices, const device int* full_kv_num_blocks,
                   const device int* full_kv_indices) {
  Lists all;
  all.kv_num_blocks = kv_num_blocks;
  all.kv_indices = kv_indices;
  all.full_kv_num_blocks = full_kv_num_blocks;
  all.full_kv_indices = full_kv_indices;
  return all;
}

// The part of the lists for one row of blocks.
INLINE ListedBlocks listed_blocks(Lists lists, ListParams p, int b, int h, int q_block) {
  int64_t row = (int64_t(metal::min(b, p.mask_batches - 1)) * p.mask_heads + metal::min(h, p.mask_heads - 1)) *
                    p.q_blocks + q_block;
  ListedBlocks blocks;
  blocks.indices = lists.kv_indices + row * p.columns;
  blocks.full_indices = lists.full_kv_indices + row * p.full_columns;
  blocks.partial = metal::clamp(lists.kv_num_blocks[row], 0, p.columns);
  blocks.all = blocks.partial + metal::clamp(lists.full_kv_num_blocks[row], 0, p.full_columns);
  blocks.kv_block = p.kv_block;
  return blocks;
}
