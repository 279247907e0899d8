typedef ProductPlan<A, B, BM, BN, BK, ROW_GROUPS, COLUMN_GROUPS, false, SAMPLED, false, !SAMPLED> P;
threadgroup A a_staged[P::A_STAGED];
threadgroup B b_staged[P::B_STAGED];
block_sparse_matmul<A, B, O, P, SAMPLED>(
    a, a_strides, b, b_strides, out, kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices, params, a_staged,
    b_staged, threadgroup_position_in_grid, simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
