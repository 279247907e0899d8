// params.h: one call, as kernels/cuda/launch.py packs it; float by its bits, since MLX passes ints.
#pragma once

struct AttentionParams {
  int query_heads, kv_heads, kv_batches, q_len, kv_len;
  float scale;
  int mask_batches, mask_heads, q_blocks, kv_blocks, q_block, kv_block;
};
