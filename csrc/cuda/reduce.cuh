// Sums over rows, deterministic: rows are cut into pieces by their number alone, each block adds its piece up in the
// workspace, and a second kernel adds the pieces in a fixed order. (cpu/reduce.h has the same on the CPU.)
#pragma once

#include "cuda/device.cuh"
#include "cuda/launch.cuh"

namespace gpt2c::cuda {

// Pieces of N rows; kernels.h gives the workspace that this many take. Up to 512 blocks are about four for each of 132
// multiprocessors; at least four rows, since a piece's sums are written and read once more than its rows.
struct Pieces {
    int64_t rows, count;
    explicit Pieces(int64_t N) : rows(N > 4 * 512 ? ceil_div<int64_t>(N, 512) : 4), count(ceil_div(N, rows)) {}
};

constexpr int kAddGroups = 32;

// The sums over pieces p of partials[p * width + c]: out[c] for c < C, more[c - C] for the columns behind. A warp's
// lanes take columns, the block's warps take every kAddGroups-th piece each, so that few columns are many threads.
template <class T>
__global__ void __launch_bounds__(kWarp* kAddGroups)
    add_pieces_kernel(const float* partials, int64_t count, int64_t width, T* out, T* more, int64_t C) {
    __shared__ float sums[kAddGroups][kWarp];
    const int lane = threadIdx.x % kWarp, group = threadIdx.x / kWarp;
    const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
    float sum = 0;
    if (c < width)
        for (int64_t p = group; p < count; p += kAddGroups) sum += partials[p * width + c];
    sums[group][lane] = sum;
    __syncthreads();
    if (group != 0 || c >= width) return;
    for (int g = 1; g < kAddGroups; ++g) sum += sums[g][lane];
    *(c < C ? out + c : more + (c - C)) = from_float<T>(sum);
}

// partials (count, C), or (count, 2 C) where `more` is not null.
template <class T>
void add_pieces(const char* name, const float* partials, int64_t count, T* out, T* more, int64_t C) {
    const int64_t width = more ? 2 * C : C;
    launch(name, add_pieces_kernel<T>, dim3(static_cast<unsigned>(ceil_div<int64_t>(width, kWarp))),
           dim3(kWarp * kAddGroups), 0, partials, count, width, out, more, C);
}

}  // namespace gpt2c::cuda
