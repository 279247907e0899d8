// special.h: values that are infinite or nan. Where a weight of 0 leaves their key out, its product is not to be nan: the
// producer puts zeros in place of rows that have one, and consumers add these, which are rare, one by one. Nothing is
// looked for before a block's result is nan: then all of it is computed again, with care.
#pragma once
#include "../tile/products.h"
#include "memory.h"

// By one warp: the values of a tile are there, and others do not know yet. Four rows at a time.
INLINE void replace_special_values(T (&values)[VALUE_SLABS][BK][SLAB], uint (&special_keys)[SPECIAL_WORDS], int lane) {
  if (lane < SPECIAL_WORDS) special_keys[lane] = 0;
  __syncwarp();
  ROLLED
  for (int first = 0; first < BK; first += 4) {
    const int row = first + lane / 8;
    bool found = false;
    ROLLED
    for (int s = 0; s < VALUE_SLABS; s++) {
      const uint4 words = ((const uint4*)values[s][row])[lane % 8];
      found = found || is_special<T>(words.x) || is_special<T>(words.y) || is_special<T>(words.z) || is_special<T>(words.w);
    }
    const uint lanes = lanes_that(found);
    if (!((lanes >> (lane & ~7)) & 0xff)) continue;
    ROLLED
    for (int s = 0; s < VALUE_SLABS; s++) ((uint4*)values[s][row])[lane % 8] = uint4();
    if (lane % 8 == 0) atomicOr(&special_keys[row / 32], 1u << row % 32);
  }
  show_writes();
  __syncwarp();
}

// The two numbers of a register.
template <typename T>
INLINE float part_of(uint pair, int which) {
  T x;
  x.bits = uint16_t(pair >> 16 * which);
  return x;
}

// O += P V of those keys. weights: P, as left factors of 16 keys each. rows: of v, from the first key of the tile on.
template <int TILES, int STEPS>
INLINE void add_special_values(Sums (&out)[TILES], const uint (&weights)[STEPS][4],
                               const uint (&special_keys)[SPECIAL_WORDS], const T* rows, int lane) {
  ROLLED
  for (int key = 0; key < BK; key++) {
    if (!((special_keys[key / 32] >> key % 32) & 1)) continue;
    float weight[2];
    UNROLL
    for (int half = 0; half < 2; half++) {
      float mine = 0.0f;  // the weight that this lane has of the key, if it has one
      UNROLL
      for (int j = 0; j < STEPS; j++) {
        UNROLL
        for (int i = 0; i < 2; i++) {
          if (key / 8 == 2 * j + i) mine = part_of<T>(weights[j][2 * i + half], key & 1);
        }
      }
      weight[half] = __shfl_sync(EVERY_LANE, mine, (lane & ~3) + key % 8 / 2);
    }
    UNROLL
    for (int d = 0; d < TILES; d++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        const int column = 8 * d + 2 * (lane & 3) + e;
        const float value = column < VALUE_DIM ? float(rows[int64_t(key) * VALUE_DIM + column]) : 0.0f;
        UNROLL
        for (int half = 0; half < 2; half++) {
          if (weight[half] != 0.0f) out[d].at[2 * half + e] += weight[half] * value;
        }
      }
    }
  }
}
