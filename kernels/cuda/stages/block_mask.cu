// block_mask.cu: mask_mod -> which blocks of keys each block of queries reads: empty ones are left out, full ones, whose
// every position is kept, go to one list, the others to another. A block that the end cuts is full if all its positions
// that exist are kept. A block of threads takes a block of queries.
#include "plan.h"
#include "../mod/mod.h"

struct MaskParams {
  int batch, heads, q_len, kv_len, q_block, kv_block;
};

// The numbers: [batch, heads, q_blocks]; the indices: [batch, heads, q_blocks, kv_blocks], 0 beyond the number.
INLINE void run_stage(int* kv_num_blocks, int* kv_indices, int* full_kv_num_blocks, int* full_kv_indices,
                      const MaskParams& p, const Mods& mods) {
  const int q_blocks = (p.q_len + p.q_block - 1) / p.q_block, kv_blocks = (p.kv_len + p.kv_block - 1) / p.kv_block;
  const int64_t lines = int64_t(p.batch) * p.heads * q_blocks;
  for (int64_t line = blockIdx.x; line < lines; line += gridDim.x) {
    const int head = line / q_blocks, b = head / p.heads, h = head % p.heads;
    const int first_row = line % q_blocks * p.q_block, rows = smaller(p.q_block, p.q_len - first_row);
    int *partial = kv_indices + line * kv_blocks, *full = full_kv_indices + line * kv_blocks;
    int partials = 0, fulls = 0;
    for (int block = 0; block < kv_blocks; block++) {
      const int first = block * p.kv_block, keys = smaller(p.kv_block, p.kv_len - first);
      bool some = false, all = true;
      for (int64_t i = threadIdx.x; i < int64_t(rows) * keys; i += THREADS) {
        const bool kept = mods.mask_mod(b, h, first_row + int(i / keys))(first + int(i % keys));
        some = some || kept;
        all = all && kept;
      }
      some = __syncthreads_or(some);
      all = __syncthreads_and(all);
      if (threadIdx.x == 0 && some) (all ? full[fulls] : partial[partials]) = block;
      fulls += some && all;
      partials += some && !all;
    }
    for (int i = partials + threadIdx.x; i < kv_blocks; i += THREADS) partial[i] = 0;
    for (int i = fulls + threadIdx.x; i < kv_blocks; i += THREADS) full[i] = 0;
    if (threadIdx.x == 0) kv_num_blocks[line] = partials, full_kv_num_blocks[line] = fulls;
  }
}
