// means.h: the mean of each group of keys, SageAttention (arXiv 2410.02367). Made once per call, by a job per head.
#pragma once
#include "keys.h"

// Mirrors smoothing.py: elements that are infinite or nan count as 0, and shares are added up, not elements, so that no
// sum overflows. `means` and `counts` are zeros before.
NOINLINE static void average_keys(float* means, float* counts, const Rows& keys, int64_t width) {
  const Matrix& k = keys.matrix;
  float share = 1.0f / k.rows;
  for (int64_t row = 0; row < k.rows; row++) {
    float* mean = means + keys.group(row) * width;
    counts[keys.group(row)]++;
    for (int64_t d = 0; d < k.columns; d += VL) {
      vfloat x = widen(k, row, d);
      store_vector(mean + d, load_vector<vfloat>(mean + d) + select(is_finite(x), x * share, vfloat{}));
    }
  }
}

// What is subtracted from the keys of all heads, where the caller gives no means.
struct KeyMeans {
  const Params& p;
  int64_t jobs = 0, width = 0;
  float* means;   // [jobs][groups][width]
  float* counts;  // [jobs][groups]

  explicit KeyMeans(const Params& params) : p(params) {
    if (KEYS == PLAIN || !p.average_keys) return;
    jobs = p.means_batch * p.kv_heads;
    width = width_of_means(p);
  }

  void run_job(int64_t job) const {
    float* own = means + job * p.groups * width;
    float* count = counts + job * p.groups;
    for (int64_t i = 0; i < p.groups * width; i++) own[i] = 0;
    for (int64_t i = 0; i < p.groups; i++) count[i] = 0;
    average_keys(own, count, keys_of(p, job / p.kv_heads, job % p.kv_heads), width);
    for (int64_t g = 0; g < p.groups; g++)
      for (int64_t d = 0; count[g] && d < width; d++) own[g * width + d] *= p.kv_len / count[g];
  }
};
