// transposed.h: the bounds of a mask for a kernel whose rows are keys, and whose walk goes over tiles of query rows.
#pragma once
#include "../mod/mod.h"

struct TransposedMask {
  const Mods& mods;

  INLINE TransposedMask(const Mods& captured) : mods(captured) {}
  INLINE int tile_state(int batch, int head, int last_head, int kv_first, int kv_last, int q_first, int q_last) const {
    return mods.tile_state(batch, head, last_head, q_first, q_last, kv_first, kv_last);
  }
};
