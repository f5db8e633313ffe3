// The CPU backends in this binary, and which of them this machine can run.
#pragma once

#include "kernels.h"

namespace gpt2c {

struct Isa {
    const char* name;
    bool supported;
    bool preferred;  // false: reachable by name only
    const Kernels* kernels;
};

// From the least to the most capable; `count` of them.
const Isa* isas(int* count);

}  // namespace gpt2c
