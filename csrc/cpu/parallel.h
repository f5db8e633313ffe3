// The only interface to threads and to memory that kernels keep between calls.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gpt2c {

// Calls task(context, i) once for each i in [0, n), on at most `threads` threads, and returns when all are done.
// Rethrows what a task throws (std::bad_alloc from scratch), after all threads have stopped.
void parallel_run(int64_t n, int threads, void (*task)(void* context, int64_t i), void* context);

// Calls task(context, phase, i) once for each phase in [0, phases) and i in [0, size(context, phase)), all of a phase
// before any of the next, in one parallel region; otherwise as parallel_run.
void parallel_run_phases(int64_t phases, int threads, int64_t (*size)(void* context, int64_t phase),
                         void (*task)(void* context, int64_t phase, int64_t i), void* context);

// A buffer of at least `floats` fp32 elements, 64-byte aligned, of the calling thread's own, kept until it exits.
// Each slot is one buffer: asking a slot again ends the use of what it gave before.
enum class Slot { call, task };  // for the kernel's whole call, or inside one task
float* scratch(Slot slot, int64_t floats);

#ifdef GPT2C_ISA
namespace GPT2C_ISA {
template <class F>
static inline void parallel_for(int64_t n, int threads, F&& f) {
    parallel_run(n, threads, [](void* context, int64_t i) { (*static_cast<F*>(context))(i); }, &f);
}

template <class Size, class F>
static inline void parallel_phases(int64_t phases, int threads, Size&& size, F&& f) {
    struct Context {
        Size& size;
        F& f;
    } context{size, f};
    parallel_run_phases(
        phases, threads, [](void* c, int64_t phase) -> int64_t { return static_cast<Context*>(c)->size(phase); },
        [](void* c, int64_t phase, int64_t i) { static_cast<Context*>(c)->f(phase, i); }, &context);
}
}  // namespace GPT2C_ISA
#endif

}  // namespace gpt2c
