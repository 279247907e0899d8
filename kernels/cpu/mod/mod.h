// mod.h: the one hole of the kernel, and its template. template/hole.py says what is replaced for a user's mods; as it
// lies here it leaves the scores as they are.
#pragma once
#include "gathers.h"
#include "ops.h"

constexpr Keys KEYS = PLAIN;
constexpr bool HAS_SCORE_MOD = false;
constexpr bool HAS_MASK_MOD = false;
constexpr bool MASK_USES_BATCH = false;  // mask_mod reads b: tiles found for one batch do not hold for the next
constexpr bool MASK_USES_HEAD = false;   // mask_mod reads h
constexpr int ARRAYS = 0;                // captured by both mods

// The mods. Each gives, for row q_idx, a function of VL neighbouring keys: what is the same for the whole row is
// computed once. `in` has what they capture.
struct Mods {
  // {{ score_mod
  // VL neighbouring scores, in natural units, already scaled.
  static auto score_mod(int b, int h, int q_idx, const Inputs& in) {
    (void)b, (void)h, (void)q_idx, (void)in;
    return [=](vfloat score, vint kv_idx) {
      (void)kv_idx;
      return splat(score);
    };
  }
  // }}

  // {{ mask_mod
  // Which of the keys row q_idx attends to.
  static auto mask_mod(int b, int h, int q_idx, const Inputs& in) {
    (void)b, (void)h, (void)q_idx, (void)in;
    return [=](vint kv_idx) {
      (void)kv_idx;
      return splat(true);
    };
  }
  // }}

  // {{ tile_state
  // What mask_mod leaves of rows q_first..q_last: of their keys kv_first..kv_last 0 nothing, 1 look closer, 2 all.
  static auto tile_state(int batch, int head, int q_first, int q_last, const Inputs& in) {
    (void)batch, (void)head, (void)q_first, (void)q_last, (void)in;
    return [=](int kv_first, int kv_last) {
      (void)kv_first, (void)kv_last;
      return 2;
    };
  }
  // }}

  // {{ ranged_arrays
  // use(Type<of the elements>(), slot, axis) for each array that tile_state reads ranges of, and along which axis.
  template <class Use>
  static void ranged_arrays(const Use& use) {
    (void)use;
  }
  // }}
};
