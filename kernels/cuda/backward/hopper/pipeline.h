// pipeline.h: a producer, a warp, that brings tiles of rows by TMA, and consumers, warpgroups, that multiply them.
//
// own rows: of q and d_out, or of k and v where keys are rows, 64 of each consumer. Those that pass by are of the others.
// `heads` are rows of q and k, `values` rows of v and d_out.
#pragma once
#include "plan.h"
#include "../../attention/walk.h"
#include "../../hopper/barriers.h"
#include "../../hopper/wgmma.h"
#include "../differentiate.h"
#include "../rows.h"
#include "../site_sums.h"
#include "../transposed.h"

static_assert(STAGES >= (DEFERRED ? 3 : 2), "a consumer waits for the next tile before it gives the last one back");

struct Stage {
  T heads[HEAD_SLABS][BK][SLAB];
  T values[VALUE_SLABS][BK][SLAB];
};
struct Memory {
  T heads[HEAD_SLABS][BQ][SLAB];
  T values[VALUE_SLABS][BQ][SLAB];
  Stage stages[STAGES];
  float terms[STAGES][TERMS * BK];
  uint64_t has_own, full[STAGES], free[STAGES];
  int words[STAGES], readers[STAGES];
  int again;  // some sum is not finite: all is to be done again, with care
};
// What passes by is wgmma's second factor, where a weight of 0 beside what is infinite or nan would be nan. With care,
// such values are replaced by 0 when the scores of their tile are there.
constexpr int EVERY_CONSUMER = CONSUMERS * WARPGROUP;
enum Named { CLEANING = 1, DONE = 2 };

// What the producer says of a tile: 8 * tile + 4 where some of its rows do not exist + its TileState; -1 after the last.
struct Word {
  int bits, reader;  // reader: the number of its head, of those that a key has
  INLINE bool exists() const { return bits >= 0; }
  INLINE Passing passing(const uint8_t* states) const {
    const bool masked = (HAS_MASK_MOD || BLOCKS == CUT_TILES) && (bits & 3) != NO_MASK;
    return {(bits >> 3) * BK, bits & 3, masked, (bits & 4) != 0, states};
  }
};

typedef TurnOf<STAGES> Turn;  // of the tile at hand

// Where a block's own rows, and those that pass by, are among all.
template <bool KEY_ROWS>
struct Heads {
  int own_tile, own_head, own_batch, sharing;

  INLINE int readers(const AttentionParams& p) const { return KEY_ROWS ? sharing * (p.query_heads / p.kv_heads) : 1; }
  // Batch and query head of a reader.
  INLINE int batch(const AttentionParams& p, int reader) const {
    return KEY_ROWS ? own_batch * sharing + reader / (p.query_heads / p.kv_heads) : own_batch;
  }
  INLINE int query_head(const AttentionParams& p, int reader) const {
    const int heads = p.query_heads / p.kv_heads;
    return KEY_ROWS ? own_head * heads + reader % heads : own_head;
  }
};

// A tensor that the producer brings rows of. map: its tensor map; where its elements begin inside 16 bytes TMA cannot
// take it, and a warp copies the rows: rare, and slow.
struct Source {
  const uint8_t* map;
  const T* data;
  bool aligned;
  int columns, heads, rows;

  INLINE int expected(int bytes) const { return aligned ? bytes : 0; }
  // SLABS of ROWS rows, from row `first` of a head on. All lanes; with TMA a barrier expects them.
  template <int SLABS, int ROWS>
  INLINE void load(T (*to)[ROWS][SLAB], uint64_t* barrier, int first, int head, int batch, int lane) const {
    if (!aligned || lane != 0) return;
    for (int s = 0; s < SLABS; s++) {
      for (int row = 0; row < ROWS; row += BOX) load_box(to[s][row], map, barrier, s * SLAB, first + row, head, batch);
    }
  }
  // The same before the barrier is told.
  template <int SLABS, int ROWS>
  INLINE void copy(T (*to)[ROWS][SLAB], int first, int head, int batch, int lane) const {
    if (aligned) return;
    const T* from = data + (int64_t(batch) * heads + head) * rows * columns;
    ROLLED
    for (int s = 0; s < SLABS; s++) copy_slab<T, ROWS>(to[s], from, rows, columns, first, s * SLAB, lane);
    show_writes();
  }
};
struct Sources {
  Source own_heads, own_values, heads, values;

  template <bool KEY_ROWS>
  INLINE void start(const uint8_t* maps, const T* q, const T* k, const T* v, const T* d_out, const AttentionParams& p) {
    const int q_len = KEY_ROWS ? p.kv_len : p.q_len, kv_len = KEY_ROWS ? p.q_len : p.kv_len;
    const Source of_q = {maps, q, is_aligned(maps, 0), HEAD_DIM, p.query_heads, q_len};
    const Source of_k = {maps + MAP_BYTES, k, is_aligned(maps, 1), HEAD_DIM, p.kv_heads, kv_len};
    const Source of_v = {maps + 2 * MAP_BYTES, v, is_aligned(maps, 2), VALUE_DIM, p.kv_heads, kv_len};
    const Source of_d_out = {maps + 3 * MAP_BYTES, d_out, is_aligned(maps, 3), VALUE_DIM, p.query_heads, q_len};
    own_heads = KEY_ROWS ? of_k : of_q, own_values = KEY_ROWS ? of_v : of_d_out;
    heads = KEY_ROWS ? of_q : of_k, values = KEY_ROWS ? of_d_out : of_v;
  }
};

// all_rows: query rows of all batches and heads; terms: theirs, where keys are rows. turn: of the stages, goes on.
template <bool KEY_ROWS, typename Asked>
INLINE void produce(Memory& memory, const Sources& from, const float* terms, int64_t all_rows, const int* tile_lists,
                    const AttentionParams& p, const Asked& mask, const Heads<KEY_ROWS>& of, Turn& turn, int lane) {
  ROLLED
  for (int reader = 0; reader < of.readers(p); reader++) {
    Place place;
    place.b = of.batch(p, reader), place.h = of.query_head(p, reader), place.lane = lane;
    place.of_block = {of.own_tile * BQ, smaller(p.q_len, (of.own_tile + 1) * BQ) - 1};
    place.of_warp = {0, -1};  // all consumers visit the same tiles
    const int head = KEY_ROWS ? place.h : place.h / (p.query_heads / p.kv_heads);
    const int batch = KEY_ROWS ? place.b : p.kv_batches == 1 ? 0 : place.b;
    Walk<BQ, BK, BLOCKS, Asked> walk(p, mask, place, tile_lists, of.own_tile);
    for (;; turn = turn.next()) {
      const KeyTile tile = walk.next();
      if (!tile.exists) break;
      Stage& stage = memory.stages[turn.stage];
      uint64_t* full = &memory.full[turn.stage];
      wait_for(&memory.free[turn.stage], turn.phase ^ 1);
      from.heads.template copy<HEAD_SLABS>(stage.heads, tile.first, head, batch, lane);
      from.values.template copy<VALUE_SLABS>(stage.values, tile.first, head, batch, lane);
      __syncwarp();
      if (lane == 0) {
        memory.words[turn.stage] = tile.first / BK * 8 + (tile.first + BK > p.kv_len ? 4 : 0) + tile.state;
        memory.readers[turn.stage] = reader;
        arrive_and_expect(full, from.heads.expected(sizeof(stage.heads)) + from.values.expected(sizeof(stage.values)));
      }
      from.heads.template load<HEAD_SLABS>(stage.heads, full, tile.first, head, batch, lane);
      from.values.template load<VALUE_SLABS>(stage.values, full, tile.first, head, batch, lane);
      if constexpr (KEY_ROWS) {
        const float* row_terms = terms + (int64_t(place.b) * p.query_heads + place.h) * p.kv_len;
        UNROLL
        for (int i = 0; i < TERMS * BK / LANES; i++) {
          const int at = i * LANES + lane, row = tile.first + at % BK;
          const bool exists = row < p.kv_len;
          ptx::cp_async_4(ptx::shared_address(&memory.terms[turn.stage][at]), row_terms + at / BK * all_rows + (exists ? row : 0),
                          exists ? 4 : 0);
        }
        arrive_after_copies(full);
      }
      __syncwarp();
    }
  }
  wait_for(&memory.free[turn.stage], turn.phase ^ 1);
  if (lane == 0) {
    memory.words[turn.stage] = -1;
    memory.readers[turn.stage] = 0;
    arrive(&memory.full[turn.stage]);
  }
  if constexpr (KEY_ROWS) arrive(&memory.full[turn.stage]);
  __syncwarp();
  turn = turn.next();
}

// The producer's whole work.
template <bool KEY_ROWS, typename Asked>
INLINE void produce_all(Memory& memory, const Sources& from, const float* terms, int64_t all_rows, const int* tile_lists,
                        const AttentionParams& p, const Asked& mask, const Heads<KEY_ROWS>& of, int lane) {
  const int first = of.own_tile * BQ;
  from.own_heads.template copy<HEAD_SLABS>(memory.heads, first, of.own_head, of.own_batch, lane);
  from.own_values.template copy<VALUE_SLABS>(memory.values, first, of.own_head, of.own_batch, lane);
  __syncwarp();
  if (lane == 0) {
    acquire_map(from.own_heads.map);
    acquire_map(from.own_values.map);
    acquire_map(from.heads.map);
    acquire_map(from.values.map);
    const int bytes = from.own_heads.expected(sizeof(memory.heads)) + from.own_values.expected(sizeof(memory.values));
    arrive_and_expect(&memory.has_own, bytes);
  }
  from.own_heads.template load<HEAD_SLABS>(memory.heads, &memory.has_own, first, of.own_head, of.own_batch, lane);
  from.own_values.template load<VALUE_SLABS>(memory.values, &memory.has_own, first, of.own_head, of.own_batch, lane);
  __syncwarp();
  Turn turn = {0, 0};
  ROLLED
  for (bool again = true; again;) {
    produce<KEY_ROWS>(memory, from, terms, all_rows, tile_lists, p, mask, of, turn, lane);
    if (!MAY_LEAVE_OUT) return;
    sync_named(DONE, EVERY_CONSUMER + LANES);
    again = __shfl_sync(EVERY_LANE, lane == 0 ? memory.again : 0, 0) == 1;
    sync_named(DONE, EVERY_CONSUMER + LANES);
  }
}

// What one consumer holds. weights, changes: P and dS, as left factors of 16 rows that pass by.
template <bool KEY_ROWS>
struct Consumer {
  Sums scores[1][OTHERS], slopes[1][OTHERS], head_sums[1][HEAD_SUMS], value_sums[1][KEY_ROWS ? VALUE_SUMS : 1];
  uint weights[KEY_ROWS ? BK / 16 : 1][4], changes[BK / 16][4];
  uint64_t own_heads, own_values;

  // S and dP.
  INLINE void begin_products_of(const Stage& stage) {
    multiply_rows<T, HEADS, BQ, BK>(scores[0], own_heads, by_rows(stage.heads));
    multiply_rows<T, VALUES, BQ, BK>(slopes[0], own_values, by_rows(stage.values));
    commit_products();
  }

  // dQ, or dK and dV.
  INLINE void begin_sums(const Stage& stage) {
    if constexpr (KEY_ROWS) add_rows_of(value_sums[0], weights, stage.values);
    add_rows_of(head_sums[0], changes, stage.heads);
    commit_products();
  }

  INLINE void keep() {
    if constexpr (KEY_ROWS) keep_factors<T>(weights, scores[0]);
    keep_factors<T>(changes, slopes[0]);
  }
  INLINE void pin_sums() {
    pin(head_sums[0]);
    if constexpr (KEY_ROWS) pin(value_sums[0]);
  }
};

// Zeros for what is infinite or nan in rows that pass by, a share for each thread of the consumers.
template <int SIZE>
INLINE void clean(T* rows, int thread) {
  ROLLED
  for (int at = thread; at < SIZE / 2; at += EVERY_CONSUMER) {
    uint& pair = ((uint*)rows)[at];
    const uint low = pair & 0xffffu, high = pair & 0xffff0000u;
    if (is_special<T>(pair)) pair = (is_special<T>(low) ? 0u : low) | (is_special<T>(high) ? 0u : high);
  }
}

// The work of a consumer. CAREFUL: rare, so one text serves for all tiles, and nothing runs beside anything. turn: of the
// stages, goes on. terms: of own rows; those of others are in the stages. write: (sites, reader), for the
// sums of a reader.
template <bool CAREFUL, bool KEY_ROWS, typename Write>
INLINE void consume(Consumer<KEY_ROWS>& mine, Memory& memory, const AttentionParams& p, const GradientMods& mods,
                    const Heads<KEY_ROWS>& of, const TermsOfRows& own_terms, const int* tile_lists, float factor,
                    int consumer, int warp, int lane, const Write& write, Turn& turn) {
  const int first_row = of.own_tile * BQ + 64 * consumer + 16 * warp;
  clear(mine.head_sums);
  if constexpr (KEY_ROWS) clear(mine.value_sums);
  SiteSums sites;
  sites.start();
  int reader = 0;
  Place place;
  place.lane = lane;
  const uint8_t* states = nullptr;

  const auto turn_to = [&](int next) {  // the head of the tiles that follow
    reader = next;
    place.b = of.batch(p, reader), place.h = of.query_head(p, reader);
    if constexpr (BLOCKS == CUT_TILES) states = Walk<BQ, BK, BLOCKS>(p, mods, place, tile_lists, of.own_tile).states;
  };
  const auto write_to = [&](int end) {  // the sums of this reader, and of those before `end`, who have no tile
    if constexpr (SITES > 0) {
      for (int r = reader; r < end; r++) {
        write(sites, r);
        sites.start();
      }
    }
  };
  const auto word_of = [&](Turn turn) {
    wait_for(&memory.full[turn.stage], turn.phase);
    Word word;
    word.bits = __shfl_sync(EVERY_LANE, lane == 0 ? memory.words[turn.stage] : 0, 0);
    word.reader = KEY_ROWS ? __shfl_sync(EVERY_LANE, lane == 0 ? memory.readers[turn.stage] : 0, 0) : 0;
    return word;
  };
  const auto release = [&](Turn turn) {
    __syncwarp();
    if (lane == 0) arrive(&memory.free[turn.stage]);
  };
  const auto differentiated = [&](const Passing& passing, const auto& terms) {
    constexpr bool K = KEY_ROWS;
    if constexpr (CAREFUL) {
      differentiate<K, true, true>(mine.scores, mine.slopes, passing, p, mods, place, first_row, terms, factor, sites);
    } else {
      differentiate<K>(mine.scores, mine.slopes, passing, p, mods, place, first_row, terms, factor, sites);
    }
  };
  const auto weigh = [&](Word word, Turn turn) {
    if (KEY_ROWS && word.reader != reader) {
      write_to(word.reader);
      turn_to(word.reader);
    }
    const Passing passing = word.passing(states);
    if constexpr (KEY_ROWS) {
      const TermsOfOthers terms = {memory.terms[turn.stage], lane};
      differentiated(passing, terms);
      if constexpr (CAREFUL) spread_specials(mine.scores, terms);
    } else {
      differentiated(passing, own_terms);
    }
  };

  const auto clean_stage = [&](Turn turn) {  // the scores of all consumers are there
    Stage& stage = memory.stages[turn.stage];
    const int thread = consumer * WARPGROUP + warp * LANES + lane;
    sync_named(CLEANING, EVERY_CONSUMER);
    clean<sizeof(stage.heads) / sizeof(T)>(&stage.heads[0][0][0], thread);
    if constexpr (KEY_ROWS) clean<sizeof(stage.values) / sizeof(T)>(&stage.values[0][0][0], thread);
    show_writes();
    sync_named(CLEANING, EVERY_CONSUMER);
  };

  turn_to(0);
  wait_for(&memory.has_own, 0);
  mine.own_heads = moved(by_rows(memory.heads), 64 * consumer * SLAB * int(sizeof(T)));
  mine.own_values = moved(by_rows(memory.values), 64 * consumer * SLAB * int(sizeof(T)));
  Word word = word_of(turn);
  if constexpr (DEFERRED && !CAREFUL) {
    if (word.exists()) {
      begin_products();
      mine.begin_products_of(memory.stages[turn.stage]);
      wait_for_products<0>();
      pin(mine.scores[0]);
      pin(mine.slopes[0]);
      weigh(word, turn);
      mine.keep();
      Turn next = turn.next();
      word = word_of(next);
      while (word.exists()) {
        begin_products();
        mine.begin_products_of(memory.stages[next.stage]);
        mine.begin_sums(memory.stages[turn.stage]);
        wait_for_products<1>();
        pin(mine.scores[0]);
        pin(mine.slopes[0]);
        weigh(word, next);
        // ptxas would move the wait for those sums above all of this, but for the loop that waits for the next tile.
        pin(mine.scores[0]);
        pin(mine.slopes[0]);
        const Turn before = turn;
        turn = next;
        next = next.next();
        word = word_of(next);
        wait_for_products<0>();
        mine.pin_sums();
        release(before);
        mine.keep();
      }
      begin_products();
      mine.begin_sums(memory.stages[turn.stage]);
      wait_for_products<0>();
      mine.pin_sums();
      release(turn);
      turn = next;
    }
  } else {
    while (word.exists()) {
      begin_products();
      mine.begin_products_of(memory.stages[turn.stage]);
      wait_for_products<0>();
      pin(mine.scores[0]);
      pin(mine.slopes[0]);
      if constexpr (CAREFUL) clean_stage(turn);
      weigh(word, turn);
      mine.keep();
      begin_products();
      mine.begin_sums(memory.stages[turn.stage]);
      wait_for_products<0>();
      mine.pin_sums();
      release(turn);
      turn = turn.next();
      word = word_of(turn);
    }
  }
  write_to(of.readers(p));
  release(turn);  // the stage of the last word
  turn = turn.next();
}

template <int N>
INLINE bool are_finite(const Sums (&sums)[1][N]) {
  float sum = 0.0f;
  UNROLL
  for (int d = 0; d < N; d++) {
    UNROLL
    for (int i = 0; i < 4; i++) sum += 0.0f * sums[0][d].at[i];
  }
  return sum == 0.0f;
}

// A consumer's whole work.
template <bool KEY_ROWS, typename Write>
INLINE void consume_all(Consumer<KEY_ROWS>& mine, Memory& memory, const AttentionParams& p, const GradientMods& mods,
                        const Heads<KEY_ROWS>& of, const TermsOfRows& own_terms, const int* tile_lists, float factor,
                        int consumer, int warp, int lane, const Write& write) {
  Turn turn = {0, 0};
  consume<false>(mine, memory, p, mods, of, own_terms, tile_lists, factor, consumer, warp, lane, write, turn);
  if constexpr (MAY_LEAVE_OUT) {
    bool finite = are_finite(mine.head_sums);
    if constexpr (KEY_ROWS) finite = finite && are_finite(mine.value_sums);
    if (!finite) atomicOr(&memory.again, 1);
    sync_named(DONE, EVERY_CONSUMER + LANES);
    const bool again = memory.again == 1;
    sync_named(DONE, EVERY_CONSUMER + LANES);
    if (!again) return;
    if (consumer == 0 && warp == 0 && lane == 0) memory.again = 2;
    consume<true>(mine, memory, p, mods, of, own_terms, tile_lists, factor, consumer, warp, lane, write, turn);
    sync_named(DONE, EVERY_CONSUMER + LANES);
    sync_named(DONE, EVERY_CONSUMER + LANES);
  }
}

// Before producer and consumers part.
template <bool KEY_ROWS>
INLINE void start_pipeline(Memory& memory) {
  if (threadIdx.x == 0) {
    memory.again = 0;
    start_barrier(&memory.has_own, 1);
    for (int s = 0; s < STAGES; s++) {
      start_barrier(&memory.full[s], KEY_ROWS ? 1 + LANES : 1);  // each lane brings terms too
      start_barrier(&memory.free[s], 4 * CONSUMERS);             // a lane of each warp
    }
    show_barriers();
  }
  __syncthreads();
}
