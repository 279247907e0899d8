// score_gradient.h: the score_mod and what it changes by, a hole as mod.h is; as it lies here scores stay as they are.
#pragma once
#include "../mod/mod.h"

// score: modified. slope: its derivative by the score that the mod was given.
struct ScoreGradient {
  float score, slope;
};

template <typename Captured>
// {{ score_gradient
inline ScoreGradient score_gradient(const thread Captured& mods, float score, int b, int h, int q_idx, int kv_idx) {
  ScoreGradient made;
  made.score = score;
  made.slope = 1.0f;
  return made;
}
// }}
