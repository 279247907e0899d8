// plan.h: one call cut into jobs: sizes, working memory, who packs what and when.
#pragma once
#include <stdlib.h>
#include <sys/mman.h>

#include "extremes.h"
#include "keys.h"
#include "means.h"
#include "params.h"
#include "threads.h"
#include "tiles.h"

constexpr int GROUPS = 8;                      // row groups of a query tile: they share one read of a tile of keys
constexpr int64_t Q_TILE = GROUPS * ROWS;
constexpr int ROW_STATE = (ROWS + VL - 1) / VL * VL;  // one number per row of a group, padded to whole registers
constexpr int64_t TILES_PER_PACK = 8;          // tiles of keys packed by one job
constexpr int64_t PACKED_BYTES = 16 << 20;     // packed keys and values held at a time; one head at least
constexpr int64_t WORK_PER_THREAD = 8 << 20;   // multiply-adds that are worth a thread
constexpr int64_t MOST_THREADS = 256;
constexpr int64_t HUGE_PAGE = 2 << 20, LARGE = 8 << 20;  // memory from LARGE on is asked for in huge pages
constexpr int64_t MOST_EXTREMES = 4;           // elements of a captured array, per token, whose extremes are worth it

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

enum Count { SKIPPED = 0, MASKED = 1, UNMASKED = 2, EVALUATED = 3 };  // places of Params::tile_counts

// What the block mask says of a key: it is out, mask_mod decides, it is in.
constexpr int32_t NO = 0, ASK = 1, YES = 2;

// The block mask as runs of blocks in one state, row of blocks by row of blocks. Without one: a single partial block.
struct BlockRuns {
  const int64_t* offsets;  // [rows + 1]
  const int32_t *first, *end;
  const uint8_t* state;  // 1 partial, 2 full
  int64_t batch, heads, rows;
  int64_t kv_block;

  // The keys of a run.
  int64_t first_key(int64_t run) const { return first[run] * kv_block; }
  int64_t end_key(int64_t run, int64_t kv_len) const { return smaller(end[run] * kv_block, kv_len); }
};
constexpr int64_t ONE_RUN[] = {0, 1};
constexpr int32_t FIRST_BLOCK = 0, END_BLOCK = 1;
constexpr uint8_t PARTIAL = 1;

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

// Some heads of keys and values: first packed by some jobs, then attended to by others.
struct Round {
  int64_t first_job, first_unit, units, pack_jobs;
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

struct Attention {
  Params p;  // with means, once there is memory for them
  Inputs in;
  int32_t overflow = 0;
  BlockRuns mask;
  ArrayExtremes extremes;
  KeyMeans key_means;
  int64_t first_jobs;  // extremes and means, which come before all others
  int64_t kv_tiles;
  int64_t q_block, q_tile, q_tiles_per_block, q_tiles;  // query tiles do not cross the rows of the block mask
  int64_t units;             // heads of keys and values; one batch of them is enough where it is broadcast
  int64_t queries_per_unit;  // query heads, of all batches, that read one unit
  int64_t key_floats, value_floats, out_floats;  // of a packed tile; of one group's O
  bool pack_ahead;           // or else each tile is packed when it is used: once, or int8 that came as such
  int64_t pack_jobs_per_unit, units_per_round, jobs_per_round, total_jobs;
  int64_t threads;
  float* packed;  // [units_per_round][kv_tiles][key_floats + value_floats]
  char* of_arrays;  // their extremes
  Scratch* scratch;
  void* memory = nullptr;

  explicit Attention(const Params& params) : p(params), key_means(p) {
    in = {p.arrays, p.numbers, &overflow, nullptr};
    kv_tiles = (p.kv_len + KV_TILE - 1) / KV_TILE;
    mask = {ONE_RUN, &FIRST_BLOCK, &END_BLOCK, &PARTIAL, 1, 1, 1, p.kv_len};
    if (p.has_block_mask)
      mask = {p.run_offsets,  p.run_first, p.run_end,   p.run_state,
              p.mask_batch, p.mask_heads, p.mask_rows, p.kv_block};

    int64_t batch_heads = p.batch * p.query_heads;
    int64_t rows = p.q_len == 1 ? ROWS / 2 : round_up(p.q_len, ROWS);  // a group of rows takes as long as two single ones
    int64_t multiply_adds = rows * p.kv_len * (p.head_dim + p.value_dim);
    threads = smaller(smaller(p.caller.max_threads, MOST_THREADS), 1 + batch_heads * multiply_adds / WORK_PER_THREAD);
    if (threads < 1) threads = 1;

    q_block = p.has_block_mask ? smaller(p.q_block, p.q_len) : p.q_len;
    if (q_block < 1) q_block = 1;
    int64_t q_blocks = (p.q_len + q_block - 1) / q_block;
    q_tiles_per_block = (q_block + Q_TILE - 1) / Q_TILE;
    // Smaller tiles where there would be too few to share out well. The output's bits do not depend on them.
    int64_t wanted = threads > 1 ? 4 * threads / (batch_heads * q_blocks) : 0;  // threads > 1: there is work
    while (q_tiles_per_block < wanted && q_tiles_per_block * ROWS < q_block) q_tiles_per_block++;
    q_tile = round_up((q_block + q_tiles_per_block - 1) / q_tiles_per_block, ROWS);
    q_tiles = q_blocks * q_tiles_per_block;

    bool one_batch = p.k_strides[0] == 0 && p.v_strides[0] == 0;
    if (KEYS != PLAIN) one_batch &= p.means_batch <= 1 && p.key_groups_batch <= 1;
    units = (one_batch ? smaller(p.batch, 1) : p.batch) * p.kv_heads;
    queries_per_unit = units ? batch_heads / units : 0;
    pack_ahead = !p.k_scales && q_tiles * queries_per_unit > 1;
    key_floats = floats_of_key_tile(p);
    value_floats = floats_of_value_tile(p);
    out_floats = ROWS * round_up(p.value_dim, PANEL);

    pack_jobs_per_unit = pack_ahead ? (kv_tiles + TILES_PER_PACK - 1) / TILES_PER_PACK : 0;
    int64_t unit_bytes = kv_tiles * (key_floats + value_floats) * sizeof(float);
    units_per_round = pack_ahead && unit_bytes ? smaller(PACKED_BYTES / unit_bytes, units) : units;
    if (units_per_round < 1) units_per_round = 1;
    jobs_per_round = units_per_round * (pack_jobs_per_unit + q_tiles * queries_per_unit);
    if (q_tiles > 1) extremes.plan(p.arrays, p.batch * MOST_EXTREMES * (p.q_len + p.kv_len));
    first_jobs = extremes.jobs + key_means.jobs;
    total_jobs = first_jobs + units * (pack_jobs_per_unit + q_tiles * queries_per_unit);
    threads = smaller(threads, total_jobs);
  }

  int64_t keys_in(int64_t tile) const { return smaller(KV_TILE, p.kv_len - tile * KV_TILE); }
  int key_vectors(int64_t tile) const { return (keys_in(tile) + VL - 1) / VL; }

  // -- memory ----------------------------------------------------------------------------------------------------

  int64_t lay_out(char* base) {
    Carver carver = {base};
    carver.cut(packed, pack_ahead ? units_per_round * kv_tiles * (key_floats + value_floats) : 0);
    carver.cut(of_arrays, extremes.bytes);
    carver.cut(key_means.means, key_means.jobs * p.groups * key_means.width);
    carver.cut(key_means.counts, key_means.jobs * p.groups);
    carver.cut(scratch, threads);
    for (int64_t t = 0; t < threads; t++) {
      Scratch unused, &s = base ? scratch[t] : unused;
      carver.cut(s.queries, GROUPS * ROWS * p.head_dim);
      carver.cut(s.scores, ROWS * KV_TILE);
      carver.cut(s.out, GROUPS * out_floats);
      carver.cut(s.sum, GROUPS * ROWS * VL);
      carver.cut(s.max, GROUPS * ROW_STATE);
      carver.cut(s.factor, ROW_STATE);
      carver.cut(s.row, round_up(p.value_dim, VL));
      carver.cut(s.packed, pack_ahead ? 0 : key_floats + value_floats);
      carver.cut(s.allow, KV_TILE);
      carver.cut(s.visits, kv_tiles);
      int64_t rows = KEYS == PLAIN ? 0 : Q_TILE, runs = smooths_queries(p) ? Q_TILE : 0;
      carver.cut(s.shift, rows);
      carver.cut(s.row_scale, rows);
      carver.cut(s.start, rows);
      carver.cut(s.run_of_row, rows);
      carver.cut(s.q_means, runs * round_up(p.head_dim, VL));
      carver.cut(s.mean_scores, runs * KV_TILE);
      s.visits_found_for = -1;
      for (int64_t& count : s.counts) count = 0;
    }
    return carver.used;
  }
  bool allocate() {
    int64_t bytes = lay_out(nullptr), alignment = bytes > LARGE ? HUGE_PAGE : 64;
    memory = malloc(bytes + alignment);
    if (!memory) return false;
    char* base = (char*)round_up((int64_t)memory, alignment);
#ifdef MADV_HUGEPAGE
    if (bytes > LARGE) madvise(base, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    lay_out(base);
    in.extremes = extremes.in(of_arrays);
    if (key_means.jobs) p.means = key_means.means;
    return true;
  }
  void finish() {
    for (int64_t t = 0; p.tile_counts && t < threads; t++)
      for (int i = 0; i < 4; i++) p.tile_counts[i] += scratch[t].counts[i];
    free(memory);
  }

  // -- packing ---------------------------------------------------------------------------------------------------

  void run_first_job(int64_t job) const {
    if (job < extremes.jobs) return extremes.run_job(in, job);
    key_means.run_job(job - extremes.jobs);
  }
  Round round_of(int64_t job) const {
    int64_t number = (job - first_jobs) / jobs_per_round, first = number * units_per_round;
    int64_t count = smaller(units_per_round, units - first);
    return {first_jobs + number * jobs_per_round, first, count, count * pack_jobs_per_unit};
  }
  float* packed_tile(int64_t unit, int64_t tile) const {
    return packed + (unit % units_per_round * kv_tiles + tile) * (key_floats + value_floats);
  }
  void pack_tile(int64_t unit, int64_t tile, float* target) const {
    int64_t b = unit / p.kv_heads, h = unit % p.kv_heads, first = tile * KV_TILE;
    int64_t keys = keys_in(tile);
    pack_key_tile(target, p, b, h, first, keys);
    pack_value_tile(target + key_floats, p, b, h, first, keys);
  }
  void run_pack_job(const Round& round, int64_t job) const {
    int64_t unit = round.first_unit + job / pack_jobs_per_unit, first = job % pack_jobs_per_unit * TILES_PER_PACK;
    for (int64_t tile = first; tile < smaller(first + TILES_PER_PACK, kv_tiles); tile++)
      pack_tile(unit, tile, packed_tile(unit, tile));
  }
};
