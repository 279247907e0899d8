// peak.cpp: how many float32 multiply-adds a core does at most: independent chains on registers only.
#include "vector.h"

// Runs `rounds` rounds of CHAINS multiply-adds per lane; gives the floating-point operations of one round.
extern "C" __attribute__((visibility("default"))) double flextrace_peak(int64_t rounds) {
  constexpr int CHAINS = REGISTERS == 32 ? 16 : 10;
  vfloat sum[CHAINS], factor = splat(0.999f), addend = splat(0.001f);
  for (int i = 0; i < CHAINS; i++) sum[i] = splat((float)i);
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * factor + addend;
  }
  vfloat total = {};
  for (int i = 0; i < CHAINS; i++) total += sum[i];
  volatile float keep = total[0];
  (void)keep;
  return 2.0 * CHAINS * VL;
}
