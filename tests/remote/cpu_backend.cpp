// The CPU kernels, by the name of an ISA.
#include <cstdlib>
#include <cstring>

#include "backend.h"
#include "cpu/cpuid.h"

const gpt2c::Kernels* find_backend(const char* name) {
    int count = 0;
    const gpt2c::Isa* list = gpt2c::isas(&count);
    for (int i = 0; i < count; ++i)
        if (list[i].supported && !std::strcmp(name, list[i].name)) return list[i].kernels;
    return nullptr;
}

Extra* find_extra(const std::string&) { return nullptr; }

// Each buffer is an allocation of its own, so that a sanitizer sees where it ends.
void* allocate_buffer(size_t size) { return std::malloc(size); }
void free_buffer(void* buffer) { std::free(buffer); }
