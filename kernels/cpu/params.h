// params.h: what the launcher hands to one call of the kernel. Mirrored field by field by a ctypes.Structure,
// so every field is 8 bytes, or 4 bytes in pairs, and nothing depends on the compiler's padding.
#pragma once
#include <stdint.h>

// A captured array, read in place through its strides.
struct Array {
  const void* data;
  int64_t shape[8];
  int64_t strides[8];  // in elements
  int64_t ndim;
};

// A captured Python number.
union Number {
  int32_t i;
  float f;
};

// What a mod captures besides its arguments.
struct Inputs {
  const Array* arrays;
  const Number* numbers;
  int32_t* overflow;  // set to 1 when a 32- or 64-bit integer read from an array does not fit int32
};

enum Dtype : int32_t { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

enum Result : int { OK = 0, OUT_OF_MEMORY = 1, INTEGER_OVERFLOW = 2 };

struct Params {
  // q: [batch, query_heads, q_len, head_dim]; k: [batch, kv_heads, kv_len, head_dim];
  // v: [batch, kv_heads, kv_len, value_dim]. Any strides, 0 for a broadcast axis.
  const void* q;
  const void* k;
  const void* v;
  int64_t q_strides[4];  // in elements
  int64_t k_strides[4];
  int64_t v_strides[4];

  // out: [batch, query_heads, q_len, value_dim], contiguous, dtype of q.
  // lse, max_scores: [batch, query_heads, q_len], float32, natural log, or null. Both are after score_mod.
  void* out;
  float* lse;
  float* max_scores;

  int64_t batch;
  int64_t query_heads;
  int64_t kv_heads;  // query head h reads kv head h / (query_heads / kv_heads)
  int64_t q_len;
  int64_t kv_len;
  int64_t head_dim;
  int64_t value_dim;
  float scale;    // score = scale * (q . k), before score_mod
  int32_t dtype;  // a Dtype, of q, k, v and out

  // The block mask: runs of kv blocks to visit, for each row of blocks. Partial blocks run mask_mod, full ones do not.
  int64_t has_block_mask;
  const int64_t* run_offsets;  // [mask_batch * mask_heads * mask_rows + 1]: the runs of each row
  const int32_t* run_first;    // [runs]: a run holds the kv blocks run_first to run_end - 1
  const int32_t* run_end;
  const uint8_t* run_state;  // [runs]: 1 partial, 2 full
  int64_t mask_batch;        // batch, or 1 to broadcast
  int64_t mask_heads;        // query_heads, or 1 to broadcast
  int64_t mask_rows;
  int64_t q_block;  // rows and columns of one block
  int64_t kv_block;

  const Array* arrays;  // captured by the mods
  const Number* numbers;

  int64_t max_threads;
  int64_t* tile_counts;  // null, or [3]: tiles skipped, run with the mask, run without; added to
};
