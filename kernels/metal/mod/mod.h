// mod.h: the one hole of the kernel, and its template. template/hole.py says what is replaced for a user's mods; as it
// lies here it leaves the scores as they are.
#pragma once
// {{ library
#include "ops.h"
// }}
#include "../tile/simdgroup.h"

constexpr constant bool HAS_SCORE_MOD = false;
constexpr constant bool HAS_MASK_MOD = false;
constexpr constant bool QUANTISED = false;    // q and k are whole numbers, with a scale for each row and key
constexpr constant bool SMOOTHED_Q = false;   // q lacks a mean row, whose scores are there too
constexpr constant bool ADD_BACK = false;     // each row has a term that goes to its scores before score_mod
constexpr constant bool INT8_VALUES = false;  // v is whole numbers, with a scale for each key
constexpr constant bool VALUE_MEANS = false;  // v lacks a mean row, to be added to the output

// What the mods capture, and the mods themselves. Each captured array is the three values that MLX passes for it
// (array0, array0_shape, array0_strides), of which the last two are made of words behind the numbers where there are
// many arrays; then there are the extremes of its blocks where tile_state reads them (extremes0), and each captured
// number (number0).
// {{ captures
struct Mods {
// }}
  // {{ score_mod
  // One score, already scaled; natural units. h is the query head.
  INLINE float score_mod(float score, int b, int h, int q_idx, int kv_idx) const thread {
    return score;
  }
  // }}

  // {{ mask_mod
  // Whether row q_idx attends to key kv_idx.
  INLINE bool mask_mod(int b, int h, int q_idx, int kv_idx) const thread {
    return true;
  }
  // }}

  // {{ mask_row
  // Which keys of a lane it attends to: bit 2 j + e says so of key kv_first + 8 j + e, and is unset from kv_len on.
  template <int FRAGMENTS>
  INLINE uint mask_row(int b, int h, int q_idx, int kv_first, int kv_len) const thread {
    return ~0u;
  }
  // }}

  // {{ tile_state
  // What the mask leaves of rows q_first to q_last and keys kv_first to kv_last in query heads head to last_head: 0
  // nothing, 1 to be asked, 2 all.
  INLINE int tile_state(int batch, int head, int last_head, int q_first, int q_last, int kv_first, int kv_last)
      const thread {
    return 2;
  }
  // }}

  // The scale of a key, and of its value, of one batch and head of k and v.
  float key_scale(int batch, int head, int key) const thread { return 1.0f; }
  float value_scale(int batch, int head, int key) const thread { return 1.0f; }

  // What belongs to a row, or to a column of v, by its number among those of all batches and heads.
  float row_scale(int64_t row) const thread { return 1.0f; }
  float row_term(int64_t row) const thread { return 0.0f; }
  int mean_of_row(int64_t row) const thread { return 0; }
  float mean_score(int64_t at) const thread { return 0.0f; }
  float value_mean(int64_t column) const thread { return 0.0f; }
};

// {{ captured_by_mods
INLINE Mods captured_by_mods(const device int* numbers) {
  Mods mods;
  return mods;
}

// What the kernel's body passes on after `numbers`; generated bodies have the names written out, as MLX adds
// _shape and _strides to the signature where it finds them in the text.
#define CAPTURED_ARRAYS
// }}
