// rows.h: keys and values that are in int8 in the caller's memory already, as a cache keeps them. A tile at a
// time, the bytes of keys become words, and values become float32.
#pragma once
#include "int8.h"
#include "../tile/params.h"

typedef int8_t vbyte __attribute__((vector_size(VL)));

// GCC does a conversion in one step number by number where it is not told the instruction.
INLINE vint widen_to_int(vbyte x) {
#if defined(__clang__)
  return __builtin_convertvector(x, vint);
#elif VECTOR_BYTES == 64
  typedef char bytes __attribute__((vector_size(16)));
  return (vint)__builtin_ia32_pmovsxbd512_mask((bytes)x, vint{}, -1);
#else
  typedef int16_t vhalf __attribute__((vector_size(2 * VL)));
  return __builtin_convertvector(__builtin_convertvector(x, vhalf), vint);
#endif
}
INLINE vfloat widen_int8(vbyte x) { return int_to_float(widen_to_int(x)); }

constexpr int64_t AHEAD = 2 * VL;  // rows between the one that is read and the one that is asked for

// row = bytes * scale + mean.
struct Int8Rows {
  const int8_t* bytes;
  const float* scales;
  int64_t rows, columns;
  int64_t row_stride, column_stride, scale_stride;  // in elements
  Matrix mean;                                      // [1, columns] float32; no data: zeros

  // nan: the row held an infinity or a nan.
  float scale(int64_t row) const { return scales[row * scale_stride]; }

  // Asks for a row that is read soon. It need not exist.
  INLINE void prefetch(int64_t row, int64_t column) const {
    __builtin_prefetch(bytes + row * row_stride + column * column_stride);
  }

  // COUNT bytes of one row from `column` on; zeros outside. `room` holds them where they do not lie as they are read.
  template <int COUNT>
  INLINE const int8_t* read_bytes(int64_t row, int64_t column, int8_t* room) const {
    int64_t count = row < rows ? smaller(columns - column, COUNT) : 0;
    const int8_t* from = bytes + row * row_stride + column * column_stride;
    if (count == COUNT && column_stride == 1) return from;
    __builtin_memset(room, 0, COUNT);
#pragma GCC unroll 1
    for (int64_t i = 0; i < count; i++) room[i] = from[i * column_stride];
    return room;
  }
  // VL words of one row from word `step` on.
  INLINE vword words(int64_t row, int64_t step) const {
    int8_t room[COLUMNS_PER_WORD * VL];
    const int8_t* from = read_bytes<COLUMNS_PER_WORD * VL>(row, step * COLUMNS_PER_WORD, room);
#if INT8_DOT
    return load_vector<vword>(from);
#else
    return widen_int8(load_vector<vbyte>(from));
#endif
  }
  // Columns [column, column + VL) of one row as float32: bytes * scale; the mean; and their sum.
  INLINE vfloat less_mean(int64_t row, int64_t column) const {
    int8_t room[VL];
    return widen_int8(load_vector<vbyte>(read_bytes<VL>(row, column, room))) * scale(row);
  }
  vfloat mean_at(int64_t column) const { return mean.data ? widen(mean, 0, column) : vfloat{}; }
  vfloat read(int64_t row, int64_t column) const { return less_mean(row, column) + mean_at(column); }
  // Whether rows [first, first + count) are.
  bool are_finite(int64_t first, int64_t count) const {
    float zeros = 0;  // nan once a scale or a mean is infinite or nan
    for (int64_t row = first; row < first + count; row++) zeros += scale(row) * 0;
    for (int64_t d = 0; mean.data && d < columns; d += VL) zeros += sum_lanes(mean_at(d) * 0.0f);
    return zeros == 0;
  }
  // What `read` gives of `count` rows, one every `stride` floats.
  NOINLINE void widen_column(float* to, int64_t stride, int64_t first, int64_t count, int64_t column) const {
    vfloat mean = mean_at(column);
    for (int64_t row = first; row < first + count; row++, to += stride) {
      prefetch(row + AHEAD, column);
      store_vector(to, less_mean(row, column) + mean);
    }
  }
};

// Keys [first, first + count), as pack_int8_keys: the same words, without rounding, and the scale of each.
inline void copy_int8_keys(word* packed, float* scale, const Int8Rows& keys, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; i++) scale[i] = keys.scale(first + i);
  pack_panels(packed, first, count, words_of(keys.columns), [&](int64_t row, int64_t step) {
    keys.prefetch(row + AHEAD, step * COLUMNS_PER_WORD);
    return biased(keys.words(row, step));
  });
}

// Values [first, first + count), as pack_values.
inline bool pack_int8_values(float* packed, const Int8Rows& v, int64_t first, int64_t count) {
  for (int64_t d = 0; d < v.columns; d += VL)
    v.widen_column(packed + place_of_value(v.columns, 0, d), panel_width(v.columns, d), first, count, d);
  return v.are_finite(first, count);
}
