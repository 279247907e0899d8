#line 1 "attention/forward.metal"
// forward.metal: attention forward, a tile at a time, never the full score matrix (FlashAttention,
// arXiv 2205.14135; online softmax, arXiv 1805.02867).
//
//   each threadgroup takes BQ query rows of one head, each of its simdgroups ROWS of them       start
//   for each tile of BK keys that the masks leave                                                Walk
//     S = (scale Q) K^T, in registers                                                            multiply_keys
//     S = mask(score_mod(S))                                                                     modify
//     P = exp(S - max), still in registers; O = O * exp(old max - max)                           update_rows
//     O = O + P V                                                                                multiply_values
//   out = O / sum of P; lse = max + log(sum)                                                     write_rows
//
// K and V pass through two halves of threadgroup memory, as stream.h says.
#line 1 "mod/mod.h (generated)"
// mod.h: the one hole of the kernel, and its template. template/hole.py says what is replaced for a user's mods; as it
// lies here it leaves the scores as they are.

// {{ library
#line 1 "mod/ops.h"
// ops.h: what generated mods call besides the Metal library. Semantics are Python's on float32 and int32; an int
// divided by 0 gives 0, and an array index is Python's (a negative one counts from the end, once) and then clamped.

#line 1 "tile/simdgroup.h"
// simdgroup.h: threads of a threadgroup -> where each stands, and what a simdgroup is.

#include <metal_stdlib>

constexpr constant int LANES = 32;    // threads of a simdgroup
constexpr constant int FRAGMENT = 8;  // rows and columns of a simdgroup_matrix

// A function that keeps fragments in registers must not be called: they would go through memory.
#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)")

// Where a thread stands: its threadgroup in the grid of `groups`, its simdgroup, and its lane.
struct Thread {
  metal::uint3 group, groups;
  uint simdgroup, lane;

  uint index() const thread { return simdgroup * LANES + lane; }  // in its threadgroup
};
INLINE Thread thread_at(metal::uint3 group, metal::uint3 groups, uint simdgroup, uint lane) {
  Thread t;
  t.group = group;
  t.groups = groups;
  t.simdgroup = simdgroup;
  t.lane = lane;
  return t;
}

// Bit i: what lane i says.
INLINE uint ballot(bool yes) { return uint(ulong(metal::simd_ballot(yes))); }
#line 5 "mod/ops.h"

// The strides of an array that lies row after row, by its shape: strides[0] is that of its first axis.
template <int NDIM>
struct RowMajor {
  const device int* shape;
  int64_t operator[](int) const thread {
    int64_t stride = 1;
    for (int axis = 1; axis < NDIM; axis++) stride *= shape[axis];
    return stride;
  }
  RowMajor<NDIM - 1> operator+(int) const thread {
    RowMajor<NDIM - 1> next;
    next.shape = shape + 1;
    return next;
  }
};

namespace fx {

// -- captured arrays ---------------------------------------------------------------------------------------------

INLINE int inside(int index, int size) {
  return metal::clamp(index < 0 ? index + size : index, 0, size - 1);
}

// The place of array[index, ...] in memory, in elements.
template <typename Shape, typename Strides>
INLINE int64_t offset(Shape shape, Strides strides, int index) {
  return inside(index, shape[0]) * int64_t(strides[0]);
}
template <typename Shape, typename Strides, typename... Rest>
INLINE int64_t offset(Shape shape, Strides strides, int index, Rest... rest) {
  return inside(index, shape[0]) * int64_t(strides[0]) + offset(shape + 1, strides + 1, rest...);
}

// -- integers ----------------------------------------------------------------------------------------------------

// int wraps: its own + - * << would leave an overflow undefined.
INLINE int add(int a, int b) { return int(uint(a) + uint(b)); }
INLINE int sub(int a, int b) { return int(uint(a) - uint(b)); }
INLINE int mul(int a, int b) { return int(uint(a) * uint(b)); }
INLINE int neg(int a) { return int(0u - uint(a)); }
INLINE int abs(int a) { return a < 0 ? neg(a) : a; }
// Python's shifts at 32 bits; a negative count is taken as one that is too large.
INLINE int shl(int a, int count) { return uint(count) < 32u ? int(uint(a) << (count & 31)) : 0; }
INLINE int shr(int a, int count) { return a >> (uint(count) < 32u ? count : 31); }

INLINE int floor_div(int a, int b) {
  if (b == 0) return 0;
  if (b == -1) return neg(a);
  int quotient = a / b;
  return quotient - int(a % b != 0 && (a ^ b) < 0);
}
INLINE int mod(int a, int b) {
  if (b == 0 || b == -1) return 0;
  int remainder = a % b;
  return remainder != 0 && (remainder ^ b) < 0 ? remainder + b : remainder;
}

// -- conversions -------------------------------------------------------------------------------------------------

INLINE int to_int(bool x) { return x ? 1 : 0; }
INLINE int to_int(int x) { return x; }
// Truncates; saturates beyond int32; nan gives 0.
INLINE int to_int(float x) {
  if (!(x >= -2147483648.0f)) return x < 0.0f ? (-2147483647 - 1) : 0;
  return x >= 2147483648.0f ? 2147483647 : int(x);
}

// -- floats ------------------------------------------------------------------------------------------------------

// nan where either is.
INLINE float min(float a, float b) { return a != a ? a : a < b ? a : b; }
INLINE float max(float a, float b) { return a != a ? a : a > b ? a : b; }

// CPython's float_divmod, in float32.
INLINE float mod(float a, float b) {
  float remainder = metal::precise::fmod(a, b);
  if (remainder == 0.0f) return metal::copysign(0.0f, b);
  return (b < 0.0f) != (remainder < 0.0f) ? remainder + b : remainder;
}
INLINE float floor_div(float a, float b) {
  if (b == 0.0f) return a / b;
  float remainder = metal::precise::fmod(a, b);
  float quotient = (a - remainder) / b;
  if (remainder != 0.0f && (b < 0.0f) != (remainder < 0.0f)) quotient -= 1.0f;
  if (quotient == 0.0f) return metal::copysign(0.0f, a / b);
  float below = metal::floor(quotient);
  return quotient - below > 0.5f ? below + 1.0f : below;
}

INLINE float pow(float a, float b) { return metal::precise::pow(a, b); }
INLINE float sigmoid(float x) { return 1.0f / (1.0f + metal::precise::exp(-x)); }

// x + x^2 / 2 + x^3 / 6 + ... near 0, where exp(x) - 1 would cancel.
INLINE float expm1(float x) {
  if (!(metal::abs(x) < 0.5f)) return metal::precise::exp(x) - 1.0f;
  float p = 2.4801587e-5f;
  p = p * x + 1.9841270e-4f;
  p = p * x + 1.3888889e-3f;
  p = p * x + 8.3333333e-3f;
  p = p * x + 4.1666667e-2f;
  p = p * x + 1.6666667e-1f;
  p = p * x + 0.5f;
  return p * (x * x) + x;
}

// 2 atanh(s), s = x / (2 + x), near 0, where 1 + x would round.
INLINE float log1p(float x) {
  if (!(metal::abs(x) < 0.25f)) return metal::precise::log(1.0f + x);
  float s = x / (2.0f + x), z = s * s;
  float p = 1.8181818e-1f;
  p = p * z + 2.2222222e-1f;
  p = p * z + 2.8571429e-1f;
  p = p * z + 0.4f;
  p = p * z + 6.6666667e-1f;
  return p * (z * s) + 2.0f * s;
}

// Polynomials fitted to erf(x) / x, in x^2, and to erfc(x) exp(x^2), in 1 / x.
INLINE float erf(float x) {
  float size = metal::abs(x), z = x * x;
  if (size < 1.0f) {
    float p = 7.88249745e-05f;
    p = p * z - 8.01885501e-04f;
    p = p * z + 5.18931216e-03f;
    p = p * z - 2.68543288e-02f;
    p = p * z + 1.12835974e-01f;
    p = p * z - 3.76126260e-01f;
    p = p * z + 1.12837911e+00f;
    return p * x;
  }
  if (size >= 4.0f) return x < 0.0f ? -1.0f : 1.0f;
  float t = 1.0f / size;
  float p = -7.10661896e-03f;
  p = p * t + 1.68430135e-02f;
  p = p * t + 4.87054139e-02f;
  p = p * t - 2.71460921e-01f;
  p = p * t + 5.18174708e-01f;
  p = p * t - 4.81059134e-01f;
  p = p * t + 4.45175804e-02f;
  p = p * t + 5.58676898e-01f;
  p = p * t + 2.92626151e-04f;
  return metal::copysign(1.0f - p * metal::precise::exp(-z), x);
}

}  // namespace fx
#line 6 "mod/mod.h (generated)"
// }}


constexpr constant bool HAS_SCORE_MOD = true;
constexpr constant bool HAS_MASK_MOD = false;
constexpr constant bool QUANTISED = false;    // q and k are whole numbers, with a scale for each row and key
constexpr constant bool SMOOTHED_Q = false;   // q lacks a mean row, whose scores are there too
constexpr constant bool ADD_BACK = false;     // each row has a term that goes to its scores before score_mod
constexpr constant bool INT8_VALUES = false;  // v is whole numbers, with a scale for each key
constexpr constant bool VALUE_MEANS = false;  // v lacks a mean row, to be added to the output

// What the mods capture, and the mods themselves. Each captured array is the three values that MLX passes for it
// (array0, array0_shape, array0_strides), of which the last two are made of words behind the numbers where there are
// many arrays; then there are the extremes of its blocks where tile_state reads them (extremes0), and each captured
// number (number0).
// {{ captures
template <typename Array0>
struct Mods {
  Array0 array0;
  const constant int* array0_shape;
  const constant int64_t* array0_strides;
// }}
  // {{ score_mod
  // One score, already scaled; natural units. h is the query head.
  INLINE float score_mod(float score, int b, int h, int q_idx, int kv_idx) const thread {
    // score_mod alibi
    return score - (float(array0[fx::offset(array0_shape, array0_strides, h)]) * float(fx::abs(fx::sub(q_idx, kv_idx))));
  }
  // }}

  // {{ mask_mod
  // Whether row q_idx attends to key kv_idx.
  INLINE bool mask_mod(int b, int h, int q_idx, int kv_idx) const thread {
    return true;
  }
  // }}

  // {{ mask_row
  // Which keys of a lane it attends to: bit 2 j + e says so of key kv_first + 8 j + e, and is unset from kv_len on.
  template <int FRAGMENTS>
  INLINE uint mask_row(int b, int h, int q_idx, int kv_first, int kv_len) const thread {
    return ~0u;
  }
  // }}

  // {{ tile_state
  // What the mask leaves of rows q_first to q_last and keys kv_first to kv_last in query heads head to last_head: 0
  // nothing, 1 to be asked, 2 all.
  INLINE int tile_state(int batch, int head, int last_head, int q_first, int q_last, int kv_first, int kv_last)
      const thread {
    return 2;
  }
  // }}

  // The scale of a key, and of its value, of one batch and head of k and v.
  float key_scale(int batch, int head, int key) const thread { return 1.0f; }
  float value_scale(int batch, int head, int key) const thread { return 1.0f; }

  // What belongs to a row, or to a column of v, by its number among those of all batches and heads.
  float row_scale(int64_t row) const thread { return 1.0f; }
  float row_term(int64_t row) const thread { return 0.0f; }
  int mean_of_row(int64_t row) const thread { return 0; }
  float mean_score(int64_t at) const thread { return 0.0f; }
  float value_mean(int64_t column) const thread { return 0.0f; }
};

// {{ captured_by_mods
template <typename Array0>
INLINE Mods<Array0> captured_by_mods(const device int* numbers, Array0 array0, const constant int* array0_shape, const constant int64_t* array0_strides) {
  Mods<Array0> mods;
  mods.array0 = array0;
  mods.array0_shape = array0_shape;
  mods.array0_strides = array0_strides;
  return mods;
}
// }}
#line 14 "attention/forward.metal"
#line 1 "attention/params.h"
// params.h: what the launcher hands to one call of the kernel, besides arrays and template arguments.

#line 1 "tile/words.h"
// words.h: the 32-bit words of a launch -> the struct that they make up, and single ones, be they stored in pairs.



// Every field of P is an int or a float, a word each, in the order in which params.py packs them.
template <typename P>
INLINE P read_params(const device int* words) {
  return *reinterpret_cast<const device P*>(words);
}

INLINE int word(const device int* words, int i) { return words[i]; }
INLINE int word(const constant int64_t* pairs, int i) { return int(uint(uint64_t(pairs[i / 2]) >> (i % 2 * 32))); }
#line 4 "attention/params.h"

struct AttentionParams {
  int query_heads;
  int kv_heads;    // query head h reads kv head h / (query_heads / kv_heads)
  int kv_batches;  // batch, or 1: one batch of keys and values serves all
  int q_len;
  int kv_len;
  float scale;  // score = scale * (q . k), before score_mod

  // The block mask; unused without one. tile_lists has, for every [mask_batches, mask_heads, q_tiles], runs of tiles of
  // keys to visit: where the runs of each begin, and of all; then two words per run, as TileRuns of walk.h has them.
  int mask_batches;  // batch, or 1 to broadcast
  int mask_heads;    // query_heads, or 1 to broadcast
  // Behind them lie, a byte each, the states of blocks, [mask_batches, mask_heads, q_blocks, kv_blocks]: 0 empty, 1 ask
  // mask_mod, 2 full; only where the edge of a block cuts a tile.
  int q_blocks;
  int kv_blocks;
  int q_block;  // rows and columns of one block
  int kv_block;

  int first_tile;  // the first tile of query rows that this launch takes
  int sharing;     // the batches of q that read one batch of keys
};

// The fields above lie one after the other. As 7 int64 they are so few that MLX passes them in the constant address
// space, which takes no registers of a thread; where that buffer would be one too many they lie in front of the numbers
// that the mods capture.
constexpr constant int PARAM_WORDS = 14;
static_assert(sizeof(AttentionParams) == 4 * PARAM_WORDS, "every field is a word");

template <typename Words>
INLINE AttentionParams attention_params(Words words) {
  AttentionParams p;
  p.query_heads = word(words, 0);
  p.kv_heads = word(words, 1);
  p.kv_batches = word(words, 2);
  p.q_len = word(words, 3);
  p.kv_len = word(words, 4);
  p.scale = as_type<float>(word(words, 5));
  p.mask_batches = word(words, 6);
  p.mask_heads = word(words, 7);
  p.q_blocks = word(words, 8);
  p.kv_blocks = word(words, 9);
  p.q_block = word(words, 10);
  p.kv_block = word(words, 11);
  p.first_tile = word(words, 12);
  p.sharing = word(words, 13);
  return p;
}
#line 15 "attention/forward.metal"
#line 1 "attention/plan.h"
// plan.h: how one threadgroup cuts its work, all compile-time. plan.py chooses; its model of registers and
// threadgroup memory is written there.



// HEAD_DIM, VALUE_DIM: columns of q and k, and of v, as given.
// ROW_FRAGMENTS: fragments of 8 query rows per simdgroup; a fragment of K or V is read once for all of them.
// SIMDGROUPS: each has query rows of its own.
// BK: keys of one tile. BD, BV: columns of a tile of K and of V that are in threadgroup memory at a time.
// PARTS: simdgroups that share query rows, each with its part of the columns of each tile of K and of V.
// VALUE_TILES: tiles of BV columns that one threadgroup computes; others compute the rest of v.
// Q_IN_REGISTERS: query fragments stay in registers; otherwise they are read from device memory for each tile.
template <int HEAD_DIM_, int VALUE_DIM_, int ROW_FRAGMENTS_, int SIMDGROUPS_, int BK_, int BD_, int BV_,
          int VALUE_TILES_, bool Q_IN_REGISTERS_, int PARTS_ = 1>
struct Plan {
  static constexpr constant int HEAD_DIM = HEAD_DIM_;
  static constexpr constant int VALUE_DIM = VALUE_DIM_;
  static constexpr constant int ROW_FRAGMENTS = ROW_FRAGMENTS_;
  static constexpr constant int BK = BK_;
  static constexpr constant int BD = BD_;
  static constexpr constant int BV = BV_;
  static constexpr constant int VALUE_TILES = VALUE_TILES_;
  static constexpr constant bool Q_IN_REGISTERS = Q_IN_REGISTERS_;

  static constexpr constant int SIMDGROUPS = SIMDGROUPS_;
  static constexpr constant int THREADS = SIMDGROUPS_ * LANES;
  static constexpr constant int ROWS = ROW_FRAGMENTS_ * FRAGMENT;  // query rows of a simdgroup
  static constexpr constant int PARTS = PARTS_;
  static constexpr constant int BQ = SIMDGROUPS_ / PARTS_ * ROWS;  // query rows of a threadgroup
  static constexpr constant int KEY_FRAGMENTS = BK_ / FRAGMENT;
  // Of one tile's columns, and of all of the output's, what a simdgroup has.
  static constexpr constant int KEY_COLUMNS = BD_ / FRAGMENT / PARTS_;
  static constexpr constant int VALUE_COLUMNS = BV_ / FRAGMENT / PARTS_;
  static constexpr constant int VALUE_FRAGMENTS = VALUE_TILES_ * VALUE_COLUMNS;
  static constexpr constant int HEAD_TILES = (HEAD_DIM_ + BD_ - 1) / BD_;
  static constexpr constant int VALUE_SLICES = (VALUE_DIM_ + BV_ * VALUE_TILES_ - 1) / (BV_ * VALUE_TILES_);

  static_assert(BK_ % FRAGMENT == 0, "a tile of keys is made of whole fragments");
  static_assert(BD_ % (FRAGMENT * PARTS_) == 0 && BV_ % (FRAGMENT * PARTS_) == 0 && SIMDGROUPS_ % PARTS_ == 0,
                "parts are equal");
  static_assert(BD_ % FRAGMENT == 0 && BV_ % FRAGMENT == 0, "a tile of columns is made of whole fragments");
  static_assert(ROW_FRAGMENTS_ * KEY_FRAGMENTS * 2 <= 32, "a lane keeps its part of the mask in the bits of a uint");
};
#line 16 "attention/forward.metal"
#line 1 "tile/fragments.h"
// fragments.h: 8x8 matrices spread over the lanes of a simdgroup, two neighbouring elements of one row in each lane.

#include <metal_simdgroup>
#include <metal_simdgroup_matrix>


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
#line 17 "attention/forward.metal"
#line 1 "attention/products.h"
// products.h: the two matrix products of attention, over tiles, and the query fragments that the first one uses.



#line 1 "tile/staging.h"
// staging.h: tiles of a matrix on their way from device memory through registers to threadgroup memory.

#line 1 "tile/matrix.h"
// matrix.h: tensors in device memory -> matrices of one head, and ranges of their rows and columns.



// One head of a tensor of four axes, any strides.
template <typename T>
struct Matrix {
  const device T* data;
  int64_t row_stride;  // in elements
  int64_t column_stride;

  const device T* at(int row, int column) const thread { return data + row * row_stride + column * column_stride; }
};

// A tensor as MLX passes it: [batch, heads, rows, columns].
template <typename T>
struct Tensor {
  const device T* data;
  const constant int64_t* strides;  // in elements

  Matrix<T> head(int b, int h) const thread {
    Matrix<T> m;
    m.data = data + b * strides[0] + h * strides[1];
    m.row_stride = strides[2];
    m.column_stride = strides[3];
    return m;
  }
};
template <typename T>
INLINE Tensor<T> tensor(const device T* data, const constant int64_t* strides) {
  Tensor<T> t;
  t.data = data;
  t.strides = strides;
  return t;
}

// From first to end - 1, of rows, columns or the axis that a product sums over.
struct Range {
  int first, end;
};
// Block number `block` of those that `length` is cut into; the last one may be shorter.
INLINE Range block_of(int block, int size, int length) {
  Range range;
  range.first = block * size;
  range.end = range.first + metal::min(size, length - range.first);
  return range;
}
// What a block has of its piece number `piece` of that size, perhaps nothing.
INLINE Range cut(Range block, int piece, int size) {
  Range range;
  range.first = metal::min(block.first + piece * size, block.end);
  range.end = metal::min(range.first + size, block.end);
  return range;
}
// `count` of them from `first` on, as far as there are so many: none beyond `length`.
INLINE Range range_of(int first, int count, int length) {
  Range range;
  range.first = first;
  range.end = metal::min(first + count, length);
  return range;
}
#line 4 "tile/staging.h"

// Elements from one row to the next of a staged tile: 16 bytes more than it needs, so that rows start in other banks.
template <typename T, int COLUMNS>
struct Leading {
  static constexpr constant int value = COLUMNS + 16 / int(sizeof(T));
};

// Two halves of threadgroup memory that take turns: one to compute on, and one for the tile ahead.
template <typename T, int SIZE>
struct Halves {
  threadgroup T* in_use;
  threadgroup T* other;

  INLINE void start(threadgroup T* both) thread {
    in_use = both;
    other = both + SIZE;
  }
  threadgroup T* now() const thread { return in_use; }
  threadgroup T* ahead() const thread { return other; }
  void swap() thread {
    threadgroup T* filled = other;
    other = in_use;
    in_use = filled;
  }
};

// A half of threadgroup memory, as where a tile of T lies: its elements may be narrower than those it was declared for.
template <typename T, typename Staged>
INLINE threadgroup T* tile_at(threadgroup Staged* half_of_memory) {
  static_assert(sizeof(T) <= sizeof(Staged), "memory is laid out for the wider elements");
  return reinterpret_cast<threadgroup T*>(half_of_memory);
}

// ROWS x COLUMNS elements, spread over the threads' registers in pieces of a row, 16 bytes where the width allows it.
// `load` only issues reads, and `store` waits for them: arithmetic between the two hides their latency.
template <typename T, int ROWS, int COLUMNS, int THREADS>
struct StagedTile {
  static constexpr constant int WIDEST = 16 / int(sizeof(T));
  static constexpr constant int PIECE = COLUMNS % WIDEST == 0 ? WIDEST : FRAGMENT;  // elements
  static constexpr constant int PIECES = COLUMNS / PIECE;                           // of a row
  static constexpr constant int COUNT = (ROWS * PIECES + THREADS - 1) / THREADS;    // of a thread
  static constexpr constant bool EVEN = ROWS * PIECES % THREADS == 0;
  static constexpr constant int LD = Leading<T, COLUMNS>::value;
  static_assert(COLUMNS % PIECE == 0, "rows are made of whole pieces");

  struct alignas(sizeof(T)) Piece {  // in device memory rows begin anywhere
    T values[PIECE];
  };
  Piece pieces[COUNT];

  // Where a thread's piece i begins in the tile: i THREADS pieces after its first one, maybe in the row after that.
  struct Place {
    int row, column;
    bool wrapped;
  };
  static Place place_of_piece(uint index, int i) {
    const int piece = int(index % PIECES) + i * THREADS % PIECES;
    Place place;
    place.wrapped = i * THREADS % PIECES != 0 && piece >= PIECES;
    place.row = int(index / PIECES) + i * THREADS / PIECES + int(place.wrapped);
    place.column = (place.wrapped ? piece - PIECES : piece) * PIECE;
    return place;
  }
  static bool is_in_tile(Place place, int i) { return EVEN || i + 1 < COUNT || place.row < ROWS; }

  // Where the thread's first piece begins.
  static const device T* start_of(const thread Matrix<T>& from, Range rows, Range columns, uint index) {
    const Place place = place_of_piece(index, 0);
    return from.at(rows.first + place.row, columns.first + place.column);
  }
  // Piece i, at once where the columns lie side by side; zero beyond the end of either range.
  INLINE static Piece read(const thread Matrix<T>& from, const device T* start, Range rows, Range columns, uint index,
                    int i) {
    const Place place = place_of_piece(index, i);
    const int more_rows = i * THREADS / PIECES, more_columns = i * THREADS % PIECES * PIECE;
    start += more_rows * from.row_stride + more_columns * from.column_stride;
    if (place.wrapped) start += from.row_stride - COLUMNS * from.column_stride;
    const bool there = rows.first + place.row < rows.end && is_in_tile(place, i);
    const bool whole = columns.end - columns.first >= COLUMNS;
    if (from.column_stride == 1 && whole && there) return *reinterpret_cast<const device Piece*>(start);
    const int left = !there ? 0 : whole ? PIECE : columns.end - columns.first - place.column;
    Piece piece;
    UNROLL
    for (int e = 0; e < PIECE; e++) {
      piece.values[e] = e < left ? *start : T(0);
      start += from.column_stride;
    }
    return piece;
  }
  INLINE static void put(threadgroup T* to, Piece piece, uint index, int i) {
    const Place place = place_of_piece(index, i);
    if (is_in_tile(place, i)) *reinterpret_cast<threadgroup Piece*>(to + place.row * LD + place.column) = piece;
  }

  // Neither range is longer than the tile.
  INLINE void load(const thread Matrix<T>& from, Range rows, Range columns, uint index) thread {
    const device T* start = start_of(from, rows, columns, index);
    UNROLL
    for (int i = 0; i < COUNT; i++) pieces[i] = read(from, start, rows, columns, index, i);
  }
  INLINE void store(threadgroup T* to, uint index) const thread {
    UNROLL
    for (int i = 0; i < COUNT; i++) put(to, pieces[i], index, i);
  }

  // Both at once, some pieces at a time, for tiles that registers cannot hold.
  INLINE static void copy(const thread Matrix<T>& from, Range rows, Range columns, threadgroup T* to, uint index) {
    const device T* start = start_of(from, rows, columns, index);
    _Pragma("clang loop unroll_count(2)")
    for (int i = 0; i < COUNT; i++) put(to, read(from, start, rows, columns, index, i), index, i);
  }

  // AsyncTile is called so: its copy goes to `to` at once.
  INLINE void load(const thread Matrix<T>& from, Range rows, Range columns, threadgroup T*, uint index) thread {
    load(from, rows, columns, index);
  }
};
#line 6 "attention/products.h"

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
#line 18 "attention/forward.metal"
#line 1 "attention/softmax.h"
// softmax.h: the online softmax (arXiv 1805.02867) on score fragments in registers.
//
// A score that is not attended to is -inf. It is told by its bits and never computed with: -inf less a maximum of -inf
// is nan, and metal::fast::exp2 promises nothing of infinities. The running maximum starts at the lowest finite number.



constexpr constant float LOWEST = -3.40282347e+38f;
constexpr constant float LOG2_E = 1.44269504f;
constexpr constant uint MINUS_INFINITY_BITS = 0xff800000u;

INLINE float minus_infinity() { return as_type<float>(MINUS_INFINITY_BITS); }
INLINE bool is_minus_infinity(float x) { return as_type<uint>(x) == MINUS_INFINITY_BITS; }

// One row's statistics.
struct RowState {
  float max;  // LOWEST before the first key
  float sum;  // the sum of the weights that this lane has held, relative to max

  INLINE void start() thread {
    max = LOWEST;
    sum = 0.0f;
  }
};

// Scores -> weights, in place. Returns what the row's output so far shrinks by.
// The maximum is subtracted before anything else is done to a score: scores of any size keep their differences.
// GUARD: some scores may be -inf; in `gaps`, bit j is set if one of this lane's in key fragment j is.
template <bool GUARD, int KEY_FRAGMENTS>
INLINE float update_row(thread RowState& row, thread Fragment<float> (&scores)[KEY_FRAGMENTS], thread uint& gaps) {
  float largest = row.max;
  UNROLL
  for (int j = 0; j < KEY_FRAGMENTS; j++) {
    float first = elements(scores[j])[0], second = elements(scores[j])[1];
    if (!GUARD || !is_minus_infinity(first)) largest = metal::max(largest, first);
    if (!GUARD || !is_minus_infinity(second)) largest = metal::max(largest, second);
  }
  largest = max_of_row(largest);

  float shrink = metal::fast::exp2((row.max - largest) * LOG2_E), sum = row.sum * shrink;
  UNROLL
  for (int j = 0; j < KEY_FRAGMENTS; j++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      float score = elements(scores[j])[e];
      bool left_out = GUARD && is_minus_infinity(score);
      float weight = left_out ? 0.0f : metal::fast::exp2((score - largest) * LOG2_E);
      if (left_out) gaps |= 1u << j;
      elements(scores[j])[e] = weight;
      sum += weight;
    }
  }
  row.max = largest;
  row.sum = sum;
  return shrink;
}

// Updates all rows of a lane: P = exp(S - max), and O, in `sums`, shrinks by what each row's maximum has grown.
// Returns gaps: bit j is set if some row of this lane does not attend to some key of key fragment j.
template <bool GUARD, typename F, int ROWS, int KEY_FRAGMENTS, int VALUE_FRAGMENTS>
INLINE uint update_rows(thread RowState (&state)[ROWS], thread Fragment<float> (&sums)[ROWS][VALUE_FRAGMENTS],
                        thread Fragment<F> (&weights)[ROWS][KEY_FRAGMENTS],
                        thread Fragment<float> (&scores)[ROWS][KEY_FRAGMENTS]) {
  uint gaps = 0;
  UNROLL
  for (int r = 0; r < ROWS; r++) {
    const float shrink = update_row<GUARD>(state[r], scores[r], gaps);
    UNROLL
    for (int i = 0; i < VALUE_FRAGMENTS; i++) elements(sums[r][i]) *= shrink;
    UNROLL
    for (int j = 0; j < KEY_FRAGMENTS; j++) convert(weights[r][j], scores[r][j]);
  }
  return gaps;
}
#line 19 "attention/forward.metal"
#line 1 "attention/walk.h"
// walk.h: which tiles of keys a threadgroup visits. A tile that no row attends to is neither loaded nor computed; one
// that every row attends to whole runs without the mask.
//
// Candidates are all tiles of keys, or those that a block mask leaves. Bounds of mask_mod (tile_state of mod.h) decide
// most of them unseen: a lane each, first 32 stretches of 32 candidates, then the 32 candidates of a stretch, for the
// rows of the threadgroup; where that leaves some open, for the rows of each simdgroup. Only what is open even then is
// surveyed: the lanes ask mask_mod about the elements that they will hold. The simdgroups vote on open candidates,
// which costs a barrier per stretch that has one.

#line 1 "attention/lane_rows.h"
// lane_rows.h: where a thread stands -> its query rows, what they read of k and v, and what it writes.






template <typename P>
struct LaneRows {
  int b, h;
  int kv_batch, kv_head;
  int q_tile, q_tiles;  // the threadgroup's tile of query rows, and how many this launch takes
  int slice;            // its slice of value columns
  int part;             // the simdgroup's part of the columns of a tile
  int first_row;        // the first row of the simdgroup
  int q_idx[P::ROW_FRAGMENTS];  // the last row's, where a row does not exist
  Range of_group, of_simdgroup;
  bool exist;  // the simdgroup has at least one row
  LanePlace place;

  // The last rows come first: under a causal mask they have the most keys.
  INLINE void start(AttentionParams p, Thread at) thread {
    b = int(at.group.z);
    h = int(at.group.y);
    kv_batch = metal::min(b, p.kv_batches - 1);
    kv_head = h / (p.query_heads / p.kv_heads);
    q_tiles = int(at.groups.x) / P::VALUE_SLICES;
    q_tile = p.first_tile + q_tiles - 1 - int(at.group.x) / P::VALUE_SLICES;
    slice = int(at.group.x) % P::VALUE_SLICES;
    part = int(at.simdgroup) % P::PARTS;
    first_row = q_tile * P::BQ + int(at.simdgroup) / P::PARTS * P::ROWS;
    place = place_of(at.lane);
    exist = first_row < p.q_len;
    of_group = range_of(q_tile * P::BQ, P::BQ, p.q_len);
    of_simdgroup = range_of(first_row, P::ROWS, p.q_len);
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) q_idx[r] = metal::min(row(r), p.q_len - 1);
  }

  int row(int r) const thread { return first_row + r * FRAGMENT + place.row; }
  int first_value() const thread { return slice * P::VALUE_TILES * P::BV; }  // the first column of v, of all parts
};
#line 11 "attention/walk.h"


// The states of a candidate, as far as they are known before mask_mod is asked. An entry is 4 * tile + state.
enum TileState { NO_MASK = 0, ASK = 1, LOOK_UP = 2 };  // LOOK_UP: the edge of a block runs through the tile

// The values of tile_state: what bounds say of a tile.
enum Bounded { EMPTY = 0, OPEN = 1, WHOLE = 2 };

// BLOCKS, a template argument of the kernel.
enum Blocks { NO_BLOCKS = 0, WHOLE_TILES = 1, CUT_TILES = 2 };  // CUT_TILES: some tiles are LOOK_UP

// A tile of keys to visit.
struct KeyTile {
  int first;    // key
  int state;    // a TileState
  bool exists;  // false after the last one
  bool live;    // some row of this simdgroup attends to it
  bool masked;  // some row of this simdgroup does not attend to all of it
  bool asked;   // the survey has asked mask_mod already: `kept` has this lane's bits, in the order of Walk::kept
  uint kept;
};

INLINE KeyTile no_tile() {
  KeyTile tile;
  tile.first = tile.state = 0;
  tile.exists = tile.live = tile.masked = tile.asked = false;
  tile.kept = 0;
  return tile;
}

// The runs of a tile of query rows: neighbouring tiles of keys in one state.
struct TileRuns {
  const device int* ends;     // candidates of this run and those before it
  const device int* entries;  // the entry of each of its candidates, less 4 * candidate
  int count;

  // The first run that ends behind the candidate is its own.
  INLINE int entry(int candidate) const thread {
    int low = 0, high = count - 1;
    while (low < high) {
      int middle = (low + high) / 2;
      if (ends[middle] > candidate) high = middle;
      else low = middle + 1;
    }
    return 4 * candidate + entries[low];
  }
};

template <typename P, int BLOCKS, typename Captured>
struct Walk {
  AttentionParams p;
  TileRuns runs;
  const device uint8_t* states;  // the blocks of this batch and head: 0 empty, 1 ask mask_mod, 2 full
  threadgroup uint* votes;       // one per simdgroup, twice
  int turn;                      // 0 or 1: the place in use; so one barrier is enough
  int candidates;
  int ahead;  // the first candidate that nothing has been said of
  int base;   // the first one in hand; bits of the words below, and entries in the lanes, are these 32
  int entry_in_lane;
  uint to_visit, live, whole;
  int last_asked;  // the last candidate in hand that was surveyed, and what came out
  uint last_kept;
  uint stretches, whole_stretches;  // a bit for each stretch of 32 candidates before `ahead`

  static constexpr constant bool BOUNDED = HAS_MASK_MOD && BLOCKS == NO_BLOCKS;
  static constexpr constant bool UNSURE = HAS_MASK_MOD || BLOCKS == CUT_TILES;

  INLINE void start(AttentionParams params, const device int* tile_lists, const thread LaneRows<P>& rows,
             threadgroup uint* shared_votes) thread {
    p = params;
    votes = shared_votes;
    const int all_tiles = (p.q_len + P::BQ - 1) / P::BQ;  // of query rows, in all launches
    candidates = (p.kv_len + P::BK - 1) / P::BK;
    if (BLOCKS != NO_BLOCKS) {
      int64_t mask = int64_t(metal::min(rows.b, p.mask_batches - 1)) * p.mask_heads +
                     metal::min(rows.h, p.mask_heads - 1);
      int64_t lists = int64_t(p.mask_batches) * p.mask_heads * all_tiles, list = mask * all_tiles + rows.q_tile;
      int first = tile_lists[list];
      runs.count = tile_lists[list + 1] - first;
      runs.ends = tile_lists + lists + 1 + first;
      runs.entries = runs.ends + tile_lists[lists];
      const device int* behind = tile_lists + lists + 1 + 2 * int64_t(tile_lists[lists]);
      states = reinterpret_cast<const device uint8_t*>(behind) + mask * p.q_blocks * p.kv_blocks;
      candidates = runs.count > 0 ? runs.ends[runs.count - 1] : 0;
    }
    turn = ahead = base = entry_in_lane = 0;
    last_asked = -1;
    last_kept = 0;
    to_visit = live = whole = stretches = whole_stretches = 0;
  }

  Range keys(KeyTile tile) const thread { return range_of(tile.first, P::BK, p.kv_len); }

  // The entry of candidate base + i.
  INLINE int entry(int i) const thread {
    if (BLOCKS != NO_BLOCKS) return metal::simd_shuffle(entry_in_lane, ushort(i));
    return (base + i) * 4 + (HAS_MASK_MOD ? ASK : NO_MASK);
  }

  // Bit 2 (r * KEY_FRAGMENTS + j) + e: whether row r of this lane attends to its element e of key fragment j.
  INLINE uint kept(int first, int state, const thread LaneRows<P>& rows, const thread Captured& mods) const thread {
    uint bits = 0;
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++)
      bits |= kept_of_row(rows.q_idx[r], first + rows.place.column, state, rows, mods) << (2 * r * P::KEY_FRAGMENTS);
    return bits;
  }
  static bool is_kept(uint bits, int r, int e, int j) { return (bits >> (2 * (r * P::KEY_FRAGMENTS + j) + e)) & 1; }

  INLINE uint kept_of_row(int q_idx, int first, int state, const thread LaneRows<P>& rows, const thread Captured& mods)
      const thread {
    if (HAS_MASK_MOD && state == ASK)
      return mods.template mask_row<P::KEY_FRAGMENTS>(rows.b, rows.h, q_idx, first, p.kv_len);
    uint bits = 0;
    UNROLL
    for (int i = 0; i < 2 * P::KEY_FRAGMENTS; i++) {
      int kv_idx = first + i / 2 * FRAGMENT + i % 2;
      bool keep = kv_idx < p.kv_len;
      if (BLOCKS == CUT_TILES && state == LOOK_UP && keep) {
        int block = states[int64_t(q_idx / p.q_block) * p.kv_blocks + kv_idx / p.kv_block];
        keep = block == 2 || (block == 1 && (!HAS_MASK_MOD || mods.mask_mod(rows.b, rows.h, q_idx, kv_idx)));
      }
      bits |= uint(keep) << i;
    }
    return bits;
  }

  // The state that bounds give neighbouring tiles of keys, the first of which exists.
  INLINE int bounded(int tile, int tiles, Range q, const thread LaneRows<P>& rows, const thread Captured& mods)
      const thread {
    int first = tile * P::BK, keys = metal::min(p.kv_len - first, tiles * P::BK);
    return mods.tile_state(rows.b, rows.h, rows.h, q.first, q.end - 1, first, first + keys - 1);
  }

  // The state that bounds give this lane's candidate, for some rows.
  INLINE int bounded_in_lane(Range q, const thread LaneRows<P>& rows, const thread Captured& mods, uint lane)
      const thread {
    int e = BLOCKS != NO_BLOCKS ? entry_in_lane : (base + int(lane)) * 4 + ASK;
    if ((e & 3) == ASK) return bounded(e >> 2, 1, q, rows, mods);
    return (e & 3) == NO_MASK ? WHOLE : OPEN;
  }

  // Decides the next 32 stretches, a stretch per lane.
  INLINE void look_ahead(const thread LaneRows<P>& rows, const thread Captured& mods, uint lane) thread {
    int first = ahead + 32 * int(lane);
    int state = first < candidates ? bounded(first, 32, rows.of_group, rows, mods) : EMPTY;
    stretches = ballot(state != EMPTY);
    whole_stretches = ballot(state == WHOLE);
    ahead += 32 * 32;
  }

  // Takes the next 32 candidates in hand, to_visit being those that some row may attend to; false without any.
  INLINE bool take(const thread LaneRows<P>& rows, const thread Captured& mods, Thread at) thread {
    bool sure = !UNSURE;
    if (BOUNDED) {
      while (stretches == 0 && ahead < candidates) look_ahead(rows, mods, at.lane);
      if (stretches == 0) return false;
      int stretch = int(metal::ctz(stretches));
      stretches &= stretches - 1;
      sure = (whole_stretches >> stretch) & 1;
      base = ahead - 32 * (32 - stretch);
    } else {
      if (ahead >= candidates) return false;
      base = ahead;
      ahead += 32;
    }
    uint in_hand = ~0u >> (32 - metal::min(32, candidates - base));
    bool mine = (in_hand >> at.lane) & 1;
    if (BLOCKS != NO_BLOCKS) entry_in_lane = mine ? runs.entry(base + int(at.lane)) : 0;
    to_visit = whole = in_hand;
    live = rows.exist ? in_hand : 0;
    last_asked = -1;
    if (!sure) decide(in_hand, rows, mods, at);
    return true;
  }

  // Decides candidates by bounds: for the rows of the threadgroup, and what that leaves open for those of each
  // simdgroup. The loop keeps the code of tile_state, which may be long, from being there twice.
  INLINE void decide(uint in_hand, const thread LaneRows<P>& rows, const thread Captured& mods, Thread at) thread {
    uint asked = in_hand, open = 0;
    whole = live = 0;
    ROLLED
    for (int finer = 0; finer < 2; finer++) {
      const bool mine = (asked >> at.lane) & 1;
      Range q = rows.of_group;
      if (finer == 1) q = rows.of_simdgroup;
      const int state = mine ? bounded_in_lane(q, rows, mods, at.lane) : EMPTY;
      const uint decided = ballot(state == WHOLE), left = ballot(state == OPEN);
      whole |= decided;
      live |= rows.exist ? decided : 0;
      asked = rows.exist ? left : 0;
      if (finer == 1) break;
      to_visit = decided;
      open = left;
      if (open == 0) break;
    }
    if (UNSURE && open != 0) survey(asked, rows, mods, at);
  }

  // Decides what is open for this simdgroup by asking the mask about all elements; the simdgroups vote.
  INLINE void survey(uint asked, const thread LaneRows<P>& rows, const thread Captured& mods, Thread at) thread {
    constexpr uint EVERY = ~0u >> (32 - 2 * P::ROW_FRAGMENTS * P::KEY_FRAGMENTS);
    for (; asked != 0; asked &= asked - 1) {
      last_asked = int(metal::ctz(asked));
      const int e = entry(last_asked);
      last_kept = kept((e >> 2) * P::BK, e & 3, rows, mods);
      if (metal::simd_any(last_kept != 0)) live |= 1u << last_asked;
      if (metal::simd_all(last_kept == EVERY)) whole |= 1u << last_asked;
    }
    threadgroup uint* votes_now = votes + turn * P::SIMDGROUPS;
    turn ^= 1;
    if (at.lane == 0) votes_now[at.simdgroup] = live;
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    for (int s = 0; s < P::SIMDGROUPS; s++) to_visit |= votes_now[s];
  }

  // The next tile to visit, the same one in all threads.
  INLINE KeyTile next(const thread LaneRows<P>& rows, const thread Captured& mods, Thread at) thread {
    while (to_visit == 0 && take(rows, mods, at)) continue;
    KeyTile tile;
    tile.exists = to_visit != 0;
    int i = tile.exists ? int(metal::ctz(to_visit)) : 0;
    to_visit &= to_visit - 1;
    int e = entry(i);
    tile.first = (e >> 2) * P::BK;
    bool all = (whole >> i) & 1;
    tile.state = all ? NO_MASK : e & 3;
    tile.live = (live >> i) & 1;
    tile.masked = !all || tile.first + P::BK > p.kv_len;
    tile.asked = i == last_asked;
    tile.kept = last_kept;
    return tile;
  }
};
#line 20 "attention/forward.metal"
#line 1 "attention/smooth.h"
// smooth.h: what brings the products of int8 or smoothed keys back to scores, SageAttention (arXiv 2410.02367): a scale
// per row and per key, the term of a row that the mean of its keys took away, and, of smoothed queries (SageAttention2,
// arXiv 2411.10958), the scores of the mean that a row lacks; and, of int8 values, their scales as factors of the
// weights. The hole says which there are.
//
// The scales of a tile's keys, then those of its values, go through threadgroup memory together with its first columns
// of V: one read from device memory serves all simdgroups. One place is enough: it is read between two barriers, of
// which the second comes before the next tile's are stored.




constexpr constant int SCALES = (QUANTISED ? 1 : 0) + (INT8_VALUES ? 1 : 0);  // that each key has

// The scales of a tile on their way, as the elements of a StagedTile are: one in each thread.
template <typename P>
struct ScalesAhead {
  static_assert(SCALES * P::BK <= P::THREADS, "a thread reads one scale");
  float scale;

  // 0 beyond the last key.
  template <typename Captured>
  INLINE void load(int batch, int head, Range keys, const thread Captured& mods, uint index) thread {
    const int key = keys.first + int(index) % P::BK;
    scale = 0.0f;
    if (int(index) >= SCALES * P::BK || key >= keys.end) return;
    scale = QUANTISED && int(index) < P::BK ? mods.key_scale(batch, head, key) : mods.value_scale(batch, head, key);
  }

  INLINE void store(threadgroup uint* scales, uint index) const thread {
    if (int(index) < SCALES * P::BK) scales[index] = as_type<uint>(scale);
  }
};

// One scale of a tile in each lane: that of key i in lane i.
template <typename P>
INLINE float scale_in_lane(const threadgroup uint* scales, uint lane) {
  static_assert(P::BK <= LANES, "a tile has no more keys than a simdgroup has lanes");
  return as_type<float>(scales[lane % P::BK]);
}

// The numbers that bring the scores of a lane's rows back.
template <typename P>
struct RowFactors {
  float scale[P::ROW_FRAGMENTS];
  float term[P::ROW_FRAGMENTS];
  int64_t mean_scores[P::ROW_FRAGMENTS];  // where those of the row's mean begin

  // first_row: number of the head's first row, of all heads' rows.
  template <typename Captured>
  INLINE void start(int64_t first_row, int kv_len, const thread LaneRows<P>& rows, const thread Captured& mods) thread {
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      scale[r] = mods.row_scale(first_row + rows.q_idx[r]);
      term[r] = mods.row_term(first_row + rows.q_idx[r]);
      mean_scores[r] = int64_t(mods.mean_of_row(first_row + rows.q_idx[r])) * kv_len;
    }
  }
};

// Products of whole numbers -> products of what they were rounded from. key_scale: as scale_in_lane has it.
template <typename P, typename Captured>
INLINE void scale_products(thread Fragment<float> (&scores)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], float key_scale,
                           int first, int kv_len, const thread RowFactors<P>& factors, const thread LaneRows<P>& rows,
                           const thread Captured& mods) {
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      int i = j * FRAGMENT + rows.place.column + e, kv_idx = metal::min(first + i, kv_len - 1);
      float unit = metal::simd_shuffle(key_scale, ushort(i));
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
        float score = elements(scores[r][j])[e] * unit * factors.scale[r];
        if (SMOOTHED_Q) score += mods.mean_score(factors.mean_scores[r] + kv_idx);
        elements(scores[r][j])[e] = score;
      }
    }
  }
}

// Weights of values -> weights of the whole numbers that they were rounded to. What a row does not attend to may have
// scale nan, which is no number to compute with: a weight of 0 stays, told by its bits.
template <typename P, typename F>
INLINE void scale_weights(thread Fragment<F> (&weights)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], float value_scale,
                          LanePlace place) {
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      float unit = metal::simd_shuffle(value_scale, ushort(j * FRAGMENT + place.column + e));
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
        float weight = float(elements(weights[r][j])[e]);
        elements(weights[r][j])[e] = F(as_type<uint>(weight) == 0 ? 0.0f : weight * unit);
      }
    }
  }
}
#line 21 "attention/forward.metal"
#line 1 "attention/stream.h"
// stream.h: tiles of K and of V, one after the other, from device memory through two halves of threadgroup memory.
//
// While the arithmetic works on one half, the next tile's reads from device memory are under way into registers; they
// are stored to the other half after it, and one barrier ends the step. (With async_copy.h they go to the other half at
// once, and are waited for after the arithmetic.)





// T: what the threadgroup memory is declared for. Tile: StagedTile, or AsyncTile of async_copy.h.
template <typename T, typename K, typename V, typename P, template <typename, int, int, int> class Tile>
struct Stream {
  static constexpr constant int KEY_BYTES = Leading<K, P::BD>::value * int(sizeof(K));    // bytes of a row of a tile
  static constexpr constant int VALUE_BYTES = Leading<V, P::BV>::value * int(sizeof(V));
  static constexpr constant int HALF =
      P::BK * (KEY_BYTES > VALUE_BYTES ? KEY_BYTES : VALUE_BYTES) / int(sizeof(T));

  // A tile on its way: of keys, of values, or none.
  enum Kind { NOTHING, KEYS, VALUES, VALUES_AND_SCALES };
  struct Ahead {
    int kind;
    Tile<K, P::BK, P::BD, P::THREADS> keys;
    Tile<V, P::BK, P::BV, P::THREADS> values;
    ScalesAhead<P> scales;
  };

  Matrix<K> k;
  Matrix<V> v;
  Halves<T, HALF> halves;
  threadgroup uint* scales;  // those of the keys of a tile, then those of its values
  uint index;                // this thread's

  INLINE void start(Matrix<K> keys, Matrix<V> values, threadgroup T* staged, threadgroup uint* scale_words,
             uint thread_index) thread {
    k = keys;
    v = values;
    halves.start(staged);
    scales = scale_words;
    index = thread_index;
  }

  // The tile to compute on.
  threadgroup K* keys() const thread { return tile_at<K>(halves.now()); }
  threadgroup V* values() const thread { return tile_at<V>(halves.now()); }
  // In lane i the scales of its key i; any number without.
  float key_scale(uint lane) const thread { return QUANTISED ? scale_in_lane<P>(scales, lane) : 1.0f; }
  float value_scale(uint lane) const thread {
    return INT8_VALUES ? scale_in_lane<P>(scales + (SCALES - 1) * P::BK, lane) : 1.0f;
  }

  // Begins to read tile d of the columns of these keys.
  INLINE void read_keys(thread Ahead& next, Range keys, int d) const thread {
    next.kind = KEYS;
    next.keys.load(k, keys, range_of(d * P::BD, P::BD, P::HEAD_DIM), tile_at<K>(halves.ahead()), index);
  }

  // Begins to read tile d of the columns of their values; with the first tile come the scales.
  template <typename Captured>
  INLINE void read_values(thread Ahead& next, Range keys, int d, const thread LaneRows<P>& rows,
                   const thread Captured& mods) const thread {
    next.kind = SCALES > 0 && d == 0 ? VALUES_AND_SCALES : VALUES;
    next.values.load(v, keys, range_of(rows.first_value() + d * P::BV, P::BV, P::VALUE_DIM),
                     tile_at<V>(halves.ahead()), index);
    if (next.kind == VALUES_AND_SCALES) next.scales.load(rows.kv_batch, rows.kv_head, keys, mods, index);
  }

  // What was read becomes the tile to compute on.
  INLINE void turn_to(thread Ahead& next) thread {
    if (next.kind == NOTHING) return;
    if (next.kind == KEYS) next.keys.store(tile_at<K>(halves.ahead()), index);
    else next.values.store(tile_at<V>(halves.ahead()), index);
    if (next.kind == VALUES_AND_SCALES) next.scales.store(scales, index);
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    halves.swap();
  }
};
#line 22 "attention/forward.metal"

// out: [batch, query_heads, rows, VALUE_DIM]; lse, max_scores: [batch, query_heads, rows], float32, natural. `rows` are
// those of the tiles that this launch takes, from p.first_tile on: all q_len, or fewer where a call has several.
template <typename T>
struct Outputs {
  device T* out;
  device float* lse;
  device float* max_scores;
};
template <typename T>
INLINE Outputs<T> outputs(device T* out, device float* lse, device float* max_scores) {
  Outputs<T> to;
  to.out = out;
  to.lse = lse;
  to.max_scores = max_scores;
  return to;
}

// O = 0, before the first key.
template <typename P>
INLINE void start(thread RowState (&state)[P::ROW_FRAGMENTS],
                  thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][P::VALUE_FRAGMENTS]) {
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) state[r].start();
  clear(sums);
}

// S = mask(score_mod(scale S)) on the elements that this lane holds.
template <typename P, int BLOCKS, typename Captured>
INLINE void modify(thread Fragment<float> (&scores)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], KeyTile tile,
                   const thread Walk<P, BLOCKS, Captured>& walk, const thread LaneRows<P>& rows,
                   const thread RowFactors<P>& factors, float key_scale, const thread Captured& mods) {
  if (QUANTISED) scale_products<P>(scores, key_scale, tile.first, walk.p.kv_len, factors, rows, mods);
  const uint kept = tile.masked && !tile.asked ? walk.kept(tile.first, tile.state, rows, mods) : tile.kept;
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    UNROLL
    for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        float score = elements(scores[r][j])[e] * walk.p.scale;
        if (ADD_BACK) score += factors.term[r];
        if (HAS_SCORE_MOD) {
          int kv_idx = tile.first + j * FRAGMENT + rows.place.column + e;
          score = mods.score_mod(score, rows.b, rows.h, rows.q_idx[r], metal::min(kv_idx, walk.p.kv_len - 1));
        }
        if (tile.masked && !walk.is_kept(kept, r, e, j)) score = minus_infinity();
        elements(scores[r][j])[e] = score;
      }
    }
  }
}

// out = O / sum of P, and what all values lack. A row with nothing to attend to has sum 0 and gives 0, and -inf as its
// statistics.
template <typename P, typename T, typename Captured>
INLINE void write_rows(Outputs<T> to, thread RowState (&state)[P::ROW_FRAGMENTS],
                       thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][P::VALUE_FRAGMENTS],
                       const thread LaneRows<P>& rows, AttentionParams p, const thread Captured& mods) {
  const int64_t head = int64_t(rows.b) * p.query_heads + rows.h;
  const int64_t kv = int64_t(rows.kv_batch) * p.kv_heads + rows.kv_head;
  const int first_out = p.first_tile * P::BQ, out_rows = metal::min(p.q_len - first_out, rows.q_tiles * P::BQ);
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    float sum = sum_of_row(state[r].sum);
    float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    int row = rows.row(r);
    int64_t at = head * out_rows + (row - first_out);
    if (row < p.q_len) {
      UNROLL
      for (int d = 0; d < P::VALUE_FRAGMENTS; d++) {
        UNROLL
        for (int e = 0; e < 2; e++) {
          int column = rows.first_value() + d / P::VALUE_COLUMNS * P::BV + rows.part * P::VALUE_COLUMNS * FRAGMENT +
                       d % P::VALUE_COLUMNS * FRAGMENT + rows.place.column + e;
          float mean = VALUE_MEANS && column < P::VALUE_DIM ? mods.value_mean(kv * P::VALUE_DIM + column) : 0.0f;
          float value = elements(sums[r][d])[e] * inverse;
          if (VALUE_MEANS && sum != 0.0f) value += mean;
          if (column < P::VALUE_DIM) to.out[at * P::VALUE_DIM + column] = T(value);
        }
      }
    }
    if (row < p.q_len && rows.place.column == 0 && rows.slice == 0 && rows.part == 0) {
      to.lse[at] = sum == 0.0f ? minus_infinity() : state[r].max + metal::precise::log(sum);
      to.max_scores[at] = sum == 0.0f ? minus_infinity() : state[r].max;
    }
  }
}

// The whole kernel; the body below calls it with the buffers that MLX declares.
//
// q: [batch, query_heads, q_len, HEAD_DIM]; k: [kv_batches, kv_heads, kv_len, HEAD_DIM];
// v: [kv_batches, kv_heads, kv_len, VALUE_DIM]; any strides. K: T, or int8_t: q is whole numbers too. V: T, or int8_t.
// Tile: StagedTile, or AsyncTile of async_copy.h. votes: 2 SIMDGROUPS words, SCALES BK more for scales, and
// those of SumOfParts.
// at.group: (tile of query rows and slice of value columns, query head, batch).
template <typename P, int BLOCKS, template <typename, int, int, int> class Tile, typename T, typename K, typename V,
          typename Captured>
INLINE void attention_forward(Tensor<T> q, Tensor<K> k, Tensor<V> v, Outputs<T> to, const device int* tile_lists,
                              AttentionParams p, const thread Captured& mods, threadgroup T* staged,
                              threadgroup uint* votes, Thread at) {
  typedef Stream<T, K, V, P, Tile> Tiles;
  // Weights of int8 values, times the scales of these, may be too small for half: they are float.
  typedef typename ProductOf<V>::type F;
  // Keys that a row does not attend to are in a tile's product. Values in int8 are finite; past the last key are zeros.
  constexpr bool MAY_LEAVE_OUT = !INT8_VALUES && (HAS_SCORE_MOD || Walk<P, BLOCKS, Captured>::UNSURE);

  LaneRows<P> rows;
  rows.start(p, at);
  Queries<T, P> queries;
  queries.start(q.head(rows.b, rows.h), rows.q_idx, rows.part, rows.place);
  SumOfParts<P> parts;
  parts.shared = votes + 2 * P::SIMDGROUPS + SCALES * P::BK;
  RowFactors<P> factors;
  factors.start((int64_t(rows.b) * p.query_heads + rows.h) * p.q_len, p.kv_len, rows, mods);
  RowState state[P::ROW_FRAGMENTS];
  Fragment<float> sums[P::ROW_FRAGMENTS][P::VALUE_FRAGMENTS];  // O
  start<P>(state, sums);

  Walk<P, BLOCKS, Captured> walk;
  walk.start(p, tile_lists, rows, votes);
  Tiles tiles;
  tiles.start(k.head(rows.kv_batch, rows.kv_head), v.head(rows.kv_batch, rows.kv_head), staged,
              votes + 2 * P::SIMDGROUPS, at.index());
  // The first time round there is no tile yet, and all that happens is that the first one's keys are read.
  KeyTile tile = no_tile();
  while (true) {
    // S = Q K^T, some columns of K at a time
    Fragment<float> scores[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS];
    clear(scores);
    if (tile.exists) {
      UNROLL
      for (int d = 0; d < P::HEAD_TILES; d++) {
        typename Tiles::Ahead next;
        if (d + 1 < P::HEAD_TILES) tiles.read_keys(next, walk.keys(tile), d + 1);
        else tiles.read_values(next, walk.keys(tile), 0, rows, mods);
        if (tile.live) multiply_keys<T, P>(scores, queries, rows.q_idx, tiles.keys(), d, rows.place);
        if (P::PARTS > 1 && tile.live && d + 1 == P::HEAD_TILES) parts.give(scores, at);
        tiles.turn_to(next);
      }
      if (P::PARTS > 1 && tile.live) parts.take(scores, at);
    }

    // O += P V, some columns of V at a time; before the first of them, P = softmax so far of the modified scores
    const KeyTile following = walk.next(rows, mods, at);
    Fragment<F> weights[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS];
    uint gaps = 0;  // bit j: some row of this simdgroup does not attend to some key of key fragment j
    UNROLL
    for (int d = 0; d < P::VALUE_TILES; d++) {
      const threadgroup V* values = tiles.values() + rows.part * P::VALUE_COLUMNS * FRAGMENT;
      if (tile.live && d == 0) {
        modify<P>(scores, tile, walk, rows, factors, tiles.key_scale(at.lane), mods);
        gaps = HAS_SCORE_MOD || tile.masked ? update_rows<true>(state, sums, weights, scores)
                                            : update_rows<false>(state, sums, weights, scores);
        if (MAY_LEAVE_OUT && (HAS_SCORE_MOD || tile.masked)) gaps = metal::simd_or(gaps);
        if (INT8_VALUES) scale_weights<P>(weights, tiles.value_scale(at.lane), rows.place);
      }
      const bool special = MAY_LEAVE_OUT && gaps != 0 && holds_special<V, P>(tiles.values(), gaps, at.lane);
      if (special) multiply_special_values<V, P>(sums, weights, values, d, rows.place);

      // These reads wait for the multiplications only: softmax needs the registers that they take.
      typename Tiles::Ahead next;
      next.kind = Tiles::NOTHING;
      if (d + 1 == P::VALUE_TILES) {
        if (following.exists) tiles.read_keys(next, walk.keys(following), 0);
      } else if (tile.exists) {
        tiles.read_values(next, walk.keys(tile), d + 1, rows, mods);
      }
      if (tile.live && !special) multiply_values<V, P>(sums, weights, values, d, rows.place);
      tiles.turn_to(next);
    }
    if (!following.exists) break;
    tile = following;
  }
  write_rows<P>(to, state, sums, rows, p, mods);
}

template <typename T, int HEAD_DIM, int VALUE_DIM, int ROW_FRAGMENTS, int SIMDGROUPS, int BK, int BD, int BV, int VALUE_TILES, bool Q_IN_REGISTERS, int STAGED, int PARTS, int PARTIAL, int BLOCKS>
[[kernel]] void flextrace_attention_1dad60b7214e811a(
    const device T* q [[buffer(0)]],
    const constant int64_t* q_strides [[buffer(1)]],
    const device T* k [[buffer(2)]],
    const constant int64_t* k_strides [[buffer(3)]],
    const device T* v [[buffer(4)]],
    const constant int64_t* v_strides [[buffer(5)]],
    const constant int64_t* sizes [[buffer(6)]],
    const device int* params [[buffer(7)]],
    const device int* tile_lists [[buffer(8)]],
    const device float* array0 [[buffer(9)]],
    const constant int* array0_shape [[buffer(10)]],
    const constant int64_t* array0_strides [[buffer(11)]],
    device T* out [[buffer(12)]],
    device float* lse [[buffer(13)]],
    device float* max_scores [[buffer(14)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint3 threadgroups_per_grid [[threadgroups_per_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
#line 200 "attention/forward.metal"
typedef Plan<HEAD_DIM, VALUE_DIM, ROW_FRAGMENTS, SIMDGROUPS, BK, BD, BV, VALUE_TILES, Q_IN_REGISTERS, PARTS> P;
threadgroup T staged[STAGED];
threadgroup uint votes[2 * SIMDGROUPS + SCALES * BK + PARTIAL];
const auto mods = captured_by_mods(params, array0, array0_shape, array0_strides);
attention_forward<P, BLOCKS, StagedTile>(
    tensor(q, q_strides), tensor(k, k_strides), tensor(v, v_strides), outputs(out, lse, max_scores), tile_lists,
    attention_params(sizes), mods, staged, votes,
    thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
              thread_index_in_simdgroup));
}
