// metal_types.h: names of Metal's types that address_spaces.h and registers.h share. as_type is no member of namespace
// metal, as in Metal itself.
#pragma once
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;

template <typename To, typename From>
To as_type(From x) {
  return __builtin_bit_cast(To, x);
}

namespace metal {
template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));
typedef vec<float, 2> float2;
typedef vec<uint, 3> uint3;
typedef vec<ulong, 2> ulong2;
typedef vec<long, 2> long2;
}  // namespace metal
