// int8_check.cpp: the int8 verbs of one tile, called by test_int8.py on plain float32 matrices.
#include "int8.h"

extern "C" __attribute__((visibility("default"))) int uses_dot_instruction() { return INT8_DOT; }

// How many queries and keys one product takes at most.
extern "C" __attribute__((visibility("default"))) int rows_of_group() { return ROWS; }
extern "C" __attribute__((visibility("default"))) int keys_of_tile() { return KV_TILE; }

// scores: [ROWS, KV_TILE]; q_scale: [q_rows]; k_scale: [KV_TILE]. q: [q_rows, columns]; k: [k_rows, columns];
// means: [groups, columns] and groups: [k_rows], or null. 1 if a key is not finite.
extern "C" __attribute__((visibility("default"))) int int8_scores(float* scores, float* q_scale, float* k_scale,
                                                                  const float* q, const float* k, const float* means,
                                                                  const int32_t* groups, int64_t q_rows, int64_t k_rows,
                                                                  int64_t columns, int64_t q_block, int64_t k_block) {
  static word queries[ROWS * 4096] __attribute__((aligned(64))), keys[KV_TILE * 4096] __attribute__((aligned(64)));
  Rows of_q = {{q, q_rows, columns, columns, 1, FLOAT32}, {}, nullptr};
  Rows of_k = {{k, k_rows, columns, columns, 1, FLOAT32}, matrix_of_means(means, k_rows, columns), groups};
  int32_t start[ROWS] = {};
  float row_scale[ROWS] = {};
  scale_rows(q_scale, of_q, 0, q_rows, q_block);
  for (int64_t i = 0; i < ROWS * words_of(columns); i++) queries[i] = 0;
  for (int64_t r = 0; r < q_rows; r++) {
    row_scale[r] = q_scale[r];
    start[r] = pack_int8_query(queries, r, q_scale[r], of_q, r);
  }
  int special = scale_rows(k_scale, of_k, 0, k_rows, k_block);
  pack_int8_keys(keys, k_scale, of_k, 0, k_rows);
  multiply_int8_keys(scores, queries, start, row_scale, keys, k_scale, 0, k_rows, columns);
  return special;
}
