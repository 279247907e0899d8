// instructions.h: PTX, an instruction each, from what the PTX ISA says of it and not from how the kernels use it: a
// twin of kernels/cuda/tile/ptx.h. translate.py makes a call of `asm("mma.sync...")`: dots and :: become _, operands are
// arguments in their order, destinations references, addresses 32-bit ones of shared memory or pointers.
#pragma once
#include "floats.h"

#define PTX(name, ...) void ptx_##name(__VA_ARGS__)
#define PC __builtin_return_address(0)

// -- numbers: "cvt" ----------------------------------------------------------------------------------------------

PTX(cvt_f32_f16, float& d, uint16_t a) { d = from_f16(a); }
PTX(cvt_f32_bf16, float& d, uint16_t a) { d = from_bf16(a); }
PTX(cvt_rn_f16_f32, uint16_t& d, float a) { d = to_f16(a); }
PTX(cvt_rn_bf16_f32, uint16_t& d, float a) { d = to_bf16(a); }
// "For f16x2 and bf16x2, input a is stored in the upper half of d, input b in its lower half."
PTX(cvt_rn_f16x2_f32, uint32_t& d, float a, float b) { d = uint32_t(to_f16(a)) << 16 | to_f16(b); }
PTX(cvt_rn_bf16x2_f32, uint32_t& d, float a, float b) { d = uint32_t(to_bf16(a)) << 16 | to_bf16(b); }
PTX(cvt_rna_tf32_f32, uint32_t& d, float a) { d = to_tf32(a); }

// -- approximate functions, with errors as large as those that PTX allows -------------------------------------------

PTX(div_full_f32, float& d, float a, float b) { d = a / b; }
PTX(ex2_approx_f32, float& d, float a) { d = float(std::exp2(double(a))); }
PTX(ex2_approx_ftz_f32, float& d, float a) { d = flushed(float(std::exp2(double(flushed(a))))); }
PTX(tanh_approx_f32, float& d, float a) { d = of_11_bits(std::tanh(double(a))); }
PTX(rcp_approx_f32, float& d, float a) { d = 1.0f / a; }
PTX(rcp_approx_ftz_f32, float& d, float a) { d = flushed(1.0f / flushed(a)); }
PTX(lg2_approx_f32, float& d, float a) { d = float(std::log2(double(a))); }
PTX(lg2_approx_ftz_f32, float& d, float a) { d = float(std::log2(double(flushed(a)))); }

// -- device memory: hints change nothing --------------------------------------------------------------------------------

// "ld.v4: the address must be aligned to the size of the whole access."
PTX(ld_global_nc_L1__no_allocate_L2__256B_v4_u32, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint64_t from) {
  const char* source = reinterpret_cast<const char*>(from);
  if (from % 16 != 0) {
    misaligned(source, 16, false, PC);
  }
  access(source, 16, false, false, PC);
  memcpy(&a, source, 4), memcpy(&b, source + 4, 4), memcpy(&c, source + 8, 4), memcpy(&d, source + 12, 4);
}

// -- matrices in shared memory --------------------------------------------------------------------------------------

namespace simulator {

// "ldmatrix": lanes 8 i to 8 i + 7 give the rows of matrix i, of 16 bytes; lane l receives the elements 2 (l % 4) and
// the next one of row l / 4, or with .trans of column l / 4.
static void load_matrices(uint32_t* const* to, int count, bool transposed, uint32_t address, const void* pc) {
  const unsigned lane = run->current % 32;
  uint16_t row[8] = {};
  if (lane < unsigned(8 * count)) {
    shared_read(row, address, 16, pc);
  }
  need_whole_simdgroup(SIM_MATRIX_LOAD, pc);
  const char* table = static_cast<char*>(exchange(SIM_MATRIX_LOAD, row, sizeof row, nullptr, pc));
  for (int i = 0; i < count; i++) {
    uint16_t pair[2];
    for (unsigned e = 0; e < 2; e++) {
      const unsigned at = 2 * (lane % 4) + e, r = transposed ? at : lane / 4, c = transposed ? lane / 4 : at;
      memcpy(&pair[e], table + (8 * i + r) * ROW + 2 * c, 2);
    }
    *to[i] = uint32_t(pair[1]) << 16 | pair[0];
  }
}

}  // namespace simulator

PTX(ldmatrix_sync_aligned_m8n8_x1_shared_b16, uint32_t& a, uint32_t address) {
  uint32_t* to[] = {&a};
  load_matrices(to, 1, false, address, PC);
}
PTX(ldmatrix_sync_aligned_m8n8_x2_shared_b16, uint32_t& a, uint32_t& b, uint32_t address) {
  uint32_t* to[] = {&a, &b};
  load_matrices(to, 2, false, address, PC);
}
PTX(ldmatrix_sync_aligned_m8n8_x2_trans_shared_b16, uint32_t& a, uint32_t& b, uint32_t address) {
  uint32_t* to[] = {&a, &b};
  load_matrices(to, 2, true, address, PC);
}
PTX(ldmatrix_sync_aligned_m8n8_x4_shared_b16, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t address) {
  uint32_t* to[] = {&a, &b, &c, &d};
  load_matrices(to, 4, false, address, PC);
}
PTX(ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d,
    uint32_t address) {
  uint32_t* to[] = {&a, &b, &c, &d};
  load_matrices(to, 4, true, address, PC);
}
// "movmatrix": the matrix lies in the lanes as ldmatrix leaves it, and is transposed.
PTX(movmatrix_sync_aligned_m8n8_trans_b16, uint32_t& d, uint32_t a) {
  need_whole_simdgroup(SIM_SHUFFLE, PC);
  const char* table = static_cast<char*>(exchange(SIM_SHUFFLE, &a, sizeof a, nullptr, PC));
  const unsigned lane = run->current % 32;
  uint16_t pair[2];
  for (unsigned e = 0; e < 2; e++) {
    const unsigned row = 2 * (lane % 4) + e, column = lane / 4;
    memcpy(&pair[e], table + (row * 4 + column / 2) * ROW + 2 * (column % 2), 2);
  }
  d = uint32_t(pair[1]) << 16 | pair[0];
}

// -- asynchronous copies: they arrive when their thread waits for them, and not before ---------------------------------

PTX(cp_async_cg_shared_global, uint32_t to, uint64_t from, int size, uint32_t bytes) {
  begin_copy(to, from, size, bytes, PC);
}
PTX(cp_async_cg_shared_global, uint32_t to, uint64_t from, int size) { begin_copy(to, from, size, size, PC); }
PTX(cp_async_ca_shared_global, uint32_t to, uint64_t from, int size, uint32_t bytes) {
  begin_copy(to, from, size, bytes, PC);
}
PTX(cp_async_ca_shared_global, uint32_t to, uint64_t from, int size) { begin_copy(to, from, size, size, PC); }
PTX(cp_async_commit_group, ) { close_group(); }
PTX(cp_async_wait_group, int groups) { land_groups(groups); }
PTX(cp_async_wait_all, ) {
  close_group();
  land_groups(0);
}
// "the arrive-on operation is triggered when all prior cp.async operations of the thread complete": here at once.
PTX(cp_async_mbarrier_arrive_noinc_shared__cta_b64, uint32_t address) {
  close_group();
  land_groups(0);
  arrive_at(address, 1, 0, PC);
}

// -- products: "mma", its fragments as the figures of PTX ISA have them ----------------------------------------------

namespace simulator {

struct Operands {
  uint32_t a[4], b[2];
  uint32_t c[4];  // float or int32
  uint32_t d[4];
};

// Where a lane's elements of A and B lie: PER of them in a register, of BITS bits.
template <int PER, int K>
struct Fragments {
  static constexpr unsigned BITS = 32 / PER, HALF = K / 2;
  // Element i of A: rows groupID and groupID + 8 in turn, register by register; the columns behind the first half in
  // registers 2 and 3.
  static int row_of_a(unsigned lane, unsigned i) { return lane / 4 + i / PER % 2 * 8; }
  static int column_of_a(unsigned lane, unsigned i) { return lane % 4 * PER + i % PER + i / PER / 2 * HALF; }
  static int row_of_b(unsigned lane, unsigned i) { return lane % 4 * PER + i % PER + i / PER * HALF; }
  static int column_of_b(unsigned lane) { return lane / 4; }
  static uint32_t element(const uint32_t* registers, unsigned i) {
    return registers[i / PER] >> (i % PER * BITS) & (BITS == 32 ? ~0u : (1u << BITS % 32) - 1);
  }
};

// C: rows groupID (elements 0, 1) and groupID + 8 (2, 3), columns 2 threadID_in_group + i % 2.
template <int PER, int K, typename Sum, typename Wide, typename Read>
static void multiply_16_by_8(void* table, unsigned) {
  typedef Fragments<PER, K> F;
  Operands* lanes[32];
  Wide a[16][K], b[K][8];
  for (unsigned lane = 0; lane < 32; lane++) {
    memcpy(&lanes[lane], static_cast<char*>(table) + lane * ROW, sizeof(Operands*));
    for (unsigned i = 0; i < 4 * PER; i++) {
      a[F::row_of_a(lane, i)][F::column_of_a(lane, i)] = Read::value(F::element(lanes[lane]->a, i));
    }
    for (unsigned i = 0; i < 2 * PER; i++) {
      b[F::row_of_b(lane, i)][F::column_of_b(lane)] = Read::value(F::element(lanes[lane]->b, i));
    }
  }
  for (unsigned lane = 0; lane < 32; lane++) {
    for (unsigned i = 0; i < 4; i++) {
      const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      Wide sum = 0;
      for (int k = 0; k < K; k++) {
        sum += a[row][k] * b[k][column];
      }
      Sum c;
      memcpy(&c, &lanes[lane]->c[i], 4);
      c = Sum(sum + c);
      memcpy(&lanes[lane]->d[i], &c, 4);
    }
  }
}

struct ReadF16 {
  static double value(uint32_t bits) { return from_f16(uint16_t(bits)); }
};
struct ReadBf16 {
  static double value(uint32_t bits) { return from_bf16(uint16_t(bits)); }
};
struct ReadTf32 {  // "the lower 13 bits are ignored"
  static double value(uint32_t bits) { return float_of(bits & 0xffffe000u); }
};
struct ReadS8 {
  static int64_t value(uint32_t bits) { return int8_t(bits); }
};

static void multiply_in_warp(Operands& operands, void (*product)(void*, unsigned), const void* pc) {
  need_whole_simdgroup(SIM_MULTIPLY, pc);
  Operands* mine = &operands;
  exchange(SIM_MULTIPLY, &mine, sizeof mine, product, pc);
}

}  // namespace simulator

#define PTX_MMA(name, element, per, k, sum, wide, read)                                                              \
  PTX(name, element& d0, element& d1, element& d2, element& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, \
      uint32_t b0, uint32_t b1, element c0, element c1, element c2, element c3) {                                    \
    element c[4] = {c0, c1, c2, c3};                                                                                 \
    Operands operands = {{a0, a1, a2, a3}, {b0, b1}, {}, {}};                                                        \
    memcpy(operands.c, c, sizeof c);                                                                                 \
    multiply_in_warp(operands, multiply_16_by_8<per, k, sum, wide, read>, PC);                                       \
    memcpy(&d0, operands.d, 4), memcpy(&d1, operands.d + 1, 4), memcpy(&d2, operands.d + 2, 4);                      \
    memcpy(&d3, operands.d + 3, 4);                                                                                  \
  }
PTX_MMA(mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32, float, 2, 16, float, double, ReadF16)
PTX_MMA(mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32, float, 2, 16, float, double, ReadBf16)
PTX_MMA(mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32, float, 1, 8, float, double, ReadTf32)
PTX_MMA(mma_sync_aligned_m16n8k32_row_col_s32_s8_s8_s32, uint32_t, 4, 32, int32_t, int64_t, ReadS8)

// -- barriers -------------------------------------------------------------------------------------------------------

PTX(bar_sync, int id, int threads) { wait_at_named(id, threads, true, PC); }
PTX(bar_arrive, int id, int threads) { wait_at_named(id, threads, false, PC); }
PTX(barrier_sync, int id, int threads) { wait_at_named(id, threads, true, PC); }
PTX(barrier_arrive, int id, int threads) { wait_at_named(id, threads, false, PC); }
