// mod.h: the one hole of the kernel. These bodies leave the scores as they are; assembling a kernel for a user's
// mods replaces this file by generated text with the same names and signatures.
#pragma once
#include "ops.h"

constexpr bool HAS_SCORE_MOD = false;
constexpr bool HAS_MASK_MOD = false;
constexpr bool MASK_USES_BATCH = false;  // mask_mod reads b: tiles found for one batch do not hold for the next
constexpr bool MASK_USES_HEAD = false;   // mask_mod reads h

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
