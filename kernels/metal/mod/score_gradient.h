// score_gradient.h: the score_mod and what it changes by, a hole as mod.h is; as it lies here scores stay as they are.
#pragma once
#include "mod.h"

constexpr constant int SITES = 0;  // reads of captured arrays, of whose gradients this kernel sums its part

// score: modified. slope: its derivative by the score that the mod was given; sites: by what each site reads.
struct ScoreGradient {
  float score, slope;
  float sites[SITES > 0 ? SITES : 1];
};

template <typename Captured>
// {{ score_gradient
INLINE ScoreGradient score_gradient(const thread Captured& mods, float score, int b, int h, int q_idx, int kv_idx) {
  ScoreGradient made;
  made.score = score;
  made.slope = 1.0f;
  return made;
}
// }}

// Which element of its array the first site reads, counted row after row; and how many the array has.
template <typename Captured>
// {{ element
INLINE int64_t element(const thread Captured& mods, float score, int b, int h, int q_idx, int kv_idx) {
  return 0;
}
// }}
template <typename Captured>
// {{ element_count
INLINE int64_t element_count(const thread Captured& mods) {
  return 1;
}
// }}
