// scratch.h: one thread's working memory, and how it is cut from a block.
#pragma once
#include "../tile/panels.h"

constexpr int GROUPS = 8;                      // row groups of a query tile: they share one read of a tile of keys
constexpr int64_t Q_TILE = GROUPS * ROWS;
constexpr int ROW_STATE = (ROWS + VL - 1) / VL * VL;  // one number per row of a group, padded to whole registers

// What a group of rows attends to in a tile of keys: nothing outside the registers [begin, end) of VL keys each, and
// all of those unless masked. end == 0: nothing at all, the tile is skipped.
struct TileState {
  uint8_t begin, end;
  bool masked;
};
static_assert(KV_TILE / VL < 256, "a register's number fits a byte");

// A tile of keys that a query tile reads.
struct Visit {
  int64_t tile;
  int64_t run;  // the first run of the block mask that reaches it
  TileState groups[GROUPS];
};

// How far the groups of a query tile reach in a tile of keys.
struct Reach {
  int first_group = GROUPS, last_group = -1;  // with keys
  int64_t begin = KV_TILE, end = 0;           // keys, in whole registers
  bool masked = false;                        // some group is
  bool alike = true;                          // all groups have the same keys

  Reach(const Visit& visit, int groups) {
    for (int g = 0; g < groups; g++) {
      TileState state = visit.groups[g];
      alike &= state.begin == visit.groups[0].begin && state.end == visit.groups[0].end;
      if (state.end == 0) continue;
      first_group = smaller(first_group, g);
      last_group = g;
      begin = smaller(begin, state.begin * VL);
      end = larger(end, state.end * VL);
      masked |= state.masked;
    }
  }
};

enum Count { SKIPPED = 0, MASKED = 1, UNMASKED = 2, EVALUATED = 3 };  // places of Params::tile_counts

// What the block mask says of a key: it is out, mask_mod decides, it is in.
constexpr int32_t NO = 0, ASK = 1, YES = 2;

// One thread's working memory.
struct Scratch {
  float* queries;    // [GROUPS][head_dim][ROWS], times scale; or int8: [GROUPS][words][ROWS]
  float* scores;     // [ROWS][KV_TILE]: S, then P
  float* out;        // [GROUPS][panel of value_dim][ROWS][PANEL]: O
  float* sum;        // [GROUPS][ROWS][VL]: the sum of P, in one part per lane
  float* max;        // [GROUPS][ROW_STATE]
  float* factor;     // [ROW_STATE]: exp(old max - max)
  float* row;        // one row of the output
  float* packed;     // one tile of keys and values, where they are not packed ahead
  int32_t* allow;    // [KV_TILE]: what the block mask says per key of the tile at hand
  Visit* visits;     // [at most all tiles of keys]
  int64_t visit_count;
  int64_t end_run;           // the end of the block mask's runs in their row
  int64_t visits_found_for;  // which query tile `visits` is of, -1 for none
  int64_t counts[4];         // of Params::tile_counts

  // Only where KEYS are not PLAIN; [GROUPS][ROWS] unless it says otherwise.
  float* shift;         // what the mean of the keys takes from all scores of a row
  float* row_scale;     // of an int8 row, times the scale of scores; nan for a row that holds an infinity or a nan
  bool special[GROUPS];  // there is such a row
  int32_t* start;       // of the row's sums of int8 products
  int32_t* run_of_row;  // number of the mean that was subtracted from the row
  int64_t runs;
  float* q_means;       // [runs][head_dim]
  float* mean_scores;   // [runs][KV_TILE]: mean . k
};

// Cuts one piece after the other from a block of memory; from null, only counts.
struct Carver {
  char* base;
  int64_t used = 0;
  template <class T>
  void cut(T*& piece, int64_t count) {
    piece = base ? (T*)(base + used) : nullptr;
    used += round_up(count * (int64_t)sizeof(T), 64);
  }
};
