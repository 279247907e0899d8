// query.cu: gradients of queries on Hopper GPUs (sm_90a): backward/query.cu with wgmma and TMA. dQ = dQ + dS K of one tile
// runs beside the products of the next.
#include "plan.h"
#include "pipeline.h"

// maps: of q, k, v and d_out, which say how TMA finds boxes of 64 rows and columns in them (maps.cu). The rest is as in
// backward/query.cu.
struct Tensors {
  const uint8_t* maps;
  const T *q, *k, *v, *d_out;
  const float *terms, *factor;
  const int* tile_lists;
  T* d_q;
  float* site_sums;
};

INLINE void backward_query(const Tensors& tensors, const AttentionParams& p, const GradientMods& mods) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  Memory& memory = *(Memory*)bytes;
  // Long rows of a causal mask come first, of HEAD_GROUP heads together.
  const int tiles = (p.q_len + BQ - 1) / BQ, first_head = blockIdx.y * HEAD_GROUP;
  const int grouped = smaller(HEAD_GROUP, p.query_heads - first_head);
  if (blockIdx.x >= grouped * tiles) return;
  const Heads<false> of = {tiles - 1 - int(blockIdx.x) / grouped, first_head + int(blockIdx.x) % grouped, int(blockIdx.z), 1};
  const int lane = threadIdx.x % LANES;
  const int warp = __shfl_sync(EVERY_LANE, threadIdx.x / LANES, 0), warpgroup = warp / 4;  // so the compiler sees: uniform
  const int64_t all_rows = int64_t(gridDim.z) * p.query_heads * p.q_len;
  start_pipeline<false>(memory);
  if (warpgroup == 0) {
    give_registers<PRODUCER_REGISTERS>();
    if (warp == 0) {
      Sources from;
      from.start<false>(tensors.maps, tensors.q, tensors.k, tensors.v, tensors.d_out, p);
      produce_all<false>(memory, from, nullptr, all_rows, tensors.tile_lists, p, (const Mods&)mods, of, lane);
    }
  } else {
    take_registers<CONSUMER_REGISTERS>();
    const int consumer = warpgroup - 1, first_row = of.own_tile * BQ + 64 * consumer + 16 * (warp % 4);
    const int64_t head = int64_t(of.own_batch) * p.query_heads + of.own_head;
    const float factor = tensors.factor[0], inverse = __fdiv_rn(1.0f, factor);
    TermsOfRows terms;
    terms.start(tensors.terms + head * p.q_len, all_rows, first_row, p.q_len, lane);
    Consumer<false> mine;
    const auto write = [&](const SiteSums& sites, int reader) {
      sites.write(tensors.site_sums + head * p.q_len * SITES, inverse, first_row, p.q_len, lane);
    };
    consume_all(mine, memory, p, mods, of, terms, tensors.tile_lists, factor, consumer, warp % 4, lane, write);
    write_rows(tensors.d_q + head * p.q_len * HEAD_DIM, mine.head_sums, p.scale * inverse, 0, HEAD_DIM, first_row, p.q_len,
               lane);
  }
}
