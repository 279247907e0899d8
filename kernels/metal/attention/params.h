// params.h: what the launcher hands to one call of the kernel, besides arrays and template arguments.
#pragma once
#include "../tile/words.h"

struct AttentionParams {
  int query_heads;
  int kv_heads;    // query head h reads kv head h / (query_heads / kv_heads)
  int kv_batches;  // batch, or 1: one batch of keys and values serves all
  int q_len;
  int kv_len;
  float scale;  // score = scale * (q . k), before score_mod

  // The block mask; unused without one. tile_lists has, for every [mask_batches, mask_heads, q_tiles], runs of tiles of
  // keys to visit: where the runs of each begin, and of all; then two words per run, as TileRuns of walk.h has them.
  int mask_batches;  // batch, or 1 to broadcast
  int mask_heads;    // query_heads, or 1 to broadcast
  // Behind them lie, a byte each, the states of blocks, [mask_batches, mask_heads, q_blocks, kv_blocks]: 0 empty, 1 ask
  // mask_mod, 2 full; only where the edge of a block cuts a tile.
  int q_blocks;
  int kv_blocks;
  int q_block;  // rows and columns of one block
  int kv_block;

  int first_tile;  // the first tile of query rows that this launch takes
  int sharing;     // the batches of q that read one batch of keys
};

// The fields above lie one after the other. As 7 int64 they are so few that MLX passes them in the constant address
// space, which takes no registers of a thread; where that buffer would be one too many they lie in front of the numbers
// that the mods capture.
constexpr constant int PARAM_WORDS = 14;
static_assert(sizeof(AttentionParams) == 4 * PARAM_WORDS, "every field is a word");

template <typename Words>
INLINE AttentionParams attention_params(Words words) {
  AttentionParams p;
  p.query_heads = word(words, 0);
  p.kv_heads = word(words, 1);
  p.kv_batches = word(words, 2);
  p.q_len = word(words, 3);
  p.kv_len = word(words, 4);
  p.scale = as_type<float>(word(words, 5));
  p.mask_batches = word(words, 6);
  p.mask_heads = word(words, 7);
  p.q_blocks = word(words, 8);
  p.kv_blocks = word(words, 9);
  p.q_block = word(words, 10);
  p.kv_block = word(words, 11);
  p.first_tile = word(words, 12);
  p.sharing = word(words, 13);
  return p;
}
