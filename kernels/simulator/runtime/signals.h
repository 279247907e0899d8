// A fault inside a kernel (a wild pointer, a full stack) becomes a finding instead of the end of the process.
#pragma once

namespace simulator {

struct FaultHandler {
  struct sigaction old_segv, old_bus;
  stack_t old_stack;
  char* stack = nullptr;
  static constexpr size_t BYTES = 64 * 1024;

  static uint32_t pc_of(void* context) {
#if defined(__x86_64__) && defined(__linux__)
    return relative(reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP] + 1));
#elif defined(__aarch64__) && defined(__linux__)
    return relative(reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.pc + 4));
#else
    (void)context;
    return 0;
#endif
  }

  static void handle(int, siginfo_t* info, void* context) {
    int space = 1000;
    int64_t offset = 0;
    int kind = SIM_WILD;
    if (run->stacks.guards(info->si_addr)) {
      kind = SIM_STACK;
    } else if (run->arena.holds(info->si_addr)) {
      kind = SIM_OUT_OF_BOUNDS;
      Region* region = run->arena.region_of(info->si_addr, space);
      if (region == nullptr) {
        space = 1000;
      } else {
        offset = static_cast<char*>(info->si_addr) - region->begin;
      }
    }
    if (sim_finding* finding = add(kind, space, pc_of(context), 0)) {
      finding->offset = offset;
      finding->write = -1;
    }
    siglongjmp(run->escape, 1);
  }

  void install() {
    stack = static_cast<char*>(malloc(BYTES));
    stack_t own{};
    own.ss_sp = stack;
    own.ss_size = BYTES;
    sigaltstack(&own, &old_stack);
    struct sigaction action {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);
  }
  void remove() {
    sigaction(SIGSEGV, &old_segv, nullptr);
    sigaction(SIGBUS, &old_bus, nullptr);
    sigaltstack(&old_stack, nullptr);
    free(stack);
  }
};

}  // namespace simulator
