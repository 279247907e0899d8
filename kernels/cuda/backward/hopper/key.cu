// key.cu: gradients of keys and values on Hopper GPUs (sm_90a): backward/key.cu with wgmma and TMA.
#include "plan.h"
#include "pipeline.h"

// maps: as in query.cu. The rest is as in backward/key.cu: rows are keys, so are p and the tile lists.
struct Tensors {
  const uint8_t* maps;
  const T *q, *k, *v, *d_out;
  const float *terms, *factor;
  const int* tile_lists;
  T *d_k, *d_v;
  float* site_sums;
  int sharing;
};

INLINE void backward_key(const Tensors& tensors, const AttentionParams& p, const GradientMods& mods) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  Memory& memory = *(Memory*)bytes;
  // The first keys of a causal mask have the most rows, and come first, of HEAD_GROUP heads together.
  const int tiles = (p.q_len + BQ - 1) / BQ, first_head = blockIdx.y * HEAD_GROUP;
  const int grouped = smaller(HEAD_GROUP, p.kv_heads - first_head);
  if (blockIdx.x >= grouped * tiles) return;
  const Heads<true> of = {int(blockIdx.x) / grouped, first_head + int(blockIdx.x) % grouped, int(blockIdx.z), tensors.sharing};
  const int lane = threadIdx.x % LANES;
  const int warp = __shfl_sync(EVERY_LANE, threadIdx.x / LANES, 0), warpgroup = warp / 4;  // so the compiler sees: uniform
  const int64_t all_rows = int64_t(gridDim.z) * tensors.sharing * p.query_heads * p.kv_len;
  start_pipeline<true>(memory);
  if (warpgroup == 0) {
    give_registers<PRODUCER_REGISTERS>();
    if (warp == 0) {
      const TransposedMask mask(mods);
      Sources from;
      from.start<true>(tensors.maps, tensors.q, tensors.k, tensors.v, tensors.d_out, p);
      produce_all<true>(memory, from, tensors.terms, all_rows, tensors.tile_lists, p, mask, of, lane);
    }
  } else {
    take_registers<CONSUMER_REGISTERS>();
    const int consumer = warpgroup - 1, first_row = of.own_tile * BQ + 64 * consumer + 16 * (warp % 4);
    const int64_t kv_head = int64_t(of.own_batch) * p.kv_heads + of.own_head;
    const float factor = tensors.factor[0], inverse = __fdiv_rn(1.0f, factor);
    Consumer<true> mine;
    const auto write = [&](const SiteSums& sites, int reader) {
      const int64_t head = int64_t(of.batch(p, reader)) * p.query_heads + of.query_head(p, reader);
      sites.write(tensors.site_sums + head * p.q_len * SITES, inverse, first_row, p.q_len, lane);
    };
    consume_all(mine, memory, p, mods, of, TermsOfRows(), tensors.tile_lists, factor, consumer, warp % 4, lane, write);
    write_rows(tensors.d_k + kv_head * p.q_len * HEAD_DIM, mine.head_sums, p.scale * inverse, 0, HEAD_DIM, first_row, p.q_len,
               lane);
    write_rows(tensors.d_v + kv_head * p.q_len * VALUE_DIM, mine.value_sums, 1.0f, 0, VALUE_DIM, first_row, p.q_len, lane);
  }
}
