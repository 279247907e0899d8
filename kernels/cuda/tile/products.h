// products.h: products of 16-row tiles on tensor cores (mma.sync, sm_80 and later), for each type of element.
//
// A lane holds of a 16 x 8 tile of sums C the rows lane / 4 and lane / 4 + 8, two neighbouring columns of each. Of the
// factors it holds what PTX says of mma.m16n8k16 (16 bits) and mma.m16n8k8 (32 bits, tf32). float32 is three products
// of tf32, whose errors are those of float32.
#pragma once
#include "types.h"

struct Sums {
  float at[4];  // row, column; row, column + 1; row + 8, column; row + 8, column + 1
};

// -- 16 bits -----------------------------------------------------------------------------------------------------

template <typename T>
INLINE void multiply(Sums& c, const uint (&a)[4], uint b0, uint b1);
template <>
INLINE void multiply<float16_t>(Sums& c, const uint (&a)[4], uint b0, uint b1) {
  ptx::mma_m16n8k16_f16(c.at, a, b0, b1);
}
template <>
INLINE void multiply<bfloat16_t>(Sums& c, const uint (&a)[4], uint b0, uint b1) {
  ptx::mma_m16n8k16_bf16(c.at, a, b0, b1);
}

// What a product takes at once: K columns of the left factor, and one register for PAIR of them.
template <typename T>
struct Step {
  static constexpr int K = 16;
  typedef Sums Products;
  struct Left {
    uint at[4];
  };
  struct Right {  // 8 columns each of two neighbouring tiles
    uint at[4];
  };
  // 16 rows from `rows` on, LD elements apart.
  template <int LD>
  static INLINE void load_left(Left& a, const T* rows, int lane) {
    ptx::ldmatrix_x4(a.at, ptx::shared_address(rows + (lane & 15) * LD + (lane >> 4) * 8));
  }
  // B = (16 rows)^T: rows of keys, so that columns of B are keys.
  template <int LD>
  static INLINE void load_keys(Right& b, const T* rows, int lane) {
    ptx::ldmatrix_x4(b.at, ptx::shared_address(rows + ((lane >> 4) * 8 + (lane & 7)) * LD + ((lane >> 3) & 1) * 8));
  }
  // B = 16 rows by 16 columns, as they lie.
  template <int LD>
  static INLINE void load_values(Right& b, const T* rows, int lane) {
    ptx::ldmatrix_x4_trans(b.at, ptx::shared_address(rows + (lane & 15) * LD + (lane >> 4) * 8));
  }
  static INLINE void multiply_pair(Sums& c0, Sums& c1, const Left& a, const Right& b) {
    multiply<T>(c0, a.at, b.at[0], b.at[1]);
    multiply<T>(c1, a.at, b.at[2], b.at[3]);
  }
  // Two tiles of sums side by side are the left factor of 16 columns.
  static INLINE void left_of(Left& a, const Sums* sums) {
    a.at[0] = packed<T>(sums[0].at[0], sums[0].at[1]);
    a.at[1] = packed<T>(sums[0].at[2], sums[0].at[3]);
    a.at[2] = packed<T>(sums[1].at[0], sums[1].at[1]);
    a.at[3] = packed<T>(sums[1].at[2], sums[1].at[3]);
  }
};

// -- 32 bits -----------------------------------------------------------------------------------------------------

struct Split {
  uint high, low;
};
// x as the sum of two tf32. What is not finite is in the low part alone: of the three products one has it then, beside
// the high part of the other factor, which is 0 only where that factor is.
INLINE Split split(float x) {
  Split s;
  const bool finite = !is_special<float>(__float_as_uint(x));
  s.high = finite ? ptx::tf32_of_f32(x) : 0u;
  s.low = ptx::tf32_of_f32(x - __uint_as_float(s.high));
  return s;
}

// The order of the K columns is free where both factors have the same one: column t of a quad's lane t is 2 t, column
// t + 4 is 2 t + 1. So neighbours in memory, and in sums, are a lane's.
template <>
struct Step<float> {
  static constexpr int K = 16;  // two products of 8
  typedef Sums Products;
  struct Left {
    uint high[2][4], low[2][4];
  };
  struct Right {
    uint high[2][4], low[2][4];  // [product of 8][tile of columns, half]
  };
  static INLINE void put(uint& high, uint& low, float x) {
    Split s = split(x);
    high = s.high;
    low = s.low;
  }
  template <int LD>
  static INLINE void load_left(Left& a, const float* rows, int lane) {
    const float* at = rows + (lane >> 2) * LD + 2 * (lane & 3);
    UNROLL
    for (int k = 0; k < 2; k++) {
      UNROLL
      for (int i = 0; i < 4; i++) put(a.high[k][i], a.low[k][i], at[(i & 1) * 8 * LD + (i >> 1) + 8 * k]);
    }
  }
  template <int LD>
  static INLINE void load_keys(Right& b, const float* rows, int lane) {
    const float* at = rows + (lane >> 2) * LD + 2 * (lane & 3);
    UNROLL
    for (int k = 0; k < 2; k++) {
      UNROLL
      for (int i = 0; i < 4; i++) put(b.high[k][i], b.low[k][i], at[(i >> 1) * 8 * LD + (i & 1) + 8 * k]);
    }
  }
  template <int LD>
  static INLINE void load_values(Right& b, const float* rows, int lane) {
    const float* at = rows + 2 * (lane & 3) * LD + (lane >> 2);
    UNROLL
    for (int k = 0; k < 2; k++) {
      UNROLL
      for (int i = 0; i < 4; i++) put(b.high[k][i], b.low[k][i], at[(8 * k + (i & 1)) * LD + (i >> 1) * 8]);
    }
  }
  static INLINE void multiply_pair(Sums& c0, Sums& c1, const Left& a, const Right& b) {
    UNROLL
    for (int k = 0; k < 2; k++) {
      ptx::mma_m16n8k8_tf32(c0.at, a.low[k], b.high[k][0], b.high[k][1]);
      ptx::mma_m16n8k8_tf32(c0.at, a.high[k], b.low[k][0], b.low[k][1]);
      ptx::mma_m16n8k8_tf32(c0.at, a.high[k], b.high[k][0], b.high[k][1]);
      ptx::mma_m16n8k8_tf32(c1.at, a.low[k], b.high[k][2], b.high[k][3]);
      ptx::mma_m16n8k8_tf32(c1.at, a.high[k], b.low[k][2], b.low[k][3]);
      ptx::mma_m16n8k8_tf32(c1.at, a.high[k], b.high[k][2], b.high[k][3]);
    }
  }
  static INLINE void left_of(Left& a, const Sums* sums) {
    UNROLL
    for (int k = 0; k < 2; k++) {
      put(a.high[k][0], a.low[k][0], sums[k].at[0]);
      put(a.high[k][1], a.low[k][1], sums[k].at[2]);
      put(a.high[k][2], a.low[k][2], sums[k].at[1]);
      put(a.high[k][3], a.low[k][3], sums[k].at[3]);
    }
  }
};

// -- 8 bits: whole numbers, whose products are exact ------------------------------------------------------------------

struct WholeSums {
  int at[4];
};
// 32 columns lie in memory, and in registers, as 16 of 16 bits do.
template <>
struct Step<int8_t> {
  static constexpr int K = 32;
  typedef WholeSums Products;
  struct Left {
    uint at[4];
  };
  struct Right {
    uint at[4];
  };
  template <int LD>
  static INLINE void load_left(Left& a, const int8_t* rows, int lane) {
    ptx::ldmatrix_x4(a.at, ptx::shared_address(rows + (lane & 15) * LD + (lane >> 4) * 16));
  }
  template <int LD>
  static INLINE void load_keys(Right& b, const int8_t* rows, int lane) {
    ptx::ldmatrix_x4(b.at, ptx::shared_address(rows + ((lane >> 4) * 8 + (lane & 7)) * LD + ((lane >> 3) & 1) * 16));
  }
  static INLINE void multiply_pair(WholeSums& c0, WholeSums& c1, const Left& a, const Right& b) {
    ptx::mma_m16n8k32_s8(c0.at, a.at, b.at[0], b.at[1]);
    ptx::mma_m16n8k32_s8(c1.at, a.at, b.at[2], b.at[3]);
  }
};

// -- tiles -------------------------------------------------------------------------------------------------------

// products = own rows of a warp, times N tiles of other rows, transposed; of COLUMNS columns, rows LD apart. multiply:
// of a pair of neighbouring tiles.
template <int COLUMNS, int LD, typename T, int ROW_TILES, int N, typename Products, typename Multiply>
INLINE void multiply_transposed(Products (&products)[ROW_TILES][N], const T* own, const T* others, int lane,
                                Multiply multiply) {
  UNROLL
  for (int r = 0; r < ROW_TILES; r++) {
    UNROLL
    for (int j = 0; j < N; j++) products[r][j] = Products();
  }
#pragma unroll(sizeof(T) == 4 ? 1 : COLUMNS <= 128 ? COLUMNS / 16 : 2)
  for (int d = 0; d < COLUMNS; d += Step<T>::K) {
    typename Step<T>::Left left[ROW_TILES];
    UNROLL
    for (int r = 0; r < ROW_TILES; r++) Step<T>::template load_left<LD>(left[r], own + 16 * r * LD + d, lane);
    UNROLL
    for (int j = 0; j < N; j += 2) {
      typename Step<T>::Right right;
      Step<T>::template load_keys<LD>(right, others + 8 * j * LD + d, lane);
      UNROLL
      for (int r = 0; r < ROW_TILES; r++) multiply(products[r][j], products[r][j + 1], left[r], right);
    }
  }
}
