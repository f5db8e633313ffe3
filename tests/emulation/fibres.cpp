#include "fibres.h"

#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>

#include <map>
#endif

// switch_stack(&mine, other) saves this stack and goes on with the other one.
#ifdef __x86_64__
extern "C" void emulator_switch_stack(void** save, void* to);
asm(R"(
.text
.globl emulator_switch_stack
.hidden emulator_switch_stack
.type emulator_switch_stack,@function
emulator_switch_stack:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
#endif

namespace emulator {
namespace {

constexpr size_t kStackBytes = 128 << 10;

void* host_stack_pointer = nullptr;

}  // namespace

#ifdef __x86_64__
void enter(Fibre* fibre) { emulator_switch_stack(&host_stack_pointer, fibre->stack_pointer); }
void leave(Fibre* fibre) { emulator_switch_stack(&fibre->stack_pointer, host_stack_pointer); }
void prepare(Fibre* fibre, void (*start)()) {
    // Stacks that begin at different offsets do not compete for the same lines of the first-level cache.
    auto** top = reinterpret_cast<void**>(static_cast<char*>(fibre->stack) + kStackBytes - fibre->thread * 320 % 16384);
    *--top = nullptr;  // a return address's place: the stack is aligned as after a call
    *--top = reinterpret_cast<void*>(start);
    fibre->stack_pointer = top - 6;
}
#else
static ucontext_t host_context;
static std::map<Fibre*, ucontext_t> contexts;
void enter(Fibre* fibre) {
    host_stack_pointer = __builtin_frame_address(0);
    swapcontext(&host_context, &contexts[fibre]);
}
void leave(Fibre* fibre) { swapcontext(&contexts[fibre], &host_context); }
void prepare(Fibre* fibre, void (*start)()) {
    ucontext_t& context = contexts[fibre];
    getcontext(&context);
    context.uc_stack.ss_sp = fibre->stack;
    context.uc_stack.ss_size = kStackBytes;
    makecontext(&context, start, 0);
}
#endif

bool Fibre::owns(const void* p) const {
    return reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(stack) < kStackBytes;
}

uintptr_t host_stack() { return reinterpret_cast<uintptr_t>(host_stack_pointer); }

void* map_memory(size_t size) {
    return mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

std::vector<Fibre*> fibres(size_t count) {
    static std::vector<Fibre*> pool;
    while (pool.size() < count) {
        auto* fibre = new Fibre;
        fibre->thread = static_cast<unsigned>(pool.size());
        fibre->stack = map_memory(kStackBytes);
        mprotect(fibre->stack, 4096, PROT_NONE);  // an overflow is seen
        pool.push_back(fibre);
    }
    return {pool.begin(), pool.begin() + static_cast<ptrdiff_t>(count)};
}

}  // namespace emulator
