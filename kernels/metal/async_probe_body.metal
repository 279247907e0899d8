threadgroup float staged[FRAGMENT * Leading<float, FRAGMENT>::value];
copy_a_tile(from, staged, out, thread_index_in_simdgroup);
