// quantise.metal: rows of q or k -> what the attention kernel multiplies: less a mean, and rounded to whole numbers,
// -127 to 127, with float32 scales (SageAttention, arXiv 2410.02367; means of q: SageAttention2, arXiv 2411.10958).
//
// Work is cut into blocks of neighbouring rows, and a block into runs: its rows of one group, one after the other.
// rounding.py says what each use of this kernel asks for, and which simdgroups share a block.
#include "rows.h"
#include "../tile/words.h"

constexpr constant float LEVELS = 127.0f;             // of quant_types.py
constexpr constant float SMALLEST = 1.50463277e-36f;  // 2^-119, of quant_types.py: what is smaller counts as zero

// Which rows have a scale of their own; and what is done with the mean of a row's group: it is subtracted from the row,
// or its product with the row is written beside it, the row term.
constexpr constant int NOTHING = 0, EACH_ROW = 1, EACH_RUN = 2;
constexpr constant int NO_MEAN = 0, SUBTRACTED = 1, AS_TERM = 2;

struct QuantiseParams {
  int heads;
  int rows;
  int columns;
  int block;          // rows of a block
  int mean_heads;     // heads / mean_heads neighbouring heads share their means
  int batches;        // those of x, of means, and of groups and runs: as many as the grid has, or 1
  int mean_batches;
  int group_batches;
  int most_runs;      // that any batch has, if own means are asked for
  float scale;        // the factor of the row terms
};
static_assert(sizeof(QuantiseParams) == 4 * 10, "every field is a word");

// The scale by which the largest magnitude becomes LEVELS.
struct Unit {
  float unit, inverse;
};
INLINE Unit unit_of(float largest) {
  Unit u;
  u.unit = largest < SMALLEST ? 0.0f : largest / LEVELS;
  u.inverse = u.unit > 0.0f ? 1.0f / u.unit : 0.0f;
  return u;
}

// One row; what is not finite gives 0, and the row's scale says so.
template <int WIDTH>
INLINE void round_row(thread float (&x)[WIDTH], Unit u, device float* scale, uint lane) {
  const bool finite = is_finite_row(x);
  if (lane == 0) *scale = finite ? u.unit : as_type<float>(NAN_BITS);
  UNROLL
  for (int i = 0; i < WIDTH; i++) x[i] = is_finite(x[i]) ? metal::rint(x[i] * u.inverse) : 0.0f;
}

// x: [batches, heads, rows, columns]; means: [mean_batches, mean_heads, groups, columns]; groups, runs: [group_batches,
// 1, rows, 1], each row's group, and the number of its run in its batch; any strides. Contiguous, of all batches of the
// grid: out [.., rows, columns], scales and terms [.., rows], own_means [.., most_runs, columns].
//
// What is not asked for is neither read nor written. SCALES, GROUP_MEAN: as above; OWN_MEAN: that of each run,
// subtracted; GROUPED: a run ends where the group changes, otherwise all is group 0 and a run is a block.
// TEAM simdgroups share a block, and each holds COUNT rows at a time. ONCE: a block has no more rows than these, and
// they stay in registers; otherwise each step reads them again.
// shared: two halves of half_size floats, as Team has them. at.group: (blocks, head, batch).
template <typename T, typename O, int WIDTH, int COUNT, int TEAM, bool ONCE, int SCALES, int GROUP_MEAN, bool OWN_MEAN,
          bool GROUPED>
INLINE void quantise(Tensor<T> x, Tensor<float> means, Tensor<int> groups, Tensor<int> runs, device O* out,
                     device float* scales, device float* terms, device float* own_means,
                     const thread QuantiseParams& p, threadgroup float* shared, int half_size, uint threads,
                     Thread at) {
  constexpr int STEP = TEAM * COUNT;
  constexpr bool WRITES = SCALES != NOTHING || GROUP_MEAN == SUBTRACTED;
  const int b = int(at.group.z), head = int(at.group.y);
  const uint lane = at.lane;
  Team<TEAM> team;
  team.shared = shared;
  team.half_size = half_size;
  team.turn = 0;
  team.simdgroup = TEAM == 1 ? 0 : int(at.simdgroup);
  team.lane = lane;
  // A threadgroup is one team, or many of one simdgroup each.
  const int number = TEAM == 1 ? int(at.group.x * (threads / LANES) + at.simdgroup) : int(at.group.x);
  const Range block = block_of(number, p.block, p.rows);

  const Matrix<float> mean_of = means.head(p.mean_batches == 1 ? 0 : b, head / (p.heads / p.mean_heads));
  const Matrix<int> group_of = groups.head(p.group_batches == 1 ? 0 : b, 0);
  const Matrix<int> run_of = runs.head(p.group_batches == 1 ? 0 : b, 0);
  const int64_t line = int64_t(b) * p.heads + head;
  RowsHeld<T, WIDTH, COUNT, TEAM> held;
  held.from = x.head(p.batches == 1 ? 0 : b, head);
  held.columns = p.columns;
  held.lane = lane;

  for (int first = block.first, end; first < block.end; first = end) {
    end = GROUPED ? end_of_run(group_of, first, block.end, lane) : block.end;
    const int own_first = first + team.simdgroup;
    float mean[WIDTH], own_mean[WIDTH];
    if (GROUP_MEAN != NO_MEAN) {
      load_row(mean, mean_of, GROUPED ? *group_of.at(first, 0) : 0, p.columns, lane);
      finite_or_zero(mean);  // any mean is exact
    }

    if (OWN_MEAN) {
      float finite_rows = 0.0f;
      UNROLL
      for (int i = 0; i < WIDTH; i++) own_mean[i] = 0.0f;
      for (int row = own_first; row < end; row += STEP) {
        held.load(row, end);
        if (GROUP_MEAN == AS_TERM) held.store_terms(mean, p.scale, terms + line * p.rows);
        held.add_to(own_mean, finite_rows);
      }
      team.sum(own_mean, finite_rows);
      UNROLL
      for (int i = 0; i < WIDTH; i++) own_mean[i] /= metal::max(finite_rows, 1.0f);
      const int64_t run = line * p.most_runs + (GROUPED ? *run_of.at(first, 0) : number);
      if (team.simdgroup == 0) store_row(own_mean, own_means + run * p.columns, p.columns, lane);
    }

    Unit unit_of_run = unit_of(0.0f);
    if (SCALES == EACH_RUN) {
      float largest = 0.0f;
      for (int row = own_first; row < end; row += STEP) {
        if (!(ONCE && OWN_MEAN)) held.load(row, end);
        if (GROUP_MEAN == AS_TERM && !OWN_MEAN) held.store_terms(mean, p.scale, terms + line * p.rows);
        if (GROUP_MEAN == SUBTRACTED) held.subtract(mean);
        if (OWN_MEAN) held.subtract(own_mean);
        largest = metal::max(largest, held.largest());
      }
      unit_of_run = unit_of(team.largest(largest));
    }

    for (int row = own_first; row < end; row += STEP) {
      if (!(ONCE && SCALES == EACH_RUN)) {
        if (!(ONCE && OWN_MEAN)) held.load(row, end);
        if (GROUP_MEAN == AS_TERM && !OWN_MEAN && SCALES != EACH_RUN)
          held.store_terms(mean, p.scale, terms + line * p.rows);
        if (GROUP_MEAN == SUBTRACTED) held.subtract(mean);
        if (OWN_MEAN) held.subtract(own_mean);
      }
      UNROLL
      for (int r = 0; r < COUNT; r++) {
        if (!WRITES || !held.has(r)) continue;
        const int64_t at = line * p.rows + held.row(r);
        if (SCALES != NOTHING) {
          Unit u = unit_of_run;
          if (SCALES == EACH_ROW) u = unit_of(metal::simd_max(largest_of_row(held.x[r])));
          round_row(held.x[r], u, scales + at, lane);
        }
        store_row(held.x[r], out + at * p.columns, p.columns, lane);
      }
    }
  }
}

// -- body: what MLX puts between the braces --
constexpr int HALF_SIZE = TEAM * (OWN_MEAN ? WIDTH * LANES + 1 : 1);
threadgroup float shared[2 * HALF_SIZE];
const QuantiseParams p = read_params<QuantiseParams>(params);
quantise<T, O, WIDTH, COUNT, TEAM, ONCE, SCALES, GROUP_MEAN, OWN_MEAN, GROUPED>(
    tensor(x, x_strides), tensor(means, means_strides), tensor(groups, groups_strides), tensor(runs, runs_strides), out,
    scales, terms, own_means, p, shared, HALF_SIZE, threads_per_threadgroup.x,
    thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
              thread_index_in_simdgroup));
