// fragments.h: 8x8 matrices spread over the lanes of a simdgroup, two neighbouring elements of one row in each lane.
#pragma once
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
#include "simdgroup.h"

template <typename F>
using Fragment = metal::simdgroup_matrix<F, FRAGMENT, FRAGMENT>;

// The element type of products of A and B. half multiplies as it is, if both are; bfloat16 becomes float32, as not
// every Apple GPU multiplies it. Sums are float32 always.
template <typename A, typename B = A>
struct ProductOf {
  typedef float type;
};
template <>
struct ProductOf<half, half> {
  typedef half type;
};

// Where a lane's two elements lie in a fragment: (row, column) and (row, column + 1). Four lanes hold one row: those
// that differ in bits 0 and 3.
struct LanePlace {
  int row, column;
};
INLINE LanePlace place_of(uint lane) {
  LanePlace place;
  place.row = int((lane >> 2) & 4) + int((lane >> 1) & 3);
  place.column = int((lane >> 1) & 4) + int((lane & 1) << 1);
  return place;
}
INLINE float max_of_row(float x) {
  x = metal::max(x, metal::simd_shuffle_xor(x, ushort(1)));
  return metal::max(x, metal::simd_shuffle_xor(x, ushort(8)));
}
INLINE float sum_of_row(float x) {
  x += metal::simd_shuffle_xor(x, ushort(1));
  return x + metal::simd_shuffle_xor(x, ushort(8));
}

template <typename F>
INLINE thread metal::vec<F, 2>& elements(thread Fragment<F>& f) {
  return reinterpret_cast<thread metal::vec<F, 2>&>(f.thread_elements());
}

template <typename F, typename First, typename Second>
INLINE void set(thread Fragment<F>& f, First first, Second second) {
  elements(f)[0] = F(first);
  elements(f)[1] = F(second);
}
template <typename F>
INLINE void clear(thread Fragment<F>& f) {
  set(f, 0.0f, 0.0f);
}
template <typename F, int ROWS, int COLUMNS>
INLINE void clear(thread Fragment<F> (&all)[ROWS][COLUMNS]) {
  UNROLL
  for (int r = 0; r < ROWS; r++) {
    UNROLL
    for (int c = 0; c < COLUMNS; c++) clear(all[r][c]);
  }
}

// The scores' weights as the left operand of P V.
INLINE void convert(thread Fragment<float>& to, thread Fragment<float>& from) { to = from; }
INLINE void convert(thread Fragment<half>& to, thread Fragment<float>& from) {
  set(to, elements(from)[0], elements(from)[1]);
}

// f = the fragment whose first element `from` points to, in a tile of threadgroup memory with LD elements a row.
template <int LD, typename F>
INLINE void load(thread Fragment<F>& f, const threadgroup F* from, LanePlace place) {
  metal::simdgroup_load(f, from, LD);
}
template <int LD, typename F>
INLINE void load_transposed(thread Fragment<F>& f, const threadgroup F* from, LanePlace place) {
  metal::simdgroup_load(f, from, LD, 0, true);
}
// Loads that change the type on the way.
template <int LD, typename F, typename T>
INLINE void load(thread Fragment<F>& f, const threadgroup T* from, LanePlace place) {
  const threadgroup T* at = from + place.row * LD + place.column;
  set(f, at[0], at[1]);
}
template <int LD, typename F, typename T>
INLINE void load_transposed(thread Fragment<F>& f, const threadgroup T* from, LanePlace place) {
  const threadgroup T* at = from + place.column * LD + place.row;
  set(f, at[0], at[LD]);
}

// ---- products in which a weight of 0 leaves its row of values out, be they infinite or nan ----

constexpr constant uint INFINITY_BITS = 0x7f800000u;
constexpr constant float PLUS = 1.0f, MINUS = 16.0f;  // marks: inf, -inf; both: nan. A sum of 8 of each is exact

INLINE bool is_special(float x) { return (as_type<uint>(x) & INFINITY_BITS) == INFINITY_BITS; }
INLINE float mark_of(float x) {
  const uint bits = as_type<uint>(x);
  if (!is_special(x)) return 0.0f;
  return bits == INFINITY_BITS ? PLUS : (bits & ~INFINITY_BITS) == 0x80000000u ? MINUS : PLUS + MINUS;
}

// Takes what is infinite or nan out of the values, and marks it. Returns whether a lane has any.
template <typename F>
INLINE bool split_values(thread Fragment<F>& values, thread Fragment<F>& marks) {
  const float first = mark_of(float(elements(values)[0])), second = mark_of(float(elements(values)[1]));
  if (!metal::simd_any(first != 0.0f || second != 0.0f)) return false;
  set(marks, first, second);
  if (first != 0.0f) elements(values)[0] = F(0);
  if (second != 0.0f) elements(values)[1] = F(0);
  return true;
}

// sums += the marked values whose weight is not 0.
template <typename F>
INLINE void add_marked(thread Fragment<float>& sums, thread Fragment<F>& weights, thread Fragment<F>& marks) {
  Fragment<F> ones;
  Fragment<float> found;
  set(ones, float(elements(weights)[0] != F(0)), float(elements(weights)[1] != F(0)));
  clear(found);
  metal::simdgroup_multiply_accumulate(found, ones, marks, found);
  UNROLL
  for (int e = 0; e < 2; e++) {
    const int minus = int(elements(found)[e]) / int(MINUS), plus = int(elements(found)[e]) % int(MINUS);
    if (plus > 0) elements(sums)[e] += as_type<float>(INFINITY_BITS);
    if (minus > 0) elements(sums)[e] -= as_type<float>(INFINITY_BITS);
  }
}
