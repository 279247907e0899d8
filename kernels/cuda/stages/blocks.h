// blocks.h: which blocks of keys each block of queries reads, as kernels/cuda/stages/stages.py writes the lists out.
#pragma once
#include "../tile/types.h"

enum State { UNLISTED = 0, PARTIAL = 1, FULL = 2 };

// As _block_sizes of stages.py packs it. batches, heads: 1, or those of the scores.
struct BlockSizes {
  int batches, heads, q_blocks, kv_blocks, q_block, kv_block;
};

// The states of one batch and head: [q_blocks, kv_blocks].
struct Blocks {
  const uint8_t* states;
  BlockSizes sizes;

  INLINE Blocks(const uint8_t* all, const BlockSizes& given, int b, int h) : states(all), sizes(given) {
    const int64_t head = int64_t(sizes.batches == 1 ? 0 : b) * sizes.heads + (sizes.heads == 1 ? 0 : h);
    states += head * sizes.q_blocks * sizes.kv_blocks;
  }
  INLINE int at(int q_block, int kv_block) const {
    return q_block < sizes.q_blocks ? states[int64_t(q_block) * sizes.kv_blocks + kv_block] : int(UNLISTED);
  }
  INLINE int of(int row, int key) const { return at(row / sizes.q_block, key / sizes.kv_block); }
  // The blocks that rows [row, end_row) and keys [key, end_key) lie in: some are listed; all are. Each thread of the
  // block of threads asks about some of them, and all get the same answer.
  INLINE void look(int row, int end_row, int key, int end_key, bool& some, bool& all) const {
    const int q_first = row / sizes.q_block, kv_first = key / sizes.kv_block;
    const int width = (end_key - 1) / sizes.kv_block - kv_first + 1;
    const int count = width * ((end_row - 1) / sizes.q_block - q_first + 1);
    bool mine = false, whole = true;
    for (int i = threadIdx.x; i < count; i += THREADS) {
      const bool listed = at(q_first + i / width, kv_first + i % width) != UNLISTED;
      mine = mine || listed;
      whole = whole && listed;
    }
    some = __syncthreads_or(mine);
    all = __syncthreads_and(whole);
  }
};
