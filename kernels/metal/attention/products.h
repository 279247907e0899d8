// products.h: the two matrix products of attention, over tiles, and the query fragments that the first one uses.
#pragma once
#include "../tile/fragments.h"
#include "plan.h"
#include "../tile/staging.h"

// The query rows of one simdgroup, and its part of their columns.
template <typename T, typename P>
struct Queries {
  typedef typename ProductOf<T>::type F;
  static constexpr constant int COLUMN_FRAGMENTS = P::HEAD_TILES * P::KEY_COLUMNS;
  static constexpr constant int HELD = P::Q_IN_REGISTERS ? COLUMN_FRAGMENTS : 1;
  Fragment<F> held[P::ROW_FRAGMENTS][HELD];
  Matrix<T> rows;
  int part;

  INLINE void start(Matrix<T> from, const thread int* q_idx, int its_part, LanePlace place) thread {
    rows = from;
    part = its_part;
    if (!P::Q_IN_REGISTERS) return;
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int d = 0; d < HELD; d++) read(held[r][d], q_idx[r], d, place);
    }
  }

  // Fragment d of the lane's row q_idx, from device memory.
  INLINE void read(thread Fragment<F>& f, int q_idx, int d, LanePlace place) const thread {
    const device T* row = rows.at(q_idx, 0);
    int column = (d / P::KEY_COLUMNS * P::PARTS + part) * P::KEY_COLUMNS * FRAGMENT + d % P::KEY_COLUMNS * FRAGMENT +
                 place.column;
    F first = column < P::HEAD_DIM ? F(row[column * rows.column_stride]) : F(0);
    F second = column + 1 < P::HEAD_DIM ? F(row[(column + 1) * rows.column_stride]) : F(0);
    set(f, first, second);
  }

  INLINE void get(thread Fragment<F>& f, int r, const thread int* q_idx, int d, LanePlace place) const thread {
    if (P::Q_IN_REGISTERS) f = held[r][P::Q_IN_REGISTERS ? d : 0];
    else read(f, q_idx[r], d, place);
  }
};

// S += Q K^T over one tile of columns of K in threadgroup memory; `tile` counts them.
template <typename T, typename P, typename K>
INLINE void multiply_keys(thread Fragment<float> (&scores)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
                          const thread Queries<T, P>& queries, const thread int* q_idx, const threadgroup K* keys,
                          int tile, LanePlace place) {
  typedef typename ProductOf<T>::type F;
  constexpr int LD = Leading<K, P::BD>::value;
  keys += queries.part * P::KEY_COLUMNS * FRAGMENT;
  UNROLL
  for (int d = 0; d < P::KEY_COLUMNS; d++) {
    metal::simdgroup_barrier(metal::mem_flags::mem_none);
    Fragment<F> query[P::ROW_FRAGMENTS], key;
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) queries.get(query[r], r, q_idx, tile * P::KEY_COLUMNS + d, place);
    UNROLL
    for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
      load_transposed<LD>(key, keys + j * FRAGMENT * LD + d * FRAGMENT, place);
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++)
        metal::simdgroup_multiply_accumulate(scores[r][j], query[r], key, scores[r][j]);
    }
  }
}

// O += P V over one tile of columns of V in threadgroup memory, from this part's on; `tile` counts them.
template <typename T, typename P>
INLINE void multiply_values(
    thread Fragment<float> (&out)[P::ROW_FRAGMENTS][P::VALUE_FRAGMENTS],
    thread Fragment<typename ProductOf<T>::type> (&weights)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
    const threadgroup T* values, int tile, LanePlace place) {
  typedef typename ProductOf<T>::type F;
  constexpr int LD = Leading<T, P::BV>::value;
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    UNROLL
    for (int d = 0; d < P::VALUE_COLUMNS; d++) {
      if (d % 4 == 0) metal::simdgroup_barrier(metal::mem_flags::mem_none);
      Fragment<F> value;
      int column = tile * P::VALUE_COLUMNS + d;
      load<LD>(value, values + j * FRAGMENT * LD + d * FRAGMENT, place);
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++)
        metal::simdgroup_multiply_accumulate(out[r][column], weights[r][j], value, out[r][column]);
    }
  }
}

// S of all parts -> their sum, in the same order in each; there is a barrier between the two steps.
// shared: [SIMDGROUPS, 2 ROW_FRAGMENTS KEY_FRAGMENTS, LANES], the bits of floats.
template <typename P>
struct SumOfParts {
  static constexpr constant int OF_SIMDGROUP = P::ROW_FRAGMENTS * P::KEY_FRAGMENTS * 2 * LANES;
  threadgroup uint* shared;

  static int place(int i, uint lane) { return i * LANES + int(lane); }

  INLINE void give(thread Fragment<float> (&scores)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], Thread at) const thread {
    threadgroup uint* to = shared + int(at.simdgroup) * OF_SIMDGROUP;
    UNROLL
    for (int i = 0; i < 2 * P::ROW_FRAGMENTS * P::KEY_FRAGMENTS; i++)
      to[place(i, at.lane)] =
          as_type<uint>(float(elements(scores[i / 2 / P::KEY_FRAGMENTS][i / 2 % P::KEY_FRAGMENTS])[i % 2]));
  }
  INLINE void take(thread Fragment<float> (&scores)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], Thread at) const thread {
    const threadgroup uint* from = shared + int(at.simdgroup) / P::PARTS * P::PARTS * OF_SIMDGROUP;
    UNROLL
    for (int i = 0; i < 2 * P::ROW_FRAGMENTS * P::KEY_FRAGMENTS; i++) {
      float sum = as_type<float>(from[place(i, at.lane)]);
      UNROLL
      for (int part = 1; part < P::PARTS; part++)
        sum += as_type<float>(from[part * OF_SIMDGROUP + place(i, at.lane)]);
      elements(scores[i / 2 / P::KEY_FRAGMENTS][i / 2 % P::KEY_FRAGMENTS])[i % 2] = sum;
    }
  }
};

// Whether some value of the keys of these fragments, a bit each, is infinite or nan: the same in all lanes.
template <typename T, typename P>
INLINE bool holds_special(const threadgroup T* values, uint fragments, uint lane) {
  constexpr int LD = Leading<T, P::BV>::value;
  bool special = false;
  for (uint left = fragments; left != 0; left &= left - 1) {
    const threadgroup T* rows = values + int(metal::ctz(left)) * FRAGMENT * LD;
    for (int i = int(lane); i < FRAGMENT * P::BV; i += LANES)
      special = special || is_special(float(rows[i / P::BV * LD + i % P::BV]));
  }
  return metal::simd_any(special);
}

// multiply_values where a weight of 0 leaves its key out, whatever its values are. This is rare: loops keep it small.
template <typename T, typename P>
INLINE void multiply_special_values(
    thread Fragment<float> (&out)[P::ROW_FRAGMENTS][P::VALUE_FRAGMENTS],
    thread Fragment<typename ProductOf<T>::type> (&weights)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
    const threadgroup T* values, int tile, LanePlace place) {
  typedef typename ProductOf<T>::type F;
  constexpr int LD = Leading<T, P::BV>::value, COLUMNS = P::VALUE_COLUMNS;
  ROLLED
  for (int i = 0; i < P::KEY_FRAGMENTS * COLUMNS; i++) {
    const int j = i / COLUMNS, d = i % COLUMNS;
    Fragment<F> value, marks;
    load<LD>(value, values + j * FRAGMENT * LD + d * FRAGMENT, place);
    const bool special = split_values(value, marks);
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      Fragment<F> weight = weights[r][0];
      UNROLL
      for (int n = 1; n < P::KEY_FRAGMENTS; n++) {
        if (n == j) elements(weight) = elements(weights[r][n]);
      }
      Fragment<float> sum;
      clear(sum);
      if (special) add_marked(sum, weight, marks);
      metal::simdgroup_multiply_accumulate(sum, weight, value, sum);
      UNROLL
      for (int n = 0; n < COLUMNS; n++) {
        if (n == d) elements(out[r][tile * COLUMNS + n]) += elements(sum);
      }
    }
  }
}
