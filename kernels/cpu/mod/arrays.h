// arrays.h: reading a captured array inside a mod. Indices are Python's: a negative one counts from the end, once;
// what is still outside is clamped, so that no index reads outside the array.
#pragma once
#include "../tile/params.h"
#include "../tile/vector.h"

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

// A type as a value.
template <class Element>
struct Type {
  using T = Element;
};

namespace fx {

// -- one element: float32 for floats, int32 for integers, bool for bool ------------------------------------------

template <class T>
INLINE auto element(T x, const Inputs& in) {
  if constexpr (__is_same(T, float16)) return widen_float16(vshort{} + x.bits)[0];
  else if constexpr (__is_same(T, bfloat16)) return widen_bfloat16(vshort{} + x.bits)[0];
  else if constexpr (__is_same(T, float) || __is_same(T, double)) return (float)x;
  else if constexpr (__is_same(T, bool)) return x;
  else {
    int32_t narrow = (int32_t)x;
    bool same_sign = (T)-1 < (T)0 || narrow >= 0;
    if (sizeof(T) >= 4 && ((T)narrow != x || !same_sign)) __atomic_store_n(in.overflow, 1, __ATOMIC_RELAXED);
    return narrow;
  }
}

// VL elements, one per lane.
template <class T>
INLINE auto elements(const T* lanes, const Inputs& in) {
  if constexpr (__is_same(T, float)) return load_vector<vfloat>(lanes);
  else if constexpr (__is_same(T, int32_t)) return load_vector<vint>(lanes);
  else if constexpr (__is_same(T, float16)) return widen_float16(load_vector<vshort>(lanes));
  else if constexpr (__is_same(T, bfloat16)) return widen_bfloat16(load_vector<vshort>(lanes));
  else if constexpr (__is_same(T, double)) {
    float result[VL];
    for (int i = 0; i < VL; i++) result[i] = (float)lanes[i];
    return load_vector<vfloat>(result);
  } else {
    int32_t result[VL];
    for (int i = 0; i < VL; i++) result[i] = element(lanes[i], in);
    vint numbers = load_vector<vint>(result);
    if constexpr (__is_same(T, bool)) return vbool{-numbers};
    else return numbers;
  }
}

// -- indices -----------------------------------------------------------------------------------------------------

INLINE int64_t inside(int32_t index, int64_t size) {
  int64_t i = index < 0 ? index + size : index;
  i = i < size ? i : size - 1;
  return i > 0 ? i : 0;
}
INLINE vint inside(vint index, int64_t size) {
  int32_t n = (int32_t)size;  // an axis has no more elements than an index can say
  vint i = select(index < 0, index + n, index);
  i = select(i < n, i, splat(n - 1));
  return select(i > 0, i, vint{});
}

// Where the lanes of one access lie: the sum of index * stride over the axes.
struct offsets {
  int64_t uniform = 0;
  int64_t lane[VL] = {};
};
INLINE void add_axis(offsets& where, const Array& array, int axis, int32_t index) {
  where.uniform += inside(index, array.shape[axis]) * array.strides[axis];
}
INLINE void add_axis(offsets& where, const Array& array, int axis, vint index) {
  int32_t lanes[VL];
  store_vector(lanes, inside(index, array.shape[axis]));
  for (int i = 0; i < VL; i++) where.lane[i] += lanes[i] * array.strides[axis];
}

// array[index, ...]. T is the type of the elements in memory.
template <class T, class... Index>
INLINE auto load(const Inputs& in, int slot, Index... index) {
  const Array& array = in.arrays[slot];
  const T* data = (const T*)array.data;
  offsets where;
  int axis = 0;
  (add_axis(where, array, axis++, index), ...);
  if constexpr ((__is_same(Index, int32_t) && ...)) {
    return element(data[where.uniform], in);
  } else {
    T lanes[VL];
    for (int i = 0; i < VL; i++) lanes[i] = data[where.uniform + where.lane[i]];
    return elements(lanes, in);
  }
}

// array[..., last] where last is kv_idx plus something uniform: usually VL neighbours in memory.
INLINE int32_t first_index(int32_t index) { return index; }
INLINE int32_t first_index(vint index) { return index[0]; }
INLINE vint last_of(vint index) { return index; }
template <class... Index>
INLINE vint last_of(int32_t, Index... index) { return last_of(index...); }

template <class T, class... Index>
INLINE auto load_unit(const Inputs& in, int slot, Index... index) {
  const Array& array = in.arrays[slot];
  constexpr int LAST = sizeof...(Index) - 1;
  int32_t first[] = {first_index(index)...};
  vint last = last_of(index...);
  bool neighbours = array.strides[LAST] == 1 && first[LAST] >= 0 && first[LAST] + (int64_t)VL <= array.shape[LAST] &&
                    last[VL - 1] == first[LAST] + VL - 1;
  if (!neighbours) return load<T>(in, slot, index...);
  int64_t start = first[LAST];
  for (int axis = 0; axis < LAST; axis++) start += inside(first[axis], array.shape[axis]) * array.strides[axis];
  return elements((const T*)array.data + start, in);
}

}  // namespace fx
