// plan.h: how the threadgroups of the kernel for few query rows cut their work, all compile-time. plan.py chooses.
#pragma once
#include "../tile/simdgroup.h"

// HEAD_DIM, VALUE_DIM: columns of q and k, and of v, as given.
// ROW_FRAGMENTS: fragments of 8 query rows, the same ones in all simdgroups.
// KEY_FRAGMENTS: fragments of 8 keys of one tile.
// SHARE: simdgroups that share the columns of a tile of keys. With 1 each has tiles of its own.
// KEY_PIECE, VALUE_PIECE: neighbouring elements of a row of k, and of v, that a lane reads at once.
template <int HEAD_DIM_, int VALUE_DIM_, int ROW_FRAGMENTS_, int KEY_FRAGMENTS_, int SIMDGROUPS_, int SHARE_,
          int KEY_PIECE_, int VALUE_PIECE_>
struct DecodePlan {
  static constexpr constant int HEAD_DIM = HEAD_DIM_;
  static constexpr constant int VALUE_DIM = VALUE_DIM_;
  static constexpr constant int ROW_FRAGMENTS = ROW_FRAGMENTS_;
  static constexpr constant int KEY_FRAGMENTS = KEY_FRAGMENTS_;
  static constexpr constant int SIMDGROUPS = SIMDGROUPS_;
  static constexpr constant int SHARE = SHARE_;
  static constexpr constant int KEY_PIECE = KEY_PIECE_;
  static constexpr constant int VALUE_PIECE = VALUE_PIECE_;

  static constexpr constant int ROWS = ROW_FRAGMENTS_ * FRAGMENT;
  static constexpr constant int BK = KEY_FRAGMENTS_ * FRAGMENT;
  static constexpr constant int UNITS = SIMDGROUPS_ / SHARE_;  // of a threadgroup: those that have tiles of their own

  // A chunk of columns of k: a lane has one piece of it, the four lanes of a key all of it. Of v, eight lanes do.
  static constexpr constant int HEAD_CHUNK = 4 * KEY_PIECE_;
  static constexpr constant int VALUE_CHUNK = 8 * VALUE_PIECE_;
  static constexpr constant int HEAD_CHUNKS = (HEAD_DIM_ + SHARE_ * HEAD_CHUNK - 1) / (SHARE_ * HEAD_CHUNK);
  static constexpr constant int VALUE_CHUNKS = (VALUE_DIM_ + SHARE_ * VALUE_CHUNK - 1) / (SHARE_ * VALUE_CHUNK);
  static constexpr constant int HEAD_FRAGMENTS = HEAD_CHUNKS * KEY_PIECE_ / 2;
  static constexpr constant int VALUE_FRAGMENTS = VALUE_CHUNKS * VALUE_PIECE_;

  static constexpr constant bool HEAD_BEYOND = HEAD_DIM_ % (SHARE_ * HEAD_CHUNK) != 0;
  static constexpr constant bool VALUE_BEYOND = VALUE_DIM_ % (SHARE_ * VALUE_CHUNK) != 0;

  // Threadgroup memory, in floats: scores that go from one simdgroup to the others that share them, and the scales of
  // keys and of values, twice; or statistics of rows, and a chunk of the output of each simdgroup, each row a little
  // longer than it needs.
  static constexpr constant int SCORES = SIMDGROUPS_ * ROW_FRAGMENTS_ * KEY_FRAGMENTS_ * 2 * LANES;
  static constexpr constant int STATISTICS = 2 * SIMDGROUPS_ * ROWS;
  static constexpr constant int LD = VALUE_CHUNK + 4;
  static constexpr constant int MEETING = SCORES + 2 * KEY_FRAGMENTS_ * FRAGMENT;
  static constexpr constant int SHARED = SHARE_ > 1 ? 2 * MEETING : STATISTICS + SIMDGROUPS_ * ROWS * LD;

  static_assert(SHARE_ == 1 || SHARE_ == SIMDGROUPS_, "simdgroups meet at a barrier for each tile, or for none");
  static_assert(KEY_PIECE_ % 2 == 0, "a lane holds pairs of columns of a key");
  static_assert(2 * ROW_FRAGMENTS_ * KEY_FRAGMENTS_ <= 32, "a lane keeps its part of the mask in the bits of a uint");
  static_assert(KEY_FRAGMENTS_ * FRAGMENT <= LANES, "each key of a tile has a lane for its scale");
};
