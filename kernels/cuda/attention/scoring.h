// scoring.h: the mods on the scores that a lane holds of 16 query rows.
#pragma once
#include "../mod/mod.h"
#include "../tile/products.h"
#include "params.h"
#include "walk.h"

template <int TILES>
INLINE void scale_scores(Sums (&scores)[TILES], float scale) {
  UNROLL
  for (int j = 0; j < TILES; j++) {
    UNROLL
    for (int i = 0; i < 4; i++) scores[j].at[i] *= scale;
  }
}

// Which keys are kept of the scores that a lane holds of a row, of 8 TILES keys from `first` on: bit 2 j + e. A loop: few
// tiles are masked, and a mask may be long. blocks: of this row, where the edge of one runs through the tile.
template <bool LOOKED_UP, int TILES, typename Mask>
INLINE uint kept_keys(int first, const uint8_t* blocks, const AttentionParams& p, const Mask& mask_mod, int lane) {
  static_assert(TILES <= 16, "a bit for each");
  uint bits = 0;
#pragma unroll 4
  for (int i = 0; i < 2 * TILES; i++) {
    const int key = first + 8 * (i >> 1) + 2 * (lane & 3) + (i & 1);
    bool kept;
    if constexpr (LOOKED_UP) {
      const int block = blocks[smaller(key, p.kv_len - 1) / p.kv_block];
      kept = block == 2 || (block == 1 && (!HAS_MASK_MOD || mask_mod(key)));
    } else {
      kept = mask_mod(key);
    }
    bits |= uint(kept) << i;
  }
  return bits;
}

// S = mask(score_mod(S)) of the keys of a tile. states: the blocks of this batch and head (Walk::states). Keys beyond the
// last are asked about too: the mods read no array out of bounds.
template <int BLOCKS, int TILES>
INLINE void modify(Sums (&scores)[TILES], int first, int state, bool ragged, const uint8_t* states,
                   const AttentionParams& p, const Mods& mods, int b, int h, int first_row, int lane) {
  const int first_key = first + 2 * (lane & 3);
  UNROLL
  for (int half = 0; half < 2; half++) {
    const int q_idx = smaller(first_row + 8 * half + lane / 4, p.q_len - 1);
    const auto mask_mod = mods.mask_mod(b, h, q_idx);
    const auto keep = [&](auto kept) {
      UNROLL
      for (int j = 0; j < TILES; j++) {
        UNROLL
        for (int e = 0; e < 2; e++) {
          if (!kept(j, e)) scores[j].at[2 * half + e] = -INFINITY;
        }
      }
    };
    if constexpr (HAS_SCORE_MOD) {
      const auto score_mod = mods.score_mod(b, h, q_idx);
      UNROLL
      for (int j = 0; j < TILES; j++) {
        UNROLL
        for (int e = 0; e < 2; e++) {
          float& score = scores[j].at[2 * half + e];
          score = score_mod(score, first_key + 8 * j + e);
        }
      }
    }
    if (ragged) keep([&](int j, int e) { return first_key + 8 * j + e < p.kv_len; });
    if constexpr (BLOCKS == CUT_TILES) {
      if (state == LOOK_UP) {
        const uint8_t* blocks = states + int64_t(q_idx / p.q_block) * p.kv_blocks;
        const uint bits = kept_keys<true, TILES>(first, blocks, p, mask_mod, lane);
        keep([&](int j, int e) { return (bits >> (2 * j + e)) & 1; });
      }
    }
    if constexpr (HAS_MASK_MOD) {
      if (state == ASK) {
        if constexpr (MASK_IS_SHORT) {
          keep([&](int j, int e) { return mask_mod(first_key + 8 * j + e); });
        } else {
          const uint bits = kept_keys<false, TILES>(first, nullptr, p, mask_mod, lane);
          keep([&](int j, int e) { return (bits >> (2 * j + e)) & 1; });
        }
      }
    }
  }
}
