// forward.cu: attention forward on Hopper GPUs (sm_90a), after FlashAttention-3 (arXiv 2407.08608): a producer brings
// tiles by TMA, consumers multiply them by wgmma, and the softmax of one tile runs beside the product of the one before.
//
//   each block takes BQ query rows of one head; each of its consumers, a warpgroup, 64 of them
//   the producer, a warp: for each tile of keys that the masks leave                          Walk
//     brings K and V to a stage, and a word that says what is to be asked of the mask         Word
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
#include "barriers.h"
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

// What the producer says of a tile: 8 * tile + 4 where some of its keys do not exist + its TileState; -1 after the last.
struct Word {
  int bits;
  INLINE bool exists() const { return bits >= 0; }
  INLINE int first_key() const { return (bits >> 3) * BK; }
  INLINE bool ragged() const { return bits & 4; }
  INLINE int state() const { return bits & 3; }
};

struct Stage {
  T keys[HEAD_SLABS][BK][SLAB];
  T values[VALUE_SLABS][BK][SLAB];
};
struct Memory {
  T queries[HEAD_SLABS][BQ][SLAB];
  Stage stages[STAGES];
  uint64_t has_queries, has_keys[STAGES], has_values[STAGES], free_keys[STAGES], free_values[STAGES];
  int words[STAGES];
};

// The stage of the tile at hand, and the phase of its barriers.
struct Turn {
  int stage, phase;
  INLINE Turn next() const {
    const bool last = stage == STAGES - 1;
    return {last ? 0 : stage + 1, last ? phase ^ 1 : phase};
  }
};

INLINE void produce(Memory& memory, const Tensors& tensors, const AttentionParams& p, const Mods& mods, int q_tile, int b,
                    int h, int lane) {
  constexpr int MAP = 128;
  const uint8_t *q = tensors.maps, *k = q + MAP, *v = k + MAP;
  const int kv_batch = p.kv_batches == 1 ? 0 : b, kv_head = h / (p.query_heads / p.kv_heads);
  if (lane == 0) {
    acquire_map(q);
    arrive_and_expect(&memory.has_queries, sizeof(memory.queries));
    for (int s = 0; s < HEAD_SLABS; s++) {
      load_box(memory.queries[s], q, &memory.has_queries, s * SLAB, q_tile * BQ, h, b);
    }
    acquire_map(k);
    acquire_map(v);
  }
  __syncwarp();
  Place place;
  place.b = b, place.h = h, place.lane = lane;
  place.of_block = {q_tile * BQ, smaller(p.q_len, (q_tile + 1) * BQ) - 1};
  place.of_warp = {0, -1};  // all consumers visit the same tiles
  Tiles walk(p, mods, place, tensors.tile_lists, q_tile);
  for (Turn turn = {0, 0};; turn = turn.next()) {
    const KeyTile tile = walk.next();
    Stage& stage = memory.stages[turn.stage];
    uint64_t *has_keys = &memory.has_keys[turn.stage], *has_values = &memory.has_values[turn.stage];
    wait_for(&memory.free_keys[turn.stage], turn.phase ^ 1);
    if (lane == 0) {
      const int ragged = tile.first + BK > p.kv_len ? 4 : 0;
      memory.words[turn.stage] = tile.exists ? tile.first / BK * 8 + ragged + tile.state : -1;
      if (tile.exists) {
        arrive_and_expect(has_keys, sizeof(stage.keys));
        for (int s = 0; s < HEAD_SLABS; s++) load_box(stage.keys[s], k, has_keys, s * SLAB, tile.first, kv_head, kv_batch);
      } else {
        arrive(has_keys);
      }
    }
    if (!tile.exists) break;
    wait_for(&memory.free_values[turn.stage], turn.phase ^ 1);
    if (lane == 0) {
      arrive_and_expect(has_values, sizeof(stage.values));
      for (int s = 0; s < VALUE_SLABS; s++) load_box(stage.values[s], v, has_values, s * SLAB, tile.first, kv_head, kv_batch);
    }
    __syncwarp();
  }
}

// What one consumer holds. weights: P, as left factors of 16 keys each.
struct Consumer {
  Sums scores[KEY_TILES], out[VALUE_TILES];
  uint weights[BK / 16][4];
  RowState state;

  INLINE void begin_scores(uint64_t queries, const Stage& stage) {
    const uint64_t keys = by_rows(stage.keys);
    UNROLL
    for (int d = 0; d < HEADS; d += 16) {
      const int inside = d % SLAB * sizeof(T), slab = d / SLAB;
      Warpgroup<T, BK>::multiply_by_rows(scores, moved(queries, slab * BQ * SLAB * sizeof(T) + inside),
                                         moved(keys, slab * BK * SLAB * sizeof(T) + inside), d != 0);
    }
    commit_products();
  }
  INLINE void begin_values(const Stage& stage) {
    constexpr int SLAB_BYTES = BK * SLAB * sizeof(T), WIDE = VALUES / 128 * 128;
    const uint64_t values = by_columns(stage.values, SLAB_BYTES);
    UNROLL
    for (int j = 0; j < BK / 16; j++) {
      UNROLL
      for (int d = 0; d < WIDE; d += 128) {
        Warpgroup<T, 128>::multiply_by_columns(out + d / 8, weights[j], moved(values, d / SLAB * SLAB_BYTES + 16 * j * SLAB * int(sizeof(T))));
      }
      if constexpr (WIDE < VALUES) {
        Warpgroup<T, 64>::multiply_by_columns(out + WIDE / 8, weights[j], moved(values, WIDE / SLAB * SLAB_BYTES + 16 * j * SLAB * int(sizeof(T))));
      }
    }
    commit_products();
  }
  INLINE void keep_weights() {
    UNROLL
    for (int j = 0; j < BK / 16; j++) {
      typename Step<T>::Left left;
      Step<T>::left_of(left, scores + 2 * j);
      UNROLL
      for (int i = 0; i < 4; i++) weights[j][i] = left.at[i];
    }
  }
};

// Consumers take turns: one multiplies keys while the other computes its weights.
struct Turns {
  int of;
  INLINE void take() const {
    if constexpr (CONSUMERS == 2) sync_named(1 + of, 2 * WARPGROUP);
  }
  INLINE void pass() const {
    if constexpr (CONSUMERS == 2) arrive_named(1 + (of ^ 1), 2 * WARPGROUP);
  }
};

INLINE void consume(Memory& memory, const Tensors& tensors, const AttentionParams& p, const Mods& mods, int q_tile, int b,
                    int h, int consumer, int warp, int lane) {
  const int first_row = q_tile * BQ + 64 * consumer + 16 * warp;
  const bool scaled = HAS_SCORE_MOD || !(p.scale > 0.0f);
  const float exponent_scale = scaled ? LOG2_E : LOG2_E * p.scale;
  const uint8_t* states = nullptr;
  if constexpr (BLOCKS == CUT_TILES) {
    Place place;
    place.b = b, place.h = h, place.lane = lane;
    states = Tiles(p, mods, place, tensors.tile_lists, q_tile).states;
  }
  Consumer mine;
  UNROLL
  for (int d = 0; d < VALUE_TILES; d++) mine.out[d] = Sums();
  mine.state.start();
  float shrink[2];

  const auto word_of = [&](Turn turn) {
    wait_for(&memory.has_keys[turn.stage], turn.phase);
    Word word;
    word.bits = __shfl_sync(EVERY_LANE, lane == 0 ? memory.words[turn.stage] : 0, 0);
    return word;
  };
  const auto released = [&](uint64_t* barrier) {
    if (lane == 0) arrive(barrier);
  };
  const auto weigh = [&](Word word) {
    if (scaled) scale_scores(mine.scores, p.scale);
    if (word.ragged()) {
      modify<true, true, BLOCKS>(mine.scores, word.first_key(), word.state(), states, p, mods, b, h, first_row, lane);
    } else if (word.state() != NO_MASK) {
      modify<true, false, BLOCKS>(mine.scores, word.first_key(), word.state(), states, p, mods, b, h, first_row, lane);
    } else if constexpr (HAS_SCORE_MOD) {
      modify<false, false, BLOCKS>(mine.scores, word.first_key(), NO_MASK, states, p, mods, b, h, first_row, lane);
    }
    update_rows(mine.state, mine.scores, shrink, exponent_scale);
  };

  const Turns turns = {consumer};
  if (consumer == 1) turns.pass();
  wait_for(&memory.has_queries, 0);
  const uint64_t queries = moved(by_rows(memory.queries), 64 * consumer * SLAB * sizeof(T));
  Turn turn = {0, 0};
  Word word = word_of(turn);
  if (word.exists()) {
    turns.take();
    begin_products();
    mine.begin_scores(queries, memory.stages[turn.stage]);
    turns.pass();
    wait_for_products<0>();
    pin(mine.scores);
    released(&memory.free_keys[turn.stage]);
    weigh(word);
    mine.keep_weights();
    Turn next = turn.next();
    word = word_of(next);
    while (word.exists()) {
      turns.take();
      begin_products();
      mine.begin_scores(queries, memory.stages[next.stage]);
      wait_for(&memory.has_values[turn.stage], turn.phase);
      mine.begin_values(memory.stages[turn.stage]);
      turns.pass();
      wait_for_products<1>();
      pin(mine.scores);
      released(&memory.free_keys[next.stage]);
      weigh(word);
      // ptxas would move the wait for that product above all of this, but for the loop that waits for the next keys.
      pin(mine.scores);
      const Turn before = turn;
      turn = next;
      next = next.next();
      word = word_of(next);
      wait_for_products<0>();
      pin(mine.out);
      released(&memory.free_values[before.stage]);
      if (lanes_that(shrink[0] != 1.0f || shrink[1] != 1.0f)) {  // rare after the first tiles of a row
        UNROLL
        for (int d = 0; d < VALUE_TILES; d++) {
          UNROLL
          for (int i = 0; i < 4; i++) mine.out[d].at[i] *= shrink[i / 2];
        }
      }
      mine.keep_weights();
    }
    begin_products();
    wait_for(&memory.has_values[turn.stage], turn.phase);
    mine.begin_values(memory.stages[turn.stage]);
    wait_for_products<0>();
    pin(mine.out);
  }
  const int64_t head = int64_t(b) * p.query_heads + h;
  write_rows<VALUE_DIM>(tensors.results, mine.out, mine.state, p, head, first_row, 0, scaled ? 1.0f : p.scale, lane);
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
    start_barrier(&memory.has_queries, 1);
    for (int s = 0; s < STAGES; s++) {
      start_barrier(&memory.has_keys[s], 1);
      start_barrier(&memory.has_values[s], 1);
      start_barrier(&memory.free_keys[s], 4 * CONSUMERS);  // a lane of each warp
      start_barrier(&memory.free_values[s], 4 * CONSUMERS);
    }
    show_barriers();
  }
  __syncthreads();
  if (warpgroup == 0) {
    give_registers<PRODUCER_REGISTERS>();
    if (warp == 0) produce(memory, tensors, p, mods, q_tile, b, h, lane);
  } else {
    take_registers<CONSUMER_REGISTERS>();
    consume(memory, tensors, p, mods, q_tile, b, h, warpgroup - 1, warp % 4, lane);
  }
}
