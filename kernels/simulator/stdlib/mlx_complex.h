// In place of mlx/backend/metal/kernels/complex.h, whose overloads by address space are one here: the type alone.
#pragma once

template <typename T>
struct complex_t {
  T real, imag;
  constexpr complex_t(T real_part = T(0), T imag_part = T(0)) : real(real_part), imag(imag_part) {}
};
typedef complex_t<float> complex64_t;
