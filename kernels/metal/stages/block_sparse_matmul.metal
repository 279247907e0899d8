// block_sparse_matmul.metal: products that follow a BlockMask's lists, in the tiles of product.h.
//
// SAMPLED: a b^T, computed in listed blocks only; others keep the -inf that the output starts with (scores).
// Otherwise: a b, where of a only the listed blocks are read; others count as zero (weights times values), and a 0 in a
// leaves its row of b out, whatever that holds.
#include "lists.h"
#include "product.h"

// The steps over listed blocks, each block cut into steps of its own.
struct ListedSteps {
  ListedBlocks blocks;
  Range keys;  // that are left of the entry before `entry`
  int entry, kv_len, step;
  Range next() thread {
    while (keys.first >= keys.end && entry < blocks.all) keys = blocks.keys(entry++, kv_len);
    Range range = cut(keys, 0, step);
    keys.first = range.end;
    return range;
  }
};

// params: ProductParams, then ListParams.
// a: [batch, heads, m, k], m in blocks of q_block; SAMPLED: b is [.., n, k] and n in blocks of kv_block, otherwise b
// is [.., k, n] and k in blocks of kv_block. out: [batch, heads, m, n].
// at.group: (entry and tile of its columns, or tile of columns; block of rows and tile of its rows; batch and head).
template <typename A, typename B, typename O, typename P, bool SAMPLED>
INLINE void block_sparse_matmul(Tensor<A> a, Tensor<B> b, device O* out, Lists lists, const device int* params,
                                threadgroup A* a_staged, threadgroup B* b_staged, Thread at) {
  const ProductParams p = read_params<ProductParams>(params);
  const ListParams of_lists = read_params<ListParams>(params + PRODUCT_WORDS);
  const int batch = int(at.group.z) / p.a_heads, head = int(at.group.z) % p.a_heads;
  const int row_tiles = (of_lists.q_block + P::BM - 1) / P::BM, q_block = int(at.group.y) / row_tiles;
  const ListedBlocks blocks = listed_blocks(lists, of_lists, batch, head, q_block);
  const Range rows = cut(block_of(q_block, of_lists.q_block, p.m), int(at.group.y) % row_tiles, P::BM);

  const Matrix<A> left = a.head(batch, head);
  const Matrix<B> right = b.head(metal::min(batch, p.b_batches - 1), head / (p.a_heads / p.b_heads));
  Range columns;
  Fragment<float> sums[P::ROW_FRAGMENTS][P::COLUMN_FRAGMENTS];
  if (SAMPLED) {
    const int column_tiles = (of_lists.kv_block + P::BN - 1) / P::BN, entry = int(at.group.x) / column_tiles;
    if (entry >= blocks.all) return;
    columns = cut(blocks.keys(entry, p.n), int(at.group.x) % column_tiles, P::BN);
    if (rows.first >= rows.end || columns.first >= columns.end) return;
    DenseSteps steps;
    steps.at = 0;
    steps.k = p.k;
    steps.step = P::BK;
    multiply_tile<A, B, P>(sums, left, right, rows, columns, steps, a_staged, b_staged, at);
  } else {
    columns = block_of(int(at.group.x), P::BN, p.n);
    if (rows.first >= rows.end) return;
    ListedSteps steps;
    steps.blocks = blocks;
    steps.keys.first = steps.keys.end = steps.entry = 0;
    steps.kv_len = p.k;
    steps.step = P::BK;
    multiply_tile<A, B, P>(sums, left, right, rows, columns, steps, a_staged, b_staged, at);
  }
  write_tile<O, P>(out + int64_t(at.group.z) * p.m * p.n, p.n, sums, rows, columns, at);
}

// -- body: what MLX puts between the braces --
typedef ProductPlan<A, B, BM, BN, BK, ROW_GROUPS, COLUMN_GROUPS, false, SAMPLED, false, !SAMPLED> P;
threadgroup A a_staged[P::A_STAGED];
threadgroup B b_staged[P::B_STAGED];
block_sparse_matmul<A, B, O, P, SAMPLED>(
    tensor(a, a_strides), tensor(b, b_strides), out,
    lists(kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices), params, a_staged, b_staged,
    thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
              thread_index_in_simdgroup));
