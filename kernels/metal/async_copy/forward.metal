// forward.metal: attention forward whose tiles of K and V may be copied by simdgroup_async_copy, for
// kernel_options={"ASYNC_COPY": "intrinsic"}.
#include "../attention/forward.metal"
#include "async_copy.h"

// -- body: what MLX puts between the braces --
typedef Plan<HEAD_DIM, VALUE_DIM, ROW_FRAGMENTS, SIMDGROUPS, BK, BD, BV, VALUE_TILES, Q_IN_REGISTERS, PARTS> P;
threadgroup T staged[STAGED];
threadgroup uint votes[2 * SIMDGROUPS + SCALES * BK + PARTIAL];
const auto mods = captured_by_mods(params CAPTURED_ARRAYS);
const Thread at = thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
                            thread_index_in_simdgroup);
// MLX gives strides here and not before: the same choice in all threads.
if (can_be_copied(k_strides) && can_be_copied(v_strides))
  attention_forward<P, BLOCKS, AsyncTile>(
      tensor(q, q_strides), tensor(k, k_strides), tensor(v, v_strides), outputs(out, lse, max_scores), tile_lists,
      attention_params(sizes), mods, staged, votes, at);
else
  attention_forward<P, BLOCKS, StagedTile>(
      tensor(q, q_strides), tensor(k, k_strides), tensor(v, v_strides), outputs(out, lse, max_scores), tile_lists,
      attention_params(sizes), mods, staged, votes, at);
