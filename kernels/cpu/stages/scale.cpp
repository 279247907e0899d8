// scale.cpp: out = x * factor, in float32, rounded once to the dtype of x.
#include "stage.h"

struct Scale {
  Tensor x, out;
  double factor;
  Caller caller;
};

TAKES(Scale)
extern "C" __attribute__((visibility("default"))) int flextrace_stage(const Scale* call) {
  const Scale& s = *call;
  int64_t columns = s.x.shape[3];
  float factor = s.factor;
  return for_each(s.x.rows(), columns, s.caller, round_up(columns, VL) * 4, [&](int64_t i, void* memory) {
    Matrix x = s.x.row(i);
    float* row = (float*)memory;
    for (int64_t c = 0; c < columns; c += VL) store_vector(row + c, widen(x, 0, c) * factor);
    narrow_row(s.out.at(i), row, columns, s.out.dtype);
  });
}
