// mod.h: the one hole of the kernel, and its template. template/hole.py says what is replaced for a user's mods; as it
// lies here it leaves the scores as they are.
#pragma once
// {{ library
#include "ops.h"
// }}

constexpr bool APPROXIMATE = false;
typedef fx::Special<APPROXIMATE> special;
constexpr bool HAS_SCORE_MOD = false;
constexpr bool HAS_MASK_MOD = false;
constexpr bool MASK_IS_SHORT = true;  // it may stand once for each element of a lane

// What the mods capture, and the mods themselves: of each array its elements (array0), its shape and its strides; the
// extremes of its blocks where tile_state reads them (extremes0); each number (number0).
struct Mods {
  // {{ captures
  // }}

  // Functions of a row give functions of the rest: what is the same for all keys is computed once.
  // {{ score_mod
  // One score, already scaled; natural units. h is the query head.
  INLINE auto score_mod(int b, int h, int q_idx) const {
    return [=](float score, int kv_idx) { return score; };
  }
  // }}

  // {{ mask_mod
  // Whether row q_idx attends to key kv_idx.
  INLINE auto mask_mod(int b, int h, int q_idx) const {
    return [=](int kv_idx) { return true; };
  }
  // }}

  // {{ tile_state
  // What the mask leaves of rows q_first to q_last and keys kv_first to kv_last in query heads head to last_head: 0
  // nothing, 1 to be asked, 2 all.
  INLINE int tile_state(int batch, int head, int last_head, int q_first, int q_last, int kv_first, int kv_last) const {
    return 2;
  }
  // }}
};
