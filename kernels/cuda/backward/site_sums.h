// site_sums.h: what a lane adds up of the gradients of captured arrays, where a site reads one element for a whole row.
#pragma once
#include "differentiate.h"

struct SiteSums {
  float sums[2 * ROW_TILES][SITES > 0 ? SITES : 1];

  INLINE void start() {
    UNROLL
    for (int i = 0; i < 2 * ROW_TILES; i++) {
      UNROLL
      for (int site = 0; site < SITES; site++) sums[i][site] = 0.0f;
    }
  }

  // own: the number of the row among those of a lane. d_score: the gradient of a modified score, 0 where it is not
  // attended to.
  INLINE void add(int own, int other, float d_score, const ScoreGradient& found, float score, const Position& at,
                  const Place& place, const GradientMods& mods) {
    UNROLL
    for (int site = 0; site < SITES; site++) sums[own][site] += d_score == 0.0f ? 0.0f : d_score * found.sites[site];
  }

  // to: [rows, SITES] of one batch and query head.
  INLINE void write(float* to, float factor, int first_row, int rows, int lane) const {
    UNROLL
    for (int i = 0; i < 2 * ROW_TILES; i++) {
      const int row = first_row + 8 * i + lane / 4;
      UNROLL
      for (int site = 0; site < SITES; site++) {
        const float sum = sum_of_row(sums[i][site]);
        if (row < rows && (lane & 3) == 0) to[int64_t(row) * SITES + site] = factor * sum;
      }
    }
  }
};
