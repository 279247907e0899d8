// params.h: what the launcher hands to one call of the kernel. params.py mirrors it field by field; every field is 8
// bytes, or 4 bytes in pairs, so that nothing depends on the compiler's padding.
#pragma once
#include <stdint.h>

// A kernel's file says which struct its function takes; the loader compares the size.
#define TAKES(STRUCT)                                                                       \
  extern "C" {                                                                              \
  extern __attribute__((visibility("default"))) const int64_t flextrace_struct_bytes;       \
  const int64_t flextrace_struct_bytes = sizeof(STRUCT);                                    \
  }

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

// The least and the largest element of each block of neighbours along one axis of a captured array: see extremes.h.
struct Extremes {
  const void* blocks;       // [places of the other axes][blocks], or null: there are none
  const void* superblocks;  // [places of the other axes][superblocks]
  int64_t axis;
};

// What a mod captures besides its arguments.
struct Inputs {
  const Array* arrays;
  const Number* numbers;
  int32_t* overflow;         // set to 1 when a 32- or 64-bit integer read from an array does not fit int32
  const Extremes* extremes;  // of each array, or null; only tile_state reads them
};

enum Dtype : int32_t { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

// How the kernel text reads keys: as they are, less their mean, or as int8.
enum Keys : int { PLAIN, SMOOTHED, QUANTISED };

// INTERRUPTED: Python has raised. UNALIGNED: an array begins within an element.
enum Result : int { OK = 0, OUT_OF_MEMORY = 1, INTEGER_OVERFLOW = 2, INTERRUPTED = 3, UNALIGNED = 4 };

// CPython's Py_buffer: where an array lies.
struct Buffer {
  void* data;
  void* object;
  int64_t bytes;
  int64_t element_bytes;
  int32_t read_only;
  int32_t ndim;
  char* format;
  int64_t* shape;
  int64_t* strides;  // in bytes
  int64_t* suboffsets;
  void* internal;
};

// What a kernel needs of Python, whose lock (GIL) its caller holds: PyEval_SaveThread, PyEval_RestoreThread,
// PyErr_CheckSignals, PyTuple_GetItem, PyObject_GetBuffer, PyBuffer_Release, None.
struct Host {
  void* (*release)();
  void (*take)(void*);
  int (*check_signals)();
  void* (*item)(void* tuple, int64_t place);
  int (*get_buffer)(void* object, Buffer* buffer, int flags);
  void (*release_buffer)(Buffer* buffer);
  void* none;
};

// Who asks for a kernel.
struct Caller {
  int64_t max_threads;
  const Host* host;  // null: there is no Python
};

// What a caller fills in, but for what located.h finds: where arrays lie, their strides, and the captured numbers.
struct Params {
  // q: [batch, query_heads, q_len, head_dim]; k: [batch, kv_heads, kv_len, head_dim];
  // v: [batch, kv_heads, kv_len, value_dim]. Any strides, 0 for a broadcast axis. k and v may be int8: see k_scales.
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
  int32_t dtype;  // a Dtype, of q, k, v and out; k and v may be int8 instead

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

  Caller caller;
  // Null, or [4], added to. A tile here is one of keys for one group of rows: skipped, run with the mask, run without;
  // and how many of them the mask was evaluated for, because its bounds decided nothing.
  int64_t* tile_counts;

  // Only of SMOOTHED and QUANTISED keys. Row and key of a pair that the mask keeps are of one group.
  const float* means;         // [means_batch, kv_heads, groups, head_dim], or null: see average_keys
  const int32_t* key_groups;  // [key_groups_batch, kv_len], or null: all keys are of group 0
  const int32_t* row_groups;  // [row_groups_batch, q_len], or null; -1: of a row that attends to nothing
  int64_t groups;
  int64_t means_batch;  // batch, or 1 to broadcast
  int64_t key_groups_batch;
  int64_t row_groups_batch;
  int64_t average_keys;  // 1: what is subtracted is the mean of each group; 0: `means`, or nothing where there are none
  int64_t add_back;      // what the mean takes from the scores of a row goes into them again, or else into lse and max
  int64_t q_mean_rows;   // rows of q that share a mean, which is subtracted too; 0: none is
  int64_t q_scale_rows;  // rows that share a scale
  int64_t k_scale_rows;

  // Only of QUANTISED keys: what is in int8 in memory already, less its means; k's are `means`. Any strides.
  const float* k_scales;  // [batch, kv_heads, kv_len], of each row, nan: it held an infinity or a nan; null: k is not
  const float* v_scales;  // the same of values; only if k is, too
  const float* v_means;   // [batch, kv_heads, 1, value_dim], or null
  int64_t k_scale_strides[3];
  int64_t v_scale_strides[3];
  int64_t v_mean_strides[4];
};
