// sizes.h: the params of a gradient kernel, in two inputs so short that MLX passes them in the constant address space,
// which takes no registers of a thread.
#pragma once
#include "../attention/params.h"

// sizes: the fields of AttentionParams before the block mask, then first_tile. mask_sizes: those of the block mask,
// then `sharing`, the batches of q that read one batch of keys.
constexpr constant int SIZES = 7, SHARING = 6;

inline AttentionParams read_sizes(const constant int* sizes, const constant int* mask_sizes) {
  AttentionParams p;
  p.query_heads = sizes[0];
  p.kv_heads = sizes[1];
  p.kv_batches = sizes[2];
  p.q_len = sizes[3];
  p.kv_len = sizes[4];
  p.scale = as_type<float>(sizes[5]);
  p.first_tile = sizes[6];
  p.mask_batches = mask_sizes[0];
  p.mask_heads = mask_sizes[1];
  p.q_blocks = mask_sizes[2];
  p.kv_blocks = mask_sizes[3];
  p.q_block = mask_sizes[4];
  p.kv_block = mask_sizes[5];
  return p;
}
