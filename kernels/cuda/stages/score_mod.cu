// score_mod.cu: out = mask(score_mod(scores)), a row by each block of threads. With LISTED, blocks that the lists do not
// name become -inf unseen, and mask_mod is asked in partial blocks only.
#include "plan.h"
#include "../mod/mod.h"
#include "blocks.h"

struct ScoreParams {
  int batch, heads, q_len, kv_len;
};

// scores, out: float32 [batch, heads, q_len, kv_len]; states: uint8 [batches, heads, q_blocks, kv_blocks].
INLINE void run_stage(const float* scores, const uint8_t* states, float* out, const ScoreParams& p, const BlockSizes& sizes,
                      const Mods& mods) {
  const int64_t rows = int64_t(p.batch) * p.heads * p.q_len;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int head = row / p.q_len, q_idx = row % p.q_len, b = head / p.heads, h = head % p.heads;
    const Blocks blocks(states, sizes, b, h);
    const auto modified = mods.score_mod(b, h, q_idx);
    const auto kept = mods.mask_mod(b, h, q_idx);
    for (int kv_idx = threadIdx.x; kv_idx < p.kv_len; kv_idx += THREADS) {
      const int state = LISTED ? blocks.of(q_idx, kv_idx) : int(PARTIAL);
      float score = -INFINITY;
      if (state == FULL || (state == PARTIAL && kept(kv_idx))) score = modified(scores[row * p.kv_len + kv_idx], kv_idx);
      out[row * p.kv_len + kv_idx] = score;
    }
  }
}
