// GPT2C_LAUNCHES names a file to which each launch is added, one a line, for python/cuda_launches.py: the kernel's
// offset in the program, the threads of a block, and its bytes of dynamic shared memory.
#include <cstdio>
#include <cstdlib>

#include "internal.h"

extern const char __ehdr_start __attribute__((visibility("hidden")));

namespace emulator {

void log_launch(const void* kernel, size_t threads, size_t shared) {
    static FILE* const file = [] {
        const char* path = std::getenv("GPT2C_LAUNCHES");
        return path ? std::fopen(path, "a") : nullptr;
    }();
    if (!file) return;
    std::fprintf(file, "launch %zx %zu %zu\n", static_cast<size_t>(static_cast<const char*>(kernel) - &__ehdr_start),
                 threads, shared);
    std::fflush(file);
}

}  // namespace emulator
