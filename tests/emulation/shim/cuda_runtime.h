// Takes the place of the toolkit's cuda_runtime.h when g++ compiles a .cu file for the emulator: the toolkit's own
// types, and CUDA's built-in variables and functions as calls of tests/emulation/emulator.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "emulator.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __restrict__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __launch_bounds__(...)
// A `thread_local` in a function is static, and all of them lie in the program's TLS segment, whose range the emulator
// knows: that segment is the static shared memory.
#define __shared__ thread_local

#define threadIdx (emulator::position.thread)
#define blockIdx (emulator::position.block)
#define blockDim (emulator::position.block_size)
#define gridDim (emulator::position.grid_size)

// ---- barriers and warp exchanges: Value is anything of at most 8 bytes
inline void __syncthreads(EMULATOR_SITE) { emulator::block_barrier(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
    emulator::warp_exchange({emulator::Exchange::sync, mask, 0, 0, 32, nullptr}, site);
}

#define EMULATOR_SHUFFLE(name, kind)                                                                        \
    template <class Value>                                                                                  \
    Value name(unsigned mask, Value value, int lane, int width = 32, EMULATOR_SITE) {                       \
        static_assert(sizeof(Value) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");                \
        uint64_t bits = 0;                                                                                  \
        std::memcpy(&bits, &value, sizeof value);                                                           \
        bits = emulator::warp_exchange({emulator::Exchange::kind, mask, bits, lane, width, nullptr}, site); \
        std::memcpy(&value, &bits, sizeof value);                                                           \
        return value;                                                                                       \
    }
EMULATOR_SHUFFLE(__shfl_sync, shuffle)
EMULATOR_SHUFFLE(__shfl_xor_sync, shuffle_xor)
EMULATOR_SHUFFLE(__shfl_down_sync, shuffle_down)
EMULATOR_SHUFFLE(__shfl_up_sync, shuffle_up)
#undef EMULATOR_SHUFFLE

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    return static_cast<unsigned>(
        emulator::warp_exchange({emulator::Exchange::ballot, mask, predicate != 0, 0, 32, nullptr}, site));
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) { return __ballot_sync(mask, predicate, site) != 0; }
inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    return __ballot_sync(mask, predicate, site) == mask;
}

// ---- arithmetic. Macros where the C library declares the same name.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define rsqrtf(x) (1.0f / sqrtf(x))
inline float __fdividef(float a, float b) { return a / b; }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
template <class To, class From>
To emulator_bitcast(From from) {
    static_assert(sizeof(To) == sizeof(From), "a bitcast keeps the size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(uint32_t bits) { return emulator_bitcast<float>(bits); }
inline uint32_t __float_as_uint(float x) { return emulator_bitcast<uint32_t>(x); }
inline float __int_as_float(int32_t bits) { return emulator_bitcast<float>(bits); }
inline int32_t __float_as_int(float x) { return emulator_bitcast<int32_t>(x); }
using std::max;
using std::min;

// ---- the launch, typed: the runtime API's own takes the arguments' addresses, too
template <class... Params, size_t... I>
void emulator_call(void (*kernel)(Params...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Params>*>(args[I])...);
}
template <class... Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params...), dim3 grid, dim3 block, void** args, size_t shared,
                             cudaStream_t) {
    const auto call = [&] { emulator_call(kernel, args, std::index_sequence_for<Params...>()); };
    return emulator::launch(
        reinterpret_cast<const void*>(kernel), grid, block, shared,
        [](const void* closure) { (*static_cast<const decltype(call)*>(closure))(); }, &call);
}
