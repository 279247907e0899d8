// vector.h: one machine register of floats, ints or bools, in the vector extensions that GCC and clang share.
#pragma once
#include <stdint.h>

#ifdef __clang__
#pragma clang fp contract(on)  // a * b + c of one expression is one operation; GCC is told so by -ffp-contract=fast
#endif

// What inline assembly calls a register of floats.
#if defined(__AVX512F__)
#define REGISTER_CLASS "v"
#elif defined(__x86_64__)
#define REGISTER_CLASS "x"
#elif defined(__aarch64__)
#define REGISTER_CLASS "w"
#endif

#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

constexpr int VL = VECTOR_BYTES / 4;  // lanes

typedef float vfloat __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t vint __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t vuint __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t vshort __attribute__((vector_size(VECTOR_BYTES / 2)));  // VL half-width numbers
struct vbool {
  vint lanes;  // -1 or 0, as comparisons of vectors give
};

// How many registers a matmul tile may count on.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

constexpr float INFINITE = __builtin_inff();

INLINE vfloat splat(float x) { return x - vfloat{}; }
INLINE vint splat(int32_t x) { return x - vint{}; }
INLINE vbool splat(bool x) { return {splat(-(int32_t)x)}; }
INLINE vfloat splat(vfloat x) { return x; }
INLINE vint splat(vint x) { return x; }
INLINE vbool splat(vbool x) { return x; }

// Unaligned access. Typed rather than by memcpy, so that storing scores does not make the compiler forget what it has
// read through other pointers.
template <class V>
INLINE V load_vector(const void* p) {
  typedef V unaligned __attribute__((aligned(1)));
  return *(const unaligned*)p;
}
template <class V>
INLINE void store_vector(void* p, V v) {
  typedef V unaligned __attribute__((aligned(1)));
  *(unaligned*)p = v;
}

// Keeps x in a register from here on.
template <class V>
INLINE void hold(V& x) {
#ifdef REGISTER_CLASS
  asm("" : "+" REGISTER_CLASS(x));
#endif
}

// 0, 1, 2, ...
INLINE vint lane_index() {
  constexpr int32_t index[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load_vector<vint>(index);
}

INLINE vfloat select(vint condition, vfloat x, vfloat y) { return condition ? x : y; }
INLINE vint select(vint condition, vint x, vint y) { return condition ? x : y; }
INLINE vbool select(vint condition, vbool x, vbool y) { return {(condition & x.lanes) | (~condition & y.lanes)}; }

// The larger one; y where either is nan, as the machine's max instruction.
INLINE vfloat larger(vfloat x, vfloat y) { return x > y ? x : y; }

INLINE vfloat bits_to_float(vint x) { return (vfloat)x; }
INLINE vint float_to_bits(vfloat x) { return (vint)x; }
INLINE vfloat int_to_float(vint x) { return __builtin_convertvector(x, vfloat); }

// Lane i of the result is lane index[i] of x and y side by side.
#if defined(__clang__)
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, vint{__VA_ARGS__})
#endif
#if VECTOR_BYTES == 64
#define SHUFFLE_BY(x, y, f) \
  SHUFFLE(x, y, f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15))
#elif VECTOR_BYTES == 32
#define SHUFFLE_BY(x, y, f) SHUFFLE(x, y, f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7))
#else
#define SHUFFLE_BY(x, y, f) SHUFFLE(x, y, f(0), f(1), f(2), f(3))
#endif

// Lane i gets lane i ^ N.
template <int N, class V>
INLINE V swap_lanes(V v) {
#define INDEX(i) ((i) ^ N)
  return SHUFFLE_BY(v, v, INDEX);
#undef INDEX
}

// One level of a transposition: blocks of N x N change places across the diagonal.
template <int N>
INLINE void swap_blocks(vfloat* rows) {
#define UPPER(i) ((i) & N ? VL + ((i) ^ N) : (i))
#define LOWER(i) ((i) & N ? VL + (i) : (i) ^ N)
#pragma GCC unroll 16
  for (int r = 0; r < VL; r++) {
    if (r & N) continue;
    vfloat x = rows[r], y = rows[r + N];
    rows[r] = SHUFFLE_BY(x, y, UPPER);
    rows[r + N] = SHUFFLE_BY(x, y, LOWER);
  }
}
// The same, and each pair of blocks is added.
template <int N, class V>
INLINE void add_blocks(V* rows) {
#pragma GCC unroll 16
  for (int r = 0; r < N; r++) rows[r] = SHUFFLE_BY(rows[r], rows[r + N], UPPER) + SHUFFLE_BY(rows[r], rows[r + N], LOWER);
}
#undef UPPER
#undef LOWER
// The sums of VL rows, one in each lane.
template <class V>
INLINE V sums_of_lanes(V* rows) {
  if constexpr (VL > 8) add_blocks<VL / 2>(rows);
  if constexpr (VL > 4) add_blocks<4>(rows);
  add_blocks<2>(rows);
  add_blocks<1>(rows);
  return rows[0];
}
// VL rows of VL floats become columns.
INLINE void transpose(vfloat* rows) {
  if constexpr (VL > 8) swap_blocks<VL / 2>(rows);
  if constexpr (VL > 4) swap_blocks<4>(rows);
  swap_blocks<2>(rows);
  swap_blocks<1>(rows);
}

// The largest lane, in every lane.
INLINE vfloat largest_lane(vfloat v) {
  if constexpr (VL > 8) v = larger(v, swap_lanes<VL / 2>(v));
  if constexpr (VL > 4) v = larger(v, swap_lanes<4>(v));
  v = larger(v, swap_lanes<2>(v));
  return larger(v, swap_lanes<1>(v));
}
INLINE float sum_lanes(vfloat v) {
  if constexpr (VL > 8) v += swap_lanes<VL / 2>(v);
  if constexpr (VL > 4) v += swap_lanes<4>(v);
  v += swap_lanes<2>(v);
  v += swap_lanes<1>(v);
  return v[0];
}
INLINE bool any_lane(vint v) {
  if constexpr (VL > 8) v |= swap_lanes<VL / 2>(v);
  if constexpr (VL > 4) v |= swap_lanes<4>(v);
  v |= swap_lanes<2>(v);
  v |= swap_lanes<1>(v);
  return v[0] != 0;
}

// float16 and bfloat16 are storage formats here: widened to float32 when read, rounded to nearest even when written.
INLINE vfloat widen_bfloat16(vshort x) {
#if VECTOR_BYTES == 64 && !defined(__clang__)  // GCC converts half by half where it is not told the instruction
  typedef int16_t halves __attribute__((vector_size(32)));
  return (vfloat)((vuint)__builtin_ia32_pmovzxwd512_mask((halves)x, vint{}, -1) << 16);
#else
  return (vfloat)(__builtin_convertvector(x, vuint) << 16);
#endif
}
INLINE vshort narrow_bfloat16(vfloat x) {
  vuint bits = (vuint)x;
  vuint rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  vuint quiet_nan = bits | 0x400000u;
  return __builtin_convertvector((x != x ? quiet_nan : rounded) >> 16, vshort);
}
#if defined(__AVX512F__) || (defined(__F16C__) && defined(__AVX__))
INLINE vfloat widen_float16(vshort x) {
  typedef int16_t halves __attribute__((vector_size(VECTOR_BYTES / 2)));
#if VECTOR_BYTES == 64
  return (vfloat)__builtin_ia32_vcvtph2ps512_mask((halves)x, vfloat{}, -1, 4);  // 4: rounding as it is; none is needed
#else
  return (vfloat)__builtin_ia32_vcvtph2ps256((halves)x);
#endif
}
#else
INLINE vfloat widen_float16(vshort x) {
  vuint bits = __builtin_convertvector(x, vuint);
  vuint sign = (bits & 0x8000u) << 16, magnitude = (bits & 0x7fffu) << 13;
  vfloat finite = (vfloat)magnitude * 0x1p112f;  // moves the exponent's bias; subnormals come out right too
  vuint special = magnitude | 0x7f800000u;       // inf, nan
  return (vfloat)((magnitude >= (0x7c00u << 13) ? special : (vuint)finite) | sign);
}
#endif
INLINE vshort narrow_float16(vfloat x) {
  vuint bits = (vuint)x, sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  vuint normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  vuint subnormal = (vuint)((vfloat)magnitude + 0.5f) - 0x3f000000u;  // 0.5 has an ulp of 2^-24, float16's last place
  vuint half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? vuint{} + 0x7c00u : half;  // 65520 and beyond
  half = magnitude > 0x7f800000u ? vuint{} + 0x7e00u : half;
  return __builtin_convertvector(half | sign, vshort);
}
