// captured_ranges.h: what a captured array can hold, given ranges of its indices. The languages of GPUs share this text,
// as they do ranges.h, which stands before it; fx::inside is of their ops.h, INLINE a word of each.
#pragma once
namespace bounds {

enum Scan { MAX_SCAN = 256 };  // elements of a box that are looked at; of a larger one nothing is known

// Where a range of indices leads: a negative one counts from the end, once; what is still outside is clamped.
INLINE Range inside(Range index, int size) {
  if (index.lo < 0 && index.hi >= 0) return range(0, size - 1);
  return range(fx::inside(int(index.lo), size), fx::inside(int(index.hi), size));
}

template <typename Shape>
INLINE int64_t count(Shape) {
  return 1;
}
template <typename Shape, typename... Rest>
INLINE int64_t count(Shape shape, Range index, Rest... rest) {
  Range place = inside(index, shape[0]);
  return smaller(place.hi - place.lo + 1, MAX_SCAN + 1) * smaller(count(shape + 1, rest...), MAX_SCAN + 1);
}

// The extremes of array[index, ...], joined to what has been seen.
INLINE Range join(Range seen, int x) { return range(smaller(seen.lo, x), larger(seen.hi, x)); }
INLINE Truth join(Truth seen, bool x) { return truth(seen.must && x, seen.may || x); }
INLINE Interval join(Interval seen, float x) {
  Interval one = exactly(x);
  return interval(x < seen.lo ? x : seen.lo, x > seen.hi ? x : seen.hi, seen.known && one.known);
}
template <typename T, typename Seen, typename Data, typename Shape, typename Strides>
INLINE Seen scan(Seen seen, Data data, Shape, Strides) {
  return join(seen, T(data[0]));
}
template <typename T, typename Seen, typename Data, typename Shape, typename Strides, typename... Rest>
INLINE Seen scan(Seen seen, Data data, Shape shape, Strides strides, Range index, Rest... rest) {
  Range place = inside(index, shape[0]);
  for (int64_t i = place.lo; i <= place.hi; i++)
    seen = scan<T>(seen, data + i * int64_t(strides[0]), shape + 1, strides + 1, rest...);
  return seen;
}

template <typename Data, typename Shape, typename Strides, typename... Index>
INLINE Range load_int(Data data, Shape shape, Strides strides, Index... index) {
  if (count(shape, index...) > MAX_SCAN) return all_ints();
  return scan<int>(range(MOST, LEAST), data, shape, strides, index...);
}
template <typename Data, typename Shape, typename Strides, typename... Index>
INLINE Truth load_bool(Data data, Shape shape, Strides strides, Index... index) {
  if (count(shape, index...) > MAX_SCAN) return truth(false, true);
  return scan<bool>(truth(true, false), data, shape, strides, index...);
}
template <typename Data, typename Shape, typename Strides, typename... Index>
INLINE Interval load_float(Data data, Shape shape, Strides strides, Index... index) {
  if (count(shape, index...) > MAX_SCAN) return unknown();
  return scan<float>(interval(3.4028235e38f, -3.4028235e38f, true), data, shape, strides, index...);
}

}  // namespace bounds
