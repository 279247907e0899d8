// wgmma.h: products of a warpgroup (PTX ISA: wgmma.mma_async), 64 rows by 64 or 128 columns, whose sums lie in registers:
// of the 16 rows of a warp a lane holds what products.h says of Sums.
#pragma once
#include "../tile/products.h"
#include "slabs.h"

// How wgmma finds a matrix in shared memory, of slabs of 64 columns in rows of 128 swizzled bytes. By rows: the sums run
// along the columns. By columns: they run along the rows; slab_bytes is from a slab to the next.
INLINE uint64_t by_rows(const void* slab) {
  return uint64_t((ptx::shared_address(slab) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
INLINE uint64_t by_columns(const void* slab, int slab_bytes) {
  return uint64_t((ptx::shared_address(slab) & 0x3ffff) >> 4) | uint64_t(slab_bytes >> 4) << 16 | 64ull << 32 | 1ull << 62;
}
// The matrix that begins `bytes` further on.
INLINE uint64_t moved(uint64_t matrix, int bytes) { return matrix + (bytes >> 4); }

// Registers that were written are seen by the products that follow.
INLINE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
INLINE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int GROUPS>
INLINE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
}
// The compiler does not move what computes these registers beyond this.
template <int TILES>
INLINE void pin(Sums (&sums)[TILES]) {
  UNROLL
  for (int j = 0; j < TILES; j++) {
    UNROLL
    for (int i = 0; i < 4; i++) asm volatile("" : "+f"(sums[j].at[i])::"memory");
  }
}

#define SUMS_1(j) "+f"(c[j].at[0]), "+f"(c[j].at[1]), "+f"(c[j].at[2]), "+f"(c[j].at[3])
#define SUMS_8(j) \
  SUMS_1(j), SUMS_1(j + 1), SUMS_1(j + 2), SUMS_1(j + 3), SUMS_1(j + 4), SUMS_1(j + 5), SUMS_1(j + 6), SUMS_1(j + 7)
#define SUMS_16(j) SUMS_8(j), SUMS_8(j + 8)
#define NAMES_32                                                                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64                                                                                                     \
  NAMES_32                                                                                                           \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// C += A B of 16 columns of A, for 64 rows and COLUMNS columns of C.
template <typename T, int COLUMNS>
struct Warpgroup;

// I0 to I4: the places of what follows the sums among the operands of an instruction.
#define WARPGROUP(T, TYPE, COLUMNS, SUMS, NAMES, I0, I1, I2, I3, I4)                                           \
  template <>                                                                                                  \
  struct Warpgroup<T, COLUMNS> {                                                                               \
    /* A and B^T by rows; C = A B where `more` is 0. */                                                        \
    static INLINE void multiply_by_rows(Sums* c, uint64_t a, uint64_t b, int more) {                           \
      asm volatile("{\n.reg .pred more;\nsetp.ne.b32 more, %" I2 ", 0;\n"                                      \
                   "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." TYPE "." TYPE " {" NAMES "}, %" I0  \
                   ", %" I1 ", more, 1, 1, 0, 0;\n}"                                                           \
                   : SUMS                                                                                      \
                   : "l"(a), "l"(b), "r"(more));                                                               \
    }                                                                                                          \
    /* A in registers, as products.h says of a left factor; B^T by columns. */                                 \
    static INLINE void multiply_by_columns(Sums* c, const uint (&a)[4], uint64_t b) {                          \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." TYPE "." TYPE " {" NAMES "}, {%" I0 \
                   ", %" I1 ", %" I2 ", %" I3 "}, %" I4 ", 1, 1, 1, 1;"                                        \
                   : SUMS                                                                                      \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                      \
    }                                                                                                          \
  };
#define WARPGROUPS(T, TYPE)                                                         \
  WARPGROUP(T, TYPE, 64, SUMS_8(0), NAMES_32, "32", "33", "34", "35", "36")         \
  WARPGROUP(T, TYPE, 128, SUMS_16(0), NAMES_64, "64", "65", "66", "67", "68")
WARPGROUPS(float16_t, "f16")
WARPGROUPS(bfloat16_t, "bf16")
#undef WARPGROUP
#undef WARPGROUPS

// sums = A B of COLUMNS columns of A: own rows of a slab of OWN, times rows of a slab of OTHERS.
template <typename T, int COLUMNS, int OWN, int OTHERS>
INLINE void multiply_rows(Sums* sums, uint64_t own, uint64_t others) {
  UNROLL
  for (int d = 0; d < COLUMNS; d += 16) {
    const int inside = d % SLAB * int(sizeof(T)), slab = d / SLAB * SLAB * int(sizeof(T));
    Warpgroup<T, OTHERS>::multiply_by_rows(sums, moved(own, slab * OWN + inside), moved(others, slab * OTHERS + inside),
                                           d != 0);
  }
}
// sums += weights, as factors of 16 rows each, times SLABS slabs of these rows.
template <int SLABS, typename T, int ROWS>
INLINE void add_rows_of(Sums* sums, const uint (&weights)[ROWS / 16][4], const T (&rows)[SLABS][ROWS][SLAB]) {
  constexpr int SLAB_BYTES = ROWS * SLAB * int(sizeof(T)), WIDE = SLABS / 2 * 2;
  const uint64_t others = by_columns(rows, SLAB_BYTES);
  UNROLL
  for (int j = 0; j < ROWS / 16; j++) {
    const uint64_t here = moved(others, 16 * j * SLAB * int(sizeof(T)));
    UNROLL
    for (int s = 0; s < WIDE; s += 2) {
      Warpgroup<T, 128>::multiply_by_columns(sums + s * SLAB / 8, weights[j], moved(here, s * SLAB_BYTES));
    }
    if constexpr (WIDE < SLABS) {
      Warpgroup<T, 64>::multiply_by_columns(sums + WIDE * SLAB / 8, weights[j], moved(here, WIDE * SLAB_BYTES));
    }
  }
}
// Sums -> left factors of 16 columns each.
template <typename T, int PARTS>
INLINE void keep_factors(uint (&factors)[PARTS][4], const Sums* sums) {
  UNROLL
  for (int j = 0; j < PARTS; j++) {
    typename Step<T>::Left left;
    Step<T>::left_of(left, sums + 2 * j);
    UNROLL
    for (int i = 0; i < 4; i++) factors[j][i] = left.at[i];
  }
}
