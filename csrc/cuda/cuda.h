// The CUDA backend seen from the host's side: its table of kernels, as cpu/isa.h has the CPU's.
#pragma once

#include "kernels.h"

namespace gpt2c::cuda {

#define GPT2C_DECLARE(name) name##_t name;
GPT2C_KERNELS(GPT2C_DECLARE)
#undef GPT2C_DECLARE

extern const Kernels kernels;

}  // namespace gpt2c::cuda
