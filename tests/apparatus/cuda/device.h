// device.h: what a thread of CUDA knows of the others: its place, votes, shuffles, barriers, atomics. runtime.cpp does
// the work; the functions here are inlined, so that the place of each call is a line of the kernel.
#pragma once
#include "intrinsics.h"
#include "interface.h"

struct CudaIndex {
  unsigned x, y, z;
};
enum CudaPlace { CUDA_THREAD, CUDA_BLOCK, CUDA_THREADS, CUDA_BLOCKS };
enum CudaVote { CUDA_OR, CUDA_AND, CUDA_COUNT };
enum CudaShuffle { CUDA_FROM, CUDA_UP, CUDA_DOWN, CUDA_XOR };
enum CudaReduction { CUDA_ADD, CUDA_MIN, CUDA_MAX, CUDA_ALL_BITS, CUDA_ANY_BIT, CUDA_ODD_BITS, CUDA_ADD_UNSIGNED };

// An operand of an instruction that takes as many as it has columns.
struct CudaOperand {
  float* sum = nullptr;
  unsigned long bits = 0;
  CudaOperand(float& x) : sum(&x) {}
  CudaOperand(unsigned long x) : bits(x) {}
  CudaOperand(unsigned x) : bits(x) {}
  CudaOperand(int x) : bits((unsigned long)(long)x) {}
  CudaOperand(bool x) : bits(x) {}
};
void cuda_wgmma(const char* name, const CudaOperand* operands, int count);

CudaIndex cuda_place(int of);
void* cuda_dynamic_shared();
unsigned cuda_shared_address(const void* at);
int cuda_syncthreads_vote(int vote, int value);
unsigned cuda_ballot(unsigned mask, int value);
void cuda_shuffle(unsigned mask, const void* value, void* out, unsigned size, int kind, unsigned argument, int width);
int cuda_reduce(unsigned mask, int value, int reduction, int is_signed);
void cuda_begin(unsigned shared_bytes);
unsigned cuda_atomic(void* at, unsigned value, int operation, unsigned compare);
enum CudaAtomic { CUDA_ATOMIC_ADD, CUDA_ATOMIC_ADD_FLOAT, CUDA_ATOMIC_OR, CUDA_ATOMIC_AND, CUDA_ATOMIC_MIN, CUDA_ATOMIC_MAX,
                  CUDA_ATOMIC_MIN_UNSIGNED, CUDA_ATOMIC_MAX_UNSIGNED, CUDA_ATOMIC_EXCHANGE, CUDA_ATOMIC_COMPARE };

#define threadIdx cuda_place(CUDA_THREAD)
#define blockIdx cuda_place(CUDA_BLOCK)
#define blockDim cuda_place(CUDA_THREADS)
#define gridDim cuda_place(CUDA_BLOCKS)

#define __cvta_generic_to_shared(at) ((unsigned long)cuda_shared_address(at))
#define __syncthreads() sim_threadgroup_barrier(3)
#define __syncwarp(...) sim_simdgroup_barrier(3)
#define __syncthreads_or(value) cuda_syncthreads_vote(CUDA_OR, (value) != 0)
#define __syncthreads_and(value) cuda_syncthreads_vote(CUDA_AND, (value) != 0)
#define __syncthreads_count(value) cuda_syncthreads_vote(CUDA_COUNT, (value) != 0)
#define __ballot_sync(mask, value) cuda_ballot(mask, (value) != 0)
#define __any_sync(mask, value) int(cuda_ballot(mask, (value) != 0) != 0)
#define __all_sync(mask, value) int(cuda_ballot(mask, (value) != 0) == ~0u)
#define __reduce_add_sync(mask, value) cuda_reduce(mask, int(value), CUDA_ADD, true)
#define __reduce_or_sync(mask, value) unsigned(cuda_reduce(mask, int(value), CUDA_ANY_BIT, false))
#define __reduce_and_sync(mask, value) unsigned(cuda_reduce(mask, int(value), CUDA_ALL_BITS, false))
#define __reduce_xor_sync(mask, value) unsigned(cuda_reduce(mask, int(value), CUDA_ODD_BITS, false))
#define __reduce_min_sync(mask, value) cuda_reduce(mask, int(value), CUDA_MIN, decltype(value)(-1) < decltype(value)(0))
#define __reduce_max_sync(mask, value) cuda_reduce(mask, int(value), CUDA_MAX, decltype(value)(-1) < decltype(value)(0))

#define CUDA_SHUFFLE(name, kind, argument)                                        \
  template <typename T>                                                           \
  __forceinline__ T name(unsigned mask, T value, argument which, int width = 32) { \
    T out;                                                                        \
    cuda_shuffle(mask, &value, &out, sizeof(T), kind, unsigned(which), width);    \
    return out;                                                                   \
  }
CUDA_SHUFFLE(__shfl_sync, CUDA_FROM, int)
CUDA_SHUFFLE(__shfl_up_sync, CUDA_UP, unsigned)
CUDA_SHUFFLE(__shfl_down_sync, CUDA_DOWN, unsigned)
CUDA_SHUFFLE(__shfl_xor_sync, CUDA_XOR, int)

#define CUDA_ATOMIC(name, type, operation)                                              \
  __forceinline__ type name(type* at, type value) {                                      \
    return cuda_bits<type>(cuda_atomic(at, cuda_bits<unsigned>(value), operation, 0));   \
  }
CUDA_ATOMIC(atomicAdd, int, CUDA_ATOMIC_ADD)
CUDA_ATOMIC(atomicAdd, unsigned, CUDA_ATOMIC_ADD)
CUDA_ATOMIC(atomicAdd, float, CUDA_ATOMIC_ADD_FLOAT)
CUDA_ATOMIC(atomicOr, int, CUDA_ATOMIC_OR)
CUDA_ATOMIC(atomicOr, unsigned, CUDA_ATOMIC_OR)
CUDA_ATOMIC(atomicAnd, unsigned, CUDA_ATOMIC_AND)
CUDA_ATOMIC(atomicMin, int, CUDA_ATOMIC_MIN)
CUDA_ATOMIC(atomicMax, int, CUDA_ATOMIC_MAX)
CUDA_ATOMIC(atomicMin, unsigned, CUDA_ATOMIC_MIN_UNSIGNED)
CUDA_ATOMIC(atomicMax, unsigned, CUDA_ATOMIC_MAX_UNSIGNED)
CUDA_ATOMIC(atomicExch, unsigned, CUDA_ATOMIC_EXCHANGE)
CUDA_ATOMIC(atomicExch, int, CUDA_ATOMIC_EXCHANGE)
__forceinline__ unsigned atomicCAS(unsigned* at, unsigned compare, unsigned value) {
  return cuda_atomic(at, value, CUDA_ATOMIC_COMPARE, compare);
}
