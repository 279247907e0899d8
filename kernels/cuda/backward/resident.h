// resident.h: the rows that a block has for its whole work (queries and their d_out, or keys and their values), and the
// ring of tiles that pass by, in shared memory.
#pragma once
#include "plan.h"
#include "../attention/walk.h"
#include "../tile/staging.h"
#include "differentiate.h"

// The rows of this thread's block and warp, which are tile `tile` of `rows`; returns the first one of the warp.
INLINE int take_rows(Place& place, int tile, int rows) {
  const int warp = threadIdx.x / LANES, first_row = tile * BQ + warp * ROW_TILES * 16;
  place.lane = threadIdx.x % LANES;
  place.of_block = {tile * BQ, smaller(rows, (tile + 1) * BQ) - 1};
  place.of_warp = {first_row, smaller(rows, first_row + ROW_TILES * 16) - 1};
  return first_row;
}

// One compiled text for what is masked and what is ragged keeps the kernel small.
INLINE Passing passing_of(const KeyTile& tile, const AttentionParams& p, const uint8_t* states) {
  return {tile.first, tile.state, tile.masked, tile.masked, states};
}

struct Resident {
  T *heads, *values;

  INLINE Resident(T* memory) : heads(memory), values(memory + BQ * LD_HEADS) {}
  INLINE T* end() const { return values + BQ * LD_VALUES; }
  INLINE void load(const Rows<T>& of_heads, const Rows<T>& of_values, int first, int thread) {
    Staged<T, BQ, HEAD_DIM, HEADS, LD_HEADS, THREADS>::load(heads, of_heads, first, 0, thread);
    Staged<T, BQ, VALUE_DIM, VALUES, LD_VALUES, THREADS>::load(values, of_values, first, 0, thread);
  }
  INLINE const T* heads_of_warp() const { return heads + threadIdx.x / LANES * ROW_TILES * 16 * LD_HEADS; }
  INLINE const T* values_of_warp() const { return values + threadIdx.x / LANES * ROW_TILES * 16 * LD_VALUES; }
};

// STAGES tiles of BK rows each of two tensors, and with TERMS_OF_ROW so many numbers of each row.
template <int TERMS_OF_ROW>
struct Ring {
  static constexpr int TILE = BK * (LD_HEADS + LD_VALUES);
  T* memory;
  float* numbers;
  int writing, reading;  // stages
  Rows<T> heads, values;
  const float* terms;  // of the tensors' rows, `all_rows` apart
  int64_t all_rows;

  INLINE Ring(T* at) : memory(at), numbers((float*)(at + STAGES * TILE)), writing(0), reading(STAGES - 1), terms(nullptr), all_rows(0) {}

  INLINE void load(int first, int thread) {
    T* to = memory + writing * TILE;
    Staged<T, BK, HEAD_DIM, HEADS, LD_HEADS, THREADS>::load(to, heads, first, 0, thread);
    Staged<T, BK, VALUE_DIM, VALUES, LD_VALUES, THREADS>::load(to + BK * LD_HEADS, values, first, 0, thread);
    UNROLL
    for (int i = 0; i < (TERMS_OF_ROW * BK + THREADS - 1) / THREADS; i++) {
      const int at = i * THREADS + thread, row = first + at % BK;
      if (at >= TERMS_OF_ROW * BK) break;
      const bool exists = row < heads.count;
      const float* from = terms + at / BK * all_rows + (exists ? row : 0);
      ptx::cp_async_4(ptx::shared_address(numbers + writing * TERMS_OF_ROW * BK + at), from, exists ? 4 : 0);
    }
    ptx::cp_async_commit_group();
    writing = writing + 1 < STAGES ? writing + 1 : 0;
  }

  // Turns to the next stage, whose rows have come; all have done with the one before.
  INLINE void arrive() {
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    reading = reading + 1 < STAGES ? reading + 1 : 0;
  }

  INLINE const T* heads_here() const { return memory + reading * TILE; }
  INLINE const T* values_here() const { return heads_here() + BK * LD_HEADS; }
  INLINE const float* terms_here() const { return numbers + reading * TERMS_OF_ROW * BK; }
};
