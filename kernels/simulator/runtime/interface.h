// What the kernel side and the runtime side of the simulator share: the calls from a lane into the runtime, and the
// plain structs that Python fills (launch.py mirrors them field by field).
#pragma once

typedef __SIZE_TYPE__ sim_size;

// One buffer argument. Its bytes are copied into the arena before the run, and back after it if it is an output.
struct sim_buffer {
  void* host;                   // the caller's memory
  sim_size bytes;               // extent of that memory
  sim_size origin;              // byte offset of the element that the kernel's pointer starts at
  int output;                   // 1: the kernel may write it
  int initialised;              // 1: its bytes hold values before the run
  void* address;                // set by the runtime: what the kernel receives
  unsigned long long read;      // bytes read, written, never written
  unsigned long long written;
  unsigned long long unwritten;
};

struct sim_counts {
  unsigned long long threadgroup_read, threadgroup_written, threadgroup_allocated;
  unsigned long long multiply_accumulates, threadgroup_barriers, simdgroup_barriers, shuffles, reductions, atomics;
};

enum sim_kind {
  SIM_RACE = 1, SIM_OVERLAP, SIM_UNINITIALISED, SIM_OUT_OF_BOUNDS, SIM_WRITE_TO_INPUT, SIM_DIVERGENT, SIM_BAD_LANE,
  SIM_THREADGROUP_LIMIT, SIM_WILD, SIM_STACK, SIM_ASYNC, SIM_MISALIGNED
};

enum sim_operation {
  SIM_NOTHING, SIM_THREADGROUP_BARRIER, SIM_SIMDGROUP_BARRIER, SIM_SHUFFLE, SIM_REDUCTION, SIM_MULTIPLY,
  SIM_MATRIX_LOAD, SIM_MATRIX_STORE, SIM_FINISHED, SIM_ASYNC_COPY, SIM_ASYNC_WAIT
};

struct sim_finding {
  int kind;
  int space;                     // buffer index, or -1 - threadgroup variable index, or 1000: none
  int lane, other_lane;          // index in the threadgroup, -1: none
  unsigned group[3], other_group[3];
  int write, other_write;        // what the access does: 1 writes, 0 reads; for SIM_DIVERGENT two sim_operations
  unsigned long long pc, other_pc;  // offsets into the shared object
  long long offset;              // byte offset from the buffer's start
  unsigned long long size;       // bytes of the access
};

struct sim_variable {            // a threadgroup variable that the run met
  const char* name;
  unsigned long long bytes;
};

struct sim_launch {
  unsigned grid[3], threadgroup[3];
  int order;                     // 0 forward, 1 reverse, 2 shuffled
  int checks;
  int buffer_count;
  sim_buffer* buffers;
  sim_counts counts;
  int finding_count;
  sim_finding findings[16];
  int variable_count;
  sim_variable variables[64];
};

// One lane's positions, as the kernel's attributes name them.
struct sim_lane_position {
  unsigned thread_in_grid[3], thread_in_group[3], group[3], group_size[3], uniform_size[3], groups[3], grid[3];
  unsigned index, simd_lane, simdgroup, simdgroups;
};

extern "C" {
// The kernel's object defines this: one lane runs the kernel.
void sim_run_lane(const sim_lane_position* position, const sim_buffer* buffers);

// Storage shared by the threadgroup for the declaration number `site`.
void* sim_threadgroup(unsigned site, sim_size bytes, sim_size align, const char* name);
void sim_threadgroup_barrier(unsigned flags);
void sim_simdgroup_barrier(unsigned flags);
// Every lane of the simdgroup brings `size` bytes (at most 32); gives the table of all lanes' bytes, 32 bytes a row.
// `reduce`, when given, is called once, by the last lane, on the table.
void* sim_exchange(int operation, const void* value, unsigned size, void (*reduce)(void* table, unsigned lanes));
// d = a * b + c on 8 x 8 matrices; each lane brings and takes two elements of each.
void sim_multiply(float* d, const float* a, const float* b, const float* c);
void sim_matrix_access(int store);
unsigned sim_lane_index();
unsigned sim_lane_count();
void sim_bad_lane(unsigned wanted);
void sim_atomic(const void* address, unsigned size, int write);
}
