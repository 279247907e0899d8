// bandwidth.cpp: how fast the machine reads memory: every byte once, in order, by as many threads as a kernel has.
#include "panels.h"
#include "threads.h"

constexpr int64_t SLICES = 16;  // of each piece of memory, handed out to the threads

struct Reading {
  const char* const* pieces;
  const int64_t* bytes;
  int64_t total;  // that were read
};

static void read_slice(Jobs&, int64_t job, int, void* state) {
  Reading& reading = *(Reading*)state;
  int64_t bytes = reading.bytes[job / SLICES], slice = job % SLICES;
  const char* piece = reading.pieces[job / SLICES];
  constexpr int CHAINS = 8;
  constexpr int64_t STEP = CHAINS * VECTOR_BYTES;
  vint seen[CHAINS] = {};
  int64_t first = bytes * slice / SLICES / STEP * STEP, end = bytes * (slice + 1) / SLICES / STEP * STEP;
  for (int64_t at = first; at < end; at += STEP)
#pragma GCC unroll 8
    for (int i = 0; i < CHAINS; i++) seen[i] |= load_vector<vint>(piece + at + i * VECTOR_BYTES);
  for (int i = 1; i < CHAINS; i++) seen[0] |= seen[i];
  volatile bool keep = any_lane(seen[0]);
  (void)keep;
  __atomic_add_fetch(&reading.total, end - first, __ATOMIC_RELAXED);
}

// Reads `count` pieces of memory, but for the last bytes of each that fill no step. Returns how many bytes it read, or -1:
// no memory for the threads.
extern "C" __attribute__((visibility("default"))) int64_t flextrace_read(const char* const* pieces, const int64_t* bytes,
                                                                         int64_t count, int64_t threads) {
  Unlocked python(nullptr);
  Reading reading = {pieces, bytes, 0};
  return Jobs::run_all({count * SLICES, read_slice, &reading}, threads, python) == OK ? reading.total : -1;
}
