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

// S = mask(score_mod(S)) of 8 TILES keys from `first` on. MASKED: some key may be left out; RAGGED: or does not exist.
// state: a TileState, which says what is asked of the mask. states: the blocks of this batch and head (Walk::states).
template <bool MASKED, bool RAGGED, int BLOCKS, int TILES>
INLINE void modify(Sums (&scores)[TILES], int first, int state, const uint8_t* states, const AttentionParams& p,
                   const Mods& mods, int b, int h, int first_row, int lane) {
  UNROLL
  for (int half = 0; half < 2; half++) {
    const int q_idx = smaller(first_row + 8 * half + lane / 4, p.q_len - 1);
    const auto score_mod = mods.score_mod(b, h, q_idx);
    const auto mask_mod = mods.mask_mod(b, h, q_idx);
    UNROLL
    for (int j = 0; j < TILES; j++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        float& score = scores[j].at[2 * half + e];
        const int kv_idx = first + 8 * j + 2 * (lane & 3) + e;
        const int key = RAGGED ? smaller(kv_idx, p.kv_len - 1) : kv_idx;
        if constexpr (HAS_SCORE_MOD) score = score_mod(score, key);
        if constexpr (MASKED) {
          bool kept = !RAGGED || kv_idx < p.kv_len;
          int asked = state;
          if constexpr (BLOCKS == CUT_TILES) {
            if (asked == LOOK_UP) {
              const int block = states[int64_t(q_idx / p.q_block) * p.kv_blocks + key / p.kv_block];
              kept = kept && block != 0;
              asked = block == 1 ? ASK : NO_MASK;
            }
          }
          if constexpr (HAS_MASK_MOD) {
            if (asked == ASK) kept = kept && mask_mod(key);
          }
          if (!kept) score = -INFINITY;
        }
      }
    }
  }
}
