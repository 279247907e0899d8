// gradient.h: the hole of the backward kernel, and its template: the score_mod with its derivative, and where the
// gradients of captured arrays go. As it lies here it leaves the scores as they are.
#pragma once
#include "mod.h"

// How the element of a captured array that one score reads varies: by row alone, by key alone, by q_idx - kv_idx
// alone (each of one batch and head), in another element for each score of one head, or in any way.
enum Pattern { ROW, COLUMN, DIAGONAL, DENSE, TABLE };

// A place in the score_mod that reads a captured array whose gradient is asked for.
struct Site {
  Pattern pattern;
  int array;     // slot of what is read
  int gradient;  // number of its gradient
};

// {{ sites
constexpr int SITES = 0;
constexpr Site SITE[] = {{ROW, 0, 0}};
// }}

// The modified scores of VL neighbouring keys, and their derivatives by the score and by what each site reads.
struct ScoreGradient {
  vfloat score, by_score, by_site[SITES + 1];
};

namespace fx {

// Where array[index, ...] lies in a contiguous array of the same shape, for one element or for VL of them.
template <class... Index>
INLINE offsets place(const Inputs& in, int slot, Index... index) {
  Array array = in.arrays[slot];
  int64_t stride = 1;
  for (int axis = sizeof...(Index) - 1; axis >= 0; axis--) {
    array.strides[axis] = stride;
    stride *= array.shape[axis];
  }
  offsets where;
  int axis = 0;
  (add_axis(where, array, axis++, index), ...);
  (void)axis;
  return where;
}

}  // namespace fx

struct GradientMods {
  // {{ score_gradient
  static auto score_gradient(int b, int h, int q_idx, const Inputs& in) {
    (void)b, (void)h, (void)q_idx, (void)in;
    return [=](vfloat score, vint kv_idx) {
      (void)kv_idx;
      return ScoreGradient{score, splat(1.0f), {}};
    };
  }
  // }}

  // {{ place
  // Which elements of their arrays VL neighbouring scores read at a site.
  static auto place(int b, int h, int q_idx, const Inputs& in) {
    (void)b, (void)h, (void)q_idx;
    return [=](int site, vfloat score, vint kv_idx) {
      (void)site, (void)score, (void)kv_idx, (void)in;
      return fx::offsets();
    };
  }
  // }}
};
