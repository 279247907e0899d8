// int8.h: the verbs over tiles of int8: scale and round rows of queries and keys, multiply a group of rows by a tile
// with the machine's integer dot instruction.
//
// A packed element is a word of 4 bytes. Where there is an integer dot instruction it holds four neighbouring columns
// of a row; elsewhere one column, as a float, which the float matmul multiplies without rounding below 2^24.
#pragma once
#include "smooth.h"
#include "../tile/panels.h"

#if defined(FLEXTRACE_PORTABLE_INT8)
#define INT8_DOT 0
#elif defined(__AVX512F__) && defined(__AVX512VNNI__)
#define INT8_DOT 1
#define DOT_INSTRUCTION "vpdpbusd %2, %1, %0"
#elif !defined(__AVX512F__) && (defined(__AVXVNNI__) || defined(__AVXVNNIINT8__))
#define INT8_DOT 1
#define DOT_INSTRUCTION "%{vex%} vpdpbusd %2, %1, %0"
#elif defined(__ARM_FEATURE_DOTPROD)
#define INT8_DOT 1
#define DOT_INSTRUCTION "sdot %0.4s, %1.16b, %2.16b"
#else
#define INT8_DOT 0
#endif

#if INT8_DOT
typedef int32_t word;
typedef vint vword;
constexpr int COLUMNS_PER_WORD = 4;
#else
typedef float word;
typedef vfloat vword;
constexpr int COLUMNS_PER_WORD = 1;
#endif
// x86 multiplies unsigned by signed bytes: keys are kept as k + 128, and each sum starts at -128 * (sum of the query).
constexpr bool BIASED_KEYS = INT8_DOT && VECTOR_BYTES > 16;

constexpr float LEVELS = 127;
constexpr float ROUND = 0x1.8p23f;      // adding it rounds to an integer and leaves that integer in the low bits
constexpr float SMALLEST = 0x1p-119f;   // of a block: what is smaller all over counts as zero, as 127 / x overflows

inline int64_t words_of(int64_t columns) { return (columns + COLUMNS_PER_WORD - 1) / COLUMNS_PER_WORD; }

// -- scales ------------------------------------------------------------------------------------------------------

// The largest finite magnitude of a run.
inline float largest_of_run(const Rows& rows, Run run) {
  vfloat largest = {};
  for (int64_t row = run.begin; row < run.end; row++)
    for (int64_t d = 0; d < rows.matrix.columns; d += VL) {
      vfloat x = bits_to_float(float_to_bits(rows.read(row, d)) & INT32_MAX);
      largest = larger(select(is_finite(x), x, vfloat{}), largest);
    }
  return largest_lane(largest)[0];
}

// What one unit is worth where `largest` becomes 127: 0 for a run of zeros.
INLINE float unit_of(float largest) { return largest < SMALLEST ? 0 : largest / LEVELS; }

// scale[count] of rows [first, first + count), of which `block` share one: nan for a row that holds an infinity or a
// nan, which no integer says. Returns whether there is such a row.
inline bool scale_rows(float* scale, const Rows& rows, int64_t first, int64_t count, int64_t block) {
  bool special = false;
  for (int64_t row = first; row < first + count;) {
    Run run = run_around(rows, row, block);
    float unit = unit_of(largest_of_run(rows, run));
    for (; row < smaller(run.end, first + count); row++) {
      bool finite = row_is_finite(rows, row);
      scale[row - first] = finite ? unit : __builtin_nanf("");
      special |= !finite;
    }
  }
  return special;
}

// -- rounding ----------------------------------------------------------------------------------------------------

// VL words of one row from word `step` on: round(x * inverse), from -127 to 127.
INLINE vword round_row(const Rows& rows, int64_t row, int64_t step, float inverse) {
#if INT8_DOT
  typedef int8_t vbyte __attribute__((vector_size(VL)));
  vint words;
  for (int i = 0; i < 4; i++) {
    vint bits = float_to_bits(rows.read(row, step * 4 + i * VL) * inverse + ROUND);
    vbyte bytes = __builtin_convertvector(bits, vbyte);
    __builtin_memcpy((char*)&words + i * VL, &bytes, VL);
  }
  return words;
#else
  return rows.read(row, step) * inverse + ROUND - ROUND;
#endif
}

INLINE float inverse_of(float scale) { return scale > 0 ? 1 / scale : 0; }

// Words of keys as `dot` takes them.
INLINE vword biased(vword words) {
  return BIASED_KEYS ? (vword)((vint)words ^ splat((int32_t)0x80808080)) : words;
}

// Keys [first, first + count): [panel][steps][PANEL] words, with the scale of each.
inline void pack_int8_keys(word* packed, const float* scale, const Rows& keys, int64_t first, int64_t count) {
  pack_panels(packed, first, count, words_of(keys.matrix.columns), [&](int64_t row, int64_t step) {
    return biased(round_row(keys, row, step, row < first + count ? inverse_of(scale[row - first]) : 0));
  });
}

// What sums of products of these words of a query start from.
INLINE int32_t start_of(vword words) {
  int32_t sum = 0;
  if constexpr (BIASED_KEYS)
    for (int i = 0; i < 4 * VL; i++) sum += ((const signed char*)&words)[i];
  return -128 * sum;
}

// One query as row r of a group: [steps][ROWS] words. Gives what its sum of products starts from.
inline int32_t pack_int8_query(word* packed, int64_t r, float scale, const Rows& queries, int64_t row) {
  int64_t steps = words_of(queries.matrix.columns);
  int32_t start = 0;
  for (int64_t step = 0; step < steps; step += VL) {
    vword words = round_row(queries, row, step, inverse_of(scale));
    for (int64_t i = 0; i < smaller(steps - step, VL); i++) packed[(step + i) * ROWS + r] = words[i];
    start += start_of(words);
  }
  return start;
}

// One query as it lies: whole registers of words.
inline int32_t round_int8_query(word* words, float scale, const Rows& queries, int64_t row) {
  int32_t start = 0;
  for (int64_t step = 0; step < words_of(queries.matrix.columns); step += VL) {
    vword rounded = round_row(queries, row, step, inverse_of(scale));
    store_vector(words + step, rounded);
    start += start_of(rounded);
  }
  return start;
}

// Sums of products that began at 0 -> numbers.
INLINE vfloat sum_of_words(vword sum, int32_t start) {
#if INT8_DOT
  return int_to_float(sum + start);
#else
  (void)start;
  return sum;
#endif
}

// -- the product -------------------------------------------------------------------------------------------------

#if INT8_DOT
// sum + the four products of each word of the keys with that of the queries.
INLINE vint dot(vint sum, vint keys, vint queries) {
  asm(DOT_INSTRUCTION : "+" REGISTER_CLASS(sum) : REGISTER_CLASS(keys), REGISTER_CLASS(queries));
  return sum;
}

// scores[N][PANEL of KV_TILE] = q @ k^T times both scales, all sums in registers. One scale after the other: their
// product may overflow where the score, a sum of 0, does not.
template <int N>
inline void multiply_words(float* scores, const word* q, const word* k, int64_t steps, const int32_t* start,
                           const float* q_scale, const float* k_scale) {
  vint sum[N][2];
#pragma GCC unroll 12
  for (int r = 0; r < N; r++) sum[r][0] = sum[r][1] = BIASED_KEYS ? splat(start[r]) : vint{};
  for (int64_t step = 0; step < steps; step++) {
    vint x = load_vector<vint>(k), y = load_vector<vint>(k + VL);
#pragma GCC unroll 12
    for (int r = 0; r < N; r++) {
      vint query = splat(q[r]);
      sum[r][0] = dot(sum[r][0], x, query);
      sum[r][1] = dot(sum[r][1], y, query);
    }
    q += ROWS;
    k += PANEL;
  }
#pragma GCC unroll 12
  for (int r = 0; r < N; r++)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++)
      store_vector(scores + r * KV_TILE + j * VL,
                   int_to_float(sum[r][j]) * load_vector<vfloat>(k_scale + j * VL) * q_scale[r]);
}
#else
template <int N>
inline void multiply_words(float* scores, const word* q, const word* k, int64_t steps, const int32_t*,
                           const float* q_scale, const float* k_scale) {
  multiply<N, 2, 1, ROWS, KV_TILE, false>(scores, q, k, steps, nullptr);
  for (int r = 0; r < N; r++)
    for (int j = 0; j < PANEL; j += VL) {
      float* at = scores + r * KV_TILE + j;
      store_vector(at, load_vector<vfloat>(at) * load_vector<vfloat>(k_scale + j) * q_scale[r]);
    }
}
#endif

// scores[N][KV_TILE] = q @ k^T for the panels of a packed tile that hold its keys [begin, end).
template <int N = ROWS>
inline void multiply_int8_keys(float* scores, const word* q, const int32_t* start, const float* q_scale,
                               const word* k, const float* k_scale, int64_t begin, int64_t end, int64_t head_dim) {
  int64_t steps = words_of(head_dim);
  for (int64_t first = begin / PANEL * PANEL; first < end; first += PANEL)
    multiply_words<N>(scores + first, q, k + first * steps, steps, start, q_scale, k_scale + first);
}
