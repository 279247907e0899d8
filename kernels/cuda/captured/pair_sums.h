// pair_sums.h: the gradients of one captured array, where a site reads other elements for the pairs of a row.
//
// Every sum has one thread that adds to it, in the order of tiles and of pairs in them: it needs no atomics and gives
// the same bits always.
#pragma once
#include "../backward/differentiate.h"

// Which element a pair of a query row and a key reads: one for each difference of the two; one of its own; any.
enum Pattern { DIAGONAL = 0, DENSE = 1, TABLE = 2 };

// sums: in device memory, 0 at first. DIAGONAL: one for each q_idx - kv_idx, from 1 - kv_len on. DENSE, TABLE: one for
// each element. values, elements: of the pairs of a tile, in shared memory, not for DENSE, and elements for TABLE.
// inverse: of the factor of the call's gradients.
struct PairSums {
  float *sums, *values;
  int* elements;
  float inverse;
  int first_row, first_own;  // of the block, and of this warp in the block

  static constexpr int LD = BK + 1;
  static constexpr int DIAGONALS = BQ + BK - 1;  // of a tile

  INLINE int pair(int own, int other, int lane) const {
    return (first_own + 8 * own + lane / 4) * LD + other / 2 * 8 + 2 * (lane & 3) + other % 2;
  }

  // d_score: the gradient of a modified score, 0 where it is not attended to.
  INLINE void add(int own, int other, float d_score, const ScoreGradient& found, float score, const Position& at,
                  const Place& place, const GradientMods& mods) {
    const bool exists = first_row + first_own + 8 * own + place.lane / 4 == at.q_idx;  // not the last row again
    const bool counts = d_score != 0.0f && exists;
    const float value = counts ? inverse * d_score * found.sites[0] : 0.0f;
    if constexpr (PATTERN == DENSE) {
      if (counts) sums[mods.element(score, place.b, place.h, at.q_idx, at.kv_idx)] += value;
    } else {
      const int to = pair(own, other, place.lane);
      values[to] = value;
      if constexpr (PATTERN == TABLE) elements[to] = int(mods.element(score, place.b, place.h, at.q_idx, at.kv_idx));
    }
  }

  // A tile that no row of this warp attends to.
  INLINE void add_nothing(int lane) const {
    if constexpr (PATTERN != DENSE) {
      UNROLL
      for (int own = 0; own < 2 * ROW_TILES; own++) {
        UNROLL
        for (int other = 0; other < 2 * OTHERS; other++) values[pair(own, other, lane)] = 0.0f;
      }
    }
  }

  // Adds the pairs of a tile, which all have been staged, to their sums; each thread to those of its own number.
  INLINE void collect(int kv_first, const AttentionParams& p, int thread) const {
    if constexpr (PATTERN == DIAGONAL) {
      const int first = first_row - kv_first - (BK - 1) + p.kv_len - 1;  // of the tile's diagonals; maybe negative
      int mine = (thread - first) % THREADS;
      if (mine < 0) mine += THREADS;
      ROLLED
      for (; mine < DIAGONALS; mine += THREADS) {
        const int diagonal = first + mine;
        if (diagonal < 0 || diagonal >= p.q_len + p.kv_len - 1) continue;
        float sum = 0.0f;
        ROLLED
        for (int column = 0; column < BK; column++) {
          const int row = column + mine - (BK - 1);
          if (row >= 0 && row < BQ) sum += values[row * LD + column];
        }
        sums[diagonal] += sum;
      }
    }
    if constexpr (PATTERN == TABLE) {
      ROLLED
      for (int i = 0; i < BQ * BK; i++) {
        const int at = i / BK * LD + i % BK;
        const float value = values[at];
        if (value != 0.0f && elements[at] % THREADS == thread) sums[elements[at]] += value;
      }
    }
  }
};
