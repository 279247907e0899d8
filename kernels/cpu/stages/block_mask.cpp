// block_mask.cpp: mask_mod -> which blocks of keys each block of queries reads: empty ones are left out, full ones,
// whose every position is kept, go to one list, the others to another. A block that the end cuts is full if all its
// positions that exist are kept.
#include "../mod/mod.h"
#include "stage.h"

struct BlockMask {
  int32_t* kv_num_blocks;  // [batch, heads, q_blocks]
  int32_t* kv_indices;     // [batch, heads, q_blocks, kv_blocks]
  int32_t* full_kv_num_blocks;
  int32_t* full_kv_indices;
  int64_t batch, heads, q_len, kv_len, q_block, kv_block;
  const Array* arrays;  // captured by mask_mod
  const Number* numbers;
  Caller caller;
};

struct Kept {
  bool any, all;
};

static Kept evaluate_block(const Inputs& in, int b, int h, int64_t first_row, int64_t end_row, int64_t first,
                           int64_t end) {
  vint any = {}, all = ~vint{};
  for (int64_t q_idx = first_row; q_idx < end_row; q_idx++) {
    auto mask = Mods::mask_mod(b, h, q_idx, in);
    for (int64_t c = first; c < end; c += VL) {
      vint kv_idx = lane_index() + (int32_t)c;
      kv_idx = select(kv_idx < (int32_t)end, kv_idx, splat((int32_t)end - 1));  // the last key once more
      vint kept = mask(kv_idx).lanes;
      any |= kept;
      all &= kept;
    }
    if (any_lane(any) && any_lane(~all)) return {true, false};
  }
  return {any_lane(any), !any_lane(~all)};
}

TAKES(BlockMask)
extern "C" __attribute__((visibility("default"))) int flextrace_stage(const BlockMask* call) {
  const BlockMask& s = *call;
  int64_t q_blocks = (s.q_len + s.q_block - 1) / s.q_block, kv_blocks = (s.kv_len + s.kv_block - 1) / s.kv_block;
  int32_t overflow = 0;
  const Inputs in = {s.arrays, s.numbers, &overflow, nullptr};
  int status = for_each(s.batch * s.heads * q_blocks, smaller(s.q_block, s.q_len) * s.kv_len * 8, s.caller, 0,
                        [&](int64_t line, void*) {
    int64_t head = line / q_blocks, first_row = line % q_blocks * s.q_block;
    int32_t* partial = s.kv_indices + line * kv_blocks;
    int32_t* full = s.full_kv_indices + line * kv_blocks;
    int32_t partials = 0, fulls = 0;
    for (int64_t block = 0; block < kv_blocks; block++) {
      int64_t first = block * s.kv_block;
      Kept kept = evaluate_block(in, head / s.heads, head % s.heads, first_row,
                                 smaller(first_row + s.q_block, s.q_len), first, smaller(first + s.kv_block, s.kv_len));
      if (kept.any && kept.all) full[fulls++] = block;
      else if (kept.any) partial[partials++] = block;
    }
    s.kv_num_blocks[line] = partials;
    s.full_kv_num_blocks[line] = fulls;
    for (int64_t i = partials; i < kv_blocks; i++) partial[i] = 0;
    for (int64_t i = fulls; i < kv_blocks; i++) full[i] = 0;
  });
  return overflow ? INTEGER_OVERFLOW : status;
}
