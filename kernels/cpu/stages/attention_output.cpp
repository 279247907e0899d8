// attention_output.cpp: the end of attention: out = product / sum, lse = max + log(sum), in natural units; a row that
// attended to nothing (sum 0) gives 0 and -inf.
#include "stage.h"

struct AttentionOutput {
  Tensor product, max_scores, sums, out;  // max_scores and sums with a last axis of 1
  float* lse;                             // [rows]
  Caller caller;
};

TAKES(AttentionOutput)
extern "C" __attribute__((visibility("default"))) int flextrace_stage(const AttentionOutput* call) {
  const AttentionOutput& s = *call;
  int64_t columns = s.product.shape[3];
  return for_each(s.product.rows(), columns + 16, s.caller, round_up(columns, VL) * 4,
                  [&](int64_t i, void* memory) {
    Matrix product = s.product.row(i);
    float* row = (float*)memory;
    float sum = widen(s.sums.row(i), 0, 0)[0], max = widen(s.max_scores.row(i), 0, 0)[0];
    float inverse = sum == 0 ? 0 : 1 / sum;
    for (int64_t c = 0; c < columns; c += VL) store_vector(row + c, widen(product, 0, c) * inverse);
    narrow_row(s.out.at(i), row, columns, s.out.dtype);
    s.lse[i] = sum == 0 ? -INFINITE : max + __builtin_log(sum);
  });
}
