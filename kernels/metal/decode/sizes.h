// sizes.h: what the launcher hands to the kernel for few query rows, as 7 int64, so few that MLX passes them in the
// constant address space, which takes no registers of a thread.
#pragma once
#include "../tile/words.h"

struct DecodeSizes {
  int kv_heads;
  int group;       // query heads that share a head of keys
  int kv_batches;  // batch, or 1: one batch of keys and values serves all
  int q_len;
  int kv_len;
  float scale;  // score = scale * (q . k), before score_mod
  int splits;   // threadgroups that share the keys of one head

  // The block mask; unused without one. tile_lists has, for every [mask_batches, 1 or kv_heads], runs of tiles of keys
  // to visit, as tile_lists.py has them; behind them lie the states of blocks, [mask_batches, mask_heads, q_blocks,
  // kv_blocks], a byte each.
  int mask_batches;
  int mask_heads;
  int q_blocks;
  int kv_blocks;
  int q_block;
  int kv_block;

  int rows() const thread { return group * q_len; }
};

INLINE DecodeSizes decode_sizes(const constant int64_t* words) {
  DecodeSizes p;
  p.kv_heads = word(words, 0);
  p.group = word(words, 1);
  p.kv_batches = word(words, 2);
  p.q_len = word(words, 3);
  p.kv_len = word(words, 4);
  p.scale = as_type<float>(word(words, 5));
  p.splits = word(words, 6);
  p.mask_batches = word(words, 7);
  p.mask_heads = word(words, 8);
  p.q_blocks = word(words, 9);
  p.kv_blocks = word(words, 10);
  p.q_block = word(words, 11);
  p.kv_block = word(words, 12);
  return p;
}
