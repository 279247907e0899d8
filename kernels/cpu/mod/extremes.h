// extremes.h: the least and largest element of each block of a captured array, so that tile_state has those of any
// range of it after a few looks. Made once per call, by jobs, of the arrays that the mask's bounds read.
#pragma once
#include "mod.h"
#include "../tile/panels.h"

class ArrayExtremes {
  static constexpr int64_t SUPERBLOCKS_PER_JOB = 16;
  static constexpr int64_t SHORT = 2 * bounds::BLOCK;  // looking at as many elements is as quick
  static constexpr int64_t PAIR = sizeof(bounds::IntExtremes);
  static_assert(PAIR == sizeof(bounds::FloatExtremes), "the size of a table does not depend on its type");

  // The table of one array: rows along its axis, one for each place of the other axes.
  struct Table {
    int64_t blocks = 0, superblocks = 0;  // per row
    int64_t first_job = 0, jobs = 0;
  };
  Table tables[ARRAYS + 1];
  Extremes extremes[ARRAYS + 1] = {};  // by slot; offsets into the memory until it is there

 public:
  int64_t jobs = 0, bytes = 0;

  // Arrays of more elements than `most` are left alone: making extremes takes as long as reading them all.
  void plan(const Array* arrays, int64_t most) {
    Mods::ranged_arrays([&](auto, int slot, int axis) {
      const Array& array = arrays[slot];
      int64_t elements = 1;
      for (int i = 0; i < array.ndim; i++) elements *= array.shape[i];
      if (array.shape[axis] <= SHORT || elements > most) return;
      Table& table = tables[slot];
      int64_t rows = elements / array.shape[axis];
      table.blocks = (array.shape[axis] + bounds::BLOCK - 1) / bounds::BLOCK;
      table.superblocks = (table.blocks + bounds::BLOCK - 1) / bounds::BLOCK;
      table.first_job = jobs;
      table.jobs = (rows * table.superblocks + SUPERBLOCKS_PER_JOB - 1) / SUPERBLOCKS_PER_JOB;
      jobs += table.jobs;
      extremes[slot] = {(const void*)bytes, (const void*)(bytes + rows * table.blocks * PAIR), axis};
      bytes += rows * (table.blocks + table.superblocks) * PAIR;
    });
  }
  // Once the memory is there: what bounds::load reads.
  const Extremes* in(char* base) {
    for (int slot = 0; slot < ARRAYS; slot++) {
      if (!tables[slot].jobs) continue;
      extremes[slot].blocks = base + (int64_t)extremes[slot].blocks;
      extremes[slot].superblocks = base + (int64_t)extremes[slot].superblocks;
    }
    return jobs ? extremes : nullptr;
  }

  NOINLINE void run_job(const Inputs& in, int64_t job) const {
    Mods::ranged_arrays([&](auto type, int slot, int) {
      const Table& table = tables[slot];
      if (job < table.first_job || job >= table.first_job + table.jobs) return;
      const Array& array = in.arrays[slot];
      int64_t rows = 1, first = (job - table.first_job) * SUPERBLOCKS_PER_JOB;
      for (int i = 0; i < array.ndim; i++) rows *= i == extremes[slot].axis ? 1 : array.shape[i];
      int64_t end = smaller(first + SUPERBLOCKS_PER_JOB, rows * table.superblocks);
      for (int64_t i = first; i < end; i++)
        make<typename decltype(type)::T>(in, slot, i / table.superblocks, i % table.superblocks);
    });
  }

 private:
  // One superblock and its blocks.
  template <class T>
  void make(const Inputs& in, int slot, int64_t row, int64_t superblock) const {
    const Array& array = in.arrays[slot];
    const Table& table = tables[slot];
    int64_t axis = extremes[slot].axis, stride = array.strides[axis], size = array.shape[axis];
    const T* data = (const T*)array.data;
    int64_t place = row;
    for (int64_t i = array.ndim - 1; i >= 0; i--) {
      if (i == axis) continue;
      data += place % array.shape[i] * array.strides[i];
      place /= array.shape[i];
    }
    auto* blocks = (bounds::ExtremesOf<T>*)extremes[slot].blocks + row * table.blocks;
    auto* superblocks = (bounds::ExtremesOf<T>*)extremes[slot].superblocks + row * table.superblocks;
    bounds::ExtremesOf<T> all;
    int64_t first = superblock * bounds::BLOCK, end = smaller(first + bounds::BLOCK, table.blocks);
    for (int64_t b = first; b < end; b++) {
      bounds::ExtremesOf<T> seen;
      for (int64_t i = b * bounds::BLOCK; i < smaller((b + 1) * bounds::BLOCK, size); i++)
        seen.add(bounds::extremes_of(data[i * stride], in));
      blocks[b] = seen;
      all.add(seen);
    }
    superblocks[superblock] = all;
  }
};
