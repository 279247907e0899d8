const auto mods = captured_by_mods(params + 3 + LIST_WORDS CAPTURED_ARRAYS);
if (LISTED) {
  modify_listed(scores, scores_strides, out, params[0], params[1], params[2], kv_num_blocks, kv_indices,
                full_kv_num_blocks, full_kv_indices, read_list_params(params + 3), mods, threadgroup_position_in_grid,
                thread_index_in_threadgroup, threads_per_threadgroup.x);
} else {
  modify_all(scores, scores_strides, out, params[0], params[1], params[2], mods, threadgroup_position_in_grid,
             thread_position_in_threadgroup, threads_per_threadgroup);
}
