scale(x, x_strides, out, params, threadgroup_position_in_grid, thread_position_in_threadgroup,
      threads_per_threadgroup);
