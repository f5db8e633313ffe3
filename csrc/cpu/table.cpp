// This ISA's table of kernels, found by name in cpuid.cpp.
#include "isa.h"

namespace gpt2c::GPT2C_ISA {

extern const Kernels kernels;
const Kernels kernels = {
#define GPT2C_ENTRY(name) name,
    GPT2C_KERNELS(GPT2C_ENTRY)
#undef GPT2C_ENTRY
};

}  // namespace gpt2c::GPT2C_ISA
