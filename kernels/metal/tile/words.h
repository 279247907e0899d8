// words.h: the 32-bit words of a launch -> the struct that they make up.
#pragma once
#include <metal_stdlib>

// Every field of P is an int or a float, a word each, in the order in which params.py packs them.
template <typename P>
inline P read_params(const device int* words) {
  return *reinterpret_cast<const device P*>(words);
}
