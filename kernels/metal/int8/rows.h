// rows.h: rows of q or k in the registers of simdgroups, and sums and maxima over the simdgroups that share a block of
// rows. Of each row a lane has WIDTH elements, columns lane, LANES + lane, ...; those that the row does not have are 0.
//
// An infinity or a nan is told by its bits and never computed with: a sum or a mean with one of them would hold no
// number.
#pragma once
#include "../tile/matrix.h"

constexpr constant uint EXPONENT_BITS = 0x7f800000u;
constexpr constant uint NAN_BITS = 0x7fc00000u;

INLINE bool is_finite(float x) { return (as_type<uint>(x) & EXPONENT_BITS) != EXPONENT_BITS; }

// ---- one row: a simdgroup's, as its lanes hold it ----

template <typename T, int WIDTH>
INLINE void load_row(thread float (&x)[WIDTH], const thread Matrix<T>& from, int row, int columns, uint lane) {
  UNROLL
  for (int i = 0; i < WIDTH; i++) {
    int column = i * LANES + int(lane);
    x[i] = column < columns ? float(*from.at(row, column)) : 0.0f;
  }
}
template <typename O, int WIDTH>
INLINE void store_row(const thread float (&x)[WIDTH], device O* to, int columns, uint lane) {
  UNROLL
  for (int i = 0; i < WIDTH; i++) {
    int column = i * LANES + int(lane);
    if (column < columns) to[int64_t(column)] = O(x[i]);
  }
}
// Whether all elements of the row are finite.
template <int WIDTH>
INLINE bool is_finite_row(const thread float (&x)[WIDTH]) {
  bool finite = true;
  UNROLL
  for (int i = 0; i < WIDTH; i++) finite = finite && is_finite(x[i]);
  return metal::simd_all(finite);
}
template <int WIDTH>
INLINE void finite_or_zero(thread float (&x)[WIDTH]) {
  UNROLL
  for (int i = 0; i < WIDTH; i++) x[i] = is_finite(x[i]) ? x[i] : 0.0f;
}
// The largest finite magnitude of what this lane holds.
template <int WIDTH>
INLINE float largest_of_row(const thread float (&x)[WIDTH]) {
  float largest = 0.0f;
  UNROLL
  for (int i = 0; i < WIDTH; i++) {
    if (is_finite(x[i])) largest = metal::max(largest, metal::abs(x[i]));
  }
  return largest;
}

// ---- many rows ----

// Rows first, first + STEP, ... before `end`, at most COUNT of them: those that a simdgroup holds at a time.
template <typename T, int WIDTH, int COUNT, int STEP>
struct RowsHeld {
  Matrix<T> from;
  int columns;
  uint lane;
  int first, end;
  float x[COUNT][WIDTH];

  int row(int r) const thread { return first + r * STEP; }
  bool has(int r) const thread { return row(r) < end; }

  void load(int first_, int end_) thread {
    first = first_;
    end = end_;
    UNROLL
    for (int r = 0; r < COUNT; r++) {
      if (has(r)) load_row(x[r], from, row(r), columns, lane);
    }
  }
  // What is not finite stays as it is.
  void subtract(const thread float (&mean)[WIDTH]) thread {
    UNROLL
    for (int r = 0; r < COUNT; r++) {
      UNROLL
      for (int i = 0; i < WIDTH; i++) {
        if (has(r) && is_finite(x[r][i])) x[r][i] -= mean[i];
      }
    }
  }
  // The largest finite magnitude of what this lane holds.
  float largest() const thread {
    float largest = 0.0f;
    UNROLL
    for (int r = 0; r < COUNT; r++) {
      if (has(r)) largest = metal::max(largest, largest_of_row(x[r]));
    }
    return largest;
  }
  // scale * row . mean for each row, 0 where that is not finite. terms: of all the rows.
  void store_terms(const thread float (&mean)[WIDTH], float scale, device float* terms) const thread {
    UNROLL
    for (int r = 0; r < COUNT; r++) {
      if (!has(r)) continue;
      const bool finite = is_finite_row(x[r]);
      float sum = 0.0f;
      UNROLL
      for (int i = 0; i < WIDTH; i++) sum += finite ? x[r][i] * mean[i] : 0.0f;
      const float term = scale * metal::simd_sum(sum);
      if (lane == 0) terms[int64_t(row(r))] = is_finite(term) ? term : 0.0f;
    }
  }
  // Rows that are not finite do not count.
  void add_to(thread float (&sums)[WIDTH], thread float& count) const thread {
    UNROLL
    for (int r = 0; r < COUNT; r++) {
      if (!has(r) || !is_finite_row(x[r])) continue;
      count += 1.0f;
      UNROLL
      for (int i = 0; i < WIDTH; i++) sums[i] += x[r][i];
    }
  }
};

// SIMDGROUPS simdgroups of a threadgroup that work on one block. Two halves of threadgroup memory take turns, so that
// one barrier is enough for each sum or maximum.
template <int SIMDGROUPS>
struct Team {
  threadgroup float* shared;  // in each half SIMDGROUPS floats for a maximum, WIDTH * LANES + 1 times that for a sum
  int half_size;
  int turn;
  int simdgroup;
  uint lane;

  threadgroup float* next_half() thread {
    turn ^= 1;
    return shared + turn * half_size;
  }
  float largest(float x) thread {
    x = metal::simd_max(x);
    if (SIMDGROUPS == 1) return x;
    threadgroup float* now = next_half();
    if (lane == 0) now[simdgroup] = x;
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    return metal::simd_max(int(lane) < SIMDGROUPS ? now[lane] : 0.0f);
  }
  template <int WIDTH>
  void sum(thread float (&x)[WIDTH], thread float& count) thread {
    if (SIMDGROUPS == 1) return;
    threadgroup float* now = next_half();
    threadgroup float* counts = now + SIMDGROUPS * WIDTH * LANES;
    UNROLL
    for (int i = 0; i < WIDTH; i++) {
      now[(simdgroup * WIDTH + i) * LANES + int(lane)] = x[i];
      x[i] = 0.0f;
    }
    if (lane == 0) counts[simdgroup] = count;
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    UNROLL
    for (int s = 0; s < SIMDGROUPS; s++) {
      UNROLL
      for (int i = 0; i < WIDTH; i++) x[i] += now[(s * WIDTH + i) * LANES + int(lane)];
    }
    count = metal::simd_sum(int(lane) < SIMDGROUPS ? counts[lane] : 0.0f);
  }
};

// The end of the neighbours from `first` on that have the number of `first`. numbers: one for each row.
INLINE int end_of_run(const thread Matrix<int>& numbers, int first, int end, uint lane) {
  const int number = *numbers.at(first, 0);
  for (int row = first; row < end; row += LANES) {
    int own = row + int(lane);
    bool other = own < end && *numbers.at(own, 0) != number;
    uint found = metal::simd_or(other ? 1u << lane : 0u);
    if (found != 0u) return row + int(metal::ctz(found));
  }
  return end;
}
