// plan.h: one call cut into jobs: sizes, working memory, who packs what and when, and what the block mask says.
#pragma once
#include <stdlib.h>

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

// What a group of rows attends to in a tile of keys: nothing outside the registers [begin, end) of VL keys each, and
// all of those unless masked. end == 0: nothing at all, the tile is skipped.
struct TileState {
  uint8_t begin, end;
  bool masked;
};
static_assert(KV_TILE / VL < 256, "a register's number fits a byte");

// What the block mask says of a key: it is out, mask_mod decides, it is in. Or of a tile: its keys differ.
constexpr uint8_t NO = 0, ASK = 1, YES = 2, MIXED = 3;

// One thread's working memory.
struct Scratch {
  float* queries;    // [GROUPS][head_dim][ROWS], times scale
  float* scores;     // [ROWS][KV_TILE]: S, then P
  float* out;        // [GROUPS][panel of value_dim][ROWS][PANEL]: O
  float* sum;        // [GROUPS][ROWS][VL]: the sum of P, in one part per lane
  float* max;        // [GROUPS][ROW_STATE]
  float* reference;  // [GROUPS][ROW_STATE]: max * log2(e)
  float* factor;     // [ROW_STATE]: exp(old max - max)
  float* row;        // one row of the output
  float* packed;     // one tile of keys and values, where they are not packed ahead
  int32_t* allow;    // [KV_TILE]: what the block mask says per key of the tile at hand
  TileState* tiles;  // [tile of keys][GROUPS]
  uint8_t* blocks;   // [block of keys]: what the block mask says
  int64_t tiles_found_for;  // what `tiles` describes, -1 for nothing
  int64_t counts[3];        // tiles of a row group: skipped, run with the mask, run without
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
  const Params& p;
  Inputs in;
  int32_t overflow = 0;
  int64_t kv_tiles, kv_block, kv_blocks;
  int64_t q_block, q_tile, q_tiles_per_block, q_tiles;  // query tiles do not cross the rows of the block mask
  int64_t units;             // heads of keys and values; one batch of them is enough where it is broadcast
  int64_t queries_per_unit;  // query heads, of all batches, that read one unit
  int64_t key_floats, value_floats, out_floats;  // of a packed tile; of one group's O
  bool pack_ahead;           // or else each tile is packed when it is used, once
  int64_t pack_jobs_per_unit, units_per_round, jobs_per_round, total_jobs;
  int64_t threads;
  float* packed;  // [units_per_round][kv_tiles][key_floats + value_floats]
  Scratch* scratch;
  void* memory = nullptr;

  explicit Attention(const Params& params) : p(params) {
    in = {p.arrays, p.numbers, &overflow};
    kv_tiles = (p.kv_len + KV_TILE - 1) / KV_TILE;
    kv_block = p.has_block_mask ? p.kv_block : p.kv_len + 1;
    kv_blocks = (p.kv_len + kv_block - 1) / kv_block;

    int64_t batch_heads = p.batch * p.query_heads;
    int64_t multiply_adds = round_up(p.q_len, ROWS) * p.kv_len * (p.head_dim + p.value_dim);
    threads = smaller(smaller(p.max_threads, MOST_THREADS), 1 + batch_heads * multiply_adds / WORK_PER_THREAD);
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
    units = (one_batch ? smaller(p.batch, 1) : p.batch) * p.kv_heads;
    queries_per_unit = units ? batch_heads / units : 0;
    pack_ahead = q_tiles * queries_per_unit > 1;
    key_floats = KV_TILE * p.head_dim;
    value_floats = KV_TILE * round_up(p.value_dim, VL);
    out_floats = ROWS * round_up(p.value_dim, PANEL);

    pack_jobs_per_unit = pack_ahead ? (kv_tiles + TILES_PER_PACK - 1) / TILES_PER_PACK : 0;
    int64_t unit_bytes = kv_tiles * (key_floats + value_floats) * sizeof(float);
    units_per_round = pack_ahead && unit_bytes ? smaller(PACKED_BYTES / unit_bytes, units) : units;
    if (units_per_round < 1) units_per_round = 1;
    jobs_per_round = units_per_round * (pack_jobs_per_unit + q_tiles * queries_per_unit);
    total_jobs = units * (pack_jobs_per_unit + q_tiles * queries_per_unit);
    threads = smaller(threads, total_jobs);
  }

  int64_t keys_in(int64_t tile) const { return smaller(KV_TILE, p.kv_len - tile * KV_TILE); }
  int key_vectors(int64_t tile) const { return (keys_in(tile) + VL - 1) / VL; }

  // -- memory ----------------------------------------------------------------------------------------------------

  int64_t lay_out(char* base) {
    Carver carver = {base};
    carver.cut(packed, pack_ahead ? units_per_round * kv_tiles * (key_floats + value_floats) : 0);
    carver.cut(scratch, threads);
    for (int64_t t = 0; t < threads; t++) {
      Scratch unused, &s = base ? scratch[t] : unused;
      carver.cut(s.queries, GROUPS * ROWS * p.head_dim);
      carver.cut(s.scores, ROWS * KV_TILE);
      carver.cut(s.out, GROUPS * out_floats);
      carver.cut(s.sum, GROUPS * ROWS * VL);
      carver.cut(s.max, GROUPS * ROW_STATE);
      carver.cut(s.reference, GROUPS * ROW_STATE);
      carver.cut(s.factor, ROW_STATE);
      carver.cut(s.row, round_up(p.value_dim, VL));
      carver.cut(s.packed, pack_ahead ? 0 : key_floats + value_floats);
      carver.cut(s.allow, KV_TILE);
      carver.cut(s.tiles, kv_tiles * GROUPS);
      carver.cut(s.blocks, kv_blocks);
      s.tiles_found_for = -1;
      s.counts[0] = s.counts[1] = s.counts[2] = 0;
    }
    return carver.used;
  }
  bool allocate() {
    memory = malloc(lay_out(nullptr) + 64);
    if (memory) lay_out((char*)round_up((int64_t)memory, 64));
    return memory;
  }
  void finish() {
    for (int64_t t = 0; p.tile_counts && t < threads; t++)
      for (int i = 0; i < 3; i++) p.tile_counts[i] += scratch[t].counts[i];
    free(memory);
  }

  // -- packing ---------------------------------------------------------------------------------------------------

  Round round_of(int64_t job) const {
    int64_t number = job / jobs_per_round, first = number * units_per_round;
    int64_t count = smaller(units_per_round, units - first);
    return {number * jobs_per_round, first, count, count * pack_jobs_per_unit};
  }
  float* packed_tile(int64_t unit, int64_t tile) const {
    return packed + (unit % units_per_round * kv_tiles + tile) * (key_floats + value_floats);
  }
  void pack_tile(int64_t unit, int64_t tile, float* target) const {
    int64_t b = unit / p.kv_heads, h = unit % p.kv_heads, first = tile * KV_TILE;
    int64_t keys = keys_in(tile);
    pack_keys(target, matrix_of(p.k, p.k_strides, b, h, first, keys, p.head_dim, p.dtype));
    pack_values(target + key_floats, matrix_of(p.v, p.v_strides, b, h, first, keys, p.value_dim, p.dtype));
  }
  void run_pack_job(const Round& round, int64_t job) const {
    int64_t unit = round.first_unit + job / pack_jobs_per_unit, first = job % pack_jobs_per_unit * TILES_PER_PACK;
    for (int64_t tile = first; tile < smaller(first + TILES_PER_PACK, kv_tiles); tile++)
      pack_tile(unit, tile, packed_tile(unit, tile));
  }
};

// -- the block mask ----------------------------------------------------------------------------------------------

// blocks[block of keys] = what the block mask says in one of its rows. Without one there is a single block.
template <bool HAS_MASK_MOD>
static void read_block_row(const Attention& a, int b, int h, int64_t block_row, uint8_t* blocks) {
  const Params& p = a.p;
  constexpr uint8_t PARTIAL = HAS_MASK_MOD ? ASK : YES;
  __builtin_memset(blocks, p.has_block_mask ? NO : PARTIAL, a.kv_blocks);
  if (!p.has_block_mask || block_row >= p.mask_rows) return;
  int64_t line = ((p.mask_batch == 1 ? 0 : b) * p.mask_heads + (p.mask_heads == 1 ? 0 : h)) * p.mask_rows + block_row;
  for (int64_t run = p.run_offsets[line]; run < p.run_offsets[line + 1]; run++)
    __builtin_memset(blocks + p.run_first[run], p.run_state[run] == 2 ? YES : PARTIAL,
                     p.run_end[run] - p.run_first[run]);
}

// What holds for all keys of a tile, or MIXED. Lanes past the last key are out, which makes such a tile mixed.
static uint8_t allowance_of_tile(const Attention& a, const uint8_t* blocks, int64_t tile) {
  int64_t first = tile * KV_TILE / a.kv_block, last = (tile * KV_TILE + a.keys_in(tile) - 1) / a.kv_block;
  for (int64_t block = first; block <= last; block++)
    if (blocks[block] != blocks[first]) return MIXED;
  bool ragged = a.keys_in(tile) % VL != 0 && blocks[first] == YES;
  return ragged ? MIXED : blocks[first];
}

// allow[KV_TILE] = what holds for each key of a tile.
static void allow_keys(const Attention& a, const uint8_t* blocks, int64_t tile, int32_t* allow) {
  int64_t first = tile * KV_TILE, count = a.keys_in(tile);
  int64_t block = first / a.kv_block, left = (block + 1) * a.kv_block - first;
  for (int64_t i = 0; i < KV_TILE; i++) {
    if (left-- == 0) block++, left = a.kv_block - 1;
    allow[i] = i < count ? blocks[block] : NO;
  }
}
