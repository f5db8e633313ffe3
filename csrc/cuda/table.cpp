// The CUDA backend's table.
#include "cuda/cuda.h"

namespace gpt2c::cuda {

// There are none (kernels.h): null, hence the weak declarations.
__attribute__((weak)) cross_entropy_count_t cross_entropy_count;
__attribute__((weak)) matmul_t matmul;
__attribute__((weak)) decode_t decode;
__attribute__((weak)) checksum_t checksum;

const Kernels kernels = {
#define GPT2C_ENTRY(name) name,
    GPT2C_KERNELS(GPT2C_ENTRY)
#undef GPT2C_ENTRY
};

}  // namespace gpt2c::cuda
