// softmax.cpp: weights = exp(x - max of the row), divided by their sum if asked; the maximum and the sum in one pass
// over the row, tile by tile (online softmax, Milakov and Gimelshein, arXiv 1805.02867), the weights in a second one.
#include "../mod/functions.h"
#include "stage.h"

struct Softmax {
  Tensor x, weights;
  float* max_scores;  // [rows]
  float* sums;
  int64_t normalise;
  Caller caller;
};

constexpr int64_t TILE = 512;  // scores whose maximum is taken before their sum

// What is subtracted before the exponential: 0 for a row of -inf, as -inf - -inf is nan.
INLINE float shift_of(float max) { return max == -INFINITE ? 0.0f : max; }
INLINE vfloat weigh(vfloat x, float shift) { return exp_nonpositive(x - shift); }

// tile[count] = columns from `first` on; -inf, which weighs nothing, up to a whole register.
static int64_t read_tile(float* tile, const Matrix& x, int64_t first) {
  int64_t count = smaller(TILE, x.columns - first);
  for (int64_t c = 0; c < count; c += VL) store_vector(tile + c, widen(x, 0, first + c));
  for (int64_t c = count; c % VL != 0; c++) tile[c] = -INFINITE;
  return count;
}

static void softmax_row(const Softmax& s, int64_t i, float* row) {
  Matrix x = s.x.row(i);
  float tile[TILE], max = -INFINITE;
  vfloat sum = {};
  for (int64_t first = 0; first < x.columns; first += TILE) {
    int64_t count = read_tile(tile, x, first);
    vfloat largest = splat(max);
    for (int64_t c = 0; c < count; c += VL) largest = larger(load_vector<vfloat>(tile + c), largest);
    float before = max;
    max = largest_lane(largest)[0];
    float shift = shift_of(max);
    sum *= weigh(splat(before), shift);
    for (int64_t c = 0; c < count; c += VL) sum += weigh(load_vector<vfloat>(tile + c), shift);
  }
  float shift = shift_of(max), total = sum_lanes(sum);
  float factor = s.normalise ? (total == 0 ? 0 : 1 / total) : 1;
  for (int64_t first = 0; first < x.columns; first += TILE) {
    int64_t count = read_tile(tile, x, first);
    for (int64_t c = 0; c < count; c += VL)
      store_vector(row + first + c, weigh(load_vector<vfloat>(tile + c), shift) * factor);
  }
  narrow_row(s.weights.at(i), row, x.columns, s.weights.dtype);
  s.max_scores[i] = max;
  s.sums[i] = total;
}

TAKES(Softmax)
extern "C" __attribute__((visibility("default"))) int flextrace_stage(const Softmax* call) {
  const Softmax& s = *call;
  int64_t columns = s.x.shape[3];
  return for_each(s.x.rows(), columns * 8, s.caller, round_up(columns, VL) * 4,
                  [&](int64_t i, void* memory) { softmax_row(s, i, (float*)memory); });
}
