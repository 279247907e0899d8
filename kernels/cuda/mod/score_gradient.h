// score_gradient.h: the score_mod and what it changes by, a hole as mod.h is; as it lies here scores stay as they are.
#pragma once
#include "mod.h"

constexpr int SITES = 0;  // reads of captured arrays, of whose gradients this kernel sums its part

// score: modified. slope: its derivative by the score that the mod was given; sites: by what each site reads.
struct ScoreGradient {
  float score, slope;
  float sites[SITES > 0 ? SITES : 1];
};

struct GradientMods : Mods {
  // {{ called
  // }}

  // {{ score_gradient
  // A function of a row gives one of the rest, as in mod.h.
  INLINE auto score_gradient(int b, int h, int q_idx) const {
    return [=](float score, int kv_idx) {
      ScoreGradient made;
      made.score = score;
      made.slope = 1.0f;
      return made;
    };
  }
  // }}

  // {{ element
  // Which element of its array the first site reads, counted row after row.
  INLINE int64_t element(float score, int b, int h, int q_idx, int kv_idx) const {
    return 0;
  }
  // }}

  // {{ element_count
  // How many the array has.
  INLINE int64_t element_count() const {
    return 1;
  }
  // }}
};
