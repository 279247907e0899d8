attention_output(product, product_strides, max_scores, max_scores_strides, sums, sums_strides, out, lse, params,
                 threadgroup_position_in_grid, thread_position_in_threadgroup, threads_per_threadgroup);
