// walk.h: which tiles of keys a threadgroup visits. A tile that no row attends to is neither loaded nor computed; one
// that every row attends to whole runs without the mask.
//
// Candidates are all tiles of keys, or those that a block mask leaves. Bounds of mask_mod (tile_state of mod.h) decide
// most of them unseen: a lane each, first 32 stretches of 32 candidates, then the 32 candidates of a stretch, for the
// rows of the threadgroup; where that leaves some open, for the rows of each simdgroup. Only what is open even then is
// surveyed: the lanes ask mask_mod about the elements that they will hold. The simdgroups vote on open candidates,
// which costs a barrier per stretch that has one.
#pragma once
#include "lane_rows.h"
#include "../mod/mod.h"

// The states of a candidate, as far as they are known before mask_mod is asked. An entry is 4 * tile + state.
enum TileState { NO_MASK = 0, ASK = 1, LOOK_UP = 2 };  // LOOK_UP: the edge of a block runs through the tile

// The values of tile_state: what bounds say of a tile.
enum Bounded { EMPTY = 0, OPEN = 1, WHOLE = 2 };

// BLOCKS, a template argument of the kernel.
enum Blocks { NO_BLOCKS = 0, WHOLE_TILES = 1, CUT_TILES = 2 };  // CUT_TILES: some tiles are LOOK_UP

// A tile of keys to visit.
struct KeyTile {
  int first;    // key
  int state;    // a TileState
  bool exists;  // false after the last one
  bool live;    // some row of this simdgroup attends to it
  bool masked;  // some row of this simdgroup does not attend to all of it
  bool asked;   // the survey has asked mask_mod already: `kept` has this lane's bits, in the order of Walk::kept
  uint kept;
};

INLINE KeyTile no_tile() {
  KeyTile tile;
  tile.first = tile.state = 0;
  tile.exists = tile.live = tile.masked = tile.asked = false;
  tile.kept = 0;
  return tile;
}

// The runs of a tile of query rows: neighbouring tiles of keys in one state.
struct TileRuns {
  const device int* ends;     // candidates of this run and those before it
  const device int* entries;  // the entry of each of its candidates, less 4 * candidate
  int count;

  // The first run that ends behind the candidate is its own.
  INLINE int entry(int candidate) const thread {
    int low = 0, high = count - 1;
    while (low < high) {
      int middle = (low + high) / 2;
      if (ends[middle] > candidate) high = middle;
      else low = middle + 1;
    }
    return 4 * candidate + entries[low];
  }
};

template <typename P, int BLOCKS, typename Captured>
struct Walk {
  AttentionParams p;
  TileRuns runs;
  const device uint8_t* states;  // the blocks of this batch and head: 0 empty, 1 ask mask_mod, 2 full
  threadgroup uint* votes;       // one per simdgroup, twice
  int turn;                      // 0 or 1: the place in use; so one barrier is enough
  int candidates;
  int ahead;  // the first candidate that nothing has been said of
  int base;   // the first one in hand; bits of the words below, and entries in the lanes, are these 32
  int entry_in_lane;
  uint to_visit, live, whole;
  int last_asked;  // the last candidate in hand that was surveyed, and what came out
  uint last_kept;
  uint stretches, whole_stretches;  // a bit for each stretch of 32 candidates before `ahead`

  static constexpr constant bool BOUNDED = HAS_MASK_MOD && BLOCKS == NO_BLOCKS;
  static constexpr constant bool UNSURE = HAS_MASK_MOD || BLOCKS == CUT_TILES;

  INLINE void start(AttentionParams params, const device int* tile_lists, const thread LaneRows<P>& rows,
             threadgroup uint* shared_votes) thread {
    p = params;
    votes = shared_votes;
    const int all_tiles = (p.q_len + P::BQ - 1) / P::BQ;  // of query rows, in all launches
    candidates = (p.kv_len + P::BK - 1) / P::BK;
    if (BLOCKS != NO_BLOCKS) {
      int64_t mask = int64_t(metal::min(rows.b, p.mask_batches - 1)) * p.mask_heads +
                     metal::min(rows.h, p.mask_heads - 1);
      int64_t lists = int64_t(p.mask_batches) * p.mask_heads * all_tiles, list = mask * all_tiles + rows.q_tile;
      int first = tile_lists[list];
      runs.count = tile_lists[list + 1] - first;
      runs.ends = tile_lists + lists + 1 + first;
      runs.entries = runs.ends + tile_lists[lists];
      const device int* behind = tile_lists + lists + 1 + 2 * int64_t(tile_lists[lists]);
      states = reinterpret_cast<const device uint8_t*>(behind) + mask * p.q_blocks * p.kv_blocks;
      candidates = runs.count > 0 ? runs.ends[runs.count - 1] : 0;
    }
    turn = ahead = base = entry_in_lane = 0;
    last_asked = -1;
    last_kept = 0;
    to_visit = live = whole = stretches = whole_stretches = 0;
  }

  Range keys(KeyTile tile) const thread { return range_of(tile.first, P::BK, p.kv_len); }

  // The entry of candidate base + i.
  INLINE int entry(int i) const thread {
    if (BLOCKS != NO_BLOCKS) return metal::simd_shuffle(entry_in_lane, ushort(i));
    return (base + i) * 4 + (HAS_MASK_MOD ? ASK : NO_MASK);
  }

  // Bit 2 (r * KEY_FRAGMENTS + j) + e: whether row r of this lane attends to its element e of key fragment j.
  INLINE uint kept(int first, int state, const thread LaneRows<P>& rows, const thread Captured& mods) const thread {
    uint bits = 0;
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++)
      bits |= kept_of_row(rows.q_idx[r], first + rows.place.column, state, rows, mods) << (2 * r * P::KEY_FRAGMENTS);
    return bits;
  }
  static bool is_kept(uint bits, int r, int e, int j) { return (bits >> (2 * (r * P::KEY_FRAGMENTS + j) + e)) & 1; }

  INLINE uint kept_of_row(int q_idx, int first, int state, const thread LaneRows<P>& rows, const thread Captured& mods)
      const thread {
    if (HAS_MASK_MOD && state == ASK)
      return mods.template mask_row<P::KEY_FRAGMENTS>(rows.b, rows.h, q_idx, first, p.kv_len);
    uint bits = 0;
    UNROLL
    for (int i = 0; i < 2 * P::KEY_FRAGMENTS; i++) {
      int kv_idx = first + i / 2 * FRAGMENT + i % 2;
      bool keep = kv_idx < p.kv_len;
      if (BLOCKS == CUT_TILES && state == LOOK_UP && keep) {
        int block = states[int64_t(q_idx / p.q_block) * p.kv_blocks + kv_idx / p.kv_block];
        keep = block == 2 || (block == 1 && (!HAS_MASK_MOD || mods.mask_mod(rows.b, rows.h, q_idx, kv_idx)));
      }
      bits |= uint(keep) << i;
    }
    return bits;
  }

  // The state that bounds give neighbouring tiles of keys, the first of which exists.
  INLINE int bounded(int tile, int tiles, Range q, const thread LaneRows<P>& rows, const thread Captured& mods)
      const thread {
    int first = tile * P::BK, keys = metal::min(p.kv_len - first, tiles * P::BK);
    return mods.tile_state(rows.b, rows.h, rows.h, q.first, q.end - 1, first, first + keys - 1);
  }

  // The state that bounds give this lane's candidate, for some rows.
  INLINE int bounded_in_lane(Range q, const thread LaneRows<P>& rows, const thread Captured& mods, uint lane)
      const thread {
    int e = BLOCKS != NO_BLOCKS ? entry_in_lane : (base + int(lane)) * 4 + ASK;
    if ((e & 3) == ASK) return bounded(e >> 2, 1, q, rows, mods);
    return (e & 3) == NO_MASK ? WHOLE : OPEN;
  }

  // Decides the next 32 stretches, a stretch per lane.
  INLINE void look_ahead(const thread LaneRows<P>& rows, const thread Captured& mods, uint lane) thread {
    int first = ahead + 32 * int(lane);
    int state = first < candidates ? bounded(first, 32, rows.of_group, rows, mods) : EMPTY;
    stretches = ballot(state != EMPTY);
    whole_stretches = ballot(state == WHOLE);
    ahead += 32 * 32;
  }

  // Takes the next 32 candidates in hand, to_visit being those that some row may attend to; false without any.
  INLINE bool take(const thread LaneRows<P>& rows, const thread Captured& mods, Thread at) thread {
    bool sure = !UNSURE;
    if (BOUNDED) {
      while (stretches == 0 && ahead < candidates) look_ahead(rows, mods, at.lane);
      if (stretches == 0) return false;
      int stretch = int(metal::ctz(stretches));
      stretches &= stretches - 1;
      sure = (whole_stretches >> stretch) & 1;
      base = ahead - 32 * (32 - stretch);
    } else {
      if (ahead >= candidates) return false;
      base = ahead;
      ahead += 32;
    }
    uint in_hand = ~0u >> (32 - metal::min(32, candidates - base));
    bool mine = (in_hand >> at.lane) & 1;
    if (BLOCKS != NO_BLOCKS) entry_in_lane = mine ? runs.entry(base + int(at.lane)) : 0;
    to_visit = whole = in_hand;
    live = rows.exist ? in_hand : 0;
    last_asked = -1;
    if (!sure) decide(in_hand, rows, mods, at);
    return true;
  }

  // Decides candidates by bounds: for the rows of the threadgroup, and what that leaves open for those of each
  // simdgroup. The loop keeps the code of tile_state, which may be long, from being there twice.
  INLINE void decide(uint in_hand, const thread LaneRows<P>& rows, const thread Captured& mods, Thread at) thread {
    uint asked = in_hand, open = 0;
    whole = live = 0;
    ROLLED
    for (int finer = 0; finer < 2; finer++) {
      const bool mine = (asked >> at.lane) & 1;
      Range q = rows.of_group;
      if (finer == 1) q = rows.of_simdgroup;
      const int state = mine ? bounded_in_lane(q, rows, mods, at.lane) : EMPTY;
      const uint decided = ballot(state == WHOLE), left = ballot(state == OPEN);
      whole |= decided;
      live |= rows.exist ? decided : 0;
      asked = rows.exist ? left : 0;
      if (finer == 1) break;
      to_visit = decided;
      open = left;
      if (open == 0) break;
    }
    if (UNSURE && open != 0) survey(asked, rows, mods, at);
  }

  // Decides what is open for this simdgroup by asking the mask about all elements; the simdgroups vote.
  INLINE void survey(uint asked, const thread LaneRows<P>& rows, const thread Captured& mods, Thread at) thread {
    constexpr uint EVERY = ~0u >> (32 - 2 * P::ROW_FRAGMENTS * P::KEY_FRAGMENTS);
    for (; asked != 0; asked &= asked - 1) {
      last_asked = int(metal::ctz(asked));
      const int e = entry(last_asked);
      last_kept = kept((e >> 2) * P::BK, e & 3, rows, mods);
      if (metal::simd_any(last_kept != 0)) live |= 1u << last_asked;
      if (metal::simd_all(last_kept == EVERY)) whole |= 1u << last_asked;
    }
    threadgroup uint* votes_now = votes + turn * P::SIMDGROUPS;
    turn ^= 1;
    if (at.lane == 0) votes_now[at.simdgroup] = live;
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    for (int s = 0; s < P::SIMDGROUPS; s++) to_visit |= votes_now[s];
  }

  // The next tile to visit, the same one in all threads.
  INLINE KeyTile next(const thread LaneRows<P>& rows, const thread Captured& mods, Thread at) thread {
    while (to_visit == 0 && take(rows, mods, at)) continue;
    KeyTile tile;
    tile.exists = to_visit != 0;
    int i = tile.exists ? int(metal::ctz(to_visit)) : 0;
    to_visit &= to_visit - 1;
    int e = entry(i);
    tile.first = (e >> 2) * P::BK;
    bool all = (whole >> i) & 1;
    tile.state = all ? NO_MASK : e & 3;
    tile.live = (live >> i) & 1;
    tile.masked = !all || tile.first + P::BK > p.kv_len;
    tile.asked = i == last_asked;
    tile.kept = last_kept;
    return tile;
  }
};
