// runtime.cpp: the Metal simulator's runtime (lanes as fibers, buffers far apart, shadow memory) with what CUDA has
// beside Metal: shared memory whose size a launch gives, copies by a thread, votes of a block, named barriers.
#define SIM_THREADGROUP_BYTES 232448  // what a block may have on sm_90
#define SIM_STACK_BYTES (1024 * 1024)
#define SIM_ALIGNED
#include <cstdio>

#include <simulator_runtime.cpp>

#include "device.h"
#include "floats.h"

namespace simulator {

static unsigned dynamic_bytes;
static uint32_t block_began;  // by the clock: another block is running since

static char* shared_base() { return run->arena.base + HALF_VARIABLE; }

static void shared_access(uint32_t address, size_t size, bool write, const void* pc) {
  char* at = shared_base() + address;
  if (address % size != 0) {
    misaligned(at, size, write, pc);
  }
  access(at, size, write, false, pc);
}
static void shared_read(void* to, uint32_t address, size_t size, const void* pc) {
  shared_access(address, size, false, pc);
  memcpy(to, shared_base() + address, size);
}

// -- copies on their way, by thread -----------------------------------------------------------------------------------

struct AsyncCopy {
  uint32_t to;
  unsigned size;
  char data[16];
  const void* pc;
};
typedef std::vector<AsyncCopy> Group;
struct Copies {
  Group open;
  std::vector<Group> closed;
};
static Copies copies_of[1024];

// The destination holds nothing from now on until the copy lands.
static void begin_copy(uint32_t to, uint64_t from, int size, uint32_t bytes, const void* pc) {
  const char* source = reinterpret_cast<const char*>(from);
  AsyncCopy copy = {to, unsigned(size), {}, pc};
  if (from % uint64_t(size) != 0) {
    misaligned(source, size_t(size), false, pc);
  }
  if (bytes > 0) {
    access(source, bytes, false, false, pc);
    memcpy(copy.data, source, bytes);
  }
  shared_access(to, copy.size, true, pc);
  memset(shared_base() + to, 0xFF, copy.size);
  copies_of[run->current].open.push_back(copy);
}
static void close_group() {
  Copies& copies = copies_of[run->current];
  copies.closed.push_back(copies.open);
  copies.open.clear();
}
static void land_groups(int left) {
  std::vector<Group>& closed = copies_of[run->current].closed;
  while (closed.size() > size_t(left)) {
    for (const AsyncCopy& copy : closed.front()) {
      shared_access(copy.to, copy.size, true, copy.pc);
      memcpy(shared_base() + copy.to, copy.data, copy.size);
    }
    closed.erase(closed.begin());
  }
}

// -- named barriers ---------------------------------------------------------------------------------------------------

constexpr int NAMED = 16;
static unsigned arrived_at[NAMED];
constexpr int MBARRIER = -1, LET_OTHERS = -2;
static int waits_at[1024];  // of a lane AT_OTHERS: the named barrier, or one of these

// "bar.sync", "bar.arrive": the barrier completes when so many threads have come to it, and is then as it was.
static void wait_at_named(int id, int threads, bool waits, const void* pc) {
  if (id < 0 || id >= NAMED || threads % 32 != 0) {
    add(SIM_BAD_LANE, 1000, relative(pc), 0);
    stop();
  }
  arrived_at[id] += 1;
  Lane& lane = run->lanes[run->current];
  if (arrived_at[id] < unsigned(threads)) {
    if (waits) {
      wait(lane, AT_OTHERS, SIM_THREADGROUP_BARRIER, pc);
      waits_at[run->current] = id;
      switch_context(lane.context, run->scheduler);
    }
    return;
  }
  arrived_at[id] = 0;
  run->time += 1;
  run->threadgroup_clock.group = run->device_clock.group = run->time;
  for (unsigned i = 0; i < run->lane_count; i++) {
    if (run->lanes[i].state == AT_OTHERS && waits_at[i] == id) {
      run->lanes[i].state = READY;
    }
  }
}

// -- a block's votes ----------------------------------------------------------------------------------------------------

struct Votes {
  int any, all, count;
};
static Votes votes[2];
static unsigned vote;

static void need_every_lane(unsigned mask, const void* pc) {
  if (mask != ~0u || run->simds[run->current / 32].lanes != 32) {
    if (sim_finding* finding = add(SIM_BAD_LANE, 1000, relative(pc), 0)) {
      finding->offset = mask;
      finding->size = run->simds[run->current / 32].lanes;
    }
    stop();
  }
}

}  // namespace simulator

#include "asynchronous.h"
#include "instructions.h"

void cuda_begin(unsigned shared_bytes) {
  dynamic_bytes = shared_bytes;
  copies_of[run->current] = Copies();
  if (block_began != run->threadgroup_clock.begin) {
    block_began = run->threadgroup_clock.begin;
    memset(arrived_at, 0, sizeof arrived_at);
    begin_asynchronous();
  }
  if (shared_bytes > 0) {
    sim_threadgroup(0, shared_bytes, 1024, "dynamic shared memory");  // the first of all: address 0
  }
}
void* cuda_dynamic_shared() { return sim_threadgroup(0, dynamic_bytes, 1024, "dynamic shared memory"); }
unsigned cuda_shared_address(const void* at) { return unsigned(static_cast<const char*>(at) - shared_base()); }

CudaIndex cuda_place(int of) {
  const sim_lane_position& lane = run->positions[run->current];
  const unsigned* at = of == CUDA_THREAD ? lane.thread_in_group : of == CUDA_BLOCK ? lane.group
                       : of == CUDA_THREADS ? lane.uniform_size : lane.groups;
  return {at[0], at[1], at[2]};
}

int cuda_syncthreads_vote(int kind, int value) {
  if (run->arrived == 0) {
    vote ^= 1;  // those who have not yet read the last one find it
    votes[vote] = {0, 1, 0};
  }
  Votes& mine = votes[vote];
  mine.any |= value;
  mine.all &= value;
  mine.count += value;
  Lane& lane = run->lanes[run->current];
  wait(lane, AT_THREADGROUP, SIM_THREADGROUP_BARRIER, PC);
  run->arrived += 1;
  run->barrier_flags = 3;
  switch_context(lane.context, run->scheduler);
  return kind == CUDA_OR ? mine.any : kind == CUDA_AND ? mine.all : mine.count;
}

unsigned cuda_ballot(unsigned mask, int value) {
  need_every_lane(mask, PC);
  const char* table = static_cast<char*>(exchange(SIM_REDUCTION, &value, sizeof value, nullptr, PC));
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; lane++) {
    memcpy(&value, table + lane * ROW, sizeof value);
    bits |= unsigned(value != 0) << lane;
  }
  return bits;
}

// CUDA C++ Programming Guide, "Warp Shuffle Functions": a lane whose source is outside its part of the warp keeps its own.
void cuda_shuffle(unsigned mask, const void* value, void* out, unsigned size, int kind, unsigned argument, int width) {
  need_every_lane(mask, PC);
  const char* table = static_cast<char*>(exchange(SIM_SHUFFLE, value, size, nullptr, PC));
  const int lane = int(run->current % 32), first = lane & ~(width - 1), last = first + width - 1, by = int(argument);
  int source = kind == CUDA_FROM ? first | (by & (width - 1)) : kind == CUDA_UP ? lane - by
               : kind == CUDA_DOWN ? lane + by : lane ^ by;
  if ((kind == CUDA_UP && source < first) || (kind != CUDA_UP && source > last)) {
    source = lane;
  }
  memcpy(out, table + source * int(ROW), size);
}

int cuda_reduce(unsigned mask, int value, int reduction, int is_signed) {
  need_every_lane(mask, PC);
  const char* table = static_cast<char*>(exchange(SIM_REDUCTION, &value, sizeof value, nullptr, PC));
  int sum;
  memcpy(&sum, table, 4);
  for (unsigned lane = 1; lane < 32; lane++) {
    memcpy(&value, table + lane * ROW, 4);
    const bool less = is_signed ? value < sum : unsigned(value) < unsigned(sum);
    switch (reduction) {
      case CUDA_ADD: sum = int(unsigned(sum) + unsigned(value)); break;
      case CUDA_MIN: sum = less ? value : sum; break;
      case CUDA_MAX: sum = less ? sum : value; break;
      case CUDA_ALL_BITS: sum &= value; break;
      case CUDA_ANY_BIT: sum |= value; break;
      default: sum ^= value;
    }
  }
  return sum;
}

unsigned cuda_atomic(void* at, unsigned value, int operation, unsigned compare) {
  run->launch->counts.atomics += 1;
  if (run->launch->checks) {
    access(at, 4, false, true, PC);
    access(at, 4, true, true, PC);
  }
  unsigned old, now = value;
  memcpy(&old, at, 4);
  switch (operation) {
    case CUDA_ATOMIC_ADD: now = old + value; break;
    case CUDA_ATOMIC_ADD_FLOAT: now = bits_of(float_of(old) + float_of(value)); break;
    case CUDA_ATOMIC_OR: now = old | value; break;
    case CUDA_ATOMIC_AND: now = old & value; break;
    case CUDA_ATOMIC_MIN: now = int(value) < int(old) ? value : old; break;
    case CUDA_ATOMIC_MAX: now = int(value) > int(old) ? value : old; break;
    case CUDA_ATOMIC_MIN_UNSIGNED: now = value < old ? value : old; break;
    case CUDA_ATOMIC_MAX_UNSIGNED: now = value > old ? value : old; break;
    case CUDA_ATOMIC_COMPARE: now = old == compare ? value : old; break;
    default: break;
  }
  memcpy(at, &now, 4);
  return old;
}
