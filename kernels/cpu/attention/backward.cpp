// backward.cpp: the gradients of attention on the CPU, in one pass of five products over the tiles of the forward,
// from its log-sum-exp (FlashAttention-2, arXiv 2307.08691).
//
//   for each tile of query rows, of each head
//     find which tiles of keys the masks leave                            find_visits (walk.h)
//     delta = rowsum(dO O) - dlse                                         read_rows
//     for each of those tiles of keys
//       for each group of rows
//         S = (scale Q) K^T; dP = dO V^T
//         P = exp(mask(score_mod(S)) - lse); dS = P (dP - delta)          differentiate_rows
//         dS = dS score_mod'(S), into what is captured, too               captures.h
//         dQ += dS K
//       dV += P^T dO; dK += dS^T Q                                        multiply_rows
//     dQ *= scale
//
// The tiles of one head of keys take what the query tiles add in the order of these: each query tile follows behind
// the one before (progress). So the sums have the same bits for any number of threads, and need no second copy.
#include <sched.h>

#include "../mod/gradient.h"
#include "attention.h"
#include "captures.h"
#include "located.h"
#include "../tile/panels.h"
#include "walk.h"

constexpr int64_t BACKWARD_BYTES = 64 << 20;  // packed keys and values with their gradients, held at a time
constexpr int64_t LEAST_QUERY_TILES = 16;     // of all heads together, where there are rows for them
constexpr int REST = ROWS % 4 == 0 ? 4 : 2;   // keys beside whole groups of ROWS, in a multiple of 4
constexpr int64_t ALL_TILES = INT64_MAX;

struct Backward {
  Params forward;  // with what the forward gave: out, lse, and max_scores where d_max_scores is given
  const void* d_out;  // [batch, query_heads, q_len, value_dim], dtype of q
  int64_t d_out_strides[4];
  const float* d_lse;         // [batch, query_heads, q_len], contiguous, or null
  const float* d_max_scores;  // the same
  void* dq;  // of the shapes and the dtype of q, k and v, contiguous
  void* dk;
  void* dv;
  int64_t key_batch;  // of k and v, and of dk and dv: batch, or 1 where one serves all
  float** gradients;  // of captured arrays, of their shapes, contiguous, zero
};

// A thread's memory besides that of the forward.
struct BackwardScratch {
  float* weights;     // [Q_TILE][KV_TILE]: S, then P
  float* d_scores;    // [Q_TILE][KV_TILE]: dP, then dS
  float* d_out;       // [GROUPS][value_dim][ROWS]: dO as multiply_keys reads it
  float* query_rows;  // Q and dO as pack_values leaves them
  float* d_out_rows;
  float* dq;          // [GROUPS][panel of head_dim][ROWS][PANEL]
  float* shift;       // [Q_TILE]: lse; inf for a row without keys
  float* delta;       // [Q_TILE]
  float* largest;     // [Q_TILE]: of the row's scores, and
  float* share;       // [Q_TILE]: what each of the largest gets of d_max_scores
  SiteSums sites[SITES + 1];
  float* row;         // one row of dQ, dK or dV
  bool special_rows;  // an infinity or a nan is in Q or dO
};

struct Gradient : Attention {
  const Backward& b;
  BackwardScratch* backward_scratch;
  // How far each query tile has come, by the number of its job: the first tile of keys to which it, or one before it,
  // may still add.
  int64_t* progress;
  int64_t captured = 0;  // query tiles that have added to the gradients of captured arrays
  void* backward_memory = nullptr;
  int64_t dk_floats, dv_floats;

  explicit Gradient(const Backward& backward) : Attention(backward.forward), b(backward) {
    cut_rows(LEAST_QUERY_TILES);
    units = b.key_batch * p.kv_heads;
    queries_per_unit = units ? p.batch * p.query_heads / units : 0;
    pack_ahead = true;
    dk_floats = KV_TILE * round_up(p.head_dim, VL);
    dv_floats = KV_TILE * round_up(p.value_dim, VL);
    key_floats = KV_TILE * (p.head_dim + p.value_dim);  // K and V, as multiply_keys reads them
    value_floats = dk_floats + VL + dk_floats + dv_floats;  // K as multiply_values does, whether it is finite; dK, dV
    cut_rounds(BACKWARD_BYTES);
  }
  int64_t query_tiles() const { return units * q_tiles * queries_per_unit; }

  // -- a packed tile ---------------------------------------------------------------------------------------------

  float* keys(float* tile) const { return tile; }
  float* values(float* tile) const { return tile + KV_TILE * p.head_dim; }
  float* key_rows(float* tile) const { return tile + key_floats; }
  float* is_special(float* tile) const { return key_rows(tile) + dk_floats; }
  float* dk(float* tile) const { return is_special(tile) + VL; }
  float* dv(float* tile) const { return dk(tile) + dk_floats; }

  void pack(int64_t unit, int64_t tile) const {
    int64_t batch = unit / p.kv_heads, h = unit % p.kv_heads, first = tile * KV_TILE, rows = keys_in(tile);
    float* to = packed_tile(unit, tile);
    Matrix k = matrix_of(p.k, p.k_strides, batch, h, first, rows, p.head_dim, p.dtype);
    pack_keys(keys(to), k);
    pack_keys(values(to), matrix_of(p.v, p.v_strides, batch, h, first, rows, p.value_dim, p.dtype));
    *is_special(to) = !pack_values(key_rows(to), k);
    __builtin_memset(dk(to), 0, (dk_floats + dv_floats) * sizeof(float));
  }

  // -- memory ----------------------------------------------------------------------------------------------------

  int64_t lay_out_backward(char* base) {
    Carver carver = {base};
    carver.cut(progress, query_tiles());
    carver.cut(backward_scratch, threads);
    for (int64_t t = 0; t < threads; t++) {
      BackwardScratch unused, &s = base ? backward_scratch[t] : unused;
      carver.cut(s.weights, Q_TILE * KV_TILE);
      carver.cut(s.d_scores, Q_TILE * KV_TILE);
      carver.cut(s.d_out, Q_TILE * p.value_dim);
      carver.cut(s.query_rows, dk_floats);
      carver.cut(s.d_out_rows, dv_floats);
      carver.cut(s.dq, Q_TILE * round_up(p.head_dim, PANEL));
      carver.cut(s.row, round_up(larger(p.head_dim, p.value_dim), VL));
      carver.cut(s.shift, Q_TILE);
      carver.cut(s.delta, Q_TILE);
      carver.cut(s.largest, Q_TILE);
      carver.cut(s.share, Q_TILE);
      for (int i = 0; i < SITES; i++) {
        s.sites[i].count = sums_of_site(*this, i);
        carver.cut(s.sites[i].sums, s.sites[i].count);
        carver.cut(s.sites[i].skewed, SITE[i].pattern == DIAGONAL ? ROWS * SKEWED_ROW : 0);
      }
    }
    return carver.used;
  }
  bool allocate_backward() {
    int64_t bytes = lay_out_backward(nullptr);
    backward_memory = malloc(bytes + 64);
    if (!backward_memory) return false;
    lay_out_backward((char*)round_up((int64_t)backward_memory, 64));
    for (int64_t i = 0; i < query_tiles(); i++) progress[i] = 0;
    return true;
  }
};

// -- products ----------------------------------------------------------------------------------------------------

// The factors of rows that keep their sums.
constexpr struct Ones {
  float factor[ROWS] = {};
  constexpr Ones() {
    for (float& x : factor) x = 1;
  }
} ONES;

// sums[keys][columns] += weights^T rows, for the keys [begin, end) of a tile and the rows [first, last) of a query tile.
template <int COLUMNS, bool SPARSE>
static void multiply_panel(float* sums, const float* weights, const float* rows, int64_t begin, int64_t end,
                           int64_t first, int64_t last) {
  constexpr int WIDTH = COLUMNS * VL;
  const float *from = weights + first * KV_TILE, *factor = ONES.factor;
  int64_t key = begin;
  for (; key + ROWS <= end; key += ROWS)
    multiply<ROWS, COLUMNS, 1, KV_TILE, WIDTH, true, SPARSE>(sums + key * WIDTH, from + key, rows + first * WIDTH,
                                                             last - first, factor);
  for (; key < end; key += REST)
    multiply<REST, COLUMNS, 1, KV_TILE, WIDTH, true, SPARSE>(sums + key * WIDTH, from + key, rows + first * WIDTH,
                                                             last - first, factor);
}
template <bool SPARSE>
static void multiply_rows(float* sums, const float* weights, const float* rows, int64_t begin, int64_t end,
                          int64_t first, int64_t last, int64_t columns) {
  for (int64_t d = 0; d < columns; d += PANEL) {
    auto multiply = columns - d > VL ? multiply_panel<2, SPARSE> : multiply_panel<1, SPARSE>;
    multiply(sums + d * KV_TILE, weights, rows + d * KV_TILE, begin, end, first, last);
  }
}

// -- one group of rows and one tile of keys ----------------------------------------------------------------------

// What the score of a row's largest keys gets besides: found in a first look at all its keys.
enum Look { LARGEST, GRADIENT };

// LARGEST: the rows' largest scores, and in `share` how many keys have them.
// GRADIENT: weights = P and d_scores = dS, and what the sites get.
template <bool MASK>
static void differentiate_rows(const Gradient& a, Scratch& s, BackwardScratch& t, const QueryTile& q, int group,
                               int rows, int64_t first_key, TileState state, Look look) {
  const Inputs in = a.in;
  const int32_t* allow = s.allow;
  const bool shares = a.b.d_max_scores != nullptr;
  for (int r = group * ROWS; r < group * ROWS + rows; r++) {
    float *weights = t.weights + r * KV_TILE, *d_scores = t.d_scores + r * KV_TILE;
    int q_idx = q.first + r;
    auto mod = GradientMods::score_gradient(q.b, q.h, q_idx, in);
    auto place = GradientMods::place(q.b, q.h, q_idx, in);
    auto mask = Mods::mask_mod(q.b, q.h, q_idx, in);
    vfloat shift = splat(t.shift[r]), delta = splat(t.delta[r]), share = splat(t.share[r]);
    vfloat largest = splat(t.largest[r]), before = largest, count = vfloat{}, of_row[SITES + 1] = {};
    for (int i = state.begin; i < state.end; i++) {
      int64_t at = i * VL, key = first_key + at;
      vint kv_idx = key_indices<MASK>(key, a.p.kv_len);
      vint kept = ~vint{};
      if constexpr (MASK) kept = keep(allow + at, kv_idx, mask).lanes;
      vfloat score = load_vector<vfloat>(weights + at);
      ScoreGradient gradient = mod(score, kv_idx);
      vfloat modified = select(kept, gradient.score, splat(-INFINITE));
      if (look == LARGEST) {
        count = select(modified > largest, splat(1.0f), count + select(modified == largest, splat(1.0f), vfloat{}));
        largest = larger(modified, largest);
        continue;
      }
      vfloat weight = select(kept, exp_nonpositive(modified - shift), vfloat{});
      vfloat d_modified = weight * (load_vector<vfloat>(d_scores + at) - delta);
      if (shares) d_modified += select(modified == largest, share, vfloat{});
      vint counts = weight != 0.0f;  // what has no weight gets nothing, whatever its derivative is
      store_vector(weights + at, weight);
      store_vector(d_scores + at, select(counts, d_modified * gradient.by_score, vfloat{}));
      each_site([&](auto number) {
        constexpr int N = decltype(number)::value;
        vfloat x = select(counts, d_modified * gradient.by_site[N], vfloat{});
        add_to_site<N>(t.sites[N], x, score, kv_idx, r, key, at, a.kv_tiles * KV_TILE, of_row[N], place);
      });
    }
    if (look == LARGEST) {
      float top = largest_lane(largest)[0];
      t.share[r] = (top == before[0] ? t.share[r] : 0) + sum_lanes(select(largest == top, count, vfloat{}));
      t.largest[r] = top;
      continue;
    }
    for (int site = 0; site < SITES; site++) {
      if (SITE[site].pattern == ROW) t.sites[site].sums[r] += sum_lanes(of_row[site]);
      if (SITE[site].pattern == DIAGONAL) clear_edges(t.sites[site], r, state.begin * VL, state.end * VL);
    }
  }
  if (look == LARGEST) return;
  for (int site = 0; site < SITES; site++)
    if (SITE[site].pattern == DIAGONAL)
      add_diagonals(t.sites[site], group, rows, first_key, state.begin * VL, state.end * VL);
}

// -- one tile of query rows --------------------------------------------------------------------------------------

static void read_rows(const Gradient& a, Scratch& s, BackwardScratch& t, const QueryTile& q) {
  const Params& p = a.p;
  int64_t first_row = (q.b * p.query_heads + q.h) * p.q_len + q.first;
  int64_t out_strides[4] = {p.query_heads * p.q_len * p.value_dim, p.q_len * p.value_dim, p.value_dim, 1};
  Matrix queries = matrix_of(p.q, p.q_strides, q.b, q.h, q.first, q.rows, p.head_dim, p.dtype);
  Matrix d_out = matrix_of(a.b.d_out, a.b.d_out_strides, q.b, q.h, q.first, q.rows, p.value_dim, p.dtype);
  Matrix out = matrix_of(p.out, out_strides, q.b, q.h, q.first, q.rows, p.value_dim, p.dtype);
  for (int g = 0; g < q.groups(); g++) {
    int64_t first = q.first + g * ROWS, rows = smaller(q.rows - g * ROWS, ROWS);
    pack_queries(s.queries + g * ROWS * p.head_dim,
                 matrix_of(p.q, p.q_strides, q.b, q.h, first, rows, p.head_dim, p.dtype), p.scale);
    pack_queries(t.d_out + g * ROWS * p.value_dim,
                 matrix_of(a.b.d_out, a.b.d_out_strides, q.b, q.h, first, rows, p.value_dim, p.dtype), 1);
  }
  bool finite_queries = pack_values(t.query_rows, queries);
  t.special_rows = !pack_values(t.d_out_rows, d_out) || !finite_queries;
  __builtin_memset(t.dq, 0, q.groups() * ROWS * round_up(p.head_dim, PANEL) * sizeof(float));
  for (int r = 0; r < q.rows; r++) {
    vfloat sum = {};
    for (int64_t d = 0; d < p.value_dim; d += VL) sum += widen(d_out, r, d) * widen(out, r, d);
    float lse = p.lse[first_row + r];
    t.delta[r] = sum_lanes(sum) - (a.b.d_lse ? a.b.d_lse[first_row + r] : 0);
    t.shift[r] = lse == -INFINITE ? INFINITE : lse;
    t.largest[r] = -INFINITE;
    t.share[r] = 0;
  }
}

// Zeros where a row between the others has no keys: of P and dS of a group.
static void clear_beside(BackwardScratch& t, int group, TileState state, const Reach& reach) {
  int64_t begin = state.end == 0 ? reach.end : state.begin * VL, end = state.end == 0 ? reach.end : state.end * VL;
  auto clear = [&](int64_t place) {
    store_vector(t.weights + place, vfloat{});
    store_vector(t.d_scores + place, vfloat{});
  };
  for (int r = group * ROWS; r < (group + 1) * ROWS; r++) {
    for (int64_t at = reach.begin; at < begin; at += VL) clear(r * KV_TILE + at);
    for (int64_t at = end; at < reach.end; at += VL) clear(r * KV_TILE + at);
  }
}

// The scores of a query tile and a tile of keys, and their gradients; or only the largest of them.
static void differentiate_tile(const Gradient& a, Scratch& s, BackwardScratch& t, const QueryTile& q,
                               const Visit& visit, const Reach& reach, Look look) {
  const Params& p = a.p;
  float* tile = a.packed_tile(q.unit, visit.tile);
  if (reach.masked) allow_keys(a, s, visit.tile, visit.run);
  for (int g = reach.first_group; g <= reach.last_group; g++) {
    TileState state = visit.groups[g];
    if (state.end == 0) {
      clear_beside(t, g, state, reach);
      continue;
    }
    int64_t begin = state.begin * VL, end = smaller(state.end * VL, a.keys_in(visit.tile)), row = g * ROWS;
    multiply_keys<ROWS>(t.weights + row * KV_TILE, s.queries + row * p.head_dim, a.keys(tile), begin, end, p.head_dim);
    if (look == GRADIENT)
      multiply_keys<ROWS>(t.d_scores + row * KV_TILE, t.d_out + row * p.value_dim, a.values(tile), begin, end, p.value_dim);
    int rows = smaller(q.rows - row, ROWS);
    (state.masked ? differentiate_rows<true> : differentiate_rows<false>)(a, s, t, q, g, rows, visit.tile * KV_TILE,
                                                                          state, look);
    if (look == LARGEST) continue;
    clear_beside(t, g, state, reach);  // multiply_keys writes whole panels
    auto multiply = *a.is_special(tile) != 0 ? multiply_values<ROWS, true> : multiply_values<ROWS, false>;
    multiply(t.dq + row * round_up(p.head_dim, PANEL), t.d_scores + row * KV_TILE, a.key_rows(tile), begin, end,
             p.head_dim, ONES.factor);
  }
}

// What each of a row's largest scores gets.
static void find_shares(const Gradient& a, Scratch& s, BackwardScratch& t, const QueryTile& q) {
  const float* d_max = a.b.d_max_scores + (q.b * a.p.query_heads + q.h) * a.p.q_len + q.first;
  for (int64_t i = 0; i < s.visit_count; i++)
    differentiate_tile(a, s, t, q, s.visits[i], Reach(s.visits[i], q.groups()), LARGEST);
  for (int r = 0; r < q.rows; r++) t.share[r] = t.share[r] > 0 ? d_max[r] / t.share[r] : 0;
}

// sums[column] * factor, column by column as `place` says -> one row of a result.
template <class Place>
static void write_row(const Gradient& a, BackwardScratch& t, void* target, const float* sums, int64_t columns,
                      float factor, const Place& place) {
  for (int64_t d = 0; d < columns; d += VL) store_vector(t.row + d, load_vector<vfloat>(sums + place(d)) * factor);
  narrow_row(target, t.row, columns, a.p.dtype);
}

static void write_dq(const Gradient& a, BackwardScratch& t, const QueryTile& q) {
  const Params& p = a.p;
  int64_t first = (q.b * p.query_heads + q.h) * p.q_len + q.first, bytes = p.head_dim * dtype_bytes(p.dtype);
  for (int i = 0; i < q.rows; i++) {
    const float* row = t.dq + i / ROWS * ROWS * round_up(p.head_dim, PANEL) + i % ROWS * PANEL;
    write_row(a, t, (char*)a.b.dq + (first + i) * bytes, row, p.head_dim, p.scale,
              [](int64_t d) { return d / PANEL * PANEL * ROWS + d % PANEL; });
  }
}

static void write_keys(const Gradient& a, BackwardScratch& t, int64_t unit) {
  const Params& p = a.p;
  auto write = [&](void* target, const float* sums, int64_t key, int64_t at, int64_t columns, float factor) {
    char* to = (char*)target + (unit * p.kv_len + key) * columns * dtype_bytes(p.dtype);
    write_row(a, t, to, sums, columns, factor, [&](int64_t d) { return place_of_value(columns, at, d); });
  };
  for (int64_t key = 0; key < p.kv_len; key++) {
    float* tile = a.packed_tile(unit, key / KV_TILE);
    write(a.b.dk, a.dk(tile), key, key % KV_TILE, p.head_dim, p.scale);
    write(a.b.dv, a.dv(tile), key, key % KV_TILE, p.value_dim, 1);
  }
}

// Returns once `reached()`: whether the call goes on.
template <class Reached>
static bool wait(const Jobs& jobs, const Reached& reached) {
  for (int64_t looks = 0; !reached(); looks++) {
    if (jobs.is_stopped()) return false;
    if (looks > 100) sched_yield();
  }
  return true;
}

// One query tile; `before` is how far the one is that adds to the same keys before it, or null.
static void differentiate(Gradient& a, const Jobs& jobs, Scratch& s, BackwardScratch& t, const QueryTile& q,
                          int64_t number, const int64_t* before, int64_t& now) {
  const Params& p = a.p;
  auto follow = [&](int64_t tile) {
    return !before || wait(jobs, [&] { return __atomic_load_n(before, __ATOMIC_ACQUIRE) > tile; });
  };
  if (q.rows > 0) find_visits(a, s, q);
  int64_t visits = q.rows > 0 ? s.visit_count : 0;  // the last row of blocks may be short of a tile
  read_rows(a, s, t, q);
  clear_sites(t.sites);
  if (a.b.d_max_scores && visits) find_shares(a, s, t, q);
  for (int64_t i = 0; i < visits; i++) {
    const Visit& visit = s.visits[i];
    Reach reach(visit, q.groups());
    float* tile = a.packed_tile(q.unit, visit.tile);
    clear_dense(t.sites, q.rows, visit.tile * KV_TILE, a.kv_tiles * KV_TILE);
    differentiate_tile(a, s, t, q, visit, reach, GRADIENT);
    if (!follow(visit.tile)) return;
    int64_t first = reach.first_group * ROWS, last = smaller((reach.last_group + 1) * ROWS, q.rows);
    auto multiply = t.special_rows ? multiply_rows<true> : multiply_rows<false>;
    multiply(a.dv(tile), t.weights, t.d_out_rows, reach.begin, reach.end, first, last, p.value_dim);
    multiply(a.dk(tile), t.d_scores, t.query_rows, reach.begin, reach.end, first, last, p.head_dim);
    __atomic_store_n(&now, visit.tile + 1, __ATOMIC_RELEASE);
  }
  write_dq(a, t, q);
  if (SITES > 0) {
    if (!wait(jobs, [&] { return __atomic_load_n(&a.captured, __ATOMIC_ACQUIRE) == number; })) return;
    add_sites(a, s, q, t.sites, a.b.gradients);
    __atomic_store_n(&a.captured, number + 1, __ATOMIC_RELEASE);
  }
  if (follow(ALL_TILES - 1)) __atomic_store_n(&now, ALL_TILES, __ATOMIC_RELEASE);
}

// -- one call ----------------------------------------------------------------------------------------------------

// Job -> rows: neighbouring jobs are of different keys, so that none waits for the other where there are several.
static void run_query_tile(Gradient& a, const Jobs& jobs, const Round& round, int64_t job, int thread) {
  const Params& p = a.p;
  int64_t per_round = round.units * a.queries_per_unit * a.q_tiles;
  int64_t unit = round.first_unit + job % round.units, turn = job / round.units, reader = turn % a.queries_per_unit;
  int64_t ratio = p.query_heads / p.kv_heads, index = a.q_tiles - 1 - turn / a.queries_per_unit;
  int64_t block_start = index / a.q_tiles_per_block * a.q_block;
  int64_t first = block_start + index % a.q_tiles_per_block * a.q_tile;
  int64_t end = smaller(smaller(first + a.q_tile, block_start + a.q_block), p.q_len);
  int64_t b = unit / p.kv_heads + reader / ratio, h = unit % p.kv_heads * ratio + reader % ratio;
  int64_t number = round.first_unit * a.queries_per_unit * a.q_tiles + job;
  BackwardScratch& t = a.backward_scratch[thread];
  QueryTile q = {(int)b, (int)h, (int)first, (int)larger(end - first, 0), index, unit};
  differentiate(a, jobs, a.scratch[thread], t, q, number, turn ? a.progress + number - round.units : nullptr,
                a.progress[number]);
  if (job + round.units >= per_round) write_keys(a, t, unit);
}

static void run_job(Jobs& jobs, int64_t job, int thread, void* state) {
  Gradient& a = *(Gradient*)state;
  if (job < a.first_jobs) return a.run_first_job(job);
  Round round = a.round_of(job);
  int64_t done = round.first_job + round.pack_jobs;
  if (job < done) {
    if (!jobs.wait_until_done(round.first_job)) return;
    int64_t packing = job - round.first_job, tile = packing % a.pack_jobs_per_unit * TILES_PER_PACK;
    for (int64_t end = smaller(tile + TILES_PER_PACK, a.kv_tiles); tile < end; tile++)
      a.pack(round.first_unit + packing / a.pack_jobs_per_unit, tile);
  } else if (jobs.wait_until_done(done)) {
    run_query_tile(a, jobs, round, job - done, thread);
  }
}

TAKES(Backward)
extern "C" __attribute__((visibility("default"))) int flextrace_backward(const Backward* given, void* arrays) {
  Located located(given->forward, given + 1, arrays);
  if (located.status != OK) return located.status;
  Unlocked python(given->forward.caller.host);
  Backward backward = *given;
  backward.forward = located.params;
  Gradient gradient(backward);
  if (gradient.query_tiles() == 0) return OK;
  if (!gradient.allocate()) return OUT_OF_MEMORY;
  Result result = OUT_OF_MEMORY;
  if (gradient.allocate_backward())
    result = Jobs::run_all({gradient.total_jobs, run_job, &gradient}, gradient.threads, python);
  free(gradient.backward_memory);
  gradient.finish();
  return result == OK && gradient.overflow ? INTEGER_OVERFLOW : result;
}
