// barriers.h: how warps of a block wait for one another and for TMA (PTX ISA: mbarrier, cp.async.bulk.tensor,
// setmaxnreg).
#pragma once
#include "../tile/products.h"

// An mbarrier in shared memory, in phases: 0, 1, 0, ... A phase ends when all that was announced has arrived.
INLINE void start_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(ptx::shared_address(barrier)), "r"(arrivals) : "memory");
}
INLINE void end_barrier(uint64_t* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(ptx::shared_address(barrier)) : "memory");
}
INLINE void show_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
INLINE void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ptx::shared_address(barrier)) : "memory");
}
// Arrives, and announces bytes that TMA brings.
INLINE void arrive_and_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ptx::shared_address(barrier)), "r"(bytes)
               : "memory");
}
INLINE bool has_ended(uint64_t* barrier, int phase) {
  uint ended;
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
      "selp.u32 %0, 1, 0, ended;\n"
      "}"
      : "=r"(ended)
      : "r"(ptx::shared_address(barrier)), "r"(phase)
      : "memory");
  return ended != 0;
}
INLINE void wait_for(uint64_t* barrier, int phase) {
  while (!has_ended(barrier, phase)) continue;
}

// Arrives when all of this thread's cp.async have come.
INLINE void arrive_after_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(ptx::shared_address(barrier)) : "memory");
}

// Rows of a box of 64 columns, from column `column` and row `row` of a head on; those that do not exist are zeros.
INLINE void load_box(void* to, const void* map, uint64_t* barrier, int column, int row, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::
          "r"(ptx::shared_address(to)),
      "l"(map), "r"(ptx::shared_address(barrier)), "r"(column), "r"(row), "r"(head), "r"(batch)
      : "memory");
}
// A kernel before this one wrote the map.
INLINE void acquire_map(const void* map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}

// What this thread wrote to shared memory is seen by TMA and wgmma.
INLINE void show_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Named barriers of hardware, for whole warps.
INLINE void sync_named(int name, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory"); }
INLINE void arrive_named(int name, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

template <int REGISTERS>
INLINE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
INLINE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
