// forward.cpp: attention forward on the CPU, a tile at a time, never the full score matrix (FlashAttention,
// arXiv 2205.14135; online softmax, arXiv 1805.02867).
//
//   for each tile of query rows, of each head
//     find which tiles of keys the masks leave             find_visits (walk.h)
//     for each of those tiles of keys, for each group of rows
//       S = (scale Q) K^T                                  score_keys (scores.h)
//       S = mask(score_mod(S)); P = exp(S - max)           softmax_rows
//       O = O * exp(old max - max) + P V                   add_values
//     out = O / sum of P; lse = max + log(sum)             write_rows
//
// Shapes, strides and dtypes are run-time values; only the mods are compiled in. jobs.h cuts a call into jobs.
#include "../mod/mod.h"
#include "attention.h"
#include "located.h"
#include "scores.h"
#include "../tile/panels.h"
#include "walk.h"

// -- one group of rows and one tile of keys ----------------------------------------------------------------------

// scores -> weights: S = mask(score_mod(S)), the rows' new maxima, P = exp(S - max) and its sum, all in place.
// The maximum is subtracted before anything else is done to a score: scores of any size keep their differences.
template <bool MASK>
static void softmax_rows(const Attention& a, Scratch& s, const QueryTile& q, int group, int rows, int64_t first_key,
                         TileState state) {
  const Inputs in = a.in;
  const int32_t* allow = s.allow;
  float* max = s.max + group * ROW_STATE;
  float* sum = s.sum + group * ROWS * VL;

  float before[ROW_STATE];
  __builtin_memcpy(before, max, sizeof before);
  for (int r = 0; r < rows; r++) {
    float* row = s.scores + r * KV_TILE;
    vfloat largest = splat(max[r]);
    int q_idx = q.first + group * ROWS + r;
    auto mod = Mods::score_mod(q.b, q.h, q_idx, in);
    auto mask = Mods::mask_mod(q.b, q.h, q_idx, in);
    for (int i = state.begin; i < state.end; i++) {
      vfloat x = load_vector<vfloat>(row + i * VL);
      if constexpr (HAS_SCORE_MOD || MASK) {
        vint kv_idx = key_indices<MASK>(first_key + i * VL, a.p.kv_len);
        x = mod(x, kv_idx);
        if constexpr (MASK) x = select(keep(allow + i * VL, kv_idx, mask).lanes, x, splat(-INFINITE));
        store_vector(row + i * VL, x);
      }
      largest = larger(x, largest);
    }
    max[r] = largest_lane(largest)[0];
  }

  float subtracted[ROW_STATE];  // the maximum; 0 where that is -inf, as -inf - -inf is nan
  for (int r = 0; r < ROW_STATE; r += VL) {
    vfloat now = load_vector<vfloat>(max + r), shift = select(now == -INFINITE, vfloat{}, now);
    store_vector(s.factor + r, exp_nonpositive(load_vector<vfloat>(before + r) - shift));
    store_vector(subtracted + r, shift);
  }

  for (int r = 0; r < rows; r++) {
    float* row = s.scores + r * KV_TILE;
    vfloat shift = splat(subtracted[r]);
    vfloat total = load_vector<vfloat>(sum + r * VL) * s.factor[r];
    for (int i = state.begin; i < state.end; i++) {
      vfloat weight = exp_nonpositive(load_vector<vfloat>(row + i * VL) - shift);
      store_vector(row + i * VL, weight);
      total += weight;
    }
    store_vector(sum + r * VL, total);
  }
}

// O = O * exp(old max - max) + P V
template <class Words>
static void add_values(float* out, const Scratch& s, const float* values, int rows, int64_t begin, int64_t end,
                       int64_t value_dim, bool special) {
  auto multiply = special ? (rows == 1 ? multiply_values<1, true, Words> : multiply_values<ROWS, true, Words>)
                          : (rows == 1 ? multiply_values<1, false, Words> : multiply_values<ROWS, false, Words>);
  multiply(out, s.scores, values, begin, end, value_dim, s.factor);
}

// -- one tile of query rows --------------------------------------------------------------------------------------

static void read_queries(const Attention& a, Scratch& s, const QueryTile& q) {
  const Params& p = a.p;
  for (int g = 0; g * ROWS < q.rows; g++) {
    int64_t rows = smaller(q.rows - g * ROWS, ROWS), first = q.first + g * ROWS;
    Matrix queries = matrix_of(p.q, p.q_strides, q.b, q.h, first, rows, p.head_dim, p.dtype);
    float* packed = s.queries + g * ROWS * p.head_dim;
    if (in_pairs(p)) pack_query_pairs(packed, queries, SplitScale(p.scale).power);
    else if (KEYS != QUANTISED) pack_queries(packed, queries, p.scale);
    __builtin_memset(s.out + g * a.out_floats, 0, a.out_floats * sizeof(float));
    __builtin_memset(s.sum + g * ROWS * VL, 0, ROWS * VL * sizeof(float));
    for (int r = 0; r < ROW_STATE; r++) s.max[g * ROW_STATE + r] = -INFINITE;
  }
  if constexpr (KEYS != PLAIN) read_terms(p, s, q);
}

static void write_rows(const Attention& a, Scratch& s, const QueryTile& q) {
  const Params& p = a.p;
  int64_t first = (q.b * p.query_heads + q.h) * p.q_len + q.first;
  for (int i = 0; i < q.rows; i++) {
    int g = i / ROWS, r = i % ROWS;
    float sum = sum_lanes(load_vector<vfloat>(s.sum + i * VL));
    float inverse = sum == 0 ? 0 : 1 / sum;  // a row with nothing to attend to gives 0
    for (int64_t d = 0; d < p.value_dim; d += VL) {
      const float* from = s.out + g * a.out_floats + d / PANEL * PANEL * ROWS + r * PANEL + d % PANEL;
      store_vector(s.row + d, load_vector<vfloat>(from) * inverse);
    }
    narrow_row((char*)p.out + (first + i) * p.value_dim * dtype_bytes(p.dtype), s.row, p.value_dim, p.dtype);
    float max = s.max[g * ROW_STATE + r], shift = 0;  // what the scores above lack
    if constexpr (KEYS != PLAIN) shift = p.add_back ? 0 : s.shift[i];
    if (p.lse) p.lse[first + i] = sum == 0 ? -INFINITE : (double)max + __builtin_log(sum) + shift;
    if (p.max_scores) p.max_scores[first + i] = max + shift;
  }
}

static void attend(const Attention& a, Scratch& s, const QueryTile& q) {
  const Params& p = a.p;
  find_visits(a, s, q);
  read_queries(a, s, q);
  int groups = q.groups();
  s.counts[SKIPPED] += groups * a.kv_tiles;
  for (int64_t i = 0; i < s.visit_count; i++) {
    int64_t tile = s.visits[i].tile;
    const TileState* states = s.visits[i].groups;
    int visited = 0, masked = 0;
    for (int g = 0; g < groups; g++) visited += states[g].end != 0, masked += states[g].end != 0 && states[g].masked;
    s.counts[SKIPPED] -= visited;
    s.counts[MASKED] += masked;
    s.counts[UNMASKED] += visited - masked;
    if (masked) allow_keys(a, s, tile, s.visits[i].run);
    const float* keys = a.pack_ahead ? a.packed_tile(q.unit, tile) : s.packed;
    const float* values = keys + a.key_floats;
    if (!a.pack_ahead) a.pack_tile(q.unit, tile, s.packed);
    const bool special = values[floats_of_values(p)] != 0;
    KeyTile key = key_tile(p, keys);
    if (smooths_queries(p)) multiply_q_means(p, s, key);

    for (int g = 0; g < groups; g++) {
      TileState state = states[g];
      if (state.end == 0) continue;
      int rows = smaller(q.rows - g * ROWS, ROWS);
      int64_t begin = state.begin * VL, end = smaller(state.end * VL, a.keys_in(tile));
      score_keys(p, s, q, g, rows, tile * KV_TILE, begin, end, key);
      (state.masked ? softmax_rows<true> : softmax_rows<false>)(a, s, q, g, rows, tile * KV_TILE, state);
      float* out = s.out + g * a.out_floats;
      if (in_pairs(p)) {
        round_weights(s.scores, rows, begin, end);
        add_values<Pairs>(out, s, values, rows, begin, end, p.value_dim, special);
      } else {
        add_values<Floats>(out, s, values, rows, begin, end, p.value_dim, special);
      }
    }
  }
  write_rows(a, s, q);
}

// -- one call ----------------------------------------------------------------------------------------------------

// Job -> rows: the last query tile of every head first, as those are the heaviest under a causal mask, and heads next
// to each other, as they usually share the tiles that find_visits found.
static void run_attend_job(const Attention& a, const Round& round, int64_t job, Scratch& s) {
  const Params& p = a.p;
  int64_t per_tile = round.units * a.queries_per_unit;
  int64_t unit = round.first_unit + job % per_tile / a.queries_per_unit, reader = job % a.queries_per_unit;
  int64_t ratio = p.query_heads / p.kv_heads, index = a.q_tiles - 1 - job / per_tile;
  int64_t block_start = index / a.q_tiles_per_block * a.q_block;
  int64_t first = block_start + index % a.q_tiles_per_block * a.q_tile;
  int64_t end = smaller(smaller(first + a.q_tile, block_start + a.q_block), p.q_len);
  int64_t b = unit / p.kv_heads + reader / ratio, h = unit % p.kv_heads * ratio + reader % ratio;
  if (first < end) attend(a, s, {(int)b, (int)h, (int)first, (int)(end - first), index, unit});
}

static void run_job(Jobs& jobs, int64_t job, int thread, void* state) {
  const Attention& a = *(const Attention*)state;
  if (job < a.first_jobs) return a.run_first_job(job);
  Round round = a.round_of(job);
  int64_t done = round.first_job + round.pack_jobs;
  if (job < done) {
    // The round before still reads what this one overwrites.
    if (jobs.wait_until_done(round.first_job)) a.run_pack_job(round, job - round.first_job);
  } else {
    if (done > 0 && !jobs.wait_until_done(done)) return;
    run_attend_job(a, round, job - done, a.scratch[thread]);
  }
}

TAKES(Params)
extern "C" __attribute__((visibility("default"))) int flextrace_attention(const Params* given, void* arrays) {
  Located located(*given, given + 1, arrays);
  if (located.status != OK) return located.status;
  Unlocked python(given->caller.host);
  Attention attention(located.params);
  if (attention.q_tiles * given->batch * given->query_heads == 0) return OK;
  if (!attention.allocate()) return OUT_OF_MEMORY;
  Result result = Jobs::run_all({attention.total_jobs, run_job, &attention}, attention.threads, python);
  attention.finish();
  return result == OK && attention.overflow ? INTEGER_OVERFLOW : result;
}
