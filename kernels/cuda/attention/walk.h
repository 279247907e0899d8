// walk.h: which tiles of keys a block visits. A tile that no row attends to is neither loaded nor computed; one that
// every row attends to whole runs without the mask.
//
// Candidates are all tiles of keys, or those that a block mask leaves. Bounds of mask_mod (tile_state of mod.h) decide
// most of them: a lane each, of many first 32 stretches of 32 candidates, then the 32 candidates of a stretch, for the rows of
// the block, and what that leaves open for the rows of each warp. All warps find the same tiles to visit, each by
// itself: no barrier.
#pragma once
#include "../mod/mod.h"
#include "params.h"

// The states of a candidate before mask_mod is asked. An entry is 4 * tile + state.
enum TileState { NO_MASK = 0, ASK = 1, LOOK_UP = 2 };  // LOOK_UP: the edge of a block runs through the tile
enum Bounded { EMPTY = 0, OPEN = 1, WHOLE = 2 };       // what tile_state says
enum Blocks { NO_BLOCKS = 0, WHOLE_TILES = 1, CUT_TILES = 2 };  // CUT_TILES: some tiles are LOOK_UP

INLINE uint lanes_that(bool yes) { return __ballot_sync(EVERY_LANE, yes); }
INLINE int lowest(uint bits) { return __ffs(bits) - 1; }

struct Range {
  int first, last;
};

// Which rows this thread works for.
struct Place {
  int b, h, lane;
  Range of_block, of_warp;  // query rows that exist; none of this warp: last < first
};

// A tile of keys to visit.
struct KeyTile {
  int first;    // key
  int state;    // a TileState
  bool exists;  // false after the last one
  bool live;    // some row of this warp may attend to it
  bool ragged;  // some of its keys do not exist
  bool masked;  // or the mask may leave out some for some row of this warp
  bool masked_for_some;  // some key may be left out, for this warp or another: the same in all threads
};

// The runs of a tile of query rows: neighbouring tiles of keys in one state.
struct TileRuns {
  const int* ends;     // candidates of this run and those before it
  const int* entries;  // the entry of each of its candidates, less 4 * candidate
  int count;

  // The first run that ends behind the candidate is its own.
  INLINE int entry(int candidate) const {
    int low = 0, high = count - 1;
    while (low < high) {
      int middle = (low + high) / 2;
      if (ends[middle] > candidate) high = middle;
      else low = middle + 1;
    }
    return 4 * candidate + entries[low];
  }
};

// Asked: has tile_state.
template <int BQ, int BK, int BLOCKS, typename Asked = Mods>
struct Walk {
  const AttentionParams p;  // copies: of a function that is called the compiler assumes that it changes what it sees
  const Asked mods;
  const Place place;
  TileRuns runs;
  const uint8_t* states;  // the blocks of this batch and head: 0 empty, 1 ask mask_mod, 2 full
  int candidates;
  int ahead;  // the first candidate that nothing has been said of
  int base;   // the first one in hand; bits of the words below, and entries in the lanes, are these 32
  int entry_in_lane;
  uint to_visit, whole_for_all;     // for the rows of the block
  uint live, whole;                 // for the rows of this warp
  uint stretches, whole_stretches;  // a bit for each stretch of 32 candidates before `ahead`

  static constexpr bool BOUNDED = HAS_MASK_MOD && BLOCKS == NO_BLOCKS;
  static constexpr int FEW = 128;  // up to so many candidates are decided without asking for stretches first

  INLINE Walk(const AttentionParams& params, const Asked& captured, const Place& rows, const int* lists, int q_tile)
      : p(params), mods(captured), place(rows), runs(), states(nullptr) {
    candidates = (p.kv_len + BK - 1) / BK;
    if constexpr (BLOCKS != NO_BLOCKS) {
      const int all_tiles = (p.q_len + BQ - 1) / BQ;
      int64_t mask = int64_t(smaller(place.b, p.mask_batches - 1)) * p.mask_heads + smaller(place.h, p.mask_heads - 1);
      int64_t count = int64_t(p.mask_batches) * p.mask_heads * all_tiles, list = mask * all_tiles + q_tile;
      int first = lists[list];
      runs.count = lists[list + 1] - first;
      runs.ends = lists + count + 1 + first;
      runs.entries = runs.ends + lists[count];
      const int* behind = lists + count + 1 + 2 * int64_t(lists[count]);
      states = (const uint8_t*)behind + mask * p.q_blocks * p.kv_blocks;
      candidates = runs.count > 0 ? runs.ends[runs.count - 1] : 0;
    }
    ahead = base = entry_in_lane = 0;
    to_visit = whole_for_all = live = whole = stretches = whole_stretches = 0;
  }

  INLINE int entry(int i) const {
    if constexpr (BLOCKS != NO_BLOCKS) return __shfl_sync(EVERY_LANE, entry_in_lane, i);
    return (base + i) * 4 + (HAS_MASK_MOD ? ASK : NO_MASK);
  }

  // What bounds say of neighbouring tiles of keys, the first of which exists.
  INLINE int bounded(int tile, int tiles, Range q) const {
    int first = tile * BK, keys = smaller(p.kv_len - first, tiles * BK);
    return mods.tile_state(place.b, place.h, place.h, q.first, q.last, first, first + keys - 1);
  }
  INLINE int bounded_in_lane(Range q) const {
    int e = BLOCKS != NO_BLOCKS ? entry_in_lane : (base + place.lane) * 4 + ASK;
    if ((e & 3) == ASK) return bounded(e >> 2, 1, q);
    return (e & 3) == NO_MASK ? WHOLE : OPEN;
  }

  // Decides the next 32 stretches, a stretch per lane.
  INLINE void look_ahead() {
    int first = ahead + 32 * place.lane;
    int state = first < candidates ? bounded(first, 32, place.of_block) : EMPTY;
    stretches = lanes_that(state != EMPTY);
    whole_stretches = lanes_that(state == WHOLE);
    ahead += 32 * 32;
  }

  // Takes the next 32 candidates in hand; false without any.
  CALLED bool take() {
    bool sure = !(HAS_MASK_MOD || BLOCKS == CUT_TILES);
    if (BOUNDED && candidates > FEW) {
      while (stretches == 0 && ahead < candidates) look_ahead();
      if (stretches == 0) return false;
      int stretch = lowest(stretches);
      stretches &= stretches - 1;
      sure = (whole_stretches >> stretch) & 1;
      base = ahead - 32 * (32 - stretch);
    } else {
      if (ahead >= candidates) return false;
      base = ahead;
      ahead += 32;
    }
    uint in_hand = ~0u >> (32 - smaller(32, candidates - base));
    bool mine = (in_hand >> place.lane) & 1;
    if constexpr (BLOCKS != NO_BLOCKS) entry_in_lane = mine ? runs.entry(base + place.lane) : 0;
    to_visit = whole_for_all = live = whole = in_hand;
    if (!sure) {
      int state = mine ? bounded_in_lane(place.of_block) : EMPTY;
      to_visit = lanes_that(state != EMPTY);
      whole_for_all = lanes_that(state == WHOLE);
      if (state == OPEN && place.of_warp.last >= place.of_warp.first) state = bounded_in_lane(place.of_warp);
      live = lanes_that(state != EMPTY);
      whole = lanes_that(state == WHOLE);
    }
    if (place.of_warp.last < place.of_warp.first) live = 0;
    return true;
  }

  // The next tile to visit, the same one in all threads.
  INLINE KeyTile next() {
    while (to_visit == 0 && take()) continue;
    KeyTile tile;
    tile.exists = to_visit != 0;
    int i = tile.exists ? lowest(to_visit) : 0;
    to_visit &= to_visit - 1;
    int e = entry(i);
    bool all = (whole >> i) & 1;
    tile.first = (e >> 2) * BK;
    tile.state = all ? NO_MASK : e & 3;
    tile.live = (live >> i) & 1;
    tile.ragged = tile.first + BK > p.kv_len;
    tile.masked = !all || tile.ragged;
    tile.masked_for_some = !((whole_for_all >> i) & 1) || tile.ragged;
    return tile;
  }
};
