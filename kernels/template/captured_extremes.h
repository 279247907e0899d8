// captured_extremes.h: what a captured array can hold in a box of indices, read from the extremes of its blocks. The
// languages of GPUs share this text, behind captured_ranges.h.
//
// Where mask_mod is asked by bounds, the launcher adds an input per array: for every BLOCK neighbours along the last
// axis their least and their largest element, next to each other. The blocks that a box touches bound what it holds.
#pragma once
namespace bounds {

enum Extremes { BLOCK = 32 };  // of kernels/gpu/extremes.py

// How many blocks the box touches; the lines of a box are those of its last axis.
template <typename Shape>
INLINE int64_t count_blocks(Shape shape, Range index) {
  Range place = inside(index, shape[0]);
  return place.hi / BLOCK - place.lo / BLOCK + 1;
}
template <typename Shape, typename... Rest>
INLINE int64_t count_blocks(Shape shape, Range index, Range next, Rest... rest) {
  Range place = inside(index, shape[0]);
  return smaller(place.hi - place.lo + 1, MAX_SCAN + 1) * smaller(count_blocks(shape + 1, next, rest...), MAX_SCAN + 1);
}

// `line` numbers the lines before shape[0].
template <typename T, typename Seen, typename Data, typename Shape>
INLINE Seen scan_blocks(Seen seen, Data extremes, int64_t line, Shape shape, Range index) {
  Range place = inside(index, shape[0]);
  Data of_line = extremes + 2 * line * int64_t((shape[0] + BLOCK - 1) / BLOCK);
  for (int64_t i = place.lo / BLOCK; i <= place.hi / BLOCK; i++)
    seen = join(join(seen, T(of_line[2 * i])), T(of_line[2 * i + 1]));
  return seen;
}
template <typename T, typename Seen, typename Data, typename Shape, typename... Rest>
INLINE Seen scan_blocks(Seen seen, Data extremes, int64_t line, Shape shape, Range index, Range next, Rest... rest) {
  Range place = inside(index, shape[0]);
  for (int64_t i = place.lo; i <= place.hi; i++)
    seen = scan_blocks<T>(seen, extremes, line * int64_t(shape[0]) + i, shape + 1, next, rest...);
  return seen;
}

// A box of fewer elements than a block has is read as it is.
template <typename Extremes, typename Data, typename Shape, typename Strides, typename... Index>
INLINE Range load_int_by_blocks(Extremes extremes, Data data, Shape shape, Strides strides, Index... index) {
  if (count(shape, index...) < BLOCK) return load_int(data, shape, strides, index...);
  if (count_blocks(shape, index...) > MAX_SCAN) return all_ints();
  return scan_blocks<int>(range(MOST, LEAST), extremes, 0, shape, index...);
}
template <typename Extremes, typename Data, typename Shape, typename Strides, typename... Index>
INLINE Truth load_bool_by_blocks(Extremes extremes, Data data, Shape shape, Strides strides, Index... index) {
  if (count(shape, index...) < BLOCK) return load_bool(data, shape, strides, index...);
  if (count_blocks(shape, index...) > MAX_SCAN) return truth(false, true);
  return scan_blocks<bool>(truth(true, false), extremes, 0, shape, index...);
}
template <typename Extremes, typename Data, typename Shape, typename Strides, typename... Index>
INLINE Interval load_float_by_blocks(Extremes extremes, Data data, Shape shape, Strides strides, Index... index) {
  if (count(shape, index...) < BLOCK) return load_float(data, shape, strides, index...);
  if (count_blocks(shape, index...) > MAX_SCAN) return unknown();
  return scan_blocks<float>(interval(3.4028235e38f, -3.4028235e38f, true), extremes, 0, shape, index...);
}

}  // namespace bounds
