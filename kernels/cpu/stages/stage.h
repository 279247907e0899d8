// stage.h: what the stage kernels share: tensors in the caller's memory, rows as jobs of a few threads.
#pragma once
#include <stdlib.h>

#include "../tile/params.h"
#include "../tile/threads.h"
#include "../tile/panels.h"

// Four axes, leading ones of size 1 where there are fewer; any strides, 0 for a broadcast axis.
struct Tensor {
  void* data;
  int64_t shape[4];
  int64_t strides[4];  // in elements
  int64_t dtype;       // a Dtype

  int64_t heads() const { return shape[0] * shape[1]; }
  int64_t rows() const { return heads() * shape[2]; }

  // [rows, columns] from (row, column) on, of one batch and head.
  Matrix matrix(int64_t b, int64_t h, int64_t row, int64_t column, int64_t rows, int64_t columns) const {
    int64_t start = b * strides[0] + h * strides[1] + row * strides[2] + column * strides[3];
    const char* first = (const char*)data + start * dtype_bytes(dtype);
    return {first, rows, columns, strides[2], strides[3], (int32_t)dtype};
  }
  // Row number i of all rows, as a matrix of one row.
  Matrix row(int64_t i) const {
    int64_t head = i / shape[2];
    return matrix(head / shape[1], head % shape[1], i % shape[2], 0, 1, shape[3]);
  }
  // The same of a contiguous result.
  char* at(int64_t i) const { return (char*)data + i * shape[3] * dtype_bytes(dtype); }
};

// Keys and values for query head h, which may be more.
inline int64_t head_of(const Tensor& few, const Tensor& many, int64_t h) {
  return h / (many.shape[1] / few.shape[1]);
}
inline int64_t batch_of(const Tensor& few, int64_t b) { return few.shape[0] == 1 ? 0 : b; }

// BlockLists, contiguous: which blocks of keys a block of queries reads.
struct BlockLists {
  const int32_t* kv_num_blocks;  // [batch, heads, q_blocks]
  const int32_t* kv_indices;     // [batch, heads, q_blocks, columns]
  const int32_t* full_kv_num_blocks;
  const int32_t* full_kv_indices;
  int64_t batch, heads, q_blocks;
  int64_t columns, full_columns;
  int64_t q_block, kv_block;

  int64_t kv_blocks(int64_t kv_len) const { return (kv_len + kv_block - 1) / kv_block; }

  // states[kv_blocks] of one row of blocks: 0 unlisted, 1 partial, 2 full. What names no block is passed over.
  void read_row(int64_t b, int64_t h, int64_t q, uint8_t* states, int64_t blocks) const {
    __builtin_memset(states, 0, blocks);
    if (q >= q_blocks) return;
    int64_t line = ((batch == 1 ? 0 : b) * heads + (heads == 1 ? 0 : h)) * q_blocks + q;
    for (int64_t i = 0; i < smaller(kv_num_blocks[line], columns); i++)
      mark(states, blocks, kv_indices[line * columns + i], 1);
    for (int64_t i = 0; i < smaller(full_kv_num_blocks[line], full_columns); i++)
      mark(states, blocks, full_kv_indices[line * full_columns + i], 2);
  }
  static void mark(uint8_t* states, int64_t blocks, int64_t index, uint8_t state) {
    if (index >= 0 && index < blocks) states[index] = state;
  }
};

// body(i, memory) for every i below count, on as many threads as the work is worth; `memory` has that many bytes for
// each thread, aligned to 64. work: per i, in operations, of which one job has so few that a call that is stopped ends
// within milliseconds.
template <class Body>
int for_each(int64_t count, int64_t work, const Caller& caller, int64_t bytes, const Body& body) {
  constexpr int64_t WORTH_A_THREAD = 1 << 20, MOST_THREADS = 256, MOST_PER_JOB = 16 << 20;
  if (count < 1) return OK;
  if (work < 1) work = 1;
  int64_t threads = smaller(smaller(caller.max_threads, MOST_THREADS), smaller(count, 1 + count * work / WORTH_A_THREAD));
  bytes = round_up(bytes, 64);
  char* memory = (char*)malloc(threads * bytes + 64);
  if (!memory) return OUT_OF_MEMORY;
  struct State {
    const Body& body;
    char* memory;
    int64_t bytes, count, per_job;
  } state = {body, (char*)round_up((int64_t)memory, 64), bytes, count, 0};
  state.per_job = 1 + smaller(count / (8 * threads), MOST_PER_JOB / work);
  auto run = [](Jobs&, int64_t job, int thread, void* of) {
    const State& s = *(const State*)of;
    int64_t end = smaller((job + 1) * s.per_job, s.count);
    for (int64_t i = job * s.per_job; i < end; i++) s.body(i, s.memory + thread * s.bytes);
  };
  Unlocked python(caller.host);
  Result result = Jobs::run_all({(count + state.per_job - 1) / state.per_job, run, &state}, threads, python);
  free(memory);
  return result;
}
