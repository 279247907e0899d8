// Shadow memory: who last wrote and read each cell, hence races and reads of memory that nobody wrote.
//
// Time is a counter of barriers. Two accesses by different lanes are ordered if a barrier of the whole threadgroup, or
// of their common simdgroup, lies between them; threadgroups are never ordered. A cell covers 4 bytes, and is split,
// with its history, when the kernel makes a smaller access: exact, because until then every access covered whole cells.
#pragma once

#include <cstdint>
#include <vector>

namespace simulator {

struct Cell {
  uint32_t write_time = 0, write_pc = 0, write_group = 0;
  uint32_t read_time = 0, read_pc = 0, read_group = 0;
  uint32_t read_simds = 0;  // simdgroups that read since the last threadgroup barrier
  uint32_t read_lanes = 0;  // lanes of the last reader's simdgroup that read since that simdgroup's barrier
  uint16_t write_lane = 0, read_lane = 0, read_other = 0;  // read_other: a reader of another simdgroup than read_lane
  bool atomic = false;   // the last write was atomic
  bool foreign = false;  // an earlier threadgroup read it too
};

// When the running threadgroup began, and when its barriers ordered this memory last.
struct Clock {
  uint32_t begin = 1;
  uint32_t group = 1;
  uint32_t simds[32] = {};
};

struct Access {
  uint32_t time, pc, group;
  unsigned lane;
  bool write, atomic;
};

// What an access collided with.
struct Conflict {
  enum Kind { NONE, RACE, UNINITIALISED } kind = NONE;
  uint32_t pc = 0, group = 0;
  unsigned lane = 0;
  bool write = false;
};

class Shadow {
 public:
  void cover(size_t bytes, bool device, bool initialised) {
    bytes_ = bytes;
    device_ = device;
    initialised_ = initialised;
    log_ = 2;
    cells_.assign((bytes + 3) / 4, Cell{});
  }

  // Check and note one access; the first conflict found, if any.
  Conflict note(size_t offset, size_t size, const Access& now, const Clock& clock) {
    while (log_ > 0 && ((offset | size) & ((size_t(1) << log_) - 1))) {
      split();
    }
    Conflict found;
    for (size_t at = offset >> log_; at < (offset + size) >> log_; at++) {
      Conflict conflict = now.write ? write(cells_[at], now, clock) : read(cells_[at], now, clock);
      if (conflict.kind != Conflict::NONE && found.kind == Conflict::NONE) {
        found = conflict;
      }
    }
    return found;
  }

  uint64_t unwritten() const {
    uint64_t bytes = 0;
    for (size_t i = 0; i < cells_.size(); i++) {
      size_t from = i << log_, to = (i + 1) << log_;  // the last cells may reach beyond the memory
      bytes += cells_[i].write_time == 0 && from < bytes_ ? (to < bytes_ ? to : bytes_) - from : 0;
    }
    return bytes;
  }

 private:
  std::vector<Cell> cells_;
  size_t bytes_ = 0;
  int log_ = 2;
  bool device_ = false, initialised_ = true;

  void split() {
    std::vector<Cell> finer;
    finer.reserve(cells_.size() * 2);
    for (const Cell& cell : cells_) {
      finer.push_back(cell);
      finer.push_back(cell);
    }
    cells_.swap(finer);
    log_ -= 1;
  }

  bool written(const Cell& cell, const Clock& clock) const {
    return device_ ? cell.write_time != 0 : cell.write_time >= clock.begin;
  }

  // Whether the last write is by another lane with no barrier between.
  Conflict after_write(const Cell& cell, const Access& now, const Clock& clock) const {
    if (!written(cell, clock) || (now.atomic && cell.atomic)) {
      return {};
    }
    bool foreign = cell.write_time < clock.begin;
    bool same_simd = cell.write_lane / 32 == now.lane / 32;
    if (!foreign && (cell.write_lane == now.lane || cell.write_time < clock.group ||
                     (same_simd && cell.write_time < clock.simds[now.lane / 32]))) {
      return {};
    }
    return {Conflict::RACE, cell.write_pc, cell.write_group, cell.write_lane, true};
  }

  Conflict write(Cell& cell, const Access& now, const Clock& clock) {
    Conflict found = after_write(cell, now, clock);
    if (found.kind == Conflict::NONE && cell.read_time != 0) {
      found = after_reads(cell, now, clock);
    }
    cell.write_time = now.time;
    cell.write_pc = now.pc;
    cell.write_group = now.group;
    cell.write_lane = uint16_t(now.lane);
    cell.atomic = now.atomic;
    cell.read_time = 0;
    cell.foreign = false;
    return found;
  }

  Conflict after_reads(const Cell& cell, const Access& now, const Clock& clock) const {
    bool earlier = cell.read_time < clock.begin;
    if (device_ && (cell.foreign || earlier)) {
      return {Conflict::RACE, cell.read_pc, cell.read_group, cell.read_lane, false};
    }
    if (earlier || cell.read_time < clock.group) {
      return {};
    }
    unsigned simd = now.lane / 32;
    if (cell.read_simds & ~(1u << simd)) {
      unsigned lane = cell.read_lane / 32 != simd ? cell.read_lane : cell.read_other;
      return {Conflict::RACE, cell.read_pc, cell.read_group, lane, false};
    }
    uint32_t others = cell.read_lanes & ~(1u << now.lane % 32);
    if (others && cell.read_time >= clock.simds[simd]) {
      return {Conflict::RACE, cell.read_pc, cell.read_group, simd * 32 + unsigned(__builtin_ctz(others)), false};
    }
    return {};
  }

  Conflict read(Cell& cell, const Access& now, const Clock& clock) {
    if (!initialised_ && !written(cell, clock)) {
      return {Conflict::UNINITIALISED};
    }
    Conflict found = after_write(cell, now, clock);
    if (now.atomic) {
      return found;
    }
    unsigned simd = now.lane / 32;
    if (device_ && cell.read_time != 0 && cell.read_time < clock.begin) {
      cell.foreign = true;
    }
    if (cell.read_time < clock.begin || cell.read_time < clock.group) {
      cell.read_simds = cell.read_lanes = 0;
    } else if (cell.read_lane / 32 != simd) {
      cell.read_other = cell.read_lane;
      cell.read_lanes = 0;
    } else if (cell.read_time < clock.simds[simd]) {
      cell.read_lanes = 0;
    }
    cell.read_simds |= 1u << simd;
    cell.read_lanes |= 1u << now.lane % 32;
    cell.read_time = now.time;
    cell.read_pc = now.pc;
    cell.read_group = now.group;
    cell.read_lane = uint16_t(now.lane);
    return found;
  }
};

}  // namespace simulator
