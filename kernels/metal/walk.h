// walk.h: which tiles of keys a threadgroup visits. A tile that no row attends to is neither loaded nor computed; one
// that every row attends to whole runs without the mask.
//
// Candidates are all tiles of keys, or those that a block mask leaves. What mask_mod leaves of them is found out by
// asking it: the threadgroup surveys 32 candidates at a time, each simdgroup for its own rows, with the lanes asking
// for the elements that they will hold. That costs a few operations per score, and once per 32 tiles two barriers.
#pragma once
#include "fragments.h"
#include "mod.h"
#include "params.h"

// What is known of a candidate before asking mask_mod. An entry of a tile list is 4 * tile + state.
enum TileState { NO_MASK = 0, ASK = 1, LOOK_UP = 2 };  // LOOK_UP: the edge of a block runs through the tile

// BLOCKS, a template argument of the kernel.
enum Blocks { NO_BLOCKS = 0, WHOLE_TILES = 1, CUT_TILES = 2 };  // CUT_TILES: some tiles are LOOK_UP

// A tile of keys to visit.
struct KeyTile {
  int first;    // key
  int state;    // a TileState
  bool exists;  // false after the last one
  bool live;    // some row of this simdgroup attends to it
  bool masked;  // some row of this simdgroup does not attend to all of it
};

// Where a lane stands: its batch, head and query rows, and its place in a fragment.
template <typename P>
struct LaneRows {
  int b, h;
  int q_idx[P::ROW_FRAGMENTS];  // of the last row, where a row does not exist
  bool exist;                   // the simdgroup has at least one row
  LanePlace place;
};

template <typename P, int BLOCKS, typename Captured>
struct Walk {
  AttentionParams p;
  const device int* list;     // of this tile of query rows; its length comes first
  const device uint8_t* states;  // of this batch and head: 0 empty, 1 ask mask_mod, 2 full
  threadgroup uint* votes;    // one per simdgroup
  int candidates;
  int base;  // candidates base to base + 31 are in hand: bits of the words below, one entry in each lane
  int next_base;
  int entry_in_lane;
  uint to_visit, live, whole;

  static constexpr constant bool SURVEY = HAS_MASK_MOD || BLOCKS == CUT_TILES;

  void start(AttentionParams params, const device int* tile_lists, const device uint8_t* block_states, int q_tile,
             int q_tiles, const thread LaneRows<P>& rows, threadgroup uint* shared_votes) thread {
    p = params;
    votes = shared_votes;
    candidates = (p.kv_len + P::BK - 1) / P::BK;
    if (BLOCKS != NO_BLOCKS) {
      int64_t mask = int64_t(metal::min(rows.b, p.mask_batches - 1)) * p.mask_heads +
                     metal::min(rows.h, p.mask_heads - 1);
      list = tile_lists + (mask * q_tiles + q_tile) * p.list_length;
      states = block_states + mask * p.q_blocks * p.kv_blocks;
      candidates = list[0];
    }
    base = next_base = entry_in_lane = 0;
    to_visit = live = whole = 0;
  }

  // The entry of candidate base + i.
  int entry(int i) const thread {
    if (BLOCKS != NO_BLOCKS) return metal::simd_shuffle(entry_in_lane, ushort(i));
    return (base + i) * 4 + (HAS_MASK_MOD ? ASK : NO_MASK);
  }

  // Bit (2 r + e) * KEY_FRAGMENTS + j: whether row r of this lane attends to its element e of key fragment j.
  uint kept(int first, int state, const thread LaneRows<P>& rows, const thread Captured& mods) const thread {
    uint bits = 0, bit = 1;
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        UNROLL
        for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
          int kv_idx = first + j * FRAGMENT + rows.place.column + e;
          if (kv_idx < p.kv_len && keep(rows.q_idx[r], kv_idx, state, rows, mods)) bits |= bit;
          bit <<= 1;
        }
      }
    }
    return bits;
  }
  static bool is_kept(uint bits, int r, int e, int j) { return (bits >> ((2 * r + e) * P::KEY_FRAGMENTS + j)) & 1; }

  bool keep(int q_idx, int kv_idx, int state, const thread LaneRows<P>& rows, const thread Captured& mods)
      const thread {
    bool ask = state == ASK;
    if (BLOCKS == CUT_TILES && state == LOOK_UP) {
      int block = states[int64_t(q_idx / p.q_block) * p.kv_blocks + kv_idx / p.kv_block];
      if (block == 0) return false;
      ask = block == 1;
    }
    return !HAS_MASK_MOD || !ask || mods.mask_mod(rows.b, rows.h, q_idx, kv_idx);
  }

  // Takes the next 32 candidates in hand, all to be visited.
  void take(const thread LaneRows<P>& rows, uint lane) thread {
    base = next_base;
    next_base = metal::min(base + 32, candidates);
    if (BLOCKS != NO_BLOCKS) entry_in_lane = base + int(lane) < candidates ? list[1 + base + int(lane)] : 0;
    to_visit = ~0u >> (32 - (next_base - base));
    live = rows.exist ? to_visit : 0;
    whole = to_visit;
  }

  // Asks the mask about the candidates in hand.
  void survey(const thread LaneRows<P>& rows, const thread Captured& mods, uint simdgroup, uint lane) thread {
    constexpr uint EVERY = ~0u >> (32 - 2 * P::ROW_FRAGMENTS * P::KEY_FRAGMENTS);
    live = whole = 0;
    for (int i = 0; i < next_base - base && rows.exist; i++) {
      int e = entry(i);
      uint bits = (e & 3) == NO_MASK ? EVERY : kept((e >> 2) * P::BK, e & 3, rows, mods);
      if (metal::simd_any(bits != 0)) live |= 1u << i;
      if (metal::simd_all(bits == EVERY)) whole |= 1u << i;
    }
    if (lane == 0) votes[simdgroup] = live;
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    to_visit = 0;
    for (int s = 0; s < P::SIMDGROUPS; s++) to_visit |= votes[s];
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);  // read before the next survey writes
  }

  // The next tile to visit, the same one in all threads.
  KeyTile next(const thread LaneRows<P>& rows, const thread Captured& mods, uint simdgroup, uint lane) thread {
    while (to_visit == 0 && next_base < candidates) {
      take(rows, lane);
      if (SURVEY) survey(rows, mods, simdgroup, lane);
    }
    KeyTile tile;
    tile.exists = to_visit != 0;
    int i = tile.exists ? int(metal::ctz(to_visit)) : 0;
    to_visit &= to_visit - 1;
    int e = entry(i);
    tile.first = (e >> 2) * P::BK;
    tile.state = e & 3;
    tile.live = (live >> i) & 1;
    tile.masked = !((whole >> i) & 1) || tile.first + P::BK > p.kv_len;
    return tile;
  }
};
