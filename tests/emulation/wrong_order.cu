// Wrong in the order of things: barriers, exchanges of a warp, asynchronous copies, and loops without an end; and some
// right twins. tests/test_emulation.py says what each must be caught for.
#include "cuda/device.cuh"
#include "cuda/launch.cuh"
#include "test_kernels.h"

using namespace gpt2c::cuda;

namespace {

constexpr int kBlock = 64;

float* floats(const Buffer& tensor) { return reinterpret_cast<float*>(tensor.data); }

// A test kernel without more arguments than the tensor.
#define ONE_TENSOR_KERNEL(name, blocks, threads)                                   \
    __global__ void name(float* out);                                              \
    TEST_KERNEL(name) {                                                            \
        launch(#name, ::name, dim3(blocks), dim3(threads), 0, floats(tensors[0])); \
        return 0;                                                                  \
    }                                                                              \
    __global__ void name(float* out)

// ---- races within a block; what they race for has been written once before, and is not merely uninitialised
ONE_TENSOR_KERNEL(read_after_write, 1, kBlock) {
    __shared__ float place[kBlock];
    place[threadIdx.x] = 0.0f;
    __syncthreads();
    place[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = place[kBlock - 1 - threadIdx.x];
}
ONE_TENSOR_KERNEL(read_after_write_without_barrier, 1, kBlock) {
    __shared__ float place[kBlock];
    place[threadIdx.x] = 0.0f;
    __syncthreads();
    place[threadIdx.x] = 1.0f;
    out[threadIdx.x] = place[kBlock - 1 - threadIdx.x];
}
ONE_TENSOR_KERNEL(write_after_read, 1, kBlock) {
    __shared__ float place[kBlock];
    place[threadIdx.x] = 0.0f;
    __syncthreads();
    place[threadIdx.x] = 1.0f;
    __syncthreads();
    const float x = place[kBlock - 1 - threadIdx.x];
    __syncthreads();
    place[threadIdx.x] = x + 1.0f;
    out[threadIdx.x] = place[threadIdx.x];
}
ONE_TENSOR_KERNEL(write_after_read_without_barrier, 1, kBlock) {
    __shared__ float place[kBlock];
    place[threadIdx.x] = 0.0f;
    __syncthreads();
    place[threadIdx.x] = 1.0f;
    __syncthreads();
    const float x = place[kBlock - 1 - threadIdx.x];
    place[threadIdx.x] = x + 1.0f;
    out[threadIdx.x] = place[threadIdx.x];
}
// Both threads write the same value: wrong nevertheless.
ONE_TENSOR_KERNEL(double_write, 1, kBlock) { out[threadIdx.x / 2] = 1.0f; }
ONE_TENSOR_KERNEL(global_read_after_write, 1, kBlock) {
    out[threadIdx.x] = 1.0f;
    out[threadIdx.x] += out[kBlock - 1 - threadIdx.x];
}
// A buffer for two steps that is used again in the second one.
ONE_TENSOR_KERNEL(two_sums_in_one_scratch, 1, kBlock) {
    __shared__ float scratch[kWarp];
    float x[1] = {1.0f};
    block_sum(x, scratch);
    block_sum(x, scratch);
    out[threadIdx.x] = x[0];
}
ONE_TENSOR_KERNEL(two_sums_in_two_scratches, 1, kBlock) {
    __shared__ float scratch[2][kWarp];
    float x[1] = {1.0f};
    block_sum(x, scratch[0]);
    block_sum(x, scratch[1]);
    out[threadIdx.x] = x[0];
}

// ---- races between blocks
ONE_TENSOR_KERNEL(write_by_two_blocks, 2, kWarp) { out[threadIdx.x] = 1.0f; }
ONE_TENSOR_KERNEL(sum_by_two_blocks, 2, kWarp) {
    if (threadIdx.x == 0) out[0] += 1.0f;
}
ONE_TENSOR_KERNEL(read_of_another_blocks_write, 2, kWarp) {
    out[blockIdx.x * kWarp + threadIdx.x] = 1.0f;
    if (out[(1 - blockIdx.x) * kWarp + threadIdx.x] == 2.0f) out[blockIdx.x * kWarp + threadIdx.x] = 3.0f;
}

// ---- barriers
ONE_TENSOR_KERNEL(divergent_barriers, 1, kBlock) {
    if (threadIdx.x < kWarp) {
        out[threadIdx.x] = 1.0f;
        __syncthreads();
    } else {
        __syncthreads();
        out[threadIdx.x] = 1.0f;
    }
}
ONE_TENSOR_KERNEL(barrier_after_return, 1, kBlock) {
    out[threadIdx.x] = 1.0f;
    if (threadIdx.x == 7) return;
    __syncthreads();
}
ONE_TENSOR_KERNEL(barrier_and_shuffle, 1, kWarp) {
    if (threadIdx.x == 0)
        __syncthreads();
    else
        out[threadIdx.x] = __shfl_sync(kAllLanes, 1.0f, 0);
}

// ---- exchanges of a warp
ONE_TENSOR_KERNEL(between_lanes, 1, kWarp) {
    __shared__ float place[kWarp];
    place[threadIdx.x] = 0.0f;
    __syncthreads();
    place[threadIdx.x] = 1.0f;
    __syncwarp();
    out[threadIdx.x] = place[kWarp - 1 - threadIdx.x];
}
ONE_TENSOR_KERNEL(between_lanes_without_syncwarp, 1, kWarp) {
    __shared__ float place[kWarp];
    place[threadIdx.x] = 0.0f;
    __syncthreads();
    place[threadIdx.x] = 1.0f;
    out[threadIdx.x] = place[kWarp - 1 - threadIdx.x];
}
// A shuffle is no order of memory accesses.
ONE_TENSOR_KERNEL(between_lanes_with_shuffle, 1, kWarp) {
    __shared__ float place[kWarp];
    place[threadIdx.x] = 0.0f;
    __syncwarp();
    place[threadIdx.x] = __shfl_sync(kAllLanes, 1.0f, 0);
    const float x = __shfl_sync(kAllLanes, 1.0f, 1);
    out[threadIdx.x] = place[kWarp - 1 - threadIdx.x] + x;
}
ONE_TENSOR_KERNEL(between_warps_with_syncwarp, 1, kBlock) {
    __shared__ float place[kBlock];
    place[threadIdx.x] = 0.0f;
    __syncthreads();
    place[threadIdx.x] = 1.0f;
    __syncwarp();
    out[threadIdx.x] = place[kBlock - 1 - threadIdx.x];
}
ONE_TENSOR_KERNEL(shuffle_of_half, 1, kWarp) {
    out[threadIdx.x] = threadIdx.x < 16 ? __shfl_xor_sync(0xffffu, 1.0f, 8) : 0.0f;
}
ONE_TENSOR_KERNEL(shuffle_from_outside_the_mask, 1, kWarp) {
    out[threadIdx.x] = threadIdx.x < 16 ? __shfl_xor_sync(0xffffu, 1.0f, 16) : 0.0f;
}
ONE_TENSOR_KERNEL(shuffle_by_a_lane_outside_the_mask, 1, kWarp) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1);
}
ONE_TENSOR_KERNEL(divergent_shuffles, 1, kWarp) {
    if (threadIdx.x < 16)
        out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
    else
        out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 2.0f, 1);
}
ONE_TENSOR_KERNEL(shuffle_after_return, 1, kWarp) {
    if (threadIdx.x == 7) return;
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
}

// ---- asynchronous copies: of two chunks per thread, read by the neighbour
enum class Copies { right, no_wait, weak_wait, no_barrier, pending_at_end, overwritten };
template <Copies kind>
__global__ void copy_async(const float* in, float* out) {
    __shared__ __align__(128) float first[4 * kBlock], second[4 * kBlock];
    const int mine = 4 * threadIdx.x, other = 4 * (kBlock - 1 - threadIdx.x);
    store16(first + mine, make_uint4(0, 0, 0, 0));
    store16(second + mine, make_uint4(0, 0, 0, 0));
    __syncthreads();
    cp_async16(first + mine, in + mine);
    cp_async_commit();
    cp_async16(second + mine, in + 4 * kBlock + mine);
    cp_async_commit();
    if (kind == Copies::pending_at_end) return;
    if (kind == Copies::overwritten) first[mine] = 0.0f;
    if (kind != Copies::no_wait) cp_async_wait<1>();
    if (kind != Copies::no_barrier) __syncthreads();
    store16(out + other, load16(first + other));
    if (kind != Copies::weak_wait) cp_async_wait<0>();
    if (kind == Copies::weak_wait) cp_async_wait<1>();
    __syncthreads();
    store16(out + 4 * kBlock + other, load16(second + other));
    if (kind == Copies::weak_wait) cp_async_wait<0>();
}
template <Copies kind>
int64_t start_copy_async(const Buffer* t) {
    launch("copy_async", copy_async<kind>, 1, kBlock, 0, floats(t[0]), floats(t[1]));
    return 0;
}
TEST_KERNEL(copy_async) { return start_copy_async<Copies::right>(tensors); }
TEST_KERNEL(copy_async_without_wait) { return start_copy_async<Copies::no_wait>(tensors); }
TEST_KERNEL(copy_async_with_weak_wait) { return start_copy_async<Copies::weak_wait>(tensors); }
TEST_KERNEL(copy_async_without_barrier) { return start_copy_async<Copies::no_barrier>(tensors); }
TEST_KERNEL(copy_async_at_the_end) { return start_copy_async<Copies::pending_at_end>(tensors); }
TEST_KERNEL(copy_async_overwritten) { return start_copy_async<Copies::overwritten>(tensors); }
__global__ void copy_async_to(const float* in, float* to, int offset) {
    __shared__ __align__(128) float place[4 * kWarp + 4];
    cp_async16((to ? to : place) + 4 * threadIdx.x + offset, in + 4 * threadIdx.x);
    cp_async_commit();
    cp_async_wait<0>();
}
TEST_KERNEL(copy_async_to_global) {
    launch("copy_async_to", copy_async_to, 1, kWarp, 0, floats(tensors[0]), floats(tensors[1]), 0);
    return 0;
}
TEST_KERNEL(copy_async_misaligned) {
    launch("copy_async_to", copy_async_to, 1, kWarp, 0, floats(tensors[0]), static_cast<float*>(nullptr), 2);
    return 0;
}

// ---- loops without an end: with accesses, with barriers, and with neither
ONE_TENSOR_KERNEL(endless_loop_of_accesses, 1, kWarp) {
    while (static_cast<volatile float*>(out)[threadIdx.x] >= 0.0f) {
    }
}
ONE_TENSOR_KERNEL(endless_loop_of_barriers, 1, kWarp) {
    for (;;) __syncthreads();
    out[0] = 1.0f;
}
ONE_TENSOR_KERNEL(endless_loop_of_arithmetic, 1, kWarp) {
    unsigned x = 1;
    while (x != 0) x = x * 5 | 1;
    out[threadIdx.x] = static_cast<float>(x);
}

}  // namespace
