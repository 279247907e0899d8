// transposed.h: the mask as a kernel sees it whose rows are keys, and whose walk goes over tiles of query rows.
#pragma once
#include "../mod/mod.h"

// What walk.h asks of Mods: its row is a key here, and its keys are query rows.
template <typename Captured>
struct TransposedMask {
  Captured mods;

  INLINE bool mask_mod(int b, int h, int kv_idx, int q_idx) const thread { return mods.mask_mod(b, h, q_idx, kv_idx); }

  template <int FRAGMENTS>
  INLINE uint mask_row(int b, int h, int kv_idx, int q_first, int q_len) const thread {
    uint bits = 0;
    ROLLED
    for (int i = 0; i < 2 * FRAGMENTS; i++) {
      const int q_idx = q_first + i / 2 * FRAGMENT + i % 2;
      if (q_idx < q_len && mods.mask_mod(b, h, q_idx, kv_idx)) bits |= 1u << i;
    }
    return bits;
  }

  INLINE int tile_state(int batch, int head, int last_head, int kv_first, int kv_last, int q_first, int q_last)
      const thread {
    return mods.tile_state(batch, head, last_head, q_first, q_last, kv_first, kv_last);
  }
};
template <typename Captured>
INLINE TransposedMask<Captured> transposed(const thread Captured& mods) {
  TransposedMask<Captured> mask;
  mask.mods = mods;
  return mask;
}
