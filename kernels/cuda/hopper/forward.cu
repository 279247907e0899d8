// forward.cu: attention forward on Hopper GPUs (sm_90a), after FlashAttention-3 (arXiv 2407.08608): a producer brings
// tiles by TMA, consumers multiply them by wgmma, and the softmax of one tile runs beside the product of the one before.
//
//   each block takes BQ query rows of one head; each of its consumers, a warpgroup, 64 of them
//   the producer, a warp: for each tile of keys that the masks leave                          Walk
//     brings K and V to a stage, and a word that says what is to be asked of the mask         memory.h
//   a consumer, for each word:
//     S = Q K^T is begun, then O = O + P V of the tile before                                 wgmma.h
//     S = mask(score_mod(scale S)); P = exp(S - max), while that product runs                 scoring.h, softmax.h
//     O = O * exp(old max - max)
//   out = O / sum of P; lse = max + log(sum)                                                  rows.h
#include "plan.h"
#include "../mod/mod.h"
#include "../attention/params.h"
#include "../attention/rows.h"
#include "../attention/scoring.h"
#include "../attention/softmax.h"
#include "../attention/walk.h"
#include "boxes.h"
#include "memory.h"
#include "special.h"
#include "wgmma.h"

typedef Walk<BQ, BK, BLOCKS> Tiles;

// q: [batch, query_heads, q_len, HEAD_DIM]; k: [kv_batches, kv_heads, kv_len, HEAD_DIM]; v: [.., VALUE_DIM]; row after row.
// maps: of each, 128 bytes, which say how TMA finds boxes of 64 columns in it (maps.cu).
struct Tensors {
  const uint8_t* maps;
  const T *q, *k, *v;
  const int* tile_lists;
  Results<T> results;
};

INLINE void produce(Memory& memory, const Tensors& tensors, const AttentionParams& p, const Mods& mods, int q_tile, int b,
                    int h, int lane, bool careful) {
  const int kv_batch = p.kv_batches == 1 ? 0 : b, kv_head = h / (p.query_heads / p.kv_heads);
  const Source q = source(tensors.maps, 0, tensors.q, p.query_heads, h, b, p.q_len, HEAD_DIM);
  const Source k = source(tensors.maps, 1, tensors.k, p.kv_heads, kv_head, kv_batch, p.kv_len, HEAD_DIM);
  const Source v = source(tensors.maps, 2, tensors.v, p.kv_heads, kv_head, kv_batch, p.kv_len, VALUE_DIM);
  if (lane == 0) acquire_map(q.map);
  load_rows<BQ, HEAD_DIM>(memory.queries, q, q_tile * BQ, &memory.has_queries, lane);
  if (lane == 0) acquire_map(k.map), acquire_map(v.map);

  Place place;
  place.b = b, place.h = h, place.lane = lane;
  place.of_block = {q_tile * BQ, smaller(p.q_len, (q_tile + 1) * BQ) - 1};
  place.of_warp = {0, -1};  // all consumers visit the same tiles
  Tiles walk(p, mods, place, tensors.tile_lists, q_tile);
  int brought = 0;  // the phase of that barrier
  for (Turn turn = {0, 0};; turn = turn.next()) {
    const KeyTile tile = walk.next();
    Stage& stage = memory.stages[turn.stage];
    wait_for(&memory.free_keys[turn.stage], turn.phase ^ 1);
    if (lane == 0) memory.words[turn.stage] = tile.exists ? Word::of(tile, p.kv_len).bits : -1;
    if (!tile.exists) {
      give_back(&memory.has_keys[turn.stage], lane);
      break;
    }
    load_rows<BK, HEAD_DIM>(stage.keys, k, tile.first, &memory.has_keys[turn.stage], lane);
    wait_for(&memory.free_values[turn.stage], turn.phase ^ 1);
    load_rows<BK, VALUE_DIM>(stage.values, v, tile.first, careful ? &memory.brought : &memory.has_values[turn.stage], lane);
    if (careful) {
      wait_for(&memory.brought, brought);
      brought ^= 1;
      replace_special_values(stage.values, memory.special_keys[turn.stage], lane);
      give_back(&memory.has_values[turn.stage], lane);
    }
    __syncwarp();
  }
}

// A consumer: 16 query rows of each of its warps. weights: P, as left factors of 16 keys each.
struct Consumer {
  Memory& memory;
  const AttentionParams& p;
  const Mods& mods;
  int b, h, number, first_row, lane;
  const uint8_t* states;  // of the blocks of this batch and head
  bool scaled;            // scores are scaled before the mods; without any, their scale goes to the exponents
  float exponent_scale, shrink[2];
  Sums scores[KEY_TILES], out[VALUE_TILES];
  uint weights[BK / 16][4];
  RowState state;

  INLINE void start() {
    scaled = HAS_SCORE_MOD || !(p.scale > 0.0f);
    exponent_scale = scaled ? LOG2_E : LOG2_E * p.scale;
    state.start();
    UNROLL
    for (int d = 0; d < VALUE_TILES; d++) out[d] = Sums();
  }
  // S = Q K^T
  INLINE void begin_scores(int stage) {
    const uint64_t queries = moved(by_rows(memory.queries), 64 * number * SLAB * sizeof(T));
    const uint64_t keys = by_rows(memory.stages[stage].keys);
    begin_products();
    multiply_rows<T, HEADS, BQ, BK>(scores, queries, keys);
    commit_products();
  }
  // O += P V
  INLINE void begin_values(int stage) {
    add_rows_of(out, weights, memory.stages[stage].values);
    commit_products();
  }
  // S -> P, as floats
  INLINE void weigh(Word word) {
    pin(scores);
    if (scaled) scale_scores(scores, p.scale);
    modify<BLOCKS>(scores, word.first_key(), word.state(), word.ragged(), states, p, mods, b, h, first_row, lane);
    update_rows(state, scores, shrink, exponent_scale);
  }
  INLINE void shrink_out() {
    pin(out);
    if (!lanes_that(shrink[0] != 1.0f || shrink[1] != 1.0f)) return;  // most of the time, after the first tiles
    UNROLL
    for (int d = 0; d < VALUE_TILES; d++) {
      UNROLL
      for (int i = 0; i < 4; i++) out[d].at[i] *= shrink[i / 2];
    }
  }
  INLINE void keep_weights() { keep_factors<T>(weights, scores); }
  INLINE void free_keys(Turn turn) { give_back(&memory.free_keys[turn.stage], lane); }
  INLINE void free_values(Turn turn) { give_back(&memory.free_values[turn.stage], lane); }
  INLINE void wait_for_values(Turn turn) { wait_for(&memory.has_values[turn.stage], turn.phase); }

  // Two consumers take turns: one multiplies keys while the other computes its weights.
  INLINE void take_turn() {
    if constexpr (CONSUMERS == 2) sync_named(1 + number, 2 * WARPGROUP);
  }
  INLINE void pass_turn() {
    if constexpr (CONSUMERS == 2) arrive_named(1 + (number ^ 1), 2 * WARPGROUP);
  }

  // All tiles: the values of each are multiplied beside the softmax of the next one.
  INLINE void attend() {
    Turn turn = {0, 0};
    Word word = word_of(memory, turn, lane);
    if (number == 1) pass_turn();
    if (!word.exists()) return;
    take_turn();
    begin_scores(turn.stage);
    pass_turn();
    wait_for_products<0>();
    free_keys(turn);
    weigh(word);
    keep_weights();
    Turn next = turn.next();
    word = word_of(memory, next, lane);
    while (word.exists()) {
      take_turn();
      begin_scores(next.stage);
      wait_for_values(turn);
      begin_values(turn.stage);
      pass_turn();
      wait_for_products<1>();
      free_keys(next);
      weigh(word);
      // ptxas would move the wait for that product above all of this, but for the loop that waits for the next keys.
      pin(scores);
      const Turn before = turn;
      turn = next;
      next = next.next();
      word = word_of(memory, next, lane);
      wait_for_products<0>();
      free_values(before);
      shrink_out();
      keep_weights();
    }
    wait_for_values(turn);
    begin_products();
    begin_values(turn.stage);
    wait_for_products<0>();
    pin(out);
  }

  // All tiles, one after the other: their special values apart. values: of this head.
  INLINE void attend_with_care(const T* values) {
    ROLLED
    for (Turn turn = {0, 0};; turn = turn.next()) {
      const Word word = word_of(memory, turn, lane);
      if (!word.exists()) return;
      begin_scores(turn.stage);
      wait_for_products<0>();
      free_keys(turn);
      weigh(word);
      shrink_out();
      keep_weights();
      wait_for_values(turn);
      begin_products();
      begin_values(turn.stage);
      wait_for_products<0>();
      pin(out);
      const T* rows = values + int64_t(word.first_key()) * VALUE_DIM;
      add_special_values(out, weights, memory.special_keys[turn.stage], rows, lane);
      free_values(turn);
    }
  }

  INLINE bool is_in_doubt() const {
    bool doubt = false;
    UNROLL
    for (int d = 0; d < VALUE_TILES; d++) {
      UNROLL
      for (int i = 0; i < 4; i++) doubt = doubt || out[d].at[i] != out[d].at[i];
    }
    return doubt;
  }
  INLINE void write(const Results<T>& results) {
    const int64_t head = int64_t(b) * p.query_heads + h;
    write_rows<VALUE_DIM>(results, out, state, p, head, first_row, 0, scaled ? 1.0f : p.scale, lane);
  }
};

// Whether some thread of the block doubts what came of its work; barriers then begin anew. For all threads.
INLINE bool is_doubted(Memory& memory, bool doubt) {
  constexpr int NAME = 1 + CONSUMERS;
  if constexpr (!LEAVES_OUT) return false;
  if (doubt) atomicOr(&memory.doubted, 1u);
  sync_named(NAME, THREADS);
  if (memory.doubted == 0) return false;
  if (threadIdx.x == 0) restart_barriers(memory);
  sync_named(NAME, THREADS);
  return true;
}

INLINE void attention_forward(const Tensors& tensors, const AttentionParams& p, const Mods& mods) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  Memory& memory = *(Memory*)bytes;
  // Long rows of a causal mask come first, of HEAD_GROUP heads together.
  const int tiles = (p.q_len + BQ - 1) / BQ, first_head = blockIdx.y * HEAD_GROUP;
  const int grouped = smaller(HEAD_GROUP, p.query_heads - first_head);
  if (blockIdx.x >= grouped * tiles) return;
  const int q_tile = tiles - 1 - blockIdx.x / grouped, b = blockIdx.z, h = first_head + blockIdx.x % grouped;
  const int lane = threadIdx.x % LANES;
  const int warp = __shfl_sync(EVERY_LANE, threadIdx.x / LANES, 0), warpgroup = warp / 4;  // so the compiler sees: uniform

  if (threadIdx.x == 0) {
    memory.doubted = 0;
    start_barriers(memory);
  }
  __syncthreads();
  if (warpgroup == 0) {
    give_registers<PRODUCER_REGISTERS>();
    bool careful = false;
    ROLLED
    for (;;) {
      if (warp == 0) produce(memory, tensors, p, mods, q_tile, b, h, lane, careful);
      if (careful || !is_doubted(memory, false)) break;
      careful = true;
    }
  } else {
    take_registers<CONSUMER_REGISTERS>();
    const int number = warpgroup - 1, first_row = q_tile * BQ + 64 * number + 16 * (warp % 4);
    Consumer mine = {memory, p, mods, b, h, number, first_row, lane};
    if constexpr (BLOCKS == CUT_TILES) {
      Place place;
      place.b = b, place.h = h, place.lane = lane;
      mine.states = Tiles(p, mods, place, tensors.tile_lists, q_tile).states;
    }
    mine.start();
    wait_for(&memory.has_queries, 0);
    mine.attend();
    if (is_doubted(memory, mine.is_in_doubt())) {
      const int64_t kv_head = int64_t(p.kv_batches == 1 ? 0 : b) * p.kv_heads + h / (p.query_heads / p.kv_heads);
      mine.start();
      wait_for(&memory.has_queries, 0);
      mine.attend_with_care(tensors.v + kv_head * p.kv_len * VALUE_DIM);
    }
    mine.write(tensors.results);
  }
}
