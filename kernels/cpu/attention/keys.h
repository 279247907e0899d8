// keys.h: one tile of keys as the kernel text reads them: PLAIN, as they are; SMOOTHED, less their mean, for which
// their documents may have one each; QUANTISED, as int8, less their mean or not. And one tile of values.
#pragma once
#include "../int8/rows.h"
#include "../mod/mod.h"
#include "../tile/pairs.h"
#include "../tile/params.h"

// Whether keys and values are packed, and multiplied, as pairs of bfloat16.
inline bool in_pairs(const Params& p) {
  return BFLOAT16_DOT && KEYS == PLAIN && p.dtype == BFLOAT16 && SplitScale::splits(p.scale);
}

// Whether a mean is subtracted from the queries too.
inline bool smooths_queries(const Params& p) { return KEYS == QUANTISED && p.q_mean_rows > 0; }

// A tile of packed keys.
struct KeyTile {
  const float* keys;     // float32, in the order of pack_keys; not there where nothing reads them
  const word* words;     // the rest only of QUANTISED keys
  const float* scale;    // [KV_TILE]
  const float* special;  // [VL], the first of them 1 where the scale of some key is nan, and 0 otherwise
};
inline KeyTile key_tile(const Params& p, const float* packed) {
  if constexpr (KEYS != QUANTISED) return {packed, nullptr, nullptr, nullptr};
  const float* scale = packed + KV_TILE * words_of(p.head_dim);
  return {scale + KV_TILE + VL, (const word*)packed, scale, scale + KV_TILE};
}
inline int64_t floats_of_key_tile(const Params& p) {
  if (in_pairs(p)) return KV_TILE * pairs_in(p.head_dim);
  int64_t words = KV_TILE * words_of(p.head_dim) + KV_TILE + VL, keys = KV_TILE * p.head_dim;
  return KEYS != QUANTISED ? keys : smooths_queries(p) ? words + keys : words;
}

// The means of the groups of keys of one head. Those that this call makes itself (means.h) are whole registers wide.
inline int64_t width_of_means(const Params& p) { return p.average_keys ? round_up(p.head_dim, VL) : p.head_dim; }
inline Matrix means_of(const Params& p, int64_t b, int64_t kv_head) {
  if (!p.means) return {};
  int64_t head = (p.means_batch == 1 ? 0 : b) * p.kv_heads + kv_head, width = width_of_means(p);
  return {p.means + head * p.groups * width, p.groups, p.head_dim, width, 1, FLOAT32};
}

// All keys of one head, less their means.
inline Rows keys_of(const Params& p, int64_t b, int64_t kv_head) {
  const int32_t* groups = p.key_groups ? p.key_groups + (p.key_groups_batch == 1 ? 0 : b) * p.kv_len : nullptr;
  return {matrix_of(p.k, p.k_strides, b, kv_head, 0, p.kv_len, p.head_dim, p.dtype), means_of(p, b, kv_head), groups};
}

// The same of keys and values that are int8 already.
inline Int8Rows int8_rows_of(const void* bytes, const int64_t* strides, const float* scales,
                             const int64_t* scale_strides, int64_t b, int64_t h, int64_t rows, int64_t columns,
                             Matrix mean) {
  return {(const int8_t*)bytes + b * strides[0] + h * strides[1],
          scales + b * scale_strides[0] + h * scale_strides[1],
          rows,
          columns,
          strides[2],
          strides[3],
          scale_strides[2],
          mean};
}
inline Int8Rows int8_keys_of(const Params& p, int64_t b, int64_t kv_head) {
  return int8_rows_of(p.k, p.k_strides, p.k_scales, p.k_scale_strides, b, kv_head, p.kv_len, p.head_dim,
                      means_of(p, b, kv_head));
}
inline Int8Rows int8_values_of(const Params& p, int64_t b, int64_t kv_head) {
  Matrix mean = p.v_means ? matrix_of(p.v_means, p.v_mean_strides, b, kv_head, 0, 1, p.value_dim, FLOAT32) : Matrix{};
  return int8_rows_of(p.v, p.v_strides, p.v_scales, p.v_scale_strides, b, kv_head, p.kv_len, p.value_dim, mean);
}

inline void pack_key_tile(float* packed, const Params& p, int64_t b, int64_t kv_head, int64_t first, int64_t count) {
  if constexpr (KEYS == PLAIN) {
    Matrix keys = matrix_of(p.k, p.k_strides, b, kv_head, first, count, p.head_dim, p.dtype);
    return in_pairs(p) ? pack_key_pairs(packed, keys) : pack_keys(packed, keys);
  }
  Rows keys = keys_of(p, b, kv_head);
  if constexpr (KEYS == QUANTISED) {
    float* scale = packed + KV_TILE * words_of(p.head_dim);
    for (int64_t i = count; i < KV_TILE; i++) scale[i] = 0;
    if (p.k_scales) {
      scale[KV_TILE] = 0;  // a scale nan makes the scores nan, and no original knows better
      return copy_int8_keys((word*)packed, scale, int8_keys_of(p, b, kv_head), first, count);
    }
    scale[KV_TILE] = scale_rows(scale, keys, first, count, p.k_scale_rows);
    pack_int8_keys((word*)packed, scale, keys, first, count);
    if (!smooths_queries(p)) return;
    packed = scale + KV_TILE + VL;
  }
  pack_smoothed_keys(packed, keys, first, count);
}

// One tile of packed values, and behind them VL floats, the first of them 1 where some value is infinite or nan.
inline int64_t floats_of_values(const Params& p) {
  return KV_TILE / (in_pairs(p) ? 2 : 1) * round_up(p.value_dim, VL);
}
inline int64_t floats_of_value_tile(const Params& p) { return floats_of_values(p) + VL; }

inline void pack_value_tile(float* packed, const Params& p, int64_t b, int64_t kv_head, int64_t first, int64_t count) {
  bool finite;
  if (KEYS == QUANTISED && p.v_scales) {
    finite = pack_int8_values(packed, int8_values_of(p, b, kv_head), first, count);
  } else {
    Matrix values = matrix_of(p.v, p.v_strides, b, kv_head, first, count, p.value_dim, p.dtype);
    finite = in_pairs(p) ? pack_value_pairs(packed, values) : pack_values(packed, values);
  }
  packed[floats_of_values(p)] = !finite;
}
