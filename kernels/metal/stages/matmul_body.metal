typedef ProductPlan<A, B, BM, BN, BK, ROW_GROUPS, COLUMN_GROUPS, TRANSPOSE_A, TRANSPOSE_B, WHOLE> P;
threadgroup A a_staged[P::A_STAGED];
threadgroup B b_staged[P::B_STAGED];
matmul<A, B, O, P>(a, a_strides, b, b_strides, out, params, a_staged, b_staged, threadgroup_position_in_grid,
                   simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
