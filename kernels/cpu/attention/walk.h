// walk.h: which tiles of keys a tile of query rows visits. Neither the whole row of tiles nor all elements of a tile
// are looked at: the block mask is a few runs, and of what it leaves to mask_mod, tile_state decides large ranges of
// tiles first, then smaller ones, then single tiles for each group of rows. Only what is still open is evaluated.
//
//   find_visits --block mask--> tiles whose keys mask_mod decides    settle: range, sixteenths, ..., tile, row group
//                               tiles whose keys are all in          visit_all
//                               tiles that a run cuts                visit_by_groups
#pragma once
#include "../mod/mod.h"
#include "attention.h"

// Which rows a job computes.
struct QueryTile {
  int b, h;
  int first, rows;
  int64_t index;  // of the tile among those of one head
  int64_t unit;   // the head of keys and values that it reads

  int groups() const { return (rows + ROWS - 1) / ROWS; }
};

// -- keys --------------------------------------------------------------------------------------------------------

// allow[KV_TILE] = what the block mask says of each key of a tile; `run` is the first that reaches it.
static void allow_keys(const Attention& a, Scratch& s, int64_t tile, int64_t run) {
  int64_t first = tile * KV_TILE, end = first + a.keys_in(tile);
  for (int64_t i = 0; i < KV_TILE; i++) s.allow[i] = NO;
  for (; run < s.end_run && a.mask.first_key(run) < end; run++) {
    int32_t state = HAS_MASK_MOD && a.mask.state[run] == PARTIAL ? ASK : YES;
    int64_t to = smaller(a.mask.end_key(run, a.p.kv_len), end);
    for (int64_t key = larger(a.mask.first_key(run), first); key < to; key++) s.allow[key - first] = state;
  }
}

// Which of VL keys a row attends to, by the block mask and the row's mask_mod together.
template <class Mask>
INLINE vbool keep(const int32_t* allow, vint kv_idx, const Mask& mask) {
  vint allowed = load_vector<vint>(allow);
  if constexpr (!HAS_MASK_MOD) return {allowed == YES};
  return {(allowed == YES) | ((allowed == ASK) & mask(kv_idx).lanes)};
}

// The VL keys from `first` on. In a tile that the end of the keys cuts, a mod sees the last key again, never one
// that does not exist.
template <bool RAGGED>
INLINE vint key_indices(int64_t first, int64_t kv_len) {
  vint kv_idx = lane_index() + (int32_t)first;
  if constexpr (RAGGED) kv_idx = select(kv_idx < (int32_t)kv_len, kv_idx, splat((int32_t)kv_len - 1));
  return kv_idx;
}

// -- one group of rows and one tile of keys, element by element --------------------------------------------------

// Which of VL keys some row of a group attends to, and which of them all its rows do.
struct Kept {
  vint any, all;
};
template <bool WHOLE>
static Kept evaluate_mask(const Attention& a, const QueryTile& q, int first_row, int rows, int64_t first_key,
                          const int32_t* allow) {
  const Inputs in = a.in;
  vint kv_idx = key_indices<!WHOLE>(first_key, a.p.kv_len);
  Kept kept = {vint{}, ~vint{}};
  for (int r = 0; r < rows; r++) {
    auto mask = Mods::mask_mod(q.b, q.h, first_row + r, in);
    vint lanes = WHOLE ? mask(kv_idx).lanes : keep(allow, kv_idx, mask).lanes;
    kept.any |= lanes;
    kept.all &= lanes;
  }
  return kept;
}

// In a WHOLE tile every key exists and mask_mod alone decides.
template <bool WHOLE>
static TileState evaluate_tile(const Attention& a, const QueryTile& q, int first_row, int rows, int64_t tile,
                               const int32_t* allow) {
  TileState state = {0, 0, false};
  int vectors = a.key_vectors(tile);
  vint all = ~vint{};
  for (int i = 0; i < vectors; i++) {
    Kept kept = evaluate_mask<WHOLE>(a, q, first_row, rows, tile * KV_TILE + i * VL, allow + i * VL);
    if (!any_lane(kept.any)) continue;
    if (state.end == 0) state.begin = i;
    state.masked |= state.end != 0 && state.end != i;  // a gap
    state.end = i + 1;
    all &= kept.all;
  }
  state.masked |= any_lane(~all);
  return state;
}

// -- tiles -------------------------------------------------------------------------------------------------------

// What the mask leaves of some rows of a query tile.
NOINLINE static auto bounds_of_rows(const Attention& a, const QueryTile& q, int first, int rows) {
  return Mods::tile_state(q.b, q.h, first, first + rows - 1, a.in);
}
typedef decltype(Mods::tile_state(0, 0, 0, 0, Inputs())) RowBounds;

// The tiles of one row of the block mask, each once and in order.
struct Finder {
  const Attention& a;
  Scratch& s;
  const QueryTile& q;
  RowBounds row_bounds;  // of all rows

  // What the mask leaves of the tiles first..end-1: 0 nothing, 1 look closer, 2 all.
  NOINLINE int state_of(const RowBounds& rows, int64_t first, int64_t end) const {
    return rows(int(first * KV_TILE), int(smaller(end * KV_TILE, a.p.kv_len) - 1));
  }
  // All keys of a tile; lanes past the last key are masked.
  TileState all_of(int64_t tile) const { return {0, (uint8_t)a.key_vectors(tile), a.keys_in(tile) % VL != 0}; }

  NOINLINE void visit_all(int64_t first, int64_t end, int64_t run) {
    for (int64_t tile = first; tile < end; tile++) {
      Visit& visit = s.visits[s.visit_count++];
      visit.tile = tile;
      visit.run = run;
      for (TileState& group : visit.groups) group = all_of(tile);
    }
  }

  // A tile in which groups of rows differ. asked: mask_mod decides all its keys, or else a run of the block mask cuts it.
  NOINLINE void visit_by_groups(int64_t tile, int64_t run, bool asked) {
    Visit& visit = s.visits[s.visit_count];
    visit.tile = tile;
    visit.run = run;
    bool whole = asked && a.keys_in(tile) % VL == 0, any = false;
    if (HAS_MASK_MOD && !whole) allow_keys(a, s, tile, run);
    for (int g = 0; g < q.groups(); g++) {
      int first_row = q.first + g * ROWS, rows = smaller(q.rows - g * ROWS, ROWS);
      TileState& state = visit.groups[g];
      int decided = asked && q.groups() > 1 ? state_of(bounds_of_rows(a, q, first_row, rows), tile, tile + 1) : 1;
      if (!HAS_MASK_MOD) {
        state = all_of(tile);
        state.masked = true;
      } else if (decided != 1) {
        state = decided == 2 ? all_of(tile) : TileState{0, 0, false};
      } else {
        state = whole ? evaluate_tile<true>(a, q, first_row, rows, tile, s.allow)
                      : evaluate_tile<false>(a, q, first_row, rows, tile, s.allow);
        s.counts[EVALUATED]++;
      }
      any |= state.end != 0;
    }
    s.visit_count += any;
  }

  // Tiles first..end-1, all of whose keys are mask_mod's to decide.
  NOINLINE void settle(int64_t first, int64_t end, int64_t run) {
    constexpr int64_t PARTS = 16;
    int state = state_of(row_bounds, first, end);
    if (state == 0) return;
    if (state == 2) return visit_all(first, end, run);
    if (end - first == 1) return visit_by_groups(first, run, true);
    int64_t step = (end - first + PARTS - 1) / PARTS;
    for (int64_t from = first; from < end; from += step) settle(from, smaller(from + step, end), run);
  }

  void read_runs(int64_t first_run) {
    int64_t next = 0;  // the first tile that no run has reached
    for (int64_t run = first_run; run < s.end_run; run++) {
      int64_t first = a.mask.first_key(run), end = a.mask.end_key(run, a.p.kv_len);
      if (first >= end) continue;
      if (first % KV_TILE != 0 && first / KV_TILE >= next) visit_by_groups(first / KV_TILE, run, false);
      int64_t tile = larger(next, (first + KV_TILE - 1) / KV_TILE);
      int64_t whole = end == a.p.kv_len ? a.kv_tiles : end / KV_TILE;  // the end of the tiles that it has for itself
      if (tile < whole) {
        if (HAS_MASK_MOD && a.mask.state[run] == PARTIAL) settle(tile, whole, run);
        else visit_all(tile, whole, run);
        tile = whole;
      }
      if (tile * KV_TILE < end) visit_by_groups(tile++, run, false);
      next = tile;
    }
  }
};

// s.visits = the tiles of keys that the query tile reads, with what each group of its rows needs of them.
static void find_visits(const Attention& a, Scratch& s, const QueryTile& q) {
  const BlockRuns& mask = a.mask;
  bool per_batch = (HAS_MASK_MOD && MASK_USES_BATCH) || mask.batch > 1;
  bool per_head = (HAS_MASK_MOD && MASK_USES_HEAD) || mask.heads > 1;
  int64_t key = (q.index * a.p.batch + (per_batch ? q.b : 0)) * a.p.query_heads + (per_head ? q.h : 0);
  if (s.visits_found_for == key) return;  // the thread's last job, for another head
  s.visits_found_for = key;
  s.visit_count = 0;

  int64_t block_row = q.index / a.q_tiles_per_block;
  if (block_row >= mask.rows) return;
  int64_t line = ((mask.batch == 1 ? 0 : q.b) * mask.heads + (mask.heads == 1 ? 0 : q.h)) * mask.rows + block_row;
  s.end_run = mask.offsets[line + 1];
  Finder{a, s, q, bounds_of_rows(a, q, q.first, q.rows)}.read_runs(mask.offsets[line]);
}
