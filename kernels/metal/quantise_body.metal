constexpr int HALF_SIZE = TEAM * (OWN_MEAN ? WIDTH * LANES + 1 : 1);
threadgroup float shared[2 * HALF_SIZE];
const QuantiseParams p = read_quantise_params(params);
quantise<T, O, WIDTH, COUNT, TEAM, ONCE, SCALES, GROUP_MEAN, OWN_MEAN, GROUPED>(
    x, x_strides, means, means_strides, groups, groups_strides, runs, runs_strides, out, scales, terms, own_means, p,
    shared, HALF_SIZE, threadgroup_position_in_grid, threads_per_threadgroup, simdgroup_index_in_threadgroup,
    thread_index_in_simdgroup);
