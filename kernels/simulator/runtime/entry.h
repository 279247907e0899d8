// What Python calls, and what a lane calls.
#pragma once

using namespace simulator;

// Run one launch. 0: ran, or stopped with findings; 1: no memory for the arena or the stacks.
extern "C" __attribute__((visibility("default"))) int flextrace_simulate(sim_launch* launch) {
  static Run state;  // one run at a time, says launch.py
  state.launch = launch;
  state.arena = Arena{};
  state.stopped = false;
  state.time = 1;
  state.random = 0x9E3779B97F4A7C15ull;
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(&flextrace_simulate), &info);
  state.module_base = reinterpret_cast<uintptr_t>(info.dli_fbase);
  unsigned groups[3], threads = 1;
  for (int axis = 0; axis < 3; axis++) {
    groups[axis] = (launch->grid[axis] + launch->threadgroup[axis] - 1) / launch->threadgroup[axis];
    threads *= launch->threadgroup[axis];
  }
  bool ready = state.arena.reserve() && state.stacks.reserve(threads);
  for (int i = 0; ready && i < launch->buffer_count; i++) {
    ready = state.arena.add_buffer(launch->buffers[i], launch->checks != 0);
  }
  if (ready) {
    run = &state;
    arena_begin = reinterpret_cast<uintptr_t>(state.arena.base);
    FaultHandler handler;
    handler.install();
    if (sigsetjmp(state.escape, 1) == 0) {
      for (unsigned z = 0; z < groups[2] && !state.stopped; z++) {
        for (unsigned y = 0; y < groups[1] && !state.stopped; y++) {
          for (unsigned x = 0; x < groups[0] && !state.stopped; x++) {
            begin_group(x, y, z, groups);
            run_group();
          }
        }
      }
    }
    handler.remove();
    run = nullptr;
    arena_begin = ~uintptr_t(0);
    for (int i = 0; i < launch->buffer_count; i++) {
      sim_buffer& buffer = launch->buffers[i];
      const Region& region = state.arena.buffers[i];
      buffer.read = region.read;
      buffer.written = region.written;
      buffer.unwritten = region.shadowed ? region.shadow.unwritten() : 0;
      if (buffer.output && buffer.bytes) {
        memcpy(buffer.host, region.begin, buffer.bytes);
      }
    }
    for (int i = 0; i < state.arena.variable_count; i++) {
      const Variable& variable = state.arena.variables[i];
      launch->counts.threadgroup_read += variable.read;
      launch->counts.threadgroup_written += variable.written;
      launch->variables[i] = {variable.name, variable.bytes};
    }
    launch->variable_count = state.arena.variable_count;
    launch->counts.threadgroup_allocated = state.arena.allocated;
  }
  state.stacks.release();
  state.arena.release();
  return ready ? 0 : 1;
}

void* sim_threadgroup(unsigned site, sim_size bytes, sim_size align, const char* name) {
  Variable* variable = run->arena.find_variable(site);
  if (variable == nullptr) {
    variable = run->arena.add_variable(site, bytes, align, name, run->launch->checks != 0);
    if (variable == nullptr || run->arena.allocated > THREADGROUP_LIMIT) {
      if (sim_finding* finding = add(SIM_THREADGROUP_LIMIT, 1000, relative(__builtin_return_address(0)), 0)) {
        finding->size = variable == nullptr ? bytes : run->arena.allocated;
      }
      stop();
    }
  }
  return variable->begin;
}

void sim_threadgroup_barrier(unsigned flags) {
  Lane& lane = run->lanes[run->current];
  wait(lane, AT_THREADGROUP, SIM_THREADGROUP_BARRIER, __builtin_return_address(0));
  run->arrived += 1;
  run->barrier_flags = flags;
  switch_context(lane.context, run->scheduler);
}

void sim_simdgroup_barrier(unsigned flags) {
  static unsigned wanted;
  wanted = flags;
  exchange(SIM_SIMDGROUP_BARRIER, nullptr, 0, [](void*, unsigned) { order_simdgroup(wanted); },
           __builtin_return_address(0));
}

void* sim_exchange(int operation, const void* value, unsigned size, void (*reduce)(void*, unsigned)) {
  return exchange(operation, value, size, reduce, __builtin_return_address(0));
}

// The element pair that a lane holds of an 8 x 8 matrix: (row, column) and (row, column + 1).
static unsigned row_of(unsigned lane) { return (lane / 4 & 4) + lane / 2 % 4; }
static unsigned column_of(unsigned lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

static void multiply(void* table, unsigned) {
  auto* rows = static_cast<float(*)[ROW / sizeof(float)]>(table);
  float a[8][8], b[8][8], d[8][8];
  for (unsigned lane = 0; lane < 32; lane++) {
    unsigned row = row_of(lane), column = column_of(lane);
    memcpy(&a[row][column], &rows[lane][0], 8);
    memcpy(&b[row][column], &rows[lane][2], 8);
    memcpy(&d[row][column], &rows[lane][4], 8);
  }
  for (unsigned i = 0; i < 8; i++) {
    for (unsigned k = 0; k < 8; k++) {
      for (unsigned j = 0; j < 8; j++) {
        d[i][j] += a[i][k] * b[k][j];
      }
    }
  }
  for (unsigned lane = 0; lane < 32; lane++) {
    memcpy(&rows[lane][0], &d[row_of(lane)][column_of(lane)], 8);
  }
}

// A matrix operation needs a whole simdgroup.
static void need_whole_simdgroup(int operation, const void* pc) {
  const Simdgroup& simd = run->simds[run->current / 32];
  if (simd.lanes != 32) {
    if (sim_finding* finding = add(SIM_DIVERGENT, 1000, relative(pc), 0)) {
      finding->write = operation;
      finding->other_lane = int(simd.first + simd.lanes);
      finding->other_write = SIM_NOTHING;
    }
    stop();
  }
}

void sim_multiply(float* d, const float* a, const float* b, const float* c) {
  need_whole_simdgroup(SIM_MULTIPLY, __builtin_return_address(0));
  float pairs[6] = {a[0], a[1], b[0], b[1], c[0], c[1]};
  unsigned lane = run->current % 32;
  void* table = exchange(SIM_MULTIPLY, pairs, sizeof pairs, multiply, __builtin_return_address(0));
  memcpy(d, static_cast<char*>(table) + lane * ROW, 8);
}

void sim_matrix_access(int store) {
  int operation = store ? SIM_MATRIX_STORE : SIM_MATRIX_LOAD;
  need_whole_simdgroup(operation, __builtin_return_address(0));
  if (run->launch->checks) {
    exchange(operation, nullptr, 0, nullptr, __builtin_return_address(0));
  }
}

unsigned sim_lane_index() { return run->current % 32; }

unsigned sim_lane_count() { return run->simds[run->current / 32].lanes; }

void sim_bad_lane(unsigned wanted) {
  if (sim_finding* finding = add(SIM_BAD_LANE, 1000, relative(__builtin_return_address(0)), 0)) {
    finding->offset = wanted;
    finding->size = sim_lane_count();
  }
}

void sim_atomic(const void* address, unsigned size, int write) {
  run->launch->counts.atomics += 1;
  if (run->launch->checks == 0 || !run->arena.holds(address)) {
    return;
  }
  access(address, size, false, true, __builtin_return_address(0));
  if (write) {
    access(address, size, true, true, __builtin_return_address(0));
  }
}
