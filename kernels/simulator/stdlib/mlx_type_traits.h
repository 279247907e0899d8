// In place of mlx/backend/metal/kernels/steel/utils/type_traits.h, whose specialisations by address space are one here.
#pragma once

namespace metal {

template <typename T>
struct is_empty : bool_constant<std::is_empty_v<T>> {};
template <typename T>
constexpr bool is_empty_v = is_empty<T>::value;
template <typename... Ts>
using void_t = void;
template <class T>
struct is_static : bool_constant<std::is_empty_v<remove_cv_t<T>>> {};
template <typename T>
struct pointer_element {};
template <typename T>
struct pointer_element<T*> {
  using type = remove_cv_t<T>;
};
template <typename T>
using pointer_element_t = typename pointer_element<remove_cv_t<T>>::type;

}  // namespace metal
