// keys.h: one tile of keys as the kernel text reads them: PLAIN, as they are; SMOOTHED, less their mean, for which
// their documents may have one each; QUANTISED, as int8, less their mean or not.
#pragma once
#include "int8.h"
#include "mod.h"
#include "params.h"

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
  int64_t words = KV_TILE * words_of(p.head_dim) + KV_TILE + VL, keys = KV_TILE * p.head_dim;
  return KEYS != QUANTISED ? keys : smooths_queries(p) ? words + keys : words;
}

// The means of the groups of keys of one head.
inline Matrix means_of(const Params& p, int64_t b, int64_t kv_head) {
  if (!p.means) return {};
  int64_t head = (p.means_batch == 1 ? 0 : b) * p.kv_heads + kv_head;
  return {p.means + head * p.groups * p.head_dim, p.groups, p.head_dim, p.head_dim, 1, FLOAT32};
}

// All keys of one head, less their means.
inline Rows keys_of(const Params& p, int64_t b, int64_t kv_head) {
  const int32_t* groups = p.key_groups ? p.key_groups + (p.key_groups_batch == 1 ? 0 : b) * p.kv_len : nullptr;
  return {matrix_of(p.k, p.k_strides, b, kv_head, 0, p.kv_len, p.head_dim, p.dtype), means_of(p, b, kv_head), groups};
}

inline void pack_key_tile(float* packed, const Params& p, int64_t b, int64_t kv_head, int64_t first, int64_t count) {
  if constexpr (KEYS == PLAIN)
    return pack_keys(packed, matrix_of(p.k, p.k_strides, b, kv_head, first, count, p.head_dim, p.dtype));
  Rows keys = keys_of(p, b, kv_head);
  if constexpr (KEYS == QUANTISED) {
    float* scale = packed + KV_TILE * words_of(p.head_dim);
    for (int64_t i = count; i < KV_TILE; i++) scale[i] = 0;
    scale[KV_TILE] = scale_rows(scale, keys, first, count, p.k_scale_rows);
    pack_int8_keys((word*)packed, scale, keys, first, count);
    if (!smooths_queries(p)) return;
    packed = scale + KV_TILE + VL;
  }
  pack_smoothed_keys(packed, keys, first, count);
}
