// The CUDA backend seen from the host's side: its table of kernels, as cpu/isa.h has the CPU's.
#pragma once

#include <cstdint>
#include <string>

#include "kernels.h"

namespace gpt2c::cuda {

#define GPT2C_DECLARE(name) name##_t name;
GPT2C_KERNELS(GPT2C_DECLARE)
#undef GPT2C_DECLARE

extern const Kernels kernels;

// The GPU and the stream of it (a cudaStream_t) on which this host thread's calls are queued from now on.
void set_stream(int device, std::uintptr_t stream);

// nvcc's version and the architectures that there is code for.
const char* build_description();

// The GPUs of this machine, each with its architecture, or why none can be used.
std::string device_description();

}  // namespace gpt2c::cuda
