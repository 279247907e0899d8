// attention.h: the memory of one call, and the jobs that pack its keys and values into it.
#pragma once
#include <stdlib.h>
#include <sys/mman.h>

#include "jobs.h"
#include "../tile/threads.h"

constexpr int64_t HUGE_PAGE = 2 << 20, LARGE = 8 << 20;  // memory from LARGE on is asked for in huge pages

struct Attention : Schedule {
  float* packed;  // [units_per_round][kv_tiles][key_floats + value_floats]
  char* of_arrays;  // their extremes
  Scratch* scratch;
  void* memory = nullptr;

  using Schedule::Schedule;

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
