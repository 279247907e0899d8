// rows.h: rows of keys and values read in place, for a few query rows: nothing is packed, each is read once.
#pragma once
#include "../int8/int8.h"
#include "../int8/rows.h"

constexpr int32_t INT8 = 3;  // beside the Dtypes of params.h: a byte a number, the rows' scales lie elsewhere

template <int32_t DTYPE>
constexpr int64_t bytes_of = DTYPE == FLOAT32 ? 4 : DTYPE == INT8 ? 1 : 2;

// VL numbers side by side as float32.
template <int32_t DTYPE>
INLINE vfloat load_numbers(const char* from) {
  if constexpr (DTYPE == FLOAT32) return load_vector<vfloat>(from);
  if constexpr (DTYPE == INT8) return widen_int8(load_vector<vbyte>(from));
  vshort bits = load_vector<vshort>(from);
  return DTYPE == FLOAT16 ? widen_float16(bits) : widen_bfloat16(bits);
}

// Consecutive rows of a tensor.
template <int32_t DTYPE>
struct Lines {
  static constexpr int64_t BYTES = bytes_of<DTYPE>;
  const char* first;
  int64_t columns;
  int64_t stride, column_stride;  // in bytes

  // Rows from `row` on of head h of batch b, out of a tensor with these four strides.
  Lines(const void* tensor, const int64_t* strides, int64_t b, int64_t h, int64_t row, int64_t columns)
      : first((const char*)tensor + (b * strides[0] + h * strides[1] + row * strides[2]) * BYTES),
        columns(columns),
        stride(strides[2] * BYTES),
        column_stride(strides[3] * BYTES) {}

  INLINE const char* row(int64_t i) const { return first + i * stride; }
  // The columns of a row that lie as registers of `lanes` numbers are read.
  INLINE int64_t whole(int64_t lanes) const { return column_stride == BYTES ? columns / lanes * lanes : 0; }

  // `room`, with COUNT numbers of a row from a column on put side by side; zeros beyond its end.
  template <int COUNT>
  NOINLINE const char* gather(char* room, int64_t i, int64_t column) const {
    __builtin_memset(room, 0, COUNT * BYTES);
    for (int64_t n = 0; n < smaller(columns - column, COUNT); n++)
      __builtin_memcpy(room + n * BYTES, row(i) + (column + n) * column_stride, BYTES);
    return room;
  }
  vfloat read(int64_t i, int64_t column) const {
    char room[VL * BYTES];
    return load_numbers<DTYPE>(gather<VL>(room, i, column));
  }
};

// Rows that are read soon: memory is asked for them in the order in which they lie, a few lines at a time, whatever is
// computed meanwhile. The machine itself foresees one row after the other only, not several at once.
class Ahead {
  static constexpr int64_t LINE = 64;  // bytes that come together
  const char *at = nullptr, *row_end = nullptr, *end = nullptr;
  int64_t stride = 0, gap = 0, lines = 0, share = 0;

 public:
  Ahead() {}
  template <int32_t DTYPE>
  Ahead(const Lines<DTYPE>& rows, int64_t first, int64_t last) : stride(rows.stride) {
    int64_t bytes = rows.columns * rows.BYTES;
    if (rows.column_stride != rows.BYTES || stride < bytes) return;
    at = rows.row(first);
    end = rows.row(last);
    row_end = at + bytes;
    gap = stride - bytes;
    lines = (last - first) * ((bytes + LINE - 1) / LINE);
  }
  // All of them in so many steps.
  void spread(int64_t steps) { share = steps ? (lines + steps - 1) / steps : 0; }
  INLINE void step() {
    for (int64_t i = 0; i < share && at < end; i++) {
      __builtin_prefetch(at, 0, 2);
      at += LINE;
      if (at < row_end) continue;
      at = row_end + gap;
      row_end += stride;
    }
  }
};

// -- scores ------------------------------------------------------------------------------------------------------

// What products of queries and keys are made of: numbers, or words of int8 (int8.h).
template <int32_t DTYPE>
struct Factors {
  typedef float element;  // of a query
  typedef vfloat lanes;
  static constexpr int COLUMNS = VL;  // of a register
  INLINE static lanes load(const char* from) { return load_numbers<DTYPE>(from); }
  INLINE static lanes add(lanes sum, lanes key, lanes query) { return sum + query * key; }
};
template <>
struct Factors<INT8> {
  typedef word element;
  typedef vword lanes;
  static constexpr int COLUMNS = COLUMNS_PER_WORD * VL;
#if INT8_DOT
  INLINE static lanes load(const char* from) { return biased(load_vector<vword>(from)); }
  INLINE static lanes add(lanes sum, lanes key, lanes query) { return dot(sum, key, query); }
#else
  INLINE static lanes load(const char* from) { return widen_int8(load_vector<vbyte>(from)); }
  INLINE static lanes add(lanes sum, lanes key, lanes query) { return sum + query * key; }
#endif
};

// The part of the products of dot_rows_and_keys from column `first` on, of any strides.
template <int32_t DTYPE, int ROW_COUNT>
NOINLINE static void dot_last_columns(typename Factors<DTYPE>::lanes* sums,
                                      const typename Factors<DTYPE>::element* rows, int64_t stride,
                                      const Lines<DTYPE>& keys, int64_t key, int64_t count, int64_t first) {
  typedef Factors<DTYPE> Of;
  constexpr int KEYS_AT_ONCE = VL / ROW_COUNT;
  for (int i = 0; i < VL; i++) sums[i] = typename Of::lanes{};
  for (int64_t d = first; d < keys.columns; d += Of::COLUMNS)
    for (int i = 0; i < KEYS_AT_ONCE; i++) {
      char room[Of::COLUMNS * Lines<DTYPE>::BYTES];
      auto k = Of::load(keys.template gather<Of::COLUMNS>(room, smaller(key + i, count - 1), d));
      for (int r = 0; r < ROW_COUNT; r++) {
        auto q = load_vector<typename Of::lanes>(rows + r * stride + d / Of::COLUMNS * VL);
        sums[r * KEYS_AT_ONCE + i] = Of::add(sums[r * KEYS_AT_ONCE + i], k, q);
      }
    }
}

// scores[ROW_COUNT][KV_TILE], from column `key` on, = rows[ROW_COUNT][stride] @ keys^T for VL / ROW_COUNT of `count`
// keys.
template <int32_t DTYPE, int ROW_COUNT>
INLINE void dot_rows_and_keys(float* scores, const typename Factors<DTYPE>::element* rows, int64_t stride,
                              const Lines<DTYPE>& keys, int64_t key, int64_t count, Ahead& ahead) {
  typedef Factors<DTYPE> Of;
  typedef typename Of::lanes lanes;
  constexpr int KEYS_AT_ONCE = VL / ROW_COUNT;
  const char* row[KEYS_AT_ONCE];
#pragma GCC unroll 16
  for (int i = 0; i < KEYS_AT_ONCE; i++) row[i] = keys.row(key + i < count ? key + i : count - 1);
  lanes sums[VL] = {};
  int64_t whole = keys.whole(Of::COLUMNS);
  for (int64_t d = 0; d < whole; d += Of::COLUMNS) {
    ahead.step();
    lanes q[ROW_COUNT];
#pragma GCC unroll 4
    for (int r = 0; r < ROW_COUNT; r++) {
      q[r] = load_vector<lanes>(rows + r * stride + d / Of::COLUMNS * VL);
      hold(q[r]);  // or GCC reads it from memory for every key
    }
#pragma GCC unroll 16
    for (int i = 0; i < KEYS_AT_ONCE; i++) {
      lanes k = Of::load(row[i] + d * keys.BYTES);
#pragma GCC unroll 4
      for (int r = 0; r < ROW_COUNT; r++) sums[r * KEYS_AT_ONCE + i] = Of::add(sums[r * KEYS_AT_ONCE + i], k, q[r]);
    }
  }
  if (whole < keys.columns) {
    lanes last[VL];
    dot_last_columns<DTYPE, ROW_COUNT>(last, rows, stride, keys, key, count, whole);
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) sums[i] += last[i];
  }
  lanes found = sums_of_lanes(sums);
#pragma GCC unroll 4
  for (int r = 0; r < ROW_COUNT; r++)
    __builtin_memcpy(scores + r * KV_TILE + key, (const float*)&found + r * KEYS_AT_ONCE, KEYS_AT_ONCE * sizeof(float));
}

// scores[row_count][KV_TILE] = rows @ keys^T, for the keys [begin, end) of a tile that has `count`; of int8 the sums of
// words as they are. row_count: a multiple of 4, or less. What is scored beyond `end` is of the last key.
template <int32_t DTYPE>
static void score_rows(float* scores, const typename Factors<DTYPE>::element* rows, int64_t row_count, int64_t stride,
                       const Lines<DTYPE>& keys, int64_t begin, int64_t end, int64_t count, Ahead ahead) {
  int64_t registers = keys.whole(Factors<DTYPE>::COLUMNS) / Factors<DTYPE>::COLUMNS;
  ahead.spread((end - begin) * row_count / VL * registers);
  for (int64_t r = 0; row_count < 4 && r < row_count; r++)
    for (int64_t key = begin; key < end; key += VL)
      dot_rows_and_keys<DTYPE, 1>(scores + r * KV_TILE, rows + r * stride, stride, keys, key, count, ahead);
  if (row_count < 4) return;
  for (int64_t key = begin; key < end; key += VL / 4)
    for (int64_t r = 0; r < row_count; r += 4)
      dot_rows_and_keys<DTYPE, 4>(scores + r * KV_TILE, rows + r * stride, stride, keys, key, count, ahead);
}

// -- values ------------------------------------------------------------------------------------------------------

// out[ROW_COUNT][stride] = out * factor + weights[ROW_COUNT][KV_TILE] @ values, for WIDTH registers of columns from
// `column` on and the keys [begin, end). Returns whether all of it is finite; if not, out is as it was. int8 itself is
// finite.
template <int32_t DTYPE, int ROW_COUNT, int WIDTH>
INLINE bool add_values(float* out, int64_t stride, const float* weights, const Lines<DTYPE>& values, int64_t column,
                       int64_t begin, int64_t end, const float* factor, Ahead& ahead) {
  vfloat sums[ROW_COUNT][WIDTH];
#pragma GCC unroll 8
  for (int r = 0; r < ROW_COUNT; r++)
#pragma GCC unroll 8
    for (int j = 0; j < WIDTH; j++) sums[r][j] = load_vector<vfloat>(out + r * stride + column + j * VL) * factor[r];
  const char* from = values.row(begin) + column * values.BYTES;
  for (int64_t key = begin; key < end; key++, from += values.stride) {
    ahead.step();
    vfloat v[WIDTH];
#pragma GCC unroll 8
    for (int j = 0; j < WIDTH; j++) v[j] = load_numbers<DTYPE>(from + j * VL * values.BYTES);
#pragma GCC unroll 8
    for (int r = 0; r < ROW_COUNT; r++) {
      vfloat weight = splat(weights[r * KV_TILE + key]);
#pragma GCC unroll 8
      for (int j = 0; j < WIDTH; j++) sums[r][j] += weight * v[j];
    }
  }
  if constexpr (DTYPE != INT8) {
    vfloat zeros = {};
#pragma GCC unroll 8
    for (int r = 0; r < ROW_COUNT; r++)
#pragma GCC unroll 8
      for (int j = 0; j < WIDTH; j++) zeros += sums[r][j] * 0.0f;
    if (sum_lanes(zeros) != 0) return false;
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROW_COUNT; r++)
#pragma GCC unroll 8
    for (int j = 0; j < WIDTH; j++) store_vector(out + r * stride + column + j * VL, sums[r][j]);
  return true;
}

// Weights of int8 values as whole numbers of 16 bits, where there is an instruction that multiplies two keys at once.
// A weight is rounded to within 2^-16 of the largest of its row and tile, values were to within 2^-8 of their row's.
struct WholeWeights {
  int16_t* weights;  // [rows][KV_TILE]
  float* unit;       // [rows]: what 1 is worth; nan: a weight is nan, or all are too small to say
};

#if INT8_DOT && defined(__AVX512VNNI__) && VECTOR_BYTES == 64
constexpr bool HAS_PAIRS = true;

INLINE vint add_pairs(vint sum, vint values, vint weights) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(values), "v"(weights));
  return sum;
}
// VL columns of two keys, a pair of 16 bits for each.
INLINE vint load_pairs(const char* key, const char* other) {
  typedef int16_t halves __attribute__((vector_size(64)));
  constexpr halves HIGH = {0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1,
                           0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1};
  vint low = widen_to_int(load_vector<vbyte>(key)), high = widen_to_int(load_vector<vbyte>(other)) << 16;
  return (vint)(HIGH ? (halves)high : (halves)low);
}

// As add_values, of 4 rows and registers of columns. The weights beyond `end` are 0.
INLINE void add_values_in_pairs(float* out, int64_t stride, const WholeWeights& rounded, const Lines<INT8>& values,
                                int64_t column, int64_t begin, int64_t end, const float* factor, Ahead& ahead) {
  vint sums[4][4] = {};
  const char* from = values.row(begin) + column;
  for (int64_t key = begin; key < end; key += 2, from += 2 * values.stride) {
    ahead.step();
    ahead.step();
    const char* other = from + (key + 1 < end ? values.stride : 0);
    vint v[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) v[j] = load_pairs(from + j * VL, other + j * VL);
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
      int32_t both;
      __builtin_memcpy(&both, rounded.weights + r * KV_TILE + key, sizeof both);
      vint weights = splat(both);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) sums[r][j] = add_pairs(sums[r][j], v[j], weights);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      float* to = out + r * stride + column + j * VL;
      store_vector(to, load_vector<vfloat>(to) * factor[r] + int_to_float(sums[r][j]) * rounded.unit[r]);
    }
}
#else
constexpr bool HAS_PAIRS = false;
INLINE void add_values_in_pairs(float*, int64_t, const WholeWeights&, const Lines<INT8>&, int64_t, int64_t, int64_t,
                                const float*, Ahead&) {}
#endif

// The same for any strides, any number of rows and columns, and values that may be infinite or nan: a weight of 0
// leaves its key out.
template <int32_t DTYPE>
NOINLINE static void add_any_values(float* out, int64_t row_count, int64_t stride, const float* weights,
                                    const Lines<DTYPE>& values, int64_t column, int64_t width, int64_t begin,
                                    int64_t end, const float* factor) {
  for (int64_t d = column; d < column + width; d += VL)
    for (int64_t r = 0; r < row_count; r++) {
      vfloat sum = load_vector<vfloat>(out + r * stride + d) * factor[r];
      for (int64_t key = begin; key < end; key++) {
        vfloat weight = splat(weights[r * KV_TILE + key]);
        sum += weight * select(weight == 0.0f, weight, values.read(key, d));
      }
      store_vector(out + r * stride + d, sum);
    }
}

template <int32_t DTYPE, int ROW_COUNT>
INLINE void weigh_some_rows(float* out, int64_t stride, const float* weights, const Lines<DTYPE>& values,
                            int64_t begin, int64_t end, const float* factor, const WholeWeights& rounded,
                            Ahead& ahead) {
  constexpr int WIDTH = REGISTERS == 32 ? 4 : 2;
  int64_t columns = values.columns, whole = values.whole(VL), column = 0;
  if constexpr (DTYPE == INT8 && HAS_PAIRS && ROW_COUNT == 4) {
    float units = rounded.unit[0] + rounded.unit[1] + rounded.unit[2] + rounded.unit[3];
    for (; units == units && whole - column >= 4 * VL; column += 4 * VL)
      add_values_in_pairs(out, stride, rounded, values, column, begin, end, factor, ahead);
  }
  for (int64_t width = WIDTH * VL; column < whole; column += width) {
    if (whole - column < width) width = VL;
    bool finite =
        width > VL
            ? add_values<DTYPE, ROW_COUNT, WIDTH>(out, stride, weights, values, column, begin, end, factor, ahead)
            : add_values<DTYPE, ROW_COUNT, 1>(out, stride, weights, values, column, begin, end, factor, ahead);
    if (!finite) add_any_values(out, ROW_COUNT, stride, weights, values, column, width, begin, end, factor);
  }
  add_any_values(out, ROW_COUNT, stride, weights, values, whole, round_up(columns, VL) - whole, begin, end, factor);
}

// out[row_count][stride] = out * factor + weights @ values, for the keys [begin, end) of a tile; row_count as of
// score_rows; columns of out beyond those of values are scratch. rounded: the same weights, only of int8.
template <int32_t DTYPE>
static void weigh_rows(float* out, int64_t row_count, int64_t stride, const float* weights,
                       const Lines<DTYPE>& values, int64_t begin, int64_t end, const float* factor,
                       const WholeWeights& rounded, Ahead ahead) {
  constexpr int64_t WIDTH = (REGISTERS == 32 ? 4 : 2) * VL;
  int64_t whole = values.whole(VL), passes = whole / WIDTH + whole % WIDTH / VL;
  ahead.spread((end - begin) * passes * (row_count < 4 ? row_count : row_count / 4));
  for (int64_t r = 0; row_count < 4 && r < row_count; r++)
    weigh_some_rows<DTYPE, 1>(out + r * stride, stride, weights + r * KV_TILE, values, begin, end, factor + r, rounded,
                              ahead);
  for (int64_t r = 0; row_count >= 4 && r < row_count; r += 4)
    weigh_some_rows<DTYPE, 4>(out + r * stride, stride, weights + r * KV_TILE, values, begin, end, factor + r,
                              {rounded.weights + r * KV_TILE, rounded.unit + r}, ahead);
}
