threadgroup float shared[2 * SIMDGROUPS];
softmax<O, ROW_GROUPS, NORMALISE>(x, x_strides, weights, max_scores, sums, params, shared,
                                  threadgroup_position_in_grid, simdgroup_index_in_threadgroup,
                                  thread_index_in_simdgroup);
