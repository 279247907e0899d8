// pairs.h: the verbs over tiles of bfloat16, for machines that multiply two neighbours at once: a word holds two
// bfloat16 numbers, products are exact, and sums are float32, as where bfloat16 is widened.
//
// The instruction counts what is smaller than the least normal number, 2^-126, as 0. That changes a score only beside
// numbers of 2^100 and more, and a weight of that size not at all.
#pragma once
#include "panels.h"

#if defined(__AVX512BF16__) && VECTOR_BYTES == 64 && !defined(FLEXTRACE_PORTABLE_BFLOAT16)
#define BFLOAT16_DOT 1
#else
#define BFLOAT16_DOT 0
#endif

inline int64_t pairs_in(int64_t n) { return (n + 1) / 2; }

// scale = power * rest: times a power of two, queries stay bfloat16; scores are multiplied by the rest, at least 1 and
// less than 2, so that no sum overflows that would not anyway.
struct SplitScale {
  float power, rest;
  explicit SplitScale(float scale)
      : power(bits_to_float(float_to_bits(splat(scale)) & 0x7f800000)[0]), rest(scale / power) {}
  // Whether there are such factors: not of 0, infinity and nan.
  static bool splits(float scale) { return __builtin_isnormal(scale); }
};

#if BFLOAT16_DOT
// What `multiply` makes of words of two numbers.
struct Pairs {
  static constexpr int PER_WORD = 2;

  // SPARSE: a 0 in a word of x leaves its half of y out, whatever that holds.
  template <bool SPARSE>
  static INLINE vfloat add(vfloat sum, vfloat x, vfloat y) {
    if constexpr (SPARSE) {
      vint pair = float_to_bits(x), low = (pair & 0x7fff) != 0, high = (pair & 0x7fff0000) != 0;
      y = bits_to_float(float_to_bits(y) & ((low & 0xffff) | (high & ~0xffff)));
    }
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(y), "v"(x));
    return sum;
  }
  static INLINE vfloat written(vfloat sum, const float* scale) { return sum * *scale; }
};

// The weights of a group, float32 -> bfloat16, rounded to nearest even; a row's words lie where its floats began.
inline void round_weights(float* weights, int rows, int64_t begin, int64_t end) {
  for (int r = 0; r < rows; r++)
    for (int64_t key = begin / (2 * VL) * (2 * VL); key < end; key += 2 * VL) {
      float* row = weights + r * KV_TILE;
      vfloat words, first = load_vector<vfloat>(row + key), second = load_vector<vfloat>(row + key + VL);
      asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(words) : "v"(first), "v"(second));
      store_vector(row + key / 2, words);
    }
}
#else
typedef Floats Pairs;  // nothing is in pairs
inline void round_weights(float*, int, int64_t, int64_t) {}
#endif

// Columns [column, column + 2 VL) of one row of bfloat16; zeros outside the matrix.
INLINE vfloat read_pairs(const Matrix& m, int64_t row, int64_t column) {
  if (row >= m.rows) return vfloat{};
  int64_t count = smaller(m.columns - column, 2 * VL);
  const uint16_t* from = (const uint16_t*)m.data + row * m.row_stride + column * m.column_stride;
  vfloat words = {};
  if (count == 2 * VL && m.column_stride == 1) {
    __builtin_memcpy(&words, from, sizeof words);
  } else {
    uint16_t lanes[2 * VL] = {};
#pragma GCC unroll 1
    for (int64_t i = 0; i < count; i++) lanes[i] = from[i * m.column_stride];
    __builtin_memcpy(&words, lanes, sizeof words);
  }
  return words;
}

// Keys, transposed: [panel][pairs of head_dim][PANEL].
inline void pack_key_pairs(float* packed, const Matrix& k) {
  int64_t pairs = pairs_in(k.columns);
  for (int64_t key = 0; key < k.rows; key += VL)
    for (int64_t pair = 0; pair < pairs; pair += VL) {
      vfloat block[VL];
      for (int i = 0; i < VL; i++) {
        __builtin_prefetch((const uint16_t*)k.data + (key + i + VL) * k.row_stride + 2 * pair * k.column_stride);
        block[i] = read_pairs(k, key + i, 2 * pair);
      }
      transpose(block);
      float* to = packed + key / PANEL * PANEL * pairs + pair * PANEL + key % PANEL;
      for (int64_t i = 0; i < smaller(pairs - pair, VL); i++) store_vector(to + i * PANEL, block[i]);
    }
}

// Values: [panel of value_dim][pairs of KV_TILE][PANEL], the last panel as in pack_values. Returns whether all of them
// are finite.
inline bool pack_value_pairs(float* packed, const Matrix& v) {
  vfloat zeros[2] = {};
  for (int64_t key = 0; key < v.rows; key += VL)
    for (int64_t d = 0; d < v.columns; d += VL) {
      vfloat block[VL];
      widen_block(block, v, key, d);
      int64_t width = panel_width(v.columns, d);
      float* to = packed + d / PANEL * PANEL * (KV_TILE / 2) + key / 2 * width + d % PANEL;
      for (int64_t i = 0; i < smaller(pairs_in(v.rows - key), VL / 2); i++) {
        vfloat first = block[2 * i], second = block[2 * i + 1];  // a row that does not exist is zero
        store_vector(to + i * width, (vfloat)((vuint)first >> 16 | (vuint)second));
        zeros[0] += first * 0.0f;
        zeros[1] += second * 0.0f;
      }
    }
  return sum_lanes(zeros[0] + zeros[1]) == 0;
}

// Queries times a power of two, transposed: [pairs of head_dim][ROWS]. Rows that do not exist are zero.
inline void pack_query_pairs(float* packed, const Matrix& q, float power) {
  for (int64_t r = 0; r < ROWS; r++)
    for (int64_t d = 0; d < q.columns; d += VL) {
      vuint bits = __builtin_convertvector(narrow_bfloat16(widen(q, r, d) * power), vuint);
      for (int64_t i = 0; i < smaller(q.columns - d, VL); i += 2) {
        vint pair = {(int32_t)(bits[i] | bits[i + 1] << 16)};
        packed[(d + i) / 2 * ROWS + r] = bits_to_float(pair)[0];
      }
    }
}
