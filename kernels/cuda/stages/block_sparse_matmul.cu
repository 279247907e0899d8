// block_sparse_matmul.cu: products at the blocks that lists name.
//   SAMPLED (Q K^T): out [.., q_len, kv_len] = a b^T there, -inf elsewhere
//   else (P V):      out [.., q_len, dim] = a b, where a [.., q_len, kv_len] counts as zeros elsewhere, and a 0 in a
//                    leaves its row of b out, whatever that holds
#include "product.h"

// states: uint8 [batches, heads, q_blocks, kv_blocks].
INLINE void run_stage(const T* a, const T* b, const uint8_t* states, O* out, const ProductParams& p, const BlockSizes& sizes) {
  product(a, b, states, out, p, sizes);
}
