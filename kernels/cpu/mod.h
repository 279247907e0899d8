// mod.h: the one hole of the kernel. These bodies leave the scores as they are; assembling a kernel for a user's
// mods replaces this file by generated text with the same names and signatures.
#pragma once
#include "gathers.h"
#include "ops.h"

constexpr Keys KEYS = PLAIN;
constexpr bool HAS_SCORE_MOD = false;
constexpr bool HAS_MASK_MOD = false;
constexpr bool MASK_USES_BATCH = false;  // mask_mod reads b: tiles found for one batch do not hold for the next
constexpr bool MASK_USES_HEAD = false;   // mask_mod reads h
constexpr int ARRAYS = 0;                // captured by both mods

// Each gives, for row q_idx, a function of VL neighbouring keys: what is the same for the whole row is computed once.
// score: VL neighbouring scores in natural units, already scaled.
inline auto score_mod(int b, int h, int q_idx, const Inputs& in) {
  (void)b, (void)h, (void)q_idx, (void)in;
  return [=](vfloat score, vint kv_idx) {
    (void)kv_idx;
    return splat(score);
  };
}

// Which of the keys row q_idx attends to.
inline auto mask_mod(int b, int h, int q_idx, const Inputs& in) {
  (void)b, (void)h, (void)q_idx, (void)in;
  return [=](vint kv_idx) {
    (void)kv_idx;
    return splat(true);
  };
}

// What mask_mod leaves of rows q_first..q_last: of their keys kv_first..kv_last 0 nothing, 1 look closer, 2 all.
inline auto tile_state(int batch, int head, int q_first, int q_last, const Inputs& in) {
  (void)batch, (void)head, (void)q_first, (void)q_last, (void)in;
  return [=](int kv_first, int kv_last) {
    (void)kv_first, (void)kv_last;
    return 2;
  };
}

// use(Type<of the elements>(), slot, axis) for each array that tile_state reads ranges of, and along which axis.
template <class Use>
inline void ranged_arrays(const Use& use) {
  (void)use;
}
