// Stacks and context switches: a lane is a fiber, so that a barrier is a switch to another lane.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__) || defined(SIM_UCONTEXT)
#include <ucontext.h>
#endif

namespace simulator {

#ifndef SIM_STACK_BYTES
#define SIM_STACK_BYTES (256 * 1024)  // unoptimised kernels keep every fragment on the stack
#endif
constexpr size_t STACK_BYTES = SIM_STACK_BYTES;

#if defined(__x86_64__) && !defined(SIM_UCONTEXT)

// Saves the callee-saved registers on the running stack, stores its pointer in *from, goes on at `to`.
extern "C" void sim_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl sim_switch
.hidden sim_switch
.type sim_switch, @function
sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sim_switch, .-sim_switch
)");

struct Context {
  void* stack_pointer = nullptr;

  void prepare(char* stack, void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t>(stack + STACK_BYTES) & ~uintptr_t(15);
    auto* words = reinterpret_cast<uintptr_t*>(top) - 8;  // six registers, the entry, an empty return address
    for (int i = 0; i < 8; i++) {
      words[i] = 0;
    }
    words[6] = reinterpret_cast<uintptr_t>(entry);
    stack_pointer = words;
  }
};

inline void switch_context(Context& from, Context& to) { sim_switch(&from.stack_pointer, to.stack_pointer); }

#else

struct Context {
  ucontext_t context;

  void prepare(char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
};

inline void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

#endif

// The stacks of all lanes, each above a page that faults.
struct Stacks {
  char* base = nullptr;
  size_t count = 0;
  size_t page = 0;

  static constexpr size_t stride(size_t page) { return STACK_BYTES + page; }

  bool reserve(size_t lanes) {
    page = size_t(sysconf(_SC_PAGESIZE));
    count = lanes;
    void* found = mmap(nullptr, lanes * stride(page), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) {
      return false;
    }
    base = static_cast<char*>(found);
    for (size_t lane = 0; lane < lanes; lane++) {
      mprotect(base + lane * stride(page), page, PROT_NONE);
    }
    return true;
  }
  char* of(size_t lane) const { return base + lane * stride(page) + page; }
  bool guards(const void* address) const {
    auto offset = static_cast<const char*>(address) - base;
    return offset >= 0 && size_t(offset) < count * stride(page) && size_t(offset) % stride(page) < page;
  }
  void release() {
    if (base != nullptr) {
      munmap(base, count * stride(page));
      base = nullptr;
    }
  }
};

}  // namespace simulator
