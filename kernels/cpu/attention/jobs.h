// jobs.h: one call -> its jobs: query tiles, rounds of packed heads, threads.
#pragma once
#include "../mod/extremes.h"
#include "keys.h"
#include "means.h"
#include "../tile/params.h"
#include "scratch.h"

constexpr int64_t TILES_PER_PACK = 8;          // tiles of keys packed by one job
constexpr int64_t PACKED_BYTES = 16 << 20;     // packed keys and values held at a time; one head at least
constexpr int64_t WORK_PER_THREAD = 8 << 20;   // multiply-adds that are worth a thread
constexpr int64_t MOST_THREADS = 256;
constexpr int64_t MOST_EXTREMES = 4;           // elements of a captured array, per token, whose extremes are worth it

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

// Some heads of keys and values: first packed by some jobs, then attended to by others.
struct Round {
  int64_t first_job, first_unit, units, pack_jobs;
};

// One call, cut into jobs: the extremes and means come first, then round by round what packs and what attends.
struct Schedule {
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

  explicit Schedule(const Params& params) : p(params), key_means(p) {
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

    cut_rows(threads > 1 ? 4 * threads : 0);  // threads > 1: there is work

    bool one_batch = p.k_strides[0] == 0 && p.v_strides[0] == 0;
    if (KEYS != PLAIN) one_batch &= p.means_batch <= 1 && p.key_groups_batch <= 1;
    units = (one_batch ? smaller(p.batch, 1) : p.batch) * p.kv_heads;
    queries_per_unit = units ? batch_heads / units : 0;
    pack_ahead = !p.k_scales && q_tiles * queries_per_unit > 1;
    key_floats = floats_of_key_tile(p);
    value_floats = floats_of_value_tile(p);
    out_floats = ROWS * round_up(p.value_dim, PANEL);

    if (q_tiles > 1) extremes.plan(p.arrays, p.batch * MOST_EXTREMES * (p.q_len + p.kv_len));
    first_jobs = extremes.jobs + key_means.jobs;
    cut_rounds(PACKED_BYTES);
  }

  // Rows -> query tiles, none of which crosses the rows of the block mask; smaller ones where all heads together would
  // have fewer than `wanted`. A row's output does not depend on them.
  void cut_rows(int64_t wanted) {
    q_block = p.has_block_mask ? smaller(p.q_block, p.q_len) : p.q_len;
    if (q_block < 1) q_block = 1;
    int64_t q_blocks = (p.q_len + q_block - 1) / q_block, blocks = p.batch * p.query_heads * q_blocks;
    q_tiles_per_block = (q_block + Q_TILE - 1) / Q_TILE;
    int64_t least = blocks ? wanted / blocks : 0;
    while (q_tiles_per_block < least && q_tiles_per_block * ROWS < q_block) q_tiles_per_block++;
    q_tile = round_up((q_block + q_tiles_per_block - 1) / q_tiles_per_block, ROWS);
    q_tiles = q_blocks * q_tiles_per_block;
  }
  // Heads -> rounds, the packed tiles of each within so many bytes; one head at least.
  void cut_rounds(int64_t bytes) {
    pack_jobs_per_unit = pack_ahead ? (kv_tiles + TILES_PER_PACK - 1) / TILES_PER_PACK : 0;
    int64_t unit_bytes = kv_tiles * (key_floats + value_floats) * sizeof(float);
    units_per_round = pack_ahead && unit_bytes ? smaller(bytes / unit_bytes, units) : units;
    if (units_per_round < 1) units_per_round = 1;
    jobs_per_round = units_per_round * (pack_jobs_per_unit + q_tiles * queries_per_unit);
    total_jobs = first_jobs + units * (pack_jobs_per_unit + q_tiles * queries_per_unit);
    threads = smaller(threads, total_jobs);
  }

  int64_t keys_in(int64_t tile) const { return smaller(KV_TILE, p.kv_len - tile * KV_TILE); }
  int key_vectors(int64_t tile) const { return (keys_in(tile) + VL - 1) / VL; }
  Round round_of(int64_t job) const {
    int64_t number = (job - first_jobs) / jobs_per_round, first = number * units_per_round;
    int64_t count = smaller(units_per_round, units - first);
    return {first_jobs + number * jobs_per_round, first, count, count * pack_jobs_per_unit};
  }
};
