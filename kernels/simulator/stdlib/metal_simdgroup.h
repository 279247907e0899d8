// Stand-in for Metal's barriers, shuffles, reductions and matrices of a simdgroup: each waits for all of its lanes.
#pragma once

#include "metal_math.h"

namespace metal {

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
SIM_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

SIM_INLINE void threadgroup_barrier(mem_flags flags) { sim_threadgroup_barrier(uint(flags)); }
SIM_INLINE void simdgroup_barrier(mem_flags flags) { sim_simdgroup_barrier(uint(flags)); }

}  // namespace metal

namespace flextrace_sim {

constexpr unsigned ROW = 32;

template <class T>
struct tag {
  using type = T;
};

template <class T>
SIM_INLINE T row(const void* table, unsigned lane) {
  static_assert(sizeof(T) <= ROW, "a shuffle moves at most 32 bytes a lane");
  T value;
  __builtin_memcpy(&value, static_cast<const char*>(table) + lane * ROW, sizeof(T));
  return value;
}

// One value of all lanes' values; the last lane computes it.
template <class T, class Op>
SIM_INLINE T reduce(T value) {
  void* table = sim_exchange(SIM_REDUCTION, &value, sizeof(T), [](void* rows, unsigned lanes) {
    T total = row<T>(rows, 0);
    for (unsigned lane = 1; lane < lanes; lane++) {
      total = Op::apply(total, row<T>(rows, lane));
    }
    __builtin_memcpy(rows, &total, sizeof(T));
  });
  return row<T>(table, 0);
}

// value of lane `from`; `kept` where that lane is not there.
template <class T>
SIM_INLINE T shuffle(T value, unsigned from, bool keep) {
  void* table = sim_exchange(SIM_SHUFFLE, &value, sizeof(T), nullptr);
  if (from < sim_lane_count()) {
    return row<T>(table, from);
  }
  if (!keep) {
    sim_bad_lane(from);
  }
  return value;
}

struct add { template <class T> static T apply(T a, T b) { return T(a + b); } };
struct multiply { template <class T> static T apply(T a, T b) { return T(a * b); } };
struct largest { template <class T> static T apply(T a, T b) { return metal::max(a, b); } };
struct smallest { template <class T> static T apply(T a, T b) { return metal::min(a, b); } };
struct conjunction { template <class T> static T apply(T a, T b) { return T(a & b); } };
struct disjunction { template <class T> static T apply(T a, T b) { return T(a | b); } };
struct difference { template <class T> static T apply(T a, T b) { return T(a ^ b); } };

}  // namespace flextrace_sim

namespace metal {

#define SIM_REDUCE(name, op) \
  template <class T>         \
  SIM_INLINE T name(T value) { return ::flextrace_sim::reduce<T, ::flextrace_sim::op>(value); }
SIM_REDUCE(simd_sum, add)
SIM_REDUCE(simd_product, multiply)
SIM_REDUCE(simd_max, largest)
SIM_REDUCE(simd_min, smallest)
SIM_REDUCE(simd_and, conjunction)
SIM_REDUCE(simd_or, disjunction)
SIM_REDUCE(simd_xor, difference)
#undef SIM_REDUCE

SIM_INLINE bool simd_all(bool value) { return ::flextrace_sim::reduce<uint, ::flextrace_sim::conjunction>(value) != 0; }
SIM_INLINE bool simd_any(bool value) { return ::flextrace_sim::reduce<uint, ::flextrace_sim::disjunction>(value) != 0; }

struct simd_vote {
  ulong mask;
  explicit operator ulong() const { return mask; }
};
SIM_INLINE simd_vote simd_ballot(bool value) {
  ulong bit = ulong(value) << sim_lane_index();
  return simd_vote{::flextrace_sim::reduce<ulong, ::flextrace_sim::disjunction>(bit)};
}

template <class T>
SIM_INLINE T simd_shuffle(T value, ushort lane) { return ::flextrace_sim::shuffle(value, lane, false); }
template <class T>
SIM_INLINE T simd_shuffle_xor(T value, ushort mask) {
  return ::flextrace_sim::shuffle(value, sim_lane_index() ^ mask, false);
}
template <class T>
SIM_INLINE T simd_shuffle_down(T value, ushort delta) {
  return ::flextrace_sim::shuffle(value, sim_lane_index() + delta, true);
}
template <class T>
SIM_INLINE T simd_shuffle_up(T value, ushort delta) {
  return ::flextrace_sim::shuffle(value, sim_lane_index() - delta, true);
}
template <class T>
SIM_INLINE T simd_broadcast(T value, ushort lane) { return ::flextrace_sim::shuffle(value, lane, false); }
template <class T>
SIM_INLINE T simd_broadcast_first(T value) { return ::flextrace_sim::shuffle(value, 0u, false); }
// Lanes beyond the edge take `filling`, as if it lay next to `value`.
template <class T>
SIM_INLINE T simd_shuffle_and_fill_up(T value, T filling, ushort delta) {
  T moved = simd_shuffle_up(value, delta);
  T filled = ::flextrace_sim::shuffle(filling, (sim_lane_index() - delta) & 31u, true);
  return sim_lane_index() < delta ? filled : moved;
}
template <class T>
SIM_INLINE T simd_shuffle_and_fill_down(T value, T filling, ushort delta) {
  T moved = simd_shuffle_down(value, delta);
  T filled = ::flextrace_sim::shuffle(filling, (sim_lane_index() + delta) & 31u, true);
  return sim_lane_index() + delta > 31u ? filled : moved;
}
SIM_INLINE bool simd_is_first() { return sim_lane_index() == 0; }

template <class T>
SIM_INLINE T simd_prefix_inclusive_sum(T value) {
  void* table = sim_exchange(SIM_REDUCTION, &value, sizeof(T), nullptr);
  T total = ::flextrace_sim::row<T>(table, 0);
  for (unsigned lane = 1; lane <= sim_lane_index(); lane++) {
    total = T(total + ::flextrace_sim::row<T>(table, lane));
  }
  return total;
}
template <class T>
SIM_INLINE T simd_prefix_exclusive_sum(T value) {
  void* table = sim_exchange(SIM_REDUCTION, &value, sizeof(T), nullptr);
  T total = T(0);
  for (unsigned lane = 0; lane < sim_lane_index(); lane++) {
    total = T(total + ::flextrace_sim::row<T>(table, lane));
  }
  return total;
}

// An 8 x 8 matrix spread over a simdgroup: lane l holds (row, column) and (row, column + 1), with q = l / 4,
// row = (q & 4) + l / 2 % 4 and column = (q & 2) * 2 + l % 2 * 2.
template <class T, int Columns, int Rows>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "Metal has simdgroup matrices of 8 x 8 only");
  typedef vec<T, 2> storage_type;
  storage_type elements;

  simdgroup_matrix() = default;
  // A diagonal matrix, as in Metal; make_filled_simdgroup_matrix fills.
  SIM_INLINE explicit simdgroup_matrix(T diagonal) {
    for (int i = 0; i < 2; i++) {
      elements.data[i] = row() == column() + uint(i) ? diagonal : T(0);
    }
  }
  SIM_INLINE storage_type& thread_elements() { return elements; }
  SIM_INLINE const storage_type& thread_elements() const { return elements; }
  static SIM_INLINE uint row() { return (sim_lane_index() / 4 & 4) + sim_lane_index() / 2 % 4; }
  static SIM_INLINE uint column() { return (sim_lane_index() / 4 & 2) * 2 + sim_lane_index() % 2 * 2; }
};

typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int Columns, int Rows>
SIM_INLINE simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> matrix;
  matrix.elements = vec<T, 2>(value);
  return matrix;
}

template <class D, class A, class B, class C>
SIM_INLINE void simdgroup_multiply_accumulate(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b,
    const simdgroup_matrix<C, 8, 8>& c) {
  float left[2] = {float(a.elements.data[0]), float(a.elements.data[1])};
  float right[2] = {float(b.elements.data[0]), float(b.elements.data[1])};
  float start[2] = {float(c.elements.data[0]), float(c.elements.data[1])};
  float result[2];
  sim_multiply(result, left, right, start);
  d.elements.data[0] = D(result[0]);
  d.elements.data[1] = D(result[1]);
}

template <class D, class A, class B>
SIM_INLINE void simdgroup_multiply(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float, 8, 8>(0.0f));
}

template <class A, class B>
SIM_INLINE auto operator*(const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b) {
  simdgroup_matrix<A, 8, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}

template <class T>
SIM_INLINE void simdgroup_load(simdgroup_matrix<T, 8, 8>& d, const T* source, ulong elements_per_row = 8,
                               ulong2 origin = 0, bool transpose = false) {
  using matrix = simdgroup_matrix<T, 8, 8>;
  sim_matrix_access(0);
  for (uint i = 0; i < 2; i++) {
    ulong row = transpose ? matrix::column() + i : matrix::row();
    ulong column = transpose ? matrix::row() : matrix::column() + i;
    d.elements.data[i] = source[(origin.data[1] + row) * elements_per_row + origin.data[0] + column];
  }
}

template <class T>
SIM_INLINE void simdgroup_store(const simdgroup_matrix<T, 8, 8>& s, T* target, ulong elements_per_row = 8,
                                ulong2 origin = 0, bool transpose = false) {
  using matrix = simdgroup_matrix<T, 8, 8>;
  sim_matrix_access(1);
  for (uint i = 0; i < 2; i++) {
    ulong row = transpose ? matrix::column() + i : matrix::row();
    ulong column = transpose ? matrix::row() : matrix::column() + i;
    target[(origin.data[1] + row) * elements_per_row + origin.data[0] + column] = s.elements.data[i];
  }
}

}  // namespace metal
