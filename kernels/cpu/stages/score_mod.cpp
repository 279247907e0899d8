// score_mod.cpp: scores = mask(score_mod(scores)), a row at a time. With block lists, blocks that they do not name
// become -inf unseen, and mask_mod is asked in partial blocks only.
#include "../mod/mod.h"
#include "stage.h"

struct ScoreMod {
  Tensor scores, out;
  int64_t has_blocks;
  BlockLists blocks;
  const Array* arrays;  // captured by the mods
  const Number* numbers;
  Caller caller;
};

// row[first .. end) = the scores there, after the mods; what is written beyond `end` means nothing.
template <bool MASK>
static void modify(const Inputs& in, const Matrix& scores, int b, int h, int q_idx, int64_t first, int64_t end,
                   float* row) {
  auto mod = Mods::score_mod(b, h, q_idx, in);
  auto mask = Mods::mask_mod(b, h, q_idx, in);
  for (int64_t c = first; c < end; c += VL) {
    vint kv_idx = lane_index() + (int32_t)c;
    kv_idx = select(kv_idx < (int32_t)end, kv_idx, splat((int32_t)end - 1));  // a mod sees no key that is not there
    vfloat x = mod(widen(scores, 0, c), kv_idx);
    if constexpr (MASK) x = select(mask(kv_idx).lanes, x, splat(-INFINITE));
    store_vector(row + c, x);
  }
}

TAKES(ScoreMod)
extern "C" __attribute__((visibility("default"))) int flextrace_stage(const ScoreMod* call) {
  const ScoreMod& s = *call;
  int64_t columns = s.scores.shape[3], q_len = s.scores.shape[2];
  int64_t width = s.has_blocks ? s.blocks.kv_block : columns;
  int64_t blocks = width ? (columns + width - 1) / width : 0;
  int64_t row_bytes = round_up((columns + VL) * 4, 64);
  int32_t overflow = 0;
  const Inputs in = {s.arrays, s.numbers, &overflow, nullptr};
  int status = for_each(s.scores.rows(), columns * 16, s.caller, row_bytes + blocks,
                        [&](int64_t i, char* memory) {
    float* row = (float*)memory;
    uint8_t* states = (uint8_t*)memory + row_bytes;
    int64_t head = i / q_len, b = head / s.scores.shape[1], h = head % s.scores.shape[1], q_idx = i % q_len;
    __builtin_memset(states, 1, blocks);
    if (s.has_blocks) s.blocks.read_row(b, h, q_idx / s.blocks.q_block, states, blocks);
    Matrix scores = s.scores.row(i);
    for (int64_t block = 0; block < blocks; block++) {  // in order: each overwrites what the last wrote beyond its end
      int64_t first = block * width, end = smaller(first + width, columns);
      if (states[block] == 0)
        for (int64_t c = first; c < end; c += VL) store_vector(row + c, splat(-INFINITE));
      else if (states[block] == 1) modify<true>(in, scores, b, h, q_idx, first, end, row);
      else modify<false>(in, scores, b, h, q_idx, first, end, row);
    }
    __builtin_memcpy(s.out.at(i), row, columns * 4);
  });
  return overflow ? INTEGER_OVERFLOW : status;
}
