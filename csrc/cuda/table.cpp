// The CUDA backend's table. A kernel that has not been written yet is null in it: hence the weak declarations.
#include "kernels.h"

namespace gpt2c::cuda {

#define GPT2C_DECLARE(name) __attribute__((weak)) name##_t name;
GPT2C_KERNELS(GPT2C_DECLARE)
#undef GPT2C_DECLARE

extern const Kernels kernels;
const Kernels kernels = {
#define GPT2C_ENTRY(name) name,
    GPT2C_KERNELS(GPT2C_ENTRY)
#undef GPT2C_ENTRY
};

}  // namespace gpt2c::cuda
