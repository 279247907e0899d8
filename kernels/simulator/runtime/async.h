// simdgroup_async_copy: a copy of a tile that lands only when a wait asks for it, so that a missing wait is seen.
//
// Not in Metal's documentation; the compiler of macOS 15 and earlier knows it as the symbols below. Every lane of a
// simdgroup calls with the same arguments. Vectors arrive by reference here.
//
// An M1 can hang until it is restarted where the kernel ends, or the tile is copied over, before somebody has read what
// arrived, or where no barrier of the threadgroup lies between the wait and the end (metal-flash-attention,
// GEMMHeaders.swift). So a copy is kept until both have happened; what is kept at the end is reported.
#pragma once

namespace simulator {

struct Copy {
  uint64_t element, target_row, target_tile[2], source_row, source_tile[2];
  char* target;
  const char* source;
  const void* pc;
  unsigned lane;
  bool pending;  // nobody has waited
  bool ordered;  // a barrier of the threadgroup came after the wait
  bool was_read;

  bool kept() const { return pending || !ordered || !was_read; }
  bool holds(const char* at, uint64_t size) const {
    const char* end = target + ((target_tile[1] - 1) * target_row + target_tile[0]) * element;
    return target_tile[0] > 0 && target_tile[1] > 0 && at < end && at + size > target;
  }
};

enum CopyFault { NOBODY_WAITED, NOBODY_READ, NO_BARRIER };

static Copy copies[256];
static uintptr_t copy_count = 0;

static void report_copy(const Copy& copy, CopyFault fault) {
  if (sim_finding* finding = add(SIM_ASYNC, 1000, relative(copy.pc), 0)) {
    finding->lane = int(copy.lane);
    finding->write = fault;
  }
}

static void note_read_of_copies(const void* at, size_t size) {
  for (uintptr_t i = 0; i < copy_count; i++) {
    copies[i].was_read |= !copies[i].pending && copies[i].holds(static_cast<const char*>(at), size);
  }
}

static void order_copies() {
  for (uintptr_t i = 0; i < copy_count; i++) {
    copies[i].ordered |= !copies[i].pending;
  }
}

static void move(const Copy& copy, char* to, const char* from) {
  if (from != nullptr) {
    if (run->launch->checks) {
      access(from, copy.element, false, false, copy.pc);
    }
    memcpy(to, from, copy.element);
  } else {
    memset(to, 0, copy.element);  // beyond the source: zero
  }
}

static void land(Copy& copy) {
  for (uintptr_t i = 0; i < copy_count; i++) {
    Copy& other = copies[i];
    if (&other != &copy && !other.pending && !other.was_read && other.holds(copy.target, copy.element)) {
      report_copy(other, NOBODY_READ);  // copied over
      other.was_read = true;
    }
  }
  copy.pending = false;
  for (uint64_t row = 0; row < copy.target_tile[1]; row++) {
    for (uint64_t column = 0; column < copy.target_tile[0]; column++) {
      bool inside = row < copy.source_tile[1] && column < copy.source_tile[0];
      char* to = copy.target + (row * copy.target_row + column) * copy.element;
      const char* from = copy.source + (row * copy.source_row + column) * copy.element;
      if (run->launch->checks) {
        access(to, copy.element, true, false, copy.pc);
      }
      move(copy, to, inside ? from : nullptr);
    }
  }
}

static void report_kept_copies() {
  for (uintptr_t i = 0; i < copy_count; i++) {
    const Copy& copy = copies[i];
    if (copy.kept()) {
      report_copy(copy, copy.pending ? NOBODY_WAITED : !copy.was_read ? NOBODY_READ : NO_BARRIER);
    }
  }
}

static Copy incoming;                // of the lane that calls
static void* const* waited = nullptr;
static int waited_count = 0;

}  // namespace simulator

extern "C" void* sim_async_copy(uint64_t element, uint64_t align, void* target, uint64_t target_row, uint64_t,
                                const uint64_t* target_tile, const void* source, uint64_t source_row, uint64_t,
                                const uint64_t* source_tile, const int64_t*, int)
    __asm("air.simdgroup_async_copy_2d.p3i8.p1i8");
extern "C" void sim_async_wait(int count, void** events) __asm("air.wait_simdgroup_events");

void* sim_async_copy(uint64_t element, uint64_t, void* target, uint64_t target_row, uint64_t,
                     const uint64_t* target_tile, const void* source, uint64_t source_row, uint64_t,
                     const uint64_t* source_tile, const int64_t*, int) {
  using namespace simulator;
  const void* pc = __builtin_return_address(0);
  incoming = {element, target_row, {target_tile[0], target_tile[1]}, source_row, {source_tile[0], source_tile[1]},
              static_cast<char*>(target), static_cast<const char*>(source), pc, run->current, true, false,
              run->launch->checks == 0};  // without checks no read is seen
  void* table = exchange(SIM_ASYNC_COPY, nullptr, 0, [](void* rows, unsigned) {
    uintptr_t event = 0;
    while (event < copy_count && copies[event].kept()) {
      event += 1;
    }
    if (event == 256) {
      add(SIM_ASYNC, 1000, relative(incoming.pc), 0);
      stop();
    }
    copies[event++] = incoming;
    copy_count = event > copy_count ? event : copy_count;
    memcpy(rows, &event, sizeof event);
  }, pc);
  void* event;
  memcpy(&event, table, sizeof event);
  return event;
}

void sim_async_wait(int count, void** events) {
  using namespace simulator;
  waited = events;
  waited_count = count;
  exchange(SIM_ASYNC_WAIT, nullptr, 0, [](void*, unsigned) {
    for (int i = 0; i < waited_count; i++) {
      uintptr_t event = reinterpret_cast<uintptr_t>(waited[i]);
      if (event >= 1 && event <= copy_count && copies[event - 1].pending) {
        land(copies[event - 1]);
      }
    }
    order_simdgroup(3);
  }, __builtin_return_address(0));
}
