// What `-fsanitize=thread` calls before every access to memory, in place of the sanitizer's own library.
#pragma once

// A type's own alignment, where the kernel's language asks for it (SIM_ALIGNED).
static inline void aligned(const void* at, size_t size, bool write, const void* pc) {
#ifdef SIM_ALIGNED
  if (uintptr_t(at) - arena_begin < ARENA && uintptr_t(at) % size != 0) {
    misaligned(at, size, write, pc);
  }
#endif
}

// Most accesses are to the lane's own stack, outside the arena.
static inline void checked(const void* at, size_t size, bool write, bool atomic, const void* pc) {
  if (uintptr_t(at) - arena_begin < ARENA) {
    access(at, size, write, atomic, pc);
  }
}

#define SIM_HOOKS(size)                                         \
  extern "C" void __tsan_read##size(void* at) {                 \
    aligned(at, size, false, __builtin_return_address(0));      \
    checked(at, size, false, false, __builtin_return_address(0)); \
  }                                                             \
  extern "C" void __tsan_write##size(void* at) {                \
    aligned(at, size, true, __builtin_return_address(0));       \
    checked(at, size, true, false, __builtin_return_address(0)); \
  }
#define SIM_WIDE_HOOKS(size)                                    \
  SIM_HOOKS(size)                                               \
  extern "C" void __tsan_unaligned_read##size(void* at) {       \
    checked(at, size, false, false, __builtin_return_address(0)); \
  }                                                             \
  extern "C" void __tsan_unaligned_write##size(void* at) {      \
    checked(at, size, true, false, __builtin_return_address(0)); \
  }                                                             \
  extern "C" void __tsan_volatile_read##size(void* at) {        \
    checked(at, size, false, false, __builtin_return_address(0)); \
  }                                                             \
  extern "C" void __tsan_volatile_write##size(void* at) {       \
    checked(at, size, true, false, __builtin_return_address(0)); \
  }

SIM_HOOKS(1)
SIM_WIDE_HOOKS(2)
SIM_WIDE_HOOKS(4)
SIM_WIDE_HOOKS(8)
SIM_WIDE_HOOKS(16)

extern "C" void __tsan_read_range(void* at, unsigned long size) {
  checked(at, size, false, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* at, unsigned long size) {
  checked(at, size, true, false, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
