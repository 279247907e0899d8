// mod.h: the one hole of the kernel. These bodies leave the scores as they are; assembling a kernel for a user's mods
// replaces this file by generated text with the same names and signatures.
#pragma once
#include "ops.h"
#include "../tile/simdgroup.h"

constexpr constant bool HAS_SCORE_MOD = false;
constexpr constant bool HAS_MASK_MOD = false;
constexpr constant bool QUANTISED = false;    // q and k are whole numbers, with a scale for each row and key
constexpr constant bool SMOOTHED_Q = false;   // q lacks a mean row, whose scores are there too
constexpr constant bool ADD_BACK = false;     // each row has a term that goes to its scores before score_mod
constexpr constant bool INT8_VALUES = false;  // v is whole numbers, with a scale for each key
constexpr constant bool VALUE_MEANS = false;  // v lacks a mean row, to be added to the output

// What the mods capture, and the mods themselves. A generated struct holds each captured array as the three values
// that MLX passes for it (array0, array0_shape, array0_strides), of which the last two are made of words behind the
// numbers where there are many arrays; the extremes of its blocks where tile_state reads them (extremes0); and each
// captured number (number0).
struct Mods {
  // One score, already scaled; natural units. h is the query head.
  float score_mod(float score, int b, int h, int q_idx, int kv_idx) const thread { return score; }

  // Whether row q_idx attends to key kv_idx.
  bool mask_mod(int b, int h, int q_idx, int kv_idx) const thread { return true; }

  // The same of the keys of a lane: bit 2 j + e of key kv_first + 8 j + e, unset from kv_len on.
  template <int FRAGMENTS>
  uint mask_row(int b, int h, int q_idx, int kv_first, int kv_len) const thread { return ~0u; }

  // What mask_mod leaves of rows q_first to q_last and keys kv_first to kv_last: 0 nothing, 1 to be asked, 2 all.
  int tile_state(int batch, int head, int q_first, int q_last, int kv_first, int kv_last) const thread { return 2; }

  // Of a key, and of its value, of one batch and head of k and v.
  float key_scale(int batch, int head, int key) const thread { return 1.0f; }
  float value_scale(int batch, int head, int key) const thread { return 1.0f; }

  // Of rows, and of columns of v, by their number among those of all batches and heads.
  float row_scale(int64_t row) const thread { return 1.0f; }
  float row_term(int64_t row) const thread { return 0.0f; }
  int mean_of_row(int64_t row) const thread { return 0; }
  float mean_score(int64_t at) const thread { return 0.0f; }
  float value_mean(int64_t column) const thread { return 0.0f; }
};

inline Mods captured_by_mods(const device int* numbers) {
  Mods mods;
  return mods;
}

// What the kernel's body passes on after `numbers`; generated bodies have the names written out, as MLX adds
// _shape and _strides to the signature where it finds them in the text.
#define CAPTURED_ARRAYS
