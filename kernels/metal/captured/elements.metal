// elements.metal: which element of its array a site reads at each position that has a sum.
#include "../mod/score_gradient.h"
#include "../tile/simdgroup.h"

// What a position is: a query row, a key, or a q_idx - kv_idx, from 1 - kv_len on.
enum Positions { ROWS = 0, COLUMNS = 1, DIAGONALS = 2 };

// elements: [at.groups.z batches, at.groups.y heads, count]. lengths: count, kv_len.
template <int POSITIONS, typename Captured>
INLINE void find_elements(device int* elements, const constant int* lengths, const thread Captured& mods, int threads,
                          Thread at) {
  const int position = int(at.group.x) * threads + int(at.index()), count = lengths[0];
  if (position >= count) return;
  const int difference = position - (lengths[1] - 1);
  const int q_idx = POSITIONS == ROWS ? position : POSITIONS == DIAGONALS ? metal::max(difference, 0) : 0;
  const int kv_idx = POSITIONS == COLUMNS ? position : POSITIONS == DIAGONALS ? q_idx - difference : 0;
  const int64_t head = int64_t(at.group.z) * at.groups.y + at.group.y;
  elements[head * count + position] = int(element(mods, 0.0f, int(at.group.z), int(at.group.y), q_idx, kv_idx));
}

// -- body: what MLX puts between the braces --
const auto mods = captured_by_mods(params CAPTURED_ARRAYS);
find_elements<POSITIONS>(
    elements, lengths, mods, THREADS,
    thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
              thread_index_in_simdgroup));
