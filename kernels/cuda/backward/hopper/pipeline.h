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
};

// What the producer says of a tile: 8 * tile + 4 where some of its rows do not exist + its TileState; -1 after the last.
struct Word {
  int bits, reader;  // reader: the number of its head, of those that a key has
  INLINE bool exists() const { return bits >= 0; }
  INLINE Passing passing(const uint8_t* states) const {
    return {(bits >> 3) * BK, bits & 3, (bits & 7) != NO_MASK, states};
  }
};

// The stage of the tile at hand, and the phase of its barriers.
struct Turn {
  int stage, phase;
  INLINE Turn next() const {
    const bool last = stage == STAGES - 1;
    return {last ? 0 : stage + 1, last ? phase ^ 1 : phase};
  }
};

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

// all_rows: query rows of all batches and heads; terms: theirs, where keys are rows.
template <bool KEY_ROWS, typename Asked>
INLINE void produce(Memory& memory, const uint8_t* maps, const float* terms, int64_t all_rows, const int* tile_lists,
                    const AttentionParams& p, const Asked& mask, const Heads<KEY_ROWS>& of, int lane) {
  constexpr int MAP = 128;
  const uint8_t *q = maps, *k = q + MAP, *v = k + MAP, *d_out = v + MAP;
  const uint8_t *own_heads = KEY_ROWS ? k : q, *own_values = KEY_ROWS ? v : d_out;
  const uint8_t *heads = KEY_ROWS ? q : k, *values = KEY_ROWS ? d_out : v;
  if (lane == 0) {
    for (int map = 0; map < 4; map++) acquire_map(maps + map * MAP);
    arrive_and_expect(&memory.has_own, sizeof(memory.heads) + sizeof(memory.values));
    for (int row = 0; row < BQ; row += BOX) {
      for (int s = 0; s < HEAD_SLABS; s++)
        load_box(memory.heads[s][row], own_heads, &memory.has_own, s * SLAB, of.own_tile * BQ + row, of.own_head, of.own_batch);
      for (int s = 0; s < VALUE_SLABS; s++)
        load_box(memory.values[s][row], own_values, &memory.has_own, s * SLAB, of.own_tile * BQ + row, of.own_head, of.own_batch);
    }
  }
  __syncwarp();
  Turn turn = {0, 0};
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
      if (lane == 0) {
        memory.words[turn.stage] = tile.first / BK * 8 + (tile.first + BK > p.kv_len ? 4 : 0) + tile.state;
        memory.readers[turn.stage] = reader;
        arrive_and_expect(full, sizeof(stage.heads) + sizeof(stage.values));
        for (int s = 0; s < HEAD_SLABS; s++) load_box(stage.heads[s], heads, full, s * SLAB, tile.first, head, batch);
        for (int s = 0; s < VALUE_SLABS; s++) load_box(stage.values[s], values, full, s * SLAB, tile.first, head, batch);
      }
      if constexpr (KEY_ROWS) {
        const float* from = terms + (int64_t(place.b) * p.query_heads + place.h) * p.kv_len;
        UNROLL
        for (int i = 0; i < TERMS * BK / LANES; i++) {
          const int at = i * LANES + lane, row = tile.first + at % BK;
          const bool exists = row < p.kv_len;
          ptx::cp_async_4(ptx::shared_address(&memory.terms[turn.stage][at]), from + at / BK * all_rows + (exists ? row : 0),
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
    arrive(&memory.full[turn.stage]);
  }
  if constexpr (KEY_ROWS) arrive(&memory.full[turn.stage]);
}

// What one consumer holds. weights, changes: P and dS, as left factors of 16 rows that pass by.
template <bool KEY_ROWS>
struct Consumer {
  Sums scores[1][OTHERS], slopes[1][OTHERS], head_sums[1][HEAD_SUMS], value_sums[1][KEY_ROWS ? VALUE_SUMS : 1];
  uint weights[KEY_ROWS ? BK / 16 : 1][4], changes[BK / 16][4];
  uint64_t own_heads, own_values;

  // S and dP.
  INLINE void begin_products_of(const Stage& stage) {
    begin_product<HEADS>(scores[0], own_heads, by_rows(stage.heads));
    begin_product<VALUES>(slopes[0], own_values, by_rows(stage.values));
    commit_products();
  }
  template <int COLUMNS>
  static INLINE void begin_product(Sums* sums, uint64_t own, uint64_t others) {
    UNROLL
    for (int d = 0; d < COLUMNS; d += 16) {
      const int inside = d % SLAB * int(sizeof(T)), slab = d / SLAB;
      Warpgroup<T, BK>::multiply_by_rows(sums, moved(own, slab * BQ * SLAB * int(sizeof(T)) + inside),
                                         moved(others, slab * BK * SLAB * int(sizeof(T)) + inside), d != 0);
    }
  }

  // dQ, or dK and dV.
  INLINE void begin_sums(const Stage& stage) {
    if constexpr (KEY_ROWS) begin_sum<VALUE_SLABS>(value_sums[0], weights, &stage.values[0][0][0]);
    begin_sum<HEAD_SLABS>(head_sums[0], changes, &stage.heads[0][0][0]);
    commit_products();
  }
  template <int SLABS, int PARTS>
  static INLINE void begin_sum(Sums* sums, const uint (&factors)[PARTS][4], const T* rows) {
    constexpr int SLAB_BYTES = BK * SLAB * int(sizeof(T)), ROWS_BYTES = 16 * SLAB * int(sizeof(T));
    const uint64_t others = by_columns(rows, SLAB_BYTES);
    UNROLL
    for (int j = 0; j < BK / 16; j++) {
      UNROLL
      for (int s = 0; s + 1 < SLABS; s += 2) {
        Warpgroup<T, 128>::multiply_by_columns(sums + s * SLAB / 8, factors[j], moved(others, s * SLAB_BYTES + j * ROWS_BYTES));
      }
      if constexpr (SLABS % 2 == 1) {
        Warpgroup<T, 64>::multiply_by_columns(sums + (SLABS - 1) * SLAB / 8, factors[j],
                                              moved(others, (SLABS - 1) * SLAB_BYTES + j * ROWS_BYTES));
      }
    }
  }

  INLINE void keep_factors() {
    if constexpr (KEY_ROWS) keep(weights, scores[0]);
    keep(changes, slopes[0]);
  }
  template <int PARTS>
  static INLINE void keep(uint (&factors)[PARTS][4], const Sums (&sums)[OTHERS]) {
    UNROLL
    for (int j = 0; j < BK / 16; j++) {
      typename Step<T>::Left left;
      Step<T>::left_of(left, sums + 2 * j);
      UNROLL
      for (int i = 0; i < 4; i++) factors[j][i] = left.at[i];
    }
  }
  INLINE void pin_sums() {
    pin(head_sums[0]);
    if constexpr (KEY_ROWS) pin(value_sums[0]);
  }
};

// The whole work of a consumer. terms: of own rows; those of others are in the stages. write: (sites, reader), for the
// sums of a reader.
template <bool KEY_ROWS, typename Write>
INLINE void consume(Consumer<KEY_ROWS>& mine, Memory& memory, const AttentionParams& p, const GradientMods& mods,
                    const Heads<KEY_ROWS>& of, const TermsOfRows& own_terms, const int* tile_lists, float factor,
                    int consumer, int warp, int lane, const Write& write) {
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
  const auto weigh = [&](Word word, Turn turn) {
    if (KEY_ROWS && word.reader != reader) {
      write_to(word.reader);
      turn_to(word.reader);
    }
    const Passing passing = word.passing(states);
    if constexpr (KEY_ROWS) {
      const TermsOfOthers terms = {memory.terms[turn.stage], lane};
      differentiate<KEY_ROWS>(mine.scores, mine.slopes, passing, p, mods, place, first_row, terms, factor, sites);
    } else {
      differentiate<KEY_ROWS>(mine.scores, mine.slopes, passing, p, mods, place, first_row, own_terms, factor, sites);
    }
  };

  turn_to(0);
  wait_for(&memory.has_own, 0);
  mine.own_heads = moved(by_rows(memory.heads), 64 * consumer * SLAB * int(sizeof(T)));
  mine.own_values = moved(by_rows(memory.values), 64 * consumer * SLAB * int(sizeof(T)));
  Turn turn = {0, 0};
  Word word = word_of(turn);
  if constexpr (DEFERRED) {
    if (word.exists()) {
      begin_products();
      mine.begin_products_of(memory.stages[turn.stage]);
      wait_for_products<0>();
      pin(mine.scores[0]);
      pin(mine.slopes[0]);
      weigh(word, turn);
      mine.keep_factors();
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
        mine.keep_factors();
      }
      begin_products();
      mine.begin_sums(memory.stages[turn.stage]);
      wait_for_products<0>();
      mine.pin_sums();
    }
  } else {
    while (word.exists()) {
      begin_products();
      mine.begin_products_of(memory.stages[turn.stage]);
      wait_for_products<0>();
      pin(mine.scores[0]);
      pin(mine.slopes[0]);
      weigh(word, turn);
      mine.keep_factors();
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
}

// Before producer and consumers part.
template <bool KEY_ROWS>
INLINE void start_pipeline(Memory& memory) {
  if (threadIdx.x == 0) {
    start_barrier(&memory.has_own, 1);
    for (int s = 0; s < STAGES; s++) {
      start_barrier(&memory.full[s], KEY_ROWS ? 1 + LANES : 1);  // each lane brings terms too
      start_barrier(&memory.free[s], 4 * CONSUMERS);             // a lane of each warp
    }
    show_barriers();
  }
  __syncthreads();
}
