// Where buffers and threadgroup variables live: far apart in one reserved range of addresses, so that every access is
// recognised by its address alone, and one that misses its buffer meets nothing else.
#pragma once

#include <cstdint>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

#include "interface.h"
#include "shadow.h"

namespace simulator {

constexpr int MAX_BUFFERS = 32, MAX_VARIABLES = 64;
// A buffer starts in the middle of its slot, which is wider than any 32-bit index into it can reach.
constexpr uint64_t SLOT = uint64_t(1) << 36, HALF_SLOT = SLOT / 2;
constexpr uint64_t VARIABLE = uint64_t(1) << 20, HALF_VARIABLE = VARIABLE / 2;
constexpr uint64_t ARENA = SLOT * (MAX_BUFFERS + 1);  // slot 0 holds the threadgroup variables

struct Region {
  char* begin = nullptr;
  uint64_t bytes = 0;
  uint64_t read = 0, written = 0;
  bool writable = false, shadowed = false;
  Shadow shadow;
};

struct Variable : Region {
  unsigned site = 0;
  const char* name = "";
};

struct Arena {
  char* base = nullptr;
  Region buffers[MAX_BUFFERS];
  Variable variables[MAX_VARIABLES];
  int buffer_count = 0, variable_count = 0;
  uint64_t allocated = 0;

  bool reserve() {
    void* found = mmap(nullptr, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    base = found == MAP_FAILED ? nullptr : static_cast<char*>(found);
    return base != nullptr;
  }

  void release() {
    if (base != nullptr) {
      munmap(base, ARENA);
      base = nullptr;
    }
  }

  bool open(char* begin, uint64_t bytes) {
    uint64_t page = uint64_t(sysconf(_SC_PAGESIZE));
    return mprotect(begin, (bytes + page) / page * page, PROT_READ | PROT_WRITE) == 0;
  }

  bool add_buffer(sim_buffer& buffer, bool checks) {
    Region& region = buffers[buffer_count];
    region.begin = base + SLOT * uint64_t(buffer_count + 1) + HALF_SLOT;
    region.bytes = buffer.bytes;
    region.writable = buffer.output != 0;
    if (!open(region.begin, buffer.bytes)) {
      return false;
    }
    buffer_count += 1;
    if (buffer.output && !buffer.initialised) {
      memset(region.begin, 0xFF, buffer.bytes);  // NaN in every floating type
    } else if (buffer.bytes) {
      memcpy(region.begin, buffer.host, buffer.bytes);
    }
    buffer.address = region.begin + buffer.origin;
    region.shadowed = checks && region.writable;
    if (region.shadowed) {
      region.shadow.cover(buffer.bytes, true, buffer.initialised != 0);
    }
    return true;
  }

  Variable* find_variable(unsigned site) {
    for (int i = 0; i < variable_count; i++) {
      if (variables[i].site == site) {
        return &variables[i];
      }
    }
    return nullptr;
  }

  Variable* add_variable(unsigned site, uint64_t bytes, uint64_t align, const char* name, bool checks) {
    if (variable_count == MAX_VARIABLES || bytes >= HALF_VARIABLE) {
      return nullptr;
    }
    Variable& variable = variables[variable_count];
    variable.begin = base + VARIABLE * uint64_t(variable_count) + HALF_VARIABLE;
    variable.bytes = bytes;
    variable.site = site;
    variable.name = name;
    variable.writable = true;
    variable.shadowed = checks;
    if (!open(variable.begin, bytes)) {
      return nullptr;
    }
    variable_count += 1;
    allocated = (allocated + align - 1) / align * align + bytes;
    memset(variable.begin, 0xFF, bytes);
    if (checks) {
      variable.shadow.cover(bytes, false, false);
    }
    return &variable;
  }

  bool holds(const void* address) const { return uint64_t(static_cast<const char*>(address) - base) < ARENA; }

  // The region whose surroundings hold `address`; null between them. `space` as in sim_finding.
  Region* region_of(const void* address, int& space) {
    uint64_t offset = uint64_t(static_cast<const char*>(address) - base);
    int slot = int(offset / SLOT);
    if (slot > 0) {
      space = slot - 1;
      return slot - 1 < buffer_count ? &buffers[slot - 1] : nullptr;
    }
    int index = int(offset / VARIABLE);
    space = -1 - index;
    return index < variable_count ? &variables[index] : nullptr;
  }
};

}  // namespace simulator
