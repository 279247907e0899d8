// live.h: which tiles of keys the rows of a threadgroup read, and which of them its simdgroups take.
//
// Candidates are all tiles of keys, or those that a block mask leaves. Without one, bounds of mask_mod (tile_state of
// mod.h) say which are live: a lane each, first 32 stretches of 32 tiles, then the 32 tiles of a stretch that is not
// live as a whole. This is gone through twice: to count the live tiles, and to find a unit's share of them, which are
// those from `first` to `end` - 1 in their order. A unit is what has tiles of its own: a simdgroup, or a threadgroup.
//
// Where few tiles are live, few splits are in use: each has LEAST_KEYS keys, or there is but one.
#pragma once
#include "rows.h"
#include "../mod/mod.h"

enum TileState { NO_MASK = 0, ASK = 1, LOOK_UP = 2 };  // of an entry, 4 * tile + state; as tile_lists.py has them
enum Bounded { EMPTY = 0, OPEN = 1, WHOLE = 2 };       // the values of tile_state
enum Blocks { NO_BLOCKS = 0, WHOLE_TILES = 1, CUT_TILES = 2 };  // BLOCKS, a template argument of the kernel

constexpr constant int LEAST_KEYS = 384;  // of plan.py

// The bits without the `count` lowest of those that are set.
INLINE uint without_lowest(uint bits, int count) {
  for (; count > 0 && bits != 0; count--) bits &= bits - 1;
  return bits;
}

struct LiveTile {
  int first;  // key
  int state;  // a TileState
};

template <typename P, int BLOCKS, typename Captured>
struct LiveTiles {
  DecodeSizes p;
  Range heads, queries;  // of the threadgroup's rows
  int candidates;
  int unit;  // of its threadgroup

  // Runs of a block mask: the candidates of each and those before it, and the entry of each, less 4 * candidate.
  const device int* ends;
  const device int* entries;
  int runs, run;             // how many, and that of `first`
  int run_end, run_entry;    // what it has in `ends` and `entries`
  const device uint8_t* states;  // of the blocks of this batch, by head

  bool counted;
  bool idle;       // this split is not in use
  int first, end;  // of this unit's tiles: those that it has not taken yet
  int passed;      // live tiles up to the last in hand
  int ahead;       // the first tile that nothing has been said of
  uint stretches, whole_stretches;  // a bit for each stretch of 32 tiles before `ahead`
  int base;                         // tiles in hand are bits of these words, from this one on
  uint in_hand, whole;

  static constexpr constant bool BOUNDED = HAS_MASK_MOD && BLOCKS == NO_BLOCKS;
  static constexpr constant bool UNSURE = HAS_MASK_MOD || BLOCKS == CUT_TILES;

  void start(DecodeSizes sizes, const device int* tile_lists, const thread PackedRows<P>& rows, Thread at) thread {
    p = sizes;
    heads = rows.heads(p);
    queries = rows.queries(p);
    unit = int(at.simdgroup) / P::SHARE;
    candidates = (p.kv_len + P::BK - 1) / P::BK;
    if (BLOCKS != NO_BLOCKS) {
      const int batch = metal::min(rows.b, p.mask_batches - 1), list_heads = p.mask_heads == 1 ? 1 : p.kv_heads;
      const int lists = p.mask_batches * list_heads;
      const int list = batch * list_heads + metal::min(rows.kv_head, list_heads - 1);
      const int from = tile_lists[list], all_runs = tile_lists[lists];
      runs = tile_lists[list + 1] - from;
      ends = tile_lists + int64_t(lists + 1 + from);
      entries = ends + int64_t(all_runs);
      states = reinterpret_cast<const device uint8_t*>(tile_lists + int64_t(lists + 1) + 2 * int64_t(all_runs)) +
               int64_t(batch) * p.mask_heads * p.q_blocks * p.kv_blocks;
      candidates = runs > 0 ? ends[int64_t(runs - 1)] : 0;
    }
    counted = !BOUNDED;
    passed = ahead = base = 0;
    stretches = whole_stretches = in_hand = whole = 0;
    first = end = 0;
    idle = false;
    if (!BOUNDED) share(candidates, rows.split);
  }

  // Takes this unit's share of so many live tiles.
  void share(int tiles, int split) thread {
    const int in_use = metal::clamp(int(int64_t(tiles) * P::BK / LEAST_KEYS), 1, p.splits);
    const int64_t units = int64_t(in_use) * P::UNITS, mine = split * P::UNITS + unit;
    idle = split >= in_use;
    first = idle ? 0 : int(mine * tiles / units);
    end = idle ? 0 : int((mine + 1) * tiles / units);
    if (BLOCKS != NO_BLOCKS && first < end) turn_to(run_of(first));
  }
  void turn_to(int next_run) thread {
    run = next_run;
    run_end = ends[int64_t(run)];
    run_entry = entries[int64_t(run)];
  }

  // The run of a candidate is the first that ends behind it.
  int run_of(int candidate) const thread {
    int low = 0, high = runs - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (ends[int64_t(middle)] > candidate) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  // The state that bounds give neighbouring tiles of keys, the first of which exists.
  int bounded(int tile, int tiles, const thread PackedRows<P>& rows, const thread Captured& mods) const thread {
    const int from = tile * P::BK, last = from + metal::min(p.kv_len - from, tiles * P::BK) - 1;
    return mods.tile_state(rows.b, heads.first, heads.end - 1, queries.first, queries.end - 1, from, last);
  }

  // Takes the next 32 tiles that some row may read in hand; false without any.
  bool take(const thread PackedRows<P>& rows, const thread Captured& mods, uint lane) thread {
    while (true) {
      const bool looks_ahead = stretches == 0;
      if (looks_ahead && ahead >= candidates) return false;
      const int stretch = looks_ahead ? 0 : int(metal::ctz(stretches));
      if (!looks_ahead) {
        stretches &= stretches - 1;
        base = ahead - 32 * (32 - stretch);
        in_hand = whole = ~0u >> (32 - metal::min(32, candidates - base));
        if ((whole_stretches >> stretch) & 1) return true;
      }
      const int tile = looks_ahead ? ahead + 32 * int(lane) : base + int(lane);
      const int state = tile < candidates ? bounded(tile, looks_ahead ? 32 : 1, rows, mods) : EMPTY;
      const uint found = ballot(state != EMPTY), all = ballot(state == WHOLE);
      if (looks_ahead) {
        stretches = found;
        whole_stretches = all;
        ahead += 32 * 32;
      } else if (found != 0) {
        in_hand = found;
        whole = all;
        return true;
      }
    }
  }

  // The next tile of this unit; false after the last one. The same in all lanes.
  bool next(thread LiveTile& tile, const thread PackedRows<P>& rows, const thread Captured& mods, uint lane) thread {
    if (!BOUNDED) {
      if (first >= end) return false;
      int entry = 4 * first + (HAS_MASK_MOD ? ASK : NO_MASK);
      if (BLOCKS != NO_BLOCKS) {
        while (run_end <= first) turn_to(run + 1);
        entry = 4 * first + run_entry;
      }
      tile.first = (entry >> 2) * P::BK;
      tile.state = entry & 3;
      first++;
      return true;
    }
    while (!counted || in_hand == 0) {
      if (counted && passed >= end) return false;
      if (!take(rows, mods, lane)) {
        if (counted) return false;
        counted = true;
        share(passed, rows.split);
        passed = ahead = 0;
        in_hand = 0;
        continue;
      }
      const int before = passed;
      passed += int(metal::popcount(in_hand));
      if (counted) in_hand = without_lowest(in_hand, first - before) & ~without_lowest(in_hand, end - before);
    }
    const int i = int(metal::ctz(in_hand));
    in_hand &= in_hand - 1;
    tile.first = (base + i) * P::BK;
    tile.state = (whole >> i) & 1 ? NO_MASK : ASK;
    return true;
  }

  // Whether a row attends to a key, that of the tile or one beyond the last.
  bool keeps(LiveTile tile, int h, int q_idx, int kv_idx, int b, const thread Captured& mods) const thread {
    if (kv_idx >= p.kv_len) return false;
    if (UNSURE && BLOCKS == CUT_TILES && tile.state == LOOK_UP) {
      const int64_t of_head = int64_t(metal::min(h, p.mask_heads - 1)) * p.q_blocks * p.kv_blocks;
      const int block = states[of_head + int64_t(q_idx / p.q_block) * p.kv_blocks + kv_idx / p.kv_block];
      return block == WHOLE || (block == OPEN && (!HAS_MASK_MOD || mods.mask_mod(b, h, q_idx, kv_idx)));
    }
    return !HAS_MASK_MOD || tile.state == NO_MASK || mods.mask_mod(b, h, q_idx, kv_idx);
  }

  // Bit 2 (j * ROW_FRAGMENTS + r) + e: whether the lane's row e of row fragment r attends to its key of key fragment j.
  uint kept(LiveTile tile, const thread PackedRows<P>& rows, const thread Captured& mods) const thread {
    uint bits = 0;
    UNROLL
    for (int i = 0; i < 2 * P::KEY_FRAGMENTS * P::ROW_FRAGMENTS; i++) {
      const int j = i / (2 * P::ROW_FRAGMENTS), r = i / 2 % P::ROW_FRAGMENTS, e = i % 2;
      const int kv_idx = tile.first + j * FRAGMENT + rows.place.row;
      bits |= uint(keeps(tile, rows.h[r][e], rows.q_idx[r][e], kv_idx, rows.b, mods)) << i;
    }
    return bits;
  }
};
