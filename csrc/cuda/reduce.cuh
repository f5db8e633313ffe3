// Sums over rows, deterministic: rows are cut into pieces by their number alone, each block adds its piece up in the
// workspace, and a second kernel adds the pieces in a fixed order. (cpu/reduce.h has the same on the CPU.)
#pragma once

#include "cuda/device.cuh"
#include "cuda/launch.cuh"

namespace gpt2c::cuda {

// Pieces of N rows; kernels.h gives the workspace that this many take.
struct Pieces {
    int64_t rows, count;
    explicit Pieces(int64_t N) : rows(ceil_div<int64_t>(N < 1 ? 1 : N, 512)), count(ceil_div(N, rows)) {}
};

constexpr int kAddGroups = 8;

// out[c] = sum over pieces p of partials[p * stride + c]: a warp's lanes take columns, the block's warps take every
// eighth piece each.
template <class T>
__global__ void __launch_bounds__(kWarp* kAddGroups)
    add_pieces_kernel(const float* partials, int64_t count, int64_t stride, T* out, int64_t C) {
    __shared__ float sums[kAddGroups][kWarp];
    const int lane = threadIdx.x % kWarp, group = threadIdx.x / kWarp;
    const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
    float sum = 0;
    if (c < C)
        for (int64_t p = group; p < count; p += kAddGroups) sum += partials[p * stride + c];
    sums[group][lane] = sum;
    __syncthreads();
    if (group != 0 || c >= C) return;
    for (int g = 1; g < kAddGroups; ++g) sum += sums[g][lane];
    out[c] = from_float<T>(sum);
}

template <class T>
void add_pieces(const char* name, const float* partials, int64_t count, int64_t stride, T* out, int64_t C) {
    launch(name, add_pieces_kernel<T>, dim3(static_cast<unsigned>(ceil_div<int64_t>(C, kWarp))),
           dim3(kWarp * kAddGroups), 0, partials, count, stride, out, C);
}

}  // namespace gpt2c::cuda
