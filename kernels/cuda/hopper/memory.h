// memory.h: what lies in the shared memory of a block, and what producer and consumers tell one another.
#pragma once
#include "plan.h"
#include "../attention/walk.h"
#include "barriers.h"

// Whether weights of 0 leave out keys, whose values must be finite then, since tensor cores multiply them. A block whose
// result is not a number does all of its work again with care (special.h).
constexpr bool LEAVES_OUT = HAS_SCORE_MOD || HAS_MASK_MOD || BLOCKS == CUT_TILES;
constexpr int SPECIAL_WORDS = BK / 32;

// What the producer says of a tile: 8 * tile + 4 where some of its keys do not exist + its TileState; -1 after the last.
struct Word {
  int bits;
  static INLINE Word of(const KeyTile& tile, int kv_len) {
    return {tile.first / BK * 8 + (tile.first + BK > kv_len ? 4 : 0) + tile.state};
  }
  INLINE bool exists() const { return bits >= 0; }
  INLINE int first_key() const { return (bits >> 3) * BK; }
  INLINE bool ragged() const { return bits & 4; }
  INLINE int state() const { return bits & 3; }
};

// A tile of keys and one of values, in slabs of 64 columns, as TMA swizzles rows of 128 bytes.
struct Stage {
  T keys[HEAD_SLABS][BK][SLAB];
  T values[VALUE_SLABS][BK][SLAB];
};
struct Memory {
  T queries[HEAD_SLABS][BQ][SLAB];
  Stage stages[STAGES];
  uint64_t has_queries, has_keys[STAGES], has_values[STAGES], free_keys[STAGES], free_values[STAGES];
  uint64_t brought;                           // with care: the values, before they are looked through
  uint special_keys[STAGES][SPECIAL_WORDS];  // with care: a bit for each key whose values are not all finite
  int words[STAGES];
  uint doubted;  // 1 where a result is nan
};

// Calls `change` for each barrier, with the number of its arrivals.
template <typename Change>
INLINE void for_each_barrier(Memory& memory, Change change) {
  constexpr int READERS = 4 * CONSUMERS;  // a lane of each warp
  change(&memory.has_queries, 1);
  change(&memory.brought, 1);
  for (int s = 0; s < STAGES; s++) {
    change(&memory.has_keys[s], 1);
    change(&memory.has_values[s], 1);
    change(&memory.free_keys[s], READERS);
    change(&memory.free_values[s], READERS);
  }
}
INLINE void start_barriers(Memory& memory) {
  for_each_barrier(memory, [](uint64_t* barrier, int arrivals) { start_barrier(barrier, arrivals); });
  show_barriers();
}
INLINE void restart_barriers(Memory& memory) {
  for_each_barrier(memory, [](uint64_t* barrier, int) { end_barrier(barrier); });
  start_barriers(memory);
}

typedef TurnOf<STAGES> Turn;  // of the tile at hand

// For all lanes of a warp, when its keys are there. Only one lane reads it: it is the one that gives the stage back.
INLINE Word word_of(Memory& memory, Turn turn, int lane) {
  wait_for(&memory.has_keys[turn.stage], turn.phase);
  Word word;
  word.bits = __shfl_sync(EVERY_LANE, lane == 0 ? memory.words[turn.stage] : 0, 0);
  return word;
}
INLINE void give_back(uint64_t* barrier, int lane) {
  if (lane == 0) arrive(barrier);
}
