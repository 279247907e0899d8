// words.h: the 32-bit words of a launch -> the struct that they make up, and single ones, be they stored in pairs.
#pragma once
#include "simdgroup.h"

// Every field of P is an int or a float, a word each, in the order in which params.py packs them.
template <typename P>
INLINE P read_params(const device int* words) {
  return *reinterpret_cast<const device P*>(words);
}

INLINE int word(const device int* words, int i) { return words[i]; }
INLINE int word(const constant int64_t* pairs, int i) { return int(uint(uint64_t(pairs[i / 2]) >> (i % 2 * 32))); }
