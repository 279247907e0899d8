typedef Plan<HEAD_DIM, VALUE_DIM, ROW_FRAGMENTS, SIMDGROUPS, BK, BD, BV, VALUE_TILES, Q_IN_REGISTERS> P;
threadgroup T staged[STAGED];
threadgroup uint votes[2 * SIMDGROUPS + SCALES * BK];
const auto mods = captured_by_mods(params + PARAM_WORDS CAPTURED_ARRAYS);
attention_forward<T, P, BLOCKS, StagedTile>(
    q, q_strides, k, k_strides, v, v_strides, out, lse, max_scores, tile_lists, read_params(params), mods,
    staged, votes, threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
    thread_index_in_simdgroup);
