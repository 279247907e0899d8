// gathers.h: what a captured array can hold, given ranges of its indices: bounds::load, as tile_state calls it.
#pragma once
#include "arrays.h"
#include "bounds.h"
namespace bounds {

constexpr int64_t MAX_SCAN = 256;  // elements of a box that are looked at; of a larger one nothing is known
constexpr int64_t BLOCK = 64;      // neighbours in a block of an array's extremes, and blocks in a superblock

// The least and the largest of some ints, or of bools as 0 and 1.
struct IntExtremes {
  int32_t lo = (int32_t)MOST, hi = (int32_t)LEAST;
  void add(IntExtremes x) {
    lo = x.lo < lo ? x.lo : lo;
    hi = x.hi > hi ? x.hi : hi;
  }
};
// The same of floats; nan once one of them is.
struct FloatExtremes {
  float lo = INFINITY, hi = -INFINITY;
  void add(FloatExtremes x) {
    lo = x.lo < lo || x.lo != x.lo ? x.lo : lo;
    hi = x.hi > hi || x.hi != x.hi ? x.hi : hi;
  }
};
template <class T>
constexpr bool is_float = __is_same(T, float) || __is_same(T, double) || __is_class(T);  // float16 and bfloat16

// One element. An integer outside int32 may be anything: the kernel that evaluates it reports it.
template <class T>
inline auto extremes_of(T x, const Inputs& in) {
  if constexpr (is_float<T>) {
    FloatExtremes e;
    e.lo = e.hi = fx::element(x, in);
    return e;
  } else {
    IntExtremes e;
    bool fits = (T)(int32_t)x == x && ((T)-1 < (T)0 || (int32_t)x >= 0);
    e.lo = fits ? (int32_t)x : (int32_t)LEAST;
    e.hi = fits ? (int32_t)x : (int32_t)MOST;
    return e;
  }
}
template <class T>
using ExtremesOf = decltype(extremes_of(T(), Inputs()));

// Where a range of indices leads: a negative one counts from the end, once; what is still outside is clamped.
inline Range inside(Range index, int64_t size) {
  if (index.lo < 0 && index.hi >= 0) return range(0, size - 1);
  return range(fx::inside((int32_t)index.lo, size), fx::inside((int32_t)index.hi, size));
}

// one(i) for each i of first..end-1, but group(f, e) for the whole groups f..e-1 of BLOCK among them.
template <class One, class Group>
inline void in_groups(int64_t first, int64_t end, const One& one, const Group& group) {
  int64_t from = (first + BLOCK - 1) / BLOCK, to = end / BLOCK;
  bool grouped = from < to;
  for (int64_t i = first; i < (grouped ? from * BLOCK : end); i++) one(i);
  if (!grouped) return;
  group(from, to);
  for (int64_t i = to * BLOCK; i < end; i++) one(i);
}

// Places place[0], place[1], ... of the axes of a captured array: a box of it.
template <class T>
struct Box {
  const Inputs& in;
  const Array& array;
  const Extremes* extremes;  // null: every element is looked at
  const Range* place;
  int axes, along;  // the axis along which blocks lie
  ExtremesOf<T> seen;

  bool is_small() const {
    int64_t looks = 1;
    for (int axis = 0; axis < axes; axis++) {
      int64_t most = extremes && axis == along ? 2 * BLOCK : MAX_SCAN + 1;
      looks = smaller(looks * smaller(place[axis].hi - place[axis].lo + 1, most), MAX_SCAN + 1);
    }
    return looks <= MAX_SCAN;
  }
  // data: the element at the places of the axes before `axis`; row: the number of these places, without `along`.
  NOINLINE void look(const T* data, int64_t row, int axis) {
    if (axis == axes) return look_along(data, row);
    if (axis == along) return look(data, row, axis + 1);
    for (int64_t i = place[axis].lo; i <= place[axis].hi; i++)
      look(data + i * array.strides[axis], row * array.shape[axis] + i, axis + 1);
  }
  NOINLINE void look_along(const T* data, int64_t row) {
    int64_t first = place[along].lo, end = place[along].hi + 1, stride = array.strides[along];
    auto element = [&](int64_t i) { seen.add(extremes_of(data[i * stride], in)); };
    if (!extremes) {
      for (int64_t i = first; i < end; i++) element(i);
      return;
    }
    int64_t blocks = (array.shape[along] + BLOCK - 1) / BLOCK, superblocks = (blocks + BLOCK - 1) / BLOCK;
    auto* of_blocks = (const ExtremesOf<T>*)extremes->blocks + row * blocks;
    auto* of_superblocks = (const ExtremesOf<T>*)extremes->superblocks + row * superblocks;
    in_groups(first, end, element, [&](int64_t from, int64_t to) {
      in_groups(from, to, [&](int64_t i) { seen.add(of_blocks[i]); }, [&](int64_t super, int64_t super_end) {
        for (int64_t i = super; i < super_end; i++) seen.add(of_superblocks[i]);
      });
    });
  }
};

// The extremes of array[index, ...]. T is the type of the elements in memory.
template <class T, class... Index>
inline auto load(const Inputs& in, int slot, Index... index) {
  constexpr int AXES = sizeof...(Index);
  const Array& array = in.arrays[slot];
  const T* data = (const T*)array.data;
  ExtremesOf<T> seen;
  bool known = true;
  if constexpr (AXES == 0) {
    seen = extremes_of(*data, in);
  } else {
    int axis = 0;
    const Range place[] = {inside(index, array.shape[axis++])...};
    const Extremes* extremes = in.extremes && in.extremes[slot].blocks ? &in.extremes[slot] : nullptr;
    Box<T> box = {in, array, extremes, place, AXES, extremes ? (int)extremes->axis : AXES - 1, {}};
    known = box.is_small();
    if constexpr (AXES == 1) {
      if (known) box.look_along(data, 0);
    } else {
      if (known) box.look(data, 0, 0);
    }
    seen = box.seen;
  }
  if constexpr (__is_same(T, bool)) return known ? truth(seen.lo, seen.hi) : truth(false, true);
  else if constexpr (is_float<T>) return interval(seen.lo, seen.hi, known && seen.lo == seen.lo);
  else return known ? range(seen.lo, seen.hi) : all_ints();
}

}  // namespace bounds
