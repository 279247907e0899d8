// One run: threadgroup after threadgroup, lane by lane. A lane runs until it needs the others (a barrier, a shuffle, a
// matrix product); the last lane to arrive does the work of all. The set of lanes is fixed when the threadgroup starts.
#include <csetjmp>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <dlfcn.h>
#include <ucontext.h>

#include "arena.h"
#include "fibers.h"
#include "interface.h"

namespace simulator {

#ifndef SIM_THREADGROUP_BYTES
#define SIM_THREADGROUP_BYTES 32768
#endif
constexpr unsigned THREADGROUP_LIMIT = SIM_THREADGROUP_BYTES;
constexpr unsigned ROW = 32;  // bytes of one lane's entry in an exchange

enum State { READY, AT_SIMDGROUP, AT_THREADGROUP, AT_OTHERS, DONE };  // AT_OTHERS: until another lane makes it READY

struct Lane {
  Context context;
  State state;
  int operation;
  uint32_t pc;
};

struct Simdgroup {
  unsigned first, lanes, arrived, parity;
  alignas(32) char table[2][32][ROW];
};

struct Run {
  sim_launch* launch;
  Arena arena;
  Stacks stacks;
  Context scheduler;
  Lane lanes[1024];
  sim_lane_position positions[1024];
  Simdgroup simds[32];
  unsigned lane_count, simd_count, current;
  unsigned arrived;  // at the threadgroup barrier
  unsigned barrier_flags;
  uint32_t time, group_index;
  unsigned group[3];
  Clock threadgroup_clock, device_clock;
  bool stopped;
  uint64_t random;
  uintptr_t module_base;
  sigjmp_buf escape;
};

static Run* run = nullptr;
static bool (*when_idle)() = nullptr;  // what the device does while all lanes wait; false: nothing
static uintptr_t arena_begin = ~uintptr_t(0);

static uint32_t relative(const void* pc) { return uint32_t(uintptr_t(pc) - run->module_base); }

static void stop() {
  run->stopped = true;
  switch_context(run->lanes[run->current].context, run->scheduler);
  __builtin_unreachable();
}

// Record a finding, once for each pair of places; null if it is known already.
static sim_finding* add(int kind, int space, uint32_t pc, uint32_t other_pc) {
  sim_launch& launch = *run->launch;
  for (int i = 0; i < launch.finding_count; i++) {
    const sim_finding& known = launch.findings[i];
    if (known.kind == kind && known.pc == pc && known.other_pc == other_pc && known.space == space) {
      return nullptr;
    }
  }
  if (launch.finding_count == 16) {
    return nullptr;
  }
  sim_finding& finding = launch.findings[launch.finding_count++];
  finding = sim_finding{};
  finding.kind = kind;
  finding.space = space;
  finding.lane = int(run->current);
  finding.other_lane = -1;
  memcpy(finding.group, run->group, sizeof finding.group);
  memcpy(finding.other_group, run->group, sizeof finding.group);
  finding.pc = pc;
  finding.other_pc = other_pc;
  return &finding;
}

static void unpack_group(uint32_t index, unsigned* group) {
  const unsigned* groups = run->positions[0].groups;
  group[0] = index % groups[0];
  group[1] = index / groups[0] % groups[1];
  group[2] = index / groups[0] / groups[1];
}

static void note_read_of_copies(const void* at, size_t size);  // async.h

static void access(const void* address, size_t size, bool write, bool atomic, const void* pc) {
  int space = 0;
  Region* region = run->arena.region_of(address, space);
  int64_t offset = region ? static_cast<const char*>(address) - region->begin : 0;
  uint32_t at = relative(pc);
  if (region == nullptr || offset < 0 || uint64_t(offset) + size > region->bytes || (write && !region->writable)) {
    bool inside = region && offset >= 0 && uint64_t(offset) + size <= region->bytes;
    if (sim_finding* finding = add(inside ? SIM_WRITE_TO_INPUT : SIM_OUT_OF_BOUNDS, space, at, 0)) {
      finding->offset = offset;
      finding->size = size;
      finding->write = write;
    }
    stop();
  }
  (write ? region->written : region->read) += size;
  if (space < 0 && !write) {
    note_read_of_copies(address, size);
  }
  if (!region->shadowed) {
    return;
  }
  const Clock& clock = space < 0 ? run->threadgroup_clock : run->device_clock;
  Access now{run->time, at, run->group_index, run->current, write, atomic};
  Conflict conflict = region->shadow.note(size_t(offset), size, now, clock);
  if (conflict.kind == Conflict::NONE) {
    return;
  }
  bool race = conflict.kind == Conflict::RACE;
  bool overlap = race && space >= 0 && write && conflict.write;
  int kind = overlap ? SIM_OVERLAP : race ? SIM_RACE : SIM_UNINITIALISED;
  if (sim_finding* finding = add(kind, space, at, race ? conflict.pc : 0)) {
    finding->offset = offset;
    finding->size = size;
    finding->write = write;
    if (race) {
      finding->other_lane = int(conflict.lane);
      finding->other_write = conflict.write;
      unpack_group(conflict.group, finding->other_group);
    }
  }
}

static void misaligned(const void* address, size_t size, bool write, const void* pc) {
  int space = 0;
  Region* region = run->arena.region_of(address, space);
  if (sim_finding* finding = add(SIM_MISALIGNED, space, relative(pc), 0)) {
    finding->offset = region ? static_cast<const char*>(address) - region->begin : 0;
    finding->size = size;
    finding->write = write;
  }
}

static void diverged(const Lane& here, const Lane& there, uint32_t pc, int operation) {
  if (sim_finding* finding = add(SIM_DIVERGENT, 1000, pc, there.state == DONE ? 0 : there.pc)) {
    finding->lane = int(&here - run->lanes);
    finding->other_lane = int(&there - run->lanes);
    finding->write = operation;
    finding->other_write = there.state == DONE ? SIM_FINISHED : there.operation;
  }
  run->stopped = true;
}

// All lanes first..first+count have arrived: at the same operation and place?
static bool together(unsigned first, unsigned count) {
  const Lane& model = run->lanes[first];
  for (unsigned lane = first + 1; lane < first + count; lane++) {
    const Lane& other = run->lanes[lane];
    if (other.operation != model.operation || (run->launch->checks && other.pc != model.pc)) {
      diverged(model, other, model.pc, model.operation);
      return false;
    }
  }
  return true;
}

static void wait(Lane& lane, State state, int operation, const void* pc) {
  lane.state = state;
  lane.operation = operation;
  lane.pc = relative(pc);
}

static void order_simdgroup(unsigned flags) {
  unsigned simd = run->current / 32;
  run->time += 1;
  if (flags & 2) {
    run->threadgroup_clock.simds[simd] = run->time;
  }
  if (flags & 1) {
    run->device_clock.simds[simd] = run->time;
  }
}

static void* exchange(int operation, const void* value, unsigned size, void (*reduce)(void*, unsigned),
                      const void* pc) {
  Lane& lane = run->lanes[run->current];
  Simdgroup& simd = run->simds[run->current / 32];
  unsigned parity = simd.parity;
  wait(lane, AT_SIMDGROUP, operation, pc);
  if (size) {
    memcpy(simd.table[parity][run->current % 32], value, size);
  }
  if (++simd.arrived < simd.lanes) {
    switch_context(lane.context, run->scheduler);
    return simd.table[parity];
  }
  if (!together(simd.first, simd.lanes)) {
    stop();
  }
  if (reduce) {
    reduce(simd.table[parity], simd.lanes);
  }
  simd.arrived = 0;
  simd.parity ^= 1;
  for (unsigned i = 0; i < simd.lanes; i++) {
    run->lanes[simd.first + i].state = READY;
  }
  sim_counts& counts = run->launch->counts;
  counts.shuffles += operation == SIM_SHUFFLE;
  counts.reductions += operation == SIM_REDUCTION;
  counts.simdgroup_barriers += operation == SIM_SIMDGROUP_BARRIER;
  counts.multiply_accumulates += operation == SIM_MULTIPLY;
  return simd.table[parity];
}

}  // namespace simulator

#include "async.h"
#include "schedule.h"
#include "signals.h"
#include "entry.h"
#include "hooks.h"
