// fragments.h: 8x8 matrices spread over the lanes of a simdgroup, two neighbouring elements of one row in each lane.
#pragma once
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
#include "plan.h"

template <typename F>
using Fragment = metal::simdgroup_matrix<F, FRAGMENT, FRAGMENT>;

// The element type of products. half multiplies as it is; bfloat16 becomes float32, as not every Apple GPU multiplies
// it. Sums are float32 always.
template <typename T>
struct ProductOf {
  typedef float type;
};
template <>
struct ProductOf<half> {
  typedef half type;
};

// Where a lane's two elements lie in a fragment: (row, column) and (row, column + 1). Four lanes hold one row: those
// that differ in bits 0 and 3.
struct LanePlace {
  int row, column;
};
inline LanePlace place_of(uint lane) {
  LanePlace place;
  place.row = int((lane >> 2) & 4) + int((lane >> 1) & 3);
  place.column = int((lane >> 1) & 4) + int((lane & 1) << 1);
  return place;
}
inline float max_of_row(float x) {
  x = metal::max(x, metal::simd_shuffle_xor(x, ushort(1)));
  return metal::max(x, metal::simd_shuffle_xor(x, ushort(8)));
}
inline float sum_of_row(float x) {
  x += metal::simd_shuffle_xor(x, ushort(1));
  return x + metal::simd_shuffle_xor(x, ushort(8));
}

template <typename F>
inline thread metal::vec<F, 2>& elements(thread Fragment<F>& f) {
  return reinterpret_cast<thread metal::vec<F, 2>&>(f.thread_elements());
}

template <typename F, typename First, typename Second>
inline void set(thread Fragment<F>& f, First first, Second second) {
  elements(f)[0] = F(first);
  elements(f)[1] = F(second);
}
template <typename F>
inline void clear(thread Fragment<F>& f) {
  set(f, 0.0f, 0.0f);
}

// The scores' weights as the left operand of P V.
inline void convert(thread Fragment<float>& to, thread Fragment<float>& from) { to = from; }
inline void convert(thread Fragment<half>& to, thread Fragment<float>& from) {
  set(to, elements(from)[0], elements(from)[1]);
}

// f = the fragment whose first element `from` points to, in a tile of threadgroup memory with LD elements a row.
template <int LD, typename F>
inline void load(thread Fragment<F>& f, const threadgroup F* from, LanePlace place) {
  metal::simdgroup_load(f, from, LD);
}
template <int LD, typename F>
inline void load_transposed(thread Fragment<F>& f, const threadgroup F* from, LanePlace place) {
  metal::simdgroup_load(f, from, LD, 0, true);
}
// The same with a change of type on the way.
template <int LD, typename F, typename T>
inline void load(thread Fragment<F>& f, const threadgroup T* from, LanePlace place) {
  const threadgroup T* at = from + place.row * LD + place.column;
  set(f, at[0], at[1]);
}
template <int LD, typename F, typename T>
inline void load_transposed(thread Fragment<F>& f, const threadgroup T* from, LanePlace place) {
  const threadgroup T* at = from + place.column * LD + place.row;
  set(f, at[0], at[LD]);
}
