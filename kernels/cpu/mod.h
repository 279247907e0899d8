// mod.h: the one hole of the kernel. These bodies leave the scores as they are; assembling a kernel for a user's
// mods replaces this file by generated text with the same names and signatures.
#pragma once
#include "ops.h"

constexpr bool HAS_SCORE_MOD = false;
constexpr bool HAS_MASK_MOD = false;
constexpr bool MASK_USES_BATCH = false;  // mask_mod reads b: tiles found for one batch do not hold for the next
constexpr bool MASK_USES_HEAD = false;   // mask_mod reads h

// VL neighbouring scores of one row; natural units, already scaled.
inline vfloat score_mod(vfloat score, int b, int h, int q_idx, vint kv_idx, const Inputs& in) {
  (void)b, (void)h, (void)q_idx, (void)kv_idx, (void)in;
  return score;
}

// Which of VL neighbouring keys row q_idx attends to.
inline vbool mask_mod(int b, int h, int q_idx, vint kv_idx, const Inputs& in) {
  (void)b, (void)h, (void)q_idx, (void)kv_idx, (void)in;
  return splat(true);
}
