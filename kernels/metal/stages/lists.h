// lists.h: which blocks of keys a block of query rows reads, from the lists of a BlockMask.
#pragma once
#include "tensor.h"

// Words of `params` from FIRST on, as every kernel with lists has them.
struct ListParams {
  int mask_batches, mask_heads;  // 1 to broadcast
  int q_blocks;
  int columns, full_columns;  // of the two lists
  int q_block, kv_block;      // rows and columns of a block
};
inline ListParams read_list_params(const device int* words) {
  ListParams p;
  p.mask_batches = words[0];
  p.mask_heads = words[1];
  p.q_blocks = words[2];
  p.columns = words[3];
  p.full_columns = words[4];
  p.q_block = words[5];
  p.kv_block = words[6];
  return p;
}
constexpr constant int LIST_WORDS = 7;

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

// kv_num_blocks, full_kv_num_blocks: [mask_batches, mask_heads, q_blocks]; kv_indices, full_kv_indices: the same and
// their columns; all contiguous.
inline ListedBlocks listed_blocks(const device int* kv_num_blocks, const device int* kv_indices,
                                  const device int* full_kv_num_blocks, const device int* full_kv_indices,
                                  ListParams p, int b, int h, int q_block) {
  int64_t row = (int64_t(metal::min(b, p.mask_batches - 1)) * p.mask_heads + metal::min(h, p.mask_heads - 1)) *
                    p.q_blocks + q_block;
  ListedBlocks blocks;
  blocks.indices = kv_indices + row * p.columns;
  blocks.full_indices = full_kv_indices + row * p.full_columns;
  blocks.partial = metal::clamp(kv_num_blocks[row], 0, p.columns);
  blocks.all = blocks.partial + metal::clamp(full_kv_num_blocks[row], 0, p.full_columns);
  blocks.kv_block = p.kv_block;
  return blocks;
}
