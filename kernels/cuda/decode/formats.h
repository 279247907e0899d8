// formats.h: in which formats k and v may lie, each with its product: what a lane has of a row is 16 bytes of it.
//
// A sum over columns may take them in any order, and so may the rows of a result: those are chosen so that what a lane
// needs of a row lies together. Of a tile of 16 keys, lane (g, t) = (lane / 4, lane % 4) has in S^T = K Q^T rows g and
// g + 8 of k, of every four neighbouring pieces of 16 bytes piece t; in O^T = V^T P^T keys 2 t, 2 t + 1, 2 t + 8 and
// 2 t + 9 of v, of every eight neighbouring pieces piece g. Of a tile of sums C of 16 x 8, rows being keys or columns of
// v, it has rows g and g + 8, and of both query rows 2 t and 2 t + 1.
#pragma once
#include "../tile/products.h"
#include "rows.h"

INLINE uint low_halves(uint first, uint second) { return __byte_perm(first, second, 0x5410); }
INLINE uint high_halves(uint first, uint second) { return __byte_perm(first, second, 0x7632); }

// -- keys --------------------------------------------------------------------------------------------------------

// QUANTISED: queries become whole numbers too. Query: an element of q beside such keys. Products: those of a tile.
template <typename K>
struct KeyFormat {
  static constexpr bool QUANTISED = false;
  static constexpr int COLUMNS = 8;  // of 16 bytes
  typedef K Query;
  typedef Sums Products;
  static INLINE Query query(float x) { return narrowed<K>(x); }
  // rows: 16 bytes of row g and of row g + 8.
  static INLINE void multiply(Sums& c, const Words& row, const Words& below, const Words& query) {
    UNROLL
    for (int k = 0; k < 4; k += 2) {
      const uint a[4] = {row.at[k], below.at[k], row.at[k + 1], below.at[k + 1]};
      ::multiply<K>(c, a, query.at[k], query.at[k + 1]);
    }
  }
};

template <>
struct KeyFormat<float> {
  static constexpr bool QUANTISED = false;
  static constexpr int COLUMNS = 4;
  typedef float Query;
  typedef Sums Products;
  static INLINE Query query(float x) { return x; }
  static INLINE void multiply(Sums& c, const Words& row, const Words& below, const Words& query) {
    UNROLL
    for (int k = 0; k < 4; k += 2) {
      const uint exact[4] = {row.at[k], below.at[k], row.at[k + 1], below.at[k + 1]};
      uint high[4], low[4];
      UNROLL
      for (int i = 0; i < 4; i++) {
        const Split s = split(__uint_as_float(exact[i]));
        high[i] = s.high, low[i] = s.low;
      }
      const Split q0 = split(__uint_as_float(query.at[k])), q1 = split(__uint_as_float(query.at[k + 1]));
      ptx::mma_m16n8k8_tf32(c.at, low, q0.high, q1.high);
      ptx::mma_m16n8k8_tf32(c.at, high, q0.low, q1.low);
      ptx::mma_m16n8k8_tf32(c.at, high, q0.high, q1.high);
    }
  }
};

template <>
struct KeyFormat<int8_t> {
  static constexpr bool QUANTISED = true;
  static constexpr int COLUMNS = 16;
  typedef int8_t Query;
  typedef WholeSums Products;
  static INLINE Query query(float x) { return int8_t(int(x)); }  // a whole number
  static INLINE void multiply(WholeSums& c, const Words& row, const Words& below, const Words& query) {
    UNROLL
    for (int k = 0; k < 4; k += 2) {
      const uint a[4] = {row.at[k], below.at[k], row.at[k + 1], below.at[k + 1]};
      ptx::mma_m16n8k32_s8(c.at, a, query.at[k], query.at[k + 1]);
    }
  }
};

// -- weights -----------------------------------------------------------------------------------------------------

// P^T as the right factor, of the element type in which values are multiplied.
template <typename T>
struct Weights {
  uint at[2];
  INLINE void set(const Sums& weights) {
    UNROLL
    for (int half = 0; half < 2; half++)
      at[half] = ptx::movmatrix_trans(packed<T>(weights.at[2 * half], weights.at[2 * half + 1]));
  }
};
template <>
struct Weights<float> {
  uint high[2][2], low[2][2];  // [product of 8 keys][half]
  INLINE void set(const Sums& weights) {
    UNROLL
    for (int half = 0; half < 2; half++) {
      const uint first = __float_as_uint(weights.at[2 * half]), second = __float_as_uint(weights.at[2 * half + 1]);
      const uint lows = ptx::movmatrix_trans(low_halves(first, second));
      const uint highs = ptx::movmatrix_trans(high_halves(first, second));
      const uint keys[2] = {low_halves(lows, highs), high_halves(lows, highs)};
      UNROLL
      for (int e = 0; e < 2; e++) {
        const Split s = split(__uint_as_float(keys[e]));
        high[half][e] = s.high, low[half][e] = s.low;
      }
    }
  }
};

// -- values ------------------------------------------------------------------------------------------------------

// Left: 16 columns of v, 16 keys, of T. Tile i of a lane's 16 bytes has column 2 i as row g, and 2 i + 1 as row g + 8.
template <typename T>
struct ValuesLeft {
  uint at[4];
  INLINE void multiply(Sums& c, const Weights<T>& weights) const { ::multiply<T>(c, at, weights.at[0], weights.at[1]); }
};
template <>
struct ValuesLeft<float> {
  float at[2][4];  // [product of 8 keys]
  INLINE void multiply(Sums& c, const Weights<float>& weights) const {
    UNROLL
    for (int k = 0; k < 2; k++) {
      uint high[4], low[4];
      UNROLL
      for (int i = 0; i < 4; i++) {
        const Split s = split(at[k][i]);
        high[i] = s.high, low[i] = s.low;
      }
      ptx::mma_m16n8k8_tf32(c.at, low, weights.high[k][0], weights.high[k][1]);
      ptx::mma_m16n8k8_tf32(c.at, high, weights.low[k][0], weights.low[k][1]);
      ptx::mma_m16n8k8_tf32(c.at, high, weights.high[k][0], weights.high[k][1]);
    }
  }
};

template <typename V, typename T>
struct ValueFormat {
  static constexpr bool WHOLE = false;
  static constexpr int COLUMNS = 8;
  static INLINE bool holds_special(uint word) { return is_special<V>(word); }
  static INLINE ValuesLeft<T> left(const Words (&keys)[4], int i) {
    ValuesLeft<T> a;
    UNROLL
    for (int k = 0; k < 4; k += 2) {
      a.at[k] = low_halves(keys[k].at[i], keys[k + 1].at[i]);
      a.at[k + 1] = high_halves(keys[k].at[i], keys[k + 1].at[i]);
    }
    return a;
  }
};
template <>
struct ValueFormat<float, float> {
  static constexpr bool WHOLE = false;
  static constexpr int COLUMNS = 4;
  static INLINE bool holds_special(uint word) { return is_special<float>(word); }
  static INLINE ValuesLeft<float> left(const Words (&keys)[4], int i) {
    ValuesLeft<float> a;
    UNROLL
    for (int k = 0; k < 2; k++) {
      UNROLL
      for (int e = 0; e < 4; e++) a.at[k][e] = __uint_as_float(keys[2 * k + e / 2].at[2 * i + e % 2]);
    }
    return a;
  }
};

// Whole numbers from -128 to 127. 2^23 + 128 + x is a float32 whose last byte is x + 128.
constexpr uint SIGNS = 0x80808080u;
INLINE float whole(uint bytes, uint selector) {
  return __uint_as_float(__byte_perm(bytes, 0x4b000000u, selector)) - 8388736.0f;
}
// Byte `at` of two keys as a pair of T.
template <typename T>
INLINE uint whole_pair(uint first, uint second, int at) {
  return high_halves(__float_as_uint(whole(first, 0x7440 | at)), __float_as_uint(whole(second, 0x7440 | at)));
}
template <>
INLINE uint whole_pair<float16_t>(uint first, uint second, int at) {
  return packed<float16_t>(whole(first, 0x7440 | at), whole(second, 0x7440 | at));
}
template <typename T>
struct ValueFormat<int8_t, T> {
  static constexpr bool WHOLE = true;
  static constexpr int COLUMNS = 16;
  static INLINE bool holds_special(uint word) { return false; }
  static INLINE ValuesLeft<T> left(const Words (&keys)[4], int i) {
    ValuesLeft<T> a;
    UNROLL
    for (int k = 0; k < 4; k++)
      a.at[k] = whole_pair<T>(keys[k / 2 * 2].at[i / 2] ^ SIGNS, keys[k / 2 * 2 + 1].at[i / 2] ^ SIGNS, 2 * (i % 2) + k % 2);
    return a;
  }
};
template <>
struct ValueFormat<int8_t, float> {
  static constexpr bool WHOLE = true;
  static constexpr int COLUMNS = 16;
  static INLINE bool holds_special(uint word) { return false; }
  static INLINE ValuesLeft<float> left(const Words (&keys)[4], int i) {
    ValuesLeft<float> a;
    UNROLL
    for (int k = 0; k < 2; k++) {
      UNROLL
      for (int e = 0; e < 4; e++)
        a.at[k][e] = whole(keys[2 * k + e / 2].at[i / 2] ^ SIGNS, 0x7440 | (2 * (i % 2) + e % 2));
    }
    return a;
  }
};
