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

// What blocks say of the scores that a lane holds, where the edge of one runs through the tile: bit 2 j + e of either
// half, whether the score exists and whether mask_mod is to be asked.
struct Blocked {
  uint kept[2], asked[2];
};

// Of 8 TILES keys from `first` on. states: the blocks of this batch and head (Walk::states).
template <int TILES>
CALLED Blocked look_up(const uint8_t* states, const AttentionParams& p, int first, int first_row, int lane) {
  static_assert(TILES <= 16, "a bit for each");
  Blocked found;
  ROLLED
  for (int half = 0; half < 2; half++) {
    const int q_idx = smaller(first_row + 8 * half + lane / 4, p.q_len - 1);
    const uint8_t* row = states + int64_t(q_idx / p.q_block) * p.kv_blocks;
    uint kept = 0, asked = 0;
    ROLLED
    for (int i = 0; i < 2 * TILES; i++) {
      const int kv_idx = first + i / 2 * 8 + 2 * (lane & 3) + i % 2;
      const int block = row[smaller(kv_idx, p.kv_len - 1) / p.kv_block];
      kept |= uint(block != 0) << i;
      asked |= uint(block == 1) << i;
    }
    found.kept[half] = kept, found.asked[half] = asked;
  }
  return found;
}

// S = mask(score_mod(S)) of 8 TILES keys from `first` on. MASKED: some key may be left out; RAGGED: or does not exist.
// state: a TileState, which says what is asked of the mask.
template <bool MASKED, bool RAGGED, int BLOCKS, int TILES>
INLINE void modify(Sums (&scores)[TILES], int first, int state, const uint8_t* states, const AttentionParams& p,
                   const Mods& mods, int b, int h, int first_row, int lane) {
  constexpr bool CUT = MASKED && BLOCKS == CUT_TILES;
  Blocked blocked = {{~0u, ~0u}, {0, 0}};
  if constexpr (CUT) {
    if (state == LOOK_UP) blocked = look_up<TILES>(states, p, first, first_row, lane);
    if (state == ASK) blocked.asked[0] = blocked.asked[1] = ~0u;
  }
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
          if constexpr (CUT) kept = kept && (blocked.kept[half] >> (2 * j + e)) & 1;
          if constexpr (HAS_MASK_MOD) {
            if (CUT ? (blocked.asked[half] >> (2 * j + e)) & 1 : state == ASK) kept = kept && mask_mod(key);
          }
          if (!kept) score = -INFINITY;
        }
      }
    }
  }
}
