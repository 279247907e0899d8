// simdgroup.h: threads of a threadgroup -> where each stands, and what a simdgroup is.
#pragma once
#include <metal_stdlib>

constexpr constant int LANES = 32;    // threads of a simdgroup
constexpr constant int FRAGMENT = 8;  // rows and columns of a simdgroup_matrix

// A function that keeps fragments in registers must not be called: they would go through memory.
#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)")

// Where a thread stands: its threadgroup in the grid of `groups`, its simdgroup, and its lane.
struct Thread {
  metal::uint3 group, groups;
  uint simdgroup, lane;

  uint index() const thread { return simdgroup * LANES + lane; }  // in its threadgroup
};
INLINE Thread thread_at(metal::uint3 group, metal::uint3 groups, uint simdgroup, uint lane) {
  Thread t;
  t.group = group;
  t.groups = groups;
  t.simdgroup = simdgroup;
  t.lane = lane;
  return t;
}

// Bit i: what lane i says.
INLINE uint ballot(bool yes) { return uint(ulong(metal::simd_ballot(yes))); }
