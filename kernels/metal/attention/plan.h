// plan.h: how one threadgroup cuts its work, all compile-time. plan.py chooses; its model of registers and
// threadgroup memory is written there.
#pragma once
#include "../tile/simdgroup.h"

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
