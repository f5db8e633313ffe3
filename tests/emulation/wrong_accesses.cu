// Wrong in where or what they access, and some right twins: tests/test_emulation.py says what each must be caught for.
#include "cuda/device.cuh"
#include "cuda/launch.cuh"
#include "test_kernels.h"

using namespace gpt2c::cuda;

namespace {

float* floats(const Buffer& tensor) { return reinterpret_cast<float*>(tensor.data); }
int size_of(const Buffer& tensor) { return static_cast<int>(tensor.size / sizeof(float)); }

// ---- out of bounds: `size` is one more than there is, in the wrong twin
__global__ void copy(const float* in, int in_size, float* out, int out_size) {
    for (int i = threadIdx.x; i < max(in_size, out_size); i += kWarp) {
        const float x = i < in_size ? in[i] : 0.0f;
        if (i < out_size) out[i] = x;
    }
}
int64_t start_copy(const Buffer* t, int more_in, int more_out) {
    launch("copy", copy, 1, kWarp, 0, floats(t[0]), size_of(t[0]) + more_in, floats(t[1]), size_of(t[1]) + more_out);
    return 0;
}
TEST_KERNEL(copy) { return start_copy(tensors, 0, 0); }
TEST_KERNEL(copy_reads_too_far) { return start_copy(tensors, 1, 0); }
TEST_KERNEL(copy_writes_too_far) { return start_copy(tensors, 0, 1); }
TEST_KERNEL(copy_leaves_one_out) { return start_copy(tensors, 0, -1); }
TEST_KERNEL(copy_of_nothing) {
    launch("copy", copy, 1, kWarp, 0, static_cast<float*>(nullptr), 1, floats(tensors[1]), 1);
    return 0;
}

// Every thread writes the place `write` after its own, and reads the place `read` after its own.
__global__ void shift_in_dynamic(float* out, int write, int read) {
    GPT2C_DYNAMIC_SHARED(shared);
    float* place = reinterpret_cast<float*>(shared);
    place[threadIdx.x] = 1.0f;
    __syncthreads();
    place[threadIdx.x + write] = 2.0f;
    __syncthreads();
    out[threadIdx.x] = place[threadIdx.x + read];
}
__global__ void shift_in_static(float* out, int write, int read) {
    __shared__ float place[kWarp];
    place[threadIdx.x] = 1.0f;
    __syncthreads();
    place[threadIdx.x + write] = 2.0f;
    __syncthreads();
    out[threadIdx.x] = place[threadIdx.x + read];
}
template <class Kernel>
int64_t start_shift(Kernel kernel, const Buffer* t, int write, int read, size_t shared) {
    launch("shift", kernel, 1, kWarp, shared, floats(t[0]), write, read);
    return 0;
}
constexpr size_t kRow = kWarp * sizeof(float);
TEST_KERNEL(dynamic_shared) { return start_shift(shift_in_dynamic, tensors, 0, 0, kRow); }
TEST_KERNEL(dynamic_shared_read_too_far) { return start_shift(shift_in_dynamic, tensors, 0, 1, kRow); }
TEST_KERNEL(dynamic_shared_write_too_far) { return start_shift(shift_in_dynamic, tensors, 1, 0, kRow); }
TEST_KERNEL(static_shared) { return start_shift(shift_in_static, tensors, 0, 0, 0); }
TEST_KERNEL(static_shared_read_too_far) { return start_shift(shift_in_static, tensors, 0, 1, 0); }
TEST_KERNEL(static_shared_write_too_far) { return start_shift(shift_in_static, tensors, 1, 0, 0); }

// ---- uninitialised: thread 0's place is never written
__global__ void sum_of_dynamic(float* out) {
    GPT2C_DYNAMIC_SHARED(shared);
    float* place = reinterpret_cast<float*>(shared);
    if (threadIdx.x > 0) place[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = place[threadIdx.x];
}
__global__ void sum_of_static(float* out) {
    __shared__ float place[kWarp];
    if (threadIdx.x > 0) place[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = place[threadIdx.x];
}
TEST_KERNEL(dynamic_shared_uninitialised) {
    launch("sum", sum_of_dynamic, 1, kWarp, kRow, floats(tensors[0]));
    return 0;
}
TEST_KERNEL(static_shared_uninitialised) {
    launch("sum", sum_of_static, 1, kWarp, 0, floats(tensors[0]));
    return 0;
}
// Block 1 finds nothing of what block 0 has written.
__global__ void kept_from_block_to_block(float* out) {
    __shared__ float place[kWarp];
    if (blockIdx.x == 0) place[threadIdx.x] = 1.0f;
    out[kWarp * blockIdx.x + threadIdx.x] = place[threadIdx.x];
}
TEST_KERNEL(shared_kept_from_block_to_block) {
    launch("kept", kept_from_block_to_block, 2, kWarp, 0, floats(tensors[0]));
    return 0;
}

// ---- misaligned
__global__ void move16(const float* in, float* out, int offset_in, int offset_out) {
    store16(out + 4 * threadIdx.x + offset_out, load16(in + 4 * threadIdx.x + offset_in));
}
int64_t start_move16(const Buffer* t, int offset_in, int offset_out) {
    launch("move16", move16, 1, kWarp, 0, floats(t[0]), floats(t[1]), offset_in, offset_out);
    return 0;
}
TEST_KERNEL(move16) { return start_move16(tensors, 4, 4); }
TEST_KERNEL(move16_misaligned_read) { return start_move16(tensors, 2, 0); }
TEST_KERNEL(move16_misaligned_write) { return start_move16(tensors, 0, 1); }
__global__ void move8_misaligned(const float* in, double* out) {
    out[threadIdx.x] = *reinterpret_cast<const double*>(in + 2 * threadIdx.x + 1);
}
TEST_KERNEL(move8_misaligned_read) {
    launch("move8", move8_misaligned, 1, kWarp, 0, floats(tensors[0]), reinterpret_cast<double*>(tensors[1].data));
    return 0;
}
__global__ void ldmatrix_of(float* out, int offset) {
    __shared__ __align__(128) uint4 rows[kWarp + 1];
    rows[threadIdx.x] = {1, 2, 3, 4};
    if (threadIdx.x == 0) rows[kWarp] = {1, 2, 3, 4};
    __syncthreads();
    uint32_t r[4];
    ldmatrix_x4(r, reinterpret_cast<char*>(rows + threadIdx.x) + offset);
    out[threadIdx.x] = static_cast<float>(r[0]);
}
TEST_KERNEL(ldmatrix) {
    launch("ldmatrix", ldmatrix_of, 1, kWarp, 0, floats(tensors[0]), 0);
    return 0;
}
TEST_KERNEL(ldmatrix_misaligned) {
    launch("ldmatrix", ldmatrix_of, 1, kWarp, 0, floats(tensors[0]), 8);
    return 0;
}
__global__ void ldmatrix_of_global(const float* in, float* out) {
    uint32_t r[4];
    ldmatrix_x4(r, in + 4 * threadIdx.x);
    out[threadIdx.x] = static_cast<float>(r[0]);
}
TEST_KERNEL(ldmatrix_from_global) {
    launch("ldmatrix", ldmatrix_of_global, 1, kWarp, 0, floats(tensors[0]), floats(tensors[1]));
    return 0;
}

// ---- bank conflicts: lane i reads the unit i * stride of `Unit`; written along the way without conflicts
template <class Unit>
__global__ void strided_read(float* out, int stride, int units) {
    GPT2C_DYNAMIC_SHARED(shared);
    for (int i = threadIdx.x; i < units; i += kWarp) store16(shared + 16 * i, make_uint4(1, 1, 1, 1));
    __syncthreads();
    const unsigned char* place = shared + sizeof(Unit) * threadIdx.x * stride;
    if constexpr (sizeof(Unit) == 16)
        out[threadIdx.x] = static_cast<float>(load16(place).x);
    else
        out[threadIdx.x] = static_cast<float>(*reinterpret_cast<const Unit*>(place));
}
template <class Unit>
int64_t start_strided_read(const Buffer* t, int stride) {
    const int units = static_cast<int>(sizeof(Unit)) * kWarp * (stride ? stride : 1) / 16;
    launch("strided_read", strided_read<Unit>, 1, kWarp, 16 * units, floats(t[0]), stride, units);
    return 0;
}
TEST_KERNEL(banks4_stride0) { return start_strided_read<uint32_t>(tensors, 0); }
TEST_KERNEL(banks4_stride1) { return start_strided_read<uint32_t>(tensors, 1); }
TEST_KERNEL(banks4_stride2) { return start_strided_read<uint32_t>(tensors, 2); }
TEST_KERNEL(banks4_stride3) { return start_strided_read<uint32_t>(tensors, 3); }
TEST_KERNEL(banks4_stride32) { return start_strided_read<uint32_t>(tensors, 32); }
TEST_KERNEL(banks8_stride1) { return start_strided_read<uint64_t>(tensors, 1); }
TEST_KERNEL(banks8_stride2) { return start_strided_read<uint64_t>(tensors, 2); }
TEST_KERNEL(banks16_stride1) { return start_strided_read<uint4>(tensors, 1); }
TEST_KERNEL(banks16_stride2) { return start_strided_read<uint4>(tensors, 2); }
TEST_KERNEL(banks16_stride8) { return start_strided_read<uint4>(tensors, 8); }

// Rows of 128 bytes, one chunk of 16 bytes of each: all in the same banks, unless the row chooses the chunk.
__global__ void ldmatrix_of_rows(float* out, int swizzle) {
    GPT2C_DYNAMIC_SHARED(shared);
    for (int i = threadIdx.x; i < 8 * kWarp; i += kWarp) store16(shared + 16 * i, make_uint4(1, 1, 1, 1));
    __syncthreads();
    uint32_t r[4];
    ldmatrix_x4(r, shared + 128 * threadIdx.x + 16 * (threadIdx.x % 8 * swizzle));
    out[threadIdx.x] = static_cast<float>(r[0]);
}
TEST_KERNEL(banks_ldmatrix) {
    launch("ldmatrix_of_rows", ldmatrix_of_rows, 1, kWarp, 128 * kWarp, floats(tensors[0]), 0);
    return 0;
}
TEST_KERNEL(banks_ldmatrix_swizzled) {
    launch("ldmatrix_of_rows", ldmatrix_of_rows, 1, kWarp, 128 * kWarp, floats(tensors[0]), 1);
    return 0;
}

// ---- launches that no GPU takes
__global__ void nothing() {}
TEST_KERNEL(too_much_shared) {
    launch("nothing", nothing, 1, kWarp, (227 << 10) + 1);
    return 0;
}
TEST_KERNEL(shared_without_attribute) {
    void* none = nullptr;
    const cudaError_t error = cudaLaunchKernel(nothing, dim3(1), dim3(kWarp), &none, (48 << 10) + 1, nullptr);
    if (error != cudaSuccess) launch_failed("nothing", 1, kWarp, (48 << 10) + 1, error);
    return 0;
}
TEST_KERNEL(too_many_threads) {
    launch("nothing", nothing, 1, 1056, 0);
    return 0;
}
TEST_KERNEL(half_a_warp) {
    launch("nothing", nothing, 1, 48, 0);
    return 0;
}
TEST_KERNEL(too_many_blocks) {
    launch("nothing", nothing, dim3(1, 65536), kWarp, 0);
    return 0;
}

}  // namespace
