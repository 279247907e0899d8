// The order in which lanes run: a simdgroup until all of its lanes wait, simdgroup after simdgroup, until all are done.
#pragma once

namespace simulator {

static void begin_group(unsigned x, unsigned y, unsigned z, const unsigned* groups) {
  const sim_launch& launch = *run->launch;
  unsigned at[3] = {x, y, z}, size[3];
  for (int axis = 0; axis < 3; axis++) {
    unsigned left = launch.grid[axis] - at[axis] * launch.threadgroup[axis];
    size[axis] = left < launch.threadgroup[axis] ? left : launch.threadgroup[axis];
  }
  memcpy(run->group, at, sizeof at);
  run->group_index = x + groups[0] * (y + groups[1] * z);
  run->lane_count = size[0] * size[1] * size[2];
  run->simd_count = (run->lane_count + 31) / 32;
  run->arrived = 0;
  copy_count = 0;
  run->time += 1;
  for (Clock* clock : {&run->threadgroup_clock, &run->device_clock}) {
    *clock = Clock{run->time, run->time, {}};
  }
  for (unsigned index = 0; index < run->lane_count; index++) {
    Lane& lane = run->lanes[index];
    sim_lane_position& position = run->positions[index];
    unsigned in_group[3] = {index % size[0], index / size[0] % size[1], index / size[0] / size[1]};
    for (int axis = 0; axis < 3; axis++) {
      position.thread_in_group[axis] = in_group[axis];
      position.group[axis] = at[axis];
      position.group_size[axis] = size[axis];
      position.uniform_size[axis] = launch.threadgroup[axis];
      position.groups[axis] = groups[axis];
      position.grid[axis] = launch.grid[axis];
      position.thread_in_grid[axis] = at[axis] * launch.threadgroup[axis] + in_group[axis];
    }
    position.index = index;
    position.simd_lane = index % 32;
    position.simdgroup = index / 32;
    position.simdgroups = run->simd_count;
    lane.state = READY;
    lane.operation = SIM_NOTHING;
    lane.context.prepare(run->stacks.of(index), [] {
      sim_run_lane(&run->positions[run->current], run->launch->buffers);
      run->lanes[run->current].state = DONE;
      switch_context(run->lanes[run->current].context, run->scheduler);
    });
  }
  for (unsigned i = 0; i < run->simd_count; i++) {
    unsigned left = run->lane_count - i * 32;
    Simdgroup& simd = run->simds[i];
    simd.first = i * 32;
    simd.lanes = left < 32 ? left : 32;
    simd.arrived = simd.parity = 0;
  }
  for (int i = 0; i < run->arena.variable_count; i++) {
    memset(run->arena.variables[i].begin, 0xFF, run->arena.variables[i].bytes);
  }
}

static void shuffle_order(unsigned* order, unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    order[i] = run->launch->order == 1 ? count - 1 - i : i;
  }
  for (unsigned i = count; run->launch->order == 2 && i > 1; i--) {
    run->random = run->random * 6364136223846793005ull + 1442695040888963407ull;
    unsigned j = unsigned((run->random >> 33) % i);
    unsigned kept = order[i - 1];
    order[i - 1] = order[j];
    order[j] = kept;
  }
}

// Run one simdgroup until its lanes wait for the threadgroup or are done.
static void run_simdgroup(Simdgroup& simd) {
  unsigned order[32];
  for (bool moved = true; moved && !run->stopped;) {
    moved = false;
    shuffle_order(order, simd.lanes);
    for (unsigned i = 0; i < simd.lanes && !run->stopped; i++) {
      Lane& lane = run->lanes[simd.first + order[i]];
      if (lane.state == READY) {
        run->current = simd.first + order[i];
        switch_context(run->scheduler, lane.context);
        moved = true;
      }
    }
  }
  if (run->stopped || simd.arrived == 0) {
    return;
  }
  const Lane *waiting = nullptr, *absent = nullptr;
  for (unsigned i = 0; i < simd.lanes; i++) {
    const Lane& lane = run->lanes[simd.first + i];
    if (lane.state == AT_OTHERS) {
      return;  // it comes when they let it
    }
    (lane.state == AT_SIMDGROUP ? waiting : absent) = &lane;
  }
  diverged(*waiting, *absent, waiting->pc, waiting->operation);
}

static void run_group() {
  unsigned order[32];
  while (!run->stopped) {
    shuffle_order(order, run->simd_count);
    for (unsigned i = 0; i < run->simd_count && !run->stopped; i++) {
      run_simdgroup(run->simds[order[i]]);
    }
    if (run->stopped) {
      return;
    }
    if (run->arrived == run->lane_count) {
      if (!together(0, run->lane_count)) {
        return;
      }
      run->launch->counts.threadgroup_barriers += 1;
      run->time += 1;
      if (run->barrier_flags & 2) {
        run->threadgroup_clock.group = run->time;
        order_copies();
      }
      if (run->barrier_flags & 1) {
        run->device_clock.group = run->time;
      }
      run->arrived = 0;
      for (unsigned i = 0; i < run->lane_count; i++) {
        run->lanes[i].state = READY;
      }
      continue;
    }
    const Lane *waiting = nullptr, *absent = nullptr;
    bool some_ready = false;
    for (unsigned i = 0; i < run->lane_count; i++) {
      const Lane& lane = run->lanes[i];
      some_ready |= lane.state == READY;
      (lane.state == DONE || lane.state == READY ? absent : waiting) = &lane;
    }
    if (some_ready || (when_idle != nullptr && when_idle())) {
      continue;
    }
    if (waiting == nullptr) {
      return report_kept_copies();
    }
    diverged(*waiting, absent == nullptr ? *waiting : *absent, waiting->pc, waiting->operation);
  }
}

}  // namespace simulator
