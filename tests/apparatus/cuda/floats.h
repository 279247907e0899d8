// floats.h: the number formats of PTX on the host.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

static float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
static float from_f16(uint16_t bits) {
  _Float16 x;
  memcpy(&x, &bits, 2);
  return float(x);
}
static float from_bf16(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

// "rn": to nearest, ties to even. nan becomes 0x7fff.
static uint16_t to_f16(float x) {
  if (x != x) return 0x7fff;
  const _Float16 y = _Float16(x);
  uint16_t bits;
  memcpy(&bits, &y, 2);
  return bits;
}
static uint16_t to_bf16(float x) {
  if (x != x) return 0x7fff;
  const uint32_t bits = bits_of(x);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
// "rna": to nearest, ties away from zero.
static uint32_t to_tf32(float x) {
  const uint32_t bits = bits_of(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? (x != x ? 0x7fffffffu : bits) : (bits + 0x1000) & 0xffffe000u;
}
static float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
// As good as "max relative error 2^-11" promises.
static float of_11_bits(double x) {
  const float y = float(x);
  return std::isfinite(y) ? float_of((bits_of(y) + 0x800) & 0xfffff000u) : y;
}
