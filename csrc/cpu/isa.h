// What each per-ISA kernel file sees: the vectors, the threads, and its own kernels' declarations.
#pragma once

#include "kernels.h"
#include "parallel.h"
#include "vec.h"

namespace gpt2c::GPT2C_ISA {

#define GPT2C_DECLARE(name) name##_t name;
GPT2C_KERNELS(GPT2C_DECLARE)
#undef GPT2C_DECLARE

}  // namespace gpt2c::GPT2C_ISA
