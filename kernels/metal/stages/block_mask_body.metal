threadgroup uint votes[4 * SIMDGROUPS];
const auto mods = captured_by_mods(params + 5 CAPTURED_ARRAYS);
block_mask(kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices, params, mods, votes,
           threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
           thread_index_in_simdgroup);
