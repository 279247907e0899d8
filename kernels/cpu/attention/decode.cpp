// decode.cpp: attention of a few query rows on the CPU. All query heads that share a head of keys are the rows of one
// tile, so that keys and values are read once, where they lie; the tiles of keys that the masks leave are cut into
// splits for the threads (Flash-Decoding, pytorch.org/blog/flash-decoding).
//
//   for each head of keys, for each split of its tiles
//     for each tile of keys
//       S = (scale Q) K^T                                  score_rows (rows.h); of int8: scale_scores
//       S = mask(score_mod(S)); P = exp(S - max)           softmax_row
//       O = O * exp(old max - max) + P V                   weigh_rows (rows.h)
//   for each head of keys
//     out = O / sum of P over its splits, in their order; lse = max + log(sum)
//
// While keys are scored, memory is asked for the values of their tile, and meanwhile for the keys of the next.
//
// How many splits there are follows from the shapes, the mask and the number of threads: never from the load.
#include "../mod/mod.h"
#include "attention.h"
#include "located.h"
#include "rows.h"
#include "walk.h"

constexpr int64_t LEAST_TILES = 4;                  // of a split
constexpr int64_t JOBS_PER_THREAD = 4;
constexpr int64_t BYTES_PER_THREAD = 512 << 10;     // of keys and values, that are worth a thread

// A tile of keys that some row of a head of keys reads, and which of them: the keys [begin, end), all by all unless
// masked.
struct LiveTile {
  int64_t tile, run;
  int64_t begin, end;
  bool masked;
};

// What the visits of several query heads say of one tile.
struct Reached {
  uint8_t begin, end, heads;
  bool masked;
};

struct DecodeScratch {
  float* queries;  // [rows][stride_q]: times scale; or int8: words
  float* scores;   // [rows][KV_TILE]
  float* factor;   // [rows]
  LiveTile* tiles;  // of the head of keys at hand
  Reached* reached;  // [kv_tiles]
  int64_t tile_count;
  int64_t found_for;

  // Only of int8 keys; [rows] unless it says otherwise.
  float* row_scale;  // of a row in int8, times the scale of scores; nan for a row that holds an infinity or a nan
  float* shift;      // what the mean of the keys adds to all scores of a row
  int32_t* start;    // of the row's sums of products
  float *key_scale, *value_scale;  // [KV_TILE]: of the tile at hand
  WholeWeights rounded;
};

// A split's share of the result.
struct Partial {
  float* out;  // [rows][stride_out], times exp(max)
  float* max;  // [rows]
  float* sum;  // [rows][VL]: in one part per lane
  float* lacks;  // [rows], only of int8 keys: what the scores above lack
};

struct Decode : Attention {
  int64_t ratio, rows, padded_rows, stride_q, stride_out;
  int64_t splits = 1;
  DecodeScratch* decode_scratch;
  Partial* partials;  // [units][splits]
  void *memory_of_threads = nullptr, *memory_of_splits = nullptr;

  explicit Decode(const Params& params) : Attention(params) {
    cut_rows(0);
    units = p.batch * p.kv_heads;
    ratio = p.kv_heads ? p.query_heads / p.kv_heads : 0;
    rows = ratio * p.q_len;
    padded_rows = rows <= 2 ? rows : round_up(rows, 4);  // two are taken one by one
    stride_q = round_up(KEYS == QUANTISED ? words_of(p.head_dim) : p.head_dim, VL);
    stride_out = round_up(p.value_dim, VL);
    pack_ahead = true;  // but no head: neither a tile of a thread nor one of a round is cut
    units_per_round = 0;
    extremes = ArrayExtremes();
    threads = larger(1, smaller(p.caller.max_threads, MOST_THREADS));
  }
  bool per_head() const { return (HAS_MASK_MOD && MASK_USES_HEAD) || mask.heads > 1; }

  int64_t lay_out_threads(char* base) {
    Carver carver = {base};
    carver.cut(decode_scratch, threads);
    for (int64_t t = 0; t < threads; t++) {
      DecodeScratch unused, &s = base ? decode_scratch[t] : unused;
      carver.cut(s.queries, padded_rows * stride_q);
      carver.cut(s.scores, padded_rows * KV_TILE);
      carver.cut(s.factor, padded_rows);
      carver.cut(s.tiles, kv_tiles);
      carver.cut(s.reached, per_head() ? kv_tiles : 0);
      int64_t of_int8 = KEYS == QUANTISED ? padded_rows : 0, scales = KEYS == QUANTISED ? KV_TILE : 0;
      carver.cut(s.row_scale, of_int8);
      carver.cut(s.shift, of_int8);
      carver.cut(s.start, of_int8);
      carver.cut(s.key_scale, scales);
      carver.cut(s.value_scale, scales);
      carver.cut(s.rounded.weights, of_int8 * KV_TILE);
      carver.cut(s.rounded.unit, of_int8);
      s.found_for = -1;
    }
    return carver.used;
  }
  int64_t lay_out_splits(char* base) {
    Carver carver = {base};
    carver.cut(partials, units * splits);
    for (int64_t i = 0; i < units * splits; i++) {
      Partial unused, &part = base ? partials[i] : unused;
      carver.cut(part.out, padded_rows * stride_out);
      carver.cut(part.max, padded_rows);
      carver.cut(part.sum, padded_rows * VL);
      carver.cut(part.lacks, KEYS == QUANTISED ? padded_rows : 0);
    }
    return carver.used;
  }
  bool allocate_threads() {
    memory_of_threads = malloc(lay_out_threads(nullptr) + 64);
    if (memory_of_threads) lay_out_threads((char*)round_up((int64_t)memory_of_threads, 64));
    return memory_of_threads;
  }
  bool allocate_splits() {
    memory_of_splits = malloc(lay_out_splits(nullptr) + 64);
    if (memory_of_splits) lay_out_splits((char*)round_up((int64_t)memory_of_splits, 64));
    return memory_of_splits;
  }
  void free_all() {
    free(memory_of_splits);
    free(memory_of_threads);
    finish();
  }

  QueryTile head_of(int64_t unit, int64_t reader) const {
    int64_t b = unit / p.kv_heads, h = unit % p.kv_heads * ratio + reader;
    return {(int)b, (int)h, 0, (int)p.q_len, 0, unit};
  }
};

// -- which tiles -------------------------------------------------------------------------------------------------

static LiveTile live_tile(const Visit& visit, int groups) {
  Reach reach(visit, groups);
  return {visit.tile, visit.run, reach.begin, reach.end, reach.masked || !reach.alike};
}

// The tiles that the query heads of one head of keys read, each once and in order.
static void find_tiles(const Decode& a, Scratch& s, DecodeScratch& t, int64_t unit) {
  if (t.found_for == unit) return;
  t.found_for = unit;
  t.tile_count = 0;
  QueryTile q = a.head_of(unit, 0);
  if (!a.per_head()) {
    find_visits(a, s, q);
    for (int64_t i = 0; i < s.visit_count; i++) t.tiles[t.tile_count++] = live_tile(s.visits[i], q.groups());
    return;
  }
  __builtin_memset(t.reached, 0, a.kv_tiles * sizeof(Reached));
  for (int64_t reader = 0; reader < a.ratio; reader++) {
    q = a.head_of(unit, reader);
    find_visits(a, s, q);
    for (int64_t i = 0; i < s.visit_count; i++) {
      LiveTile live = live_tile(s.visits[i], q.groups());
      Reached& all = t.reached[live.tile];
      bool same = all.heads == 0 || (all.begin == live.begin / VL && all.end == live.end / VL);
      all.masked |= live.masked || !same;
      all.begin = all.heads == 0 ? live.begin / VL : smaller(all.begin, live.begin / VL);
      all.end = larger(all.end, live.end / VL);
      all.heads++;
    }
  }
  for (int64_t tile = 0; tile < a.kv_tiles; tile++) {
    Reached all = t.reached[tile];
    if (!all.heads) continue;
    t.tiles[t.tile_count++] = {tile, -1, all.begin * VL, all.end * VL, all.masked || all.heads < a.ratio};
  }
}

// -- the rows ----------------------------------------------------------------------------------------------------

// Row i in int8, with its own scale. A row that holds an infinity or a nan has none.
static void round_row(const Decode& a, DecodeScratch& t, Partial& part, const QueryTile& q, int64_t i) {
  const Params& p = a.p;
  int64_t row = i % p.q_len;
  Rows queries = {matrix_of(p.q, p.q_strides, q.b, q.h, 0, p.q_len, p.head_dim, p.dtype), {}, nullptr};
  Matrix mean = means_of(p, q.b, q.h / a.ratio);
  float unit = unit_of(largest_of_run(queries, {row, row + 1}));
  t.start[i] = round_int8_query((word*)t.queries + i * a.stride_q, unit, queries, row);
  t.row_scale[i] = unit * p.scale;
  t.shift[i] = mean.data ? p.scale * dot_rows(queries.matrix, row, mean, 0) : 0;
  if (!row_is_finite(queries, row) || !__builtin_isfinite(t.shift[i])) {
    t.row_scale[i] = __builtin_nanf("");
    t.shift[i] = 0;
  }
  part.lacks[i] = p.add_back ? 0 : t.shift[i];
}

static void read_rows(const Decode& a, DecodeScratch& t, Partial& part, int64_t unit) {
  const Params& p = a.p;
  __builtin_memset(t.queries, 0, a.padded_rows * a.stride_q * sizeof(float));
  for (int64_t i = 0; i < a.padded_rows; i++) part.max[i] = -INFINITE, t.factor[i] = 1;
  for (int64_t i = 0; i < a.rows; i++) {
    QueryTile q = a.head_of(unit, i / p.q_len);
    if constexpr (KEYS == QUANTISED) {
      round_row(a, t, part, q, i);
    } else {
      float* row = t.queries + i * a.stride_q;
      Matrix query = matrix_of(p.q, p.q_strides, q.b, q.h, i % p.q_len, 1, p.head_dim, p.dtype);
      for (int64_t d = 0; d < p.head_dim; d += VL) store_vector(row + d, widen(query, 0, d) * p.scale);
    }
  }
  if constexpr (KEYS == QUANTISED) {
    __builtin_memset(t.rounded.weights, 0, a.padded_rows * KV_TILE * sizeof(int16_t));
    __builtin_memset(t.rounded.unit, 0, a.padded_rows * sizeof(float));
  }
  __builtin_memset(part.sum, 0, a.padded_rows * VL * sizeof(float));
  __builtin_memset(part.out, 0, a.padded_rows * a.stride_out * sizeof(float));
}

// What the block mask says of the keys of a tile to one query head.
static void allow_keys_of(const Decode& a, Scratch& s, const QueryTile& q, const LiveTile& live) {
  int64_t line = ((a.mask.batch == 1 ? 0 : q.b) * a.mask.heads + (a.mask.heads == 1 ? 0 : q.h)) * a.mask.rows;
  s.end_run = a.mask.offsets[line + 1];
  allow_keys(a, s, live.tile, live.run < 0 ? a.mask.offsets[line] : live.run);
}

// scores -> weights of one row, with its new maximum and sum; factor is what the old maximum takes from O.
template <bool MASK>
static void softmax_row(const Decode& a, const Scratch& s, DecodeScratch& t, Partial& part, const QueryTile& q,
                        int64_t i, int64_t first_key, int64_t begin, int64_t end) {
  const Inputs in = a.in;
  float* row = t.scores + i * KV_TILE;
  int q_idx = i % a.p.q_len;
  auto mod = Mods::score_mod(q.b, q.h, q_idx, in);
  auto mask = Mods::mask_mod(q.b, q.h, q_idx, in);
  vfloat largest = splat(part.max[i]);
  for (int64_t at = begin; at < end; at += VL) {
    vfloat x = load_vector<vfloat>(row + at);
    vint kv_idx = key_indices<MASK>(first_key + at, a.p.kv_len);
    if constexpr (HAS_SCORE_MOD) x = mod(x, kv_idx);
    if constexpr (MASK) x = select(keep(s.allow + at, kv_idx, mask).lanes, x, splat(-INFINITE));
    if constexpr (HAS_SCORE_MOD || MASK) store_vector(row + at, x);
    largest = larger(x, largest);
  }
  float before = part.max[i], max = largest_lane(largest)[0];
  vfloat shift = splat(max > -INFINITE ? max : 0);
  t.factor[i] = exp_nonpositive(splat(before) - shift)[0];
  part.max[i] = max;
  vfloat total = load_vector<vfloat>(part.sum + i * VL) * t.factor[i];
  for (int64_t at = begin; at < end; at += VL) {
    vfloat weight = exp_nonpositive(load_vector<vfloat>(row + at) - shift);
    store_vector(row + at, weight);
    total += weight;
  }
  store_vector(part.sum + i * VL, total);
}

// -- int8 --------------------------------------------------------------------------------------------------------

// scale[KV_TILE] of `count` rows of a tile; 0 beyond them. Memory is asked for those of the tile that is read next.
static void read_scales(float* scale, const float* from, const float* next, int64_t stride, int64_t count) {
  if (stride == 1) __builtin_memcpy(scale, from, count * sizeof(float));
  for (int64_t i = 0; stride != 1 && i < count; i++) scale[i] = from[i * stride];
  for (int64_t i = count; i < KV_TILE; i++) scale[i] = 0;
  for (int64_t i = 0; stride == 1 && i < KV_TILE; i += 16) __builtin_prefetch(next + i);
}

// Sums of products -> scores of row i for the keys [begin, end) of a tile. One scale after the other: their product
// may overflow where the score, a sum of 0, does not.
static void scale_scores(const Decode& a, DecodeScratch& t, const QueryTile& q, int64_t i, int64_t first, int64_t begin,
                         int64_t end, int64_t count) {
  const Params& p = a.p;
  float* row = t.scores + i * KV_TILE;
  if (t.row_scale[i] != t.row_scale[i]) {  // as attention without rounding gives them
    Int8Rows keys = int8_keys_of(p, q.b, q.h / a.ratio);
    Matrix query = matrix_of(p.q, p.q_strides, q.b, q.h, i % p.q_len, 1, p.head_dim, p.dtype);
    for (int64_t key = begin; key < end; key++)
      row[key] = p.scale * dot_row(query, 0, [&](int64_t d) { return keys.read(first + smaller(key, count - 1), d); });
    return;
  }
  vfloat shift = splat(p.add_back ? t.shift[i] : 0);
  for (int64_t at = begin; at < end; at += VL) {
    vfloat sum = sum_of_words(load_vector<vword>(row + at), t.start[i]);
    store_vector(row + at, sum * load_vector<vfloat>(t.key_scale + at) * t.row_scale[i] + shift);
  }
}

// Weights of row i times the scales of the values, which is nan for one that held an infinity or a nan: a weight of 0
// leaves it out. And the same as whole numbers, 0 for the keys from `end` on.
static void scale_weights(DecodeScratch& t, int64_t i, int64_t begin, int64_t end) {
  constexpr float MOST = 32767, SMALLEST_WEIGHT = 0x1p-100f;
  float* row = t.scores + i * KV_TILE;
  vfloat largest = {}, zeros = {};
  vint lanes = lane_index();
  for (int64_t at = begin; at < end; at += VL) {
    vfloat weight = load_vector<vfloat>(row + at);
    vfloat scaled = weight * load_vector<vfloat>(t.value_scale + at);
    scaled = select((weight == 0.0f) | (lanes + (int32_t)at >= (int32_t)end), vfloat{}, scaled);
    store_vector(row + at, scaled);
    zeros += scaled * 0.0f;
    largest = larger(bits_to_float(float_to_bits(scaled) & INT32_MAX), largest);
  }
  if (!HAS_PAIRS) return;
  float most = largest_lane(largest)[0], inverse = most == 0 ? 0 : MOST / most;
  bool said = sum_lanes(zeros) == 0 && (most == 0 || most > SMALLEST_WEIGHT);
  t.rounded.unit[i] = said ? most / MOST : __builtin_nanf("");
  for (int64_t at = begin; said && at < end; at += VL) {
    vint bits = float_to_bits(load_vector<vfloat>(row + at) * inverse + ROUND);
    store_vector(t.rounded.weights + i * KV_TILE + at, __builtin_convertvector(bits, vshort));
  }
}

// -- one split ---------------------------------------------------------------------------------------------------

template <int32_t KEY, int32_t VALUE>
static void attend_split(const Decode& a, Scratch& s, DecodeScratch& t, int64_t unit, int64_t split) {
  const Params& p = a.p;
  typedef typename Factors<KEY>::element element;
  Partial& part = a.partials[unit * a.splits + split];
  find_tiles(a, s, t, unit);
  read_rows(a, t, part, unit);
  QueryTile first_head = a.head_of(unit, 0);
  int64_t b = first_head.b, kv_head = unit % p.kv_heads;
  int64_t last = t.tile_count * (split + 1) / a.splits;
  if (split == 0) s.counts[SKIPPED] += a.kv_tiles - t.tile_count;
  for (int64_t i = t.tile_count * split / a.splits; i < last; i++) {
    const LiveTile &live = t.tiles[i], &after = t.tiles[i + 1 < last ? i + 1 : i];
    s.counts[live.masked ? MASKED : UNMASKED]++;
    int64_t first = live.tile * KV_TILE, count = a.keys_in(live.tile), end = smaller(live.end, count);
    Lines<KEY> keys(p.k, p.k_strides, b, kv_head, first, p.head_dim);
    Lines<KEY> keys_after(p.k, p.k_strides, b, kv_head, after.tile * KV_TILE, p.head_dim);
    Lines<VALUE> values(p.v, p.v_strides, b, kv_head, first, p.value_dim);
    Ahead next_values(values, live.begin, end), next_keys;
    if (i + 1 < last) next_keys = Ahead(keys_after, after.begin, smaller(after.end, a.keys_in(after.tile)));
    if constexpr (KEY == INT8) {
      const float* scales = p.k_scales + b * p.k_scale_strides[0] + kv_head * p.k_scale_strides[1];
      int64_t stride = p.k_scale_strides[2];
      read_scales(t.key_scale, scales + first * stride, scales + after.tile * KV_TILE * stride, stride, count);
    }
    if constexpr (VALUE == INT8) {
      const float* scales = p.v_scales + b * p.v_scale_strides[0] + kv_head * p.v_scale_strides[1];
      int64_t stride = p.v_scale_strides[2];
      read_scales(t.value_scale, scales + first * stride, scales + after.tile * KV_TILE * stride, stride, count);
    }
    score_rows<KEY>(t.scores, (const element*)t.queries, a.padded_rows, a.stride_q, keys, live.begin, live.end, count,
                    next_values);
    for (int64_t r = 0; r < a.rows; r++) {
      QueryTile q = a.head_of(unit, r / p.q_len);
      if (live.masked && r % p.q_len == 0 && (r == 0 || a.per_head())) allow_keys_of(a, s, q, live);
      if constexpr (KEY == INT8) scale_scores(a, t, q, r, first, live.begin, live.end, count);
      (live.masked ? softmax_row<true> : softmax_row<false>)(a, s, t, part, q, r, first, live.begin, live.end);
      if constexpr (VALUE == INT8) scale_weights(t, r, live.begin, end);
    }
    weigh_rows<VALUE>(part.out, a.padded_rows, a.stride_out, t.scores, values, live.begin, end, t.factor, t.rounded,
                      next_keys);
  }
}

// -- all splits together -----------------------------------------------------------------------------------------

static void merge(const Decode& a, Scratch& s, int64_t unit) {
  const Params& p = a.p;
  const Partial* parts = a.partials + unit * a.splits;
  for (int64_t i = 0; i < a.rows; i++) {
    QueryTile q = a.head_of(unit, i / p.q_len);
    int64_t row = (q.b * p.query_heads + q.h) * p.q_len + i % p.q_len;
    float max = -INFINITE, sum = 0;
    for (int64_t split = 0; split < a.splits; split++) max = max < parts[split].max[i] ? parts[split].max[i] : max;
    for (int64_t d = 0; d < a.stride_out; d += VL) store_vector(s.row + d, vfloat{});
    for (int64_t split = 0; split < a.splits; split++) {
      const Partial& part = parts[split];
      vfloat share = exp_nonpositive(splat(part.max[i] - (max == -INFINITE ? 0 : max)));
      sum += sum_lanes(load_vector<vfloat>(part.sum + i * VL)) * share[0];
      for (int64_t d = 0; d < a.stride_out; d += VL)
        store_vector(s.row + d, load_vector<vfloat>(s.row + d) +
                                    load_vector<vfloat>(part.out + i * a.stride_out + d) * share);
    }
    vfloat inverse = splat(sum == 0 ? 0 : 1 / sum);
    Matrix mean = KEYS == QUANTISED && p.v_scales ? int8_values_of(p, q.b, unit % p.kv_heads).mean : Matrix{};
    for (int64_t d = 0; d < a.stride_out; d += VL) {
      vfloat x = load_vector<vfloat>(s.row + d) * inverse;
      if (mean.data && sum != 0) x += widen(mean, 0, d);
      store_vector(s.row + d, x);
    }
    narrow_row((char*)p.out + row * p.value_dim * dtype_bytes(p.dtype), s.row, p.value_dim, p.dtype);
    float lacks = KEYS == QUANTISED ? parts[0].lacks[i] : 0;
    if (p.lse) p.lse[row] = sum == 0 ? -INFINITE : (double)max + __builtin_log(sum) + lacks;
    if (p.max_scores) p.max_scores[row] = max + lacks;
  }
}

// -- one call ----------------------------------------------------------------------------------------------------

static void run_job(Jobs& jobs, int64_t job, int thread, void* state) {
  const Decode& a = *(const Decode*)state;
  int64_t attending = a.units * a.splits;
  if (job >= attending) {
    if (jobs.wait_until_done(attending)) merge(a, a.scratch[thread], job - attending);
    return;
  }
  int64_t unit = job / a.splits, split = job % a.splits;
  Scratch& s = a.scratch[thread];
  DecodeScratch& t = a.decode_scratch[thread];
  constexpr bool INT8_KEYS = KEYS == QUANTISED;
  if constexpr (INT8_KEYS)
    if (a.p.v_scales) return attend_split<INT8, INT8>(a, s, t, unit, split);
  if (a.p.dtype == FLOAT32) attend_split<INT8_KEYS ? INT8 : FLOAT32, FLOAT32>(a, s, t, unit, split);
  else if (a.p.dtype == FLOAT16) attend_split<INT8_KEYS ? INT8 : FLOAT16, FLOAT16>(a, s, t, unit, split);
  else attend_split<INT8_KEYS ? INT8 : BFLOAT16, BFLOAT16>(a, s, t, unit, split);
}

// Threads and splits, by what the first head of keys reads.
static void plan(Decode& a) {
  find_tiles(a, a.scratch[0], a.decode_scratch[0], 0);
  int64_t tiles = a.decode_scratch[0].tile_count;
  int64_t of_number = dtype_bytes(a.p.dtype);
  int64_t row = a.p.head_dim * (a.p.k_scales ? 1 : of_number) + a.p.value_dim * (a.p.v_scales ? 1 : of_number);
  int64_t bytes = a.units * tiles * KV_TILE * row;
  int64_t threads = smaller(a.threads, 1 + bytes / BYTES_PER_THREAD);
  int64_t wanted = threads > 1 ? (JOBS_PER_THREAD * threads + a.units - 1) / a.units : 1;
  a.splits = larger(1, smaller(wanted, tiles / LEAST_TILES));
  a.threads = smaller(threads, a.units * a.splits);
}

TAKES(Params)
extern "C" __attribute__((visibility("default"))) int flextrace_attention(const Params* given, void* arrays) {
  Located located(*given, given + 1, arrays);
  if (located.status != OK) return located.status;
  Unlocked python(given->caller.host);
  Decode decode(located.params);
  if (decode.units * decode.rows == 0) return OK;
  if (!decode.allocate()) return OUT_OF_MEMORY;
  Result result = OUT_OF_MEMORY;
  if (decode.allocate_threads()) {
    plan(decode);
    if (decode.allocate_splits())
      result = Jobs::run_all({decode.units * (decode.splits + 1), run_job, &decode}, decode.threads, python);
  }
  decode.free_all();
  return result == OK && decode.overflow ? INTEGER_OVERFLOW : result;
}
