// live.h: which tiles of keys the rows of a block read, and which of them its warps take.
//
// Candidates are all tiles of keys, or those that a block mask leaves. Without one, bounds of mask_mod (tile_state of
// mod.h) say which are live: a lane each, first 32 stretches of 32 tiles, then the 32 tiles of a stretch that is not
// live as a whole. This is gone through twice: to count the live tiles, which the warps share among them, and to find
// the block's share of them, which are those from `first` to `end` - 1 in their order. Its warps take them in turn: what
// is read at a time lies together.
//
// Where few tiles are live, few splits are in use: each has LEAST_KEYS keys, or there is but one.
#pragma once
#include "../attention/walk.h"
#include "rows.h"

constexpr int LEAST_KEYS = 256;  // of plan.py
constexpr int LOOK = 32 * 32;    // tiles of 32 stretches
constexpr int COUNTS = 64;       // of live tiles, that are kept

// The bits without the `count` lowest of those that are set.
INLINE uint without_lowest(uint bits, int count) {
  if (count >= __popc(bits)) return 0;
  for (; count > 0 && bits != 0; count--) bits &= bits - 1;
  return bits;
}

struct LiveTile {
  int first;  // key
  int state;  // a TileState
  bool exists;
  bool masked;  // some key may be left out, or lies behind the last one
};

template <int BLOCKS>
struct LiveTiles {
  const DecodeParams& p;
  const Mods& mods;
  const Block& block;
  int lane;
  int candidates;

  // Runs of a block mask: the candidates of each and those before it, and the entry of each, less 4 * candidate.
  const int *ends, *entries;
  int runs, run;           // how many, and that of `first`
  int run_end, run_entry;  // what it has in `ends` and `entries`
  const uint8_t* states;   // of the blocks of this batch, by head

  bool idle;       // this split is not in use
  int first, end;  // of the block's tiles; without bounds, from the next one of this warp on

  int to_skip;                      // live tiles before the next one of this warp
  int passed;                       // live tiles up to the last in hand
  int ahead;                        // the first tile that nothing has been said of
  uint stretches, whole_stretches;  // a bit for each stretch of 32 tiles before `ahead`
  int base;                         // tiles in hand are bits of these words, from this one on
  uint in_hand, whole;

  static constexpr bool BOUNDED = HAS_MASK_MOD && BLOCKS == NO_BLOCKS;
  static constexpr bool UNSURE = HAS_MASK_MOD || BLOCKS == CUT_TILES;

  INLINE LiveTiles(const DecodeParams& params, const Mods& captured, const Block& own, const int* lists, int warp,
                   int lane_)
      : p(params), mods(captured), block(own), lane(lane_) {
    candidates = (p.kv_len + BK - 1) / BK;
    passed = ahead = base = 0;
    stretches = whole_stretches = in_hand = whole = 0;
    if constexpr (BLOCKS != NO_BLOCKS) {
      const int batch = smaller(block.b, p.mask_batches - 1), list_heads = p.mask_heads == 1 ? 1 : p.kv_heads;
      const int count = p.mask_batches * list_heads;
      const int list = batch * list_heads + smaller(block.kv_head, list_heads - 1);
      const int from = lists[list], all_runs = lists[count];
      runs = lists[list + 1] - from;
      ends = lists + count + 1 + from;
      entries = ends + all_runs;
      states = (const uint8_t*)(lists + count + 1 + 2 * int64_t(all_runs)) +
               int64_t(batch) * p.mask_heads * p.q_blocks * p.kv_blocks;
      candidates = runs > 0 ? ends[runs - 1] : 0;
    }
    const int tiles = BOUNDED ? counted(warp) : candidates;
    const int in_use = larger(1, smaller(p.splits, int(int64_t(tiles) * BK / LEAST_KEYS)));
    idle = block.split >= in_use;
    first = idle ? 0 : share(tiles, in_use, block.split);
    end = idle ? 0 : share(tiles, in_use, block.split + 1);
    to_skip = warp;
    if constexpr (BOUNDED) skip();
    else first += warp;
    if constexpr (BLOCKS != NO_BLOCKS) {
      if (first < end) turn_to(run_of(first));
    }
  }

  // How many tiles there are for blocks before this one.
  static INLINE int share(int tiles, int blocks, int at) { return at * (tiles / blocks) + smaller(at, tiles % blocks); }

  // All live tiles. Each warp counts those of some of COUNTS neighbouring parts, of whole LOOKs.
  INLINE int counted(int warp) {
    const int all = candidates;
    ROLLED
    for (int part = warp; part < COUNTS; part += WARPS) {
      candidates = smaller(all, (part + 1) * part_tiles());
      ahead = smaller(all, part * part_tiles());
      passed = 0;
      while (take()) passed += __popc(in_hand);
      if (lane == 0) counts()[part] = passed;
    }
    candidates = all;
    __syncthreads();
    int tiles = 0;
    for (int part = lane; part < COUNTS; part += LANES) tiles += counts()[part];
    UNROLL
    for (int i = 1; i < LANES; i *= 2) tiles += __shfl_xor_sync(EVERY_LANE, tiles, i);
    return tiles;
  }
  INLINE int part_tiles() const { return ((p.kv_len + BK - 1) / BK / LOOK + COUNTS) / COUNTS * LOOK; }
  static INLINE int* counts() {
    __shared__ int live[COUNTS];
    return live;
  }
  // To the part of the first tile.
  INLINE void skip() {
    passed = in_hand = 0;
    int part = 0;
    ROLLED
    for (; part < COUNTS - 1 && passed + counts()[part] <= first; part++) passed += counts()[part];
    ahead = part * part_tiles();
    stretches = 0;
  }

  INLINE void turn_to(int next_run) {
    run = next_run;
    run_end = ends[run];
    run_entry = entries[run];
  }
  // The run of a candidate is the first that ends behind it.
  INLINE int run_of(int candidate) const {
    int low = 0, high = runs - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (ends[middle] > candidate) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  // What bounds say of neighbouring tiles of keys, the first of which exists.
  INLINE int bounded(int tile, int tiles) const {
    const int head = block.first_row / p.q_len, last_head = (block.end_row - 1) / p.q_len;
    const bool one = head == last_head;  // rows of several heads: all of each
    const int from = tile * BK, last = from + smaller(p.kv_len - from, tiles * BK) - 1;
    const int base_head = block.kv_head * p.group, row = block.first_row - head * p.q_len;
    return mods.tile_state(block.b, base_head + head, base_head + last_head, one ? row : 0,
                           one ? row + block.end_row - block.first_row - 1 : p.q_len - 1, from, last);
  }

  // Takes the next 32 tiles that some row may read in hand; false without any.
  INLINE bool take() {
    ROLLED
    while (true) {
      const bool looks_ahead = stretches == 0;
      if (looks_ahead && ahead >= candidates) return false;
      const int stretch = looks_ahead ? 0 : lowest(stretches);
      if (!looks_ahead) {
        stretches &= stretches - 1;
        base = ahead - 32 * (32 - stretch);
        in_hand = whole = ~0u >> (32 - smaller(32, candidates - base));
        if ((whole_stretches >> stretch) & 1) return true;
      }
      const int tile = looks_ahead ? ahead + 32 * lane : base + lane;
      const int state = tile < candidates ? bounded(tile, looks_ahead ? 32 : 1) : EMPTY;
      const uint found = lanes_that(state != EMPTY), all = lanes_that(state == WHOLE);
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

  // The next tile of this warp.
  INLINE LiveTile next() {
    LiveTile tile;
    if constexpr (BOUNDED) {
      while (__popc(in_hand) <= to_skip) {
        to_skip -= __popc(in_hand);
        in_hand = 0;
        if (passed >= end || !take()) break;
        const int before = passed;
        passed += __popc(in_hand);
        in_hand = without_lowest(in_hand, first - before) & ~without_lowest(in_hand, end - before);
      }
      in_hand = without_lowest(in_hand, to_skip);
      to_skip = WARPS - 1;
      tile.exists = in_hand != 0;
      const int i = tile.exists ? lowest(in_hand) : 0;
      in_hand &= in_hand - 1;
      tile.first = (base + i) * BK;
      tile.state = (whole >> i) & 1 ? NO_MASK : ASK;
    } else {
      tile.exists = first < end;
      int entry = 4 * first + (HAS_MASK_MOD ? ASK : NO_MASK);
      if constexpr (BLOCKS != NO_BLOCKS) {
        while (tile.exists && run_end <= first) turn_to(run + 1);
        entry = 4 * first + run_entry;
      }
      tile.first = (entry >> 2) * BK;
      tile.state = entry & 3;
      first += WARPS;
    }
    tile.masked = (UNSURE && tile.state != NO_MASK) || tile.first + BK > p.kv_len;
    return tile;
  }

  // Whether a row attends to a key of the tile, or one beyond the last.
  template <typename MaskMod>
  INLINE bool keeps(const LiveTile& tile, const MaskMod& mask_mod, int h, int q_idx, int kv_idx) const {
    if (kv_idx >= p.kv_len) return false;
    int asked = tile.state;
    if constexpr (BLOCKS == CUT_TILES) {
      if (asked == LOOK_UP) {
        const int64_t of_head = int64_t(smaller(h, p.mask_heads - 1)) * p.q_blocks * p.kv_blocks;
        const int state = states[of_head + int64_t(q_idx / p.q_block) * p.kv_blocks + kv_idx / p.kv_block];
        if (state == EMPTY) return false;
        asked = state == OPEN ? ASK : NO_MASK;
      }
    }
    if constexpr (HAS_MASK_MOD) return asked != ASK || mask_mod(kv_idx);
    return true;
  }
};
