// What the entry points of attention (attention.cu) hand to the kernels of each kind.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/launch.cuh"

namespace gpt2c::cuda {

struct AttentionForward {
    const AttentionShape& shape;
    const void *q, *k, *v;
    void* o;
    double* lse;
    Strides q_strides, k_strides, v_strides, o_strides;

    // Whether every row of every tensor starts at a multiple of `bytes`.
    bool aligned(int64_t element, int64_t bytes) const {
        return rows_aligned(q, q_strides, element, bytes) && rows_aligned(k, k_strides, element, bytes) &&
               rows_aligned(v, v_strides, element, bytes) && rows_aligned(o, o_strides, element, bytes);
    }
};

struct AttentionBackward {
    const AttentionShape& shape;
    const void *do_, *q, *k, *v, *o;
    const double* lse;
    void *dq, *dk, *dv;
    Strides do_strides, q_strides, k_strides, v_strides, o_strides, dq_strides, dk_strides, dv_strides;

    bool aligned(int64_t element, int64_t bytes) const {
        return rows_aligned(do_, do_strides, element, bytes) && rows_aligned(q, q_strides, element, bytes) &&
               rows_aligned(k, k_strides, element, bytes) && rows_aligned(v, v_strides, element, bytes) &&
               rows_aligned(o, o_strides, element, bytes) && rows_aligned(dq, dq_strides, element, bytes) &&
               rows_aligned(dk, dk_strides, element, bytes) && rows_aligned(dv, dv_strides, element, bytes);
    }
};

// An attribute of the current device, from the runtime's memory: nothing is waited for.
inline int device_attribute(cudaDeviceAttr attribute) {
    int device = 0, value = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
    if (error != cudaSuccess) throw std::runtime_error(std::string("attention: ") + cudaGetErrorString(error));
    return value;
}

// What a block can have on any GPU: sm_75's.
constexpr size_t kLeastSharedBytes = 64 * 1024;

// Whether a multiprocessor has room for two blocks of so many bytes of dynamic shared memory each, and the 1 KiB that
// the system takes of each. A block alone would leave it idle at barriers: kernels take smaller tiles where not.
inline bool two_fit(size_t shared) {
    return 2 * (shared + 1024) <= static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
}

// One block per piece of a head.
inline dim3 grid_of(int64_t blocks) { return dim3(static_cast<unsigned>(blocks)); }

// Calls f with the head dim that kernels are compiled for: D padded to 64, 128 or 256.
template <class F>
void with_head_dim(int64_t D, F&& f) {
    if (D <= 64)
        f(std::integral_constant<int, 64>{});
    else if (D <= 128)
        f(std::integral_constant<int, 128>{});
    else
        f(std::integral_constant<int, 256>{});
}

// Any dtype, head dim and alignment. stats (B, H, Tq) is filled by attention_stats.
void attention_forward_simt(const AttentionForward& a);
void attention_stats(const AttentionBackward& a, RowStats* stats);
void attention_backward_simt(const AttentionBackward& a, const RowStats* stats);

// Tq = 1, any dtype, head dim and alignment. partials: (D + 4) B H ceil(Tk / kDecodeKeys) floats.
constexpr int kDecodeKeys = 128;
void attention_decode(const AttentionForward& a, float* partials);

// Tensor cores: bf16 (from sm_80 on) or fp16, D a multiple of 8 up to 128, rows of all tensors on 16 bytes, scale > 0.
void attention_forward_mma(const AttentionForward& a);
void attention_backward_mma(const AttentionBackward& a, const RowStats* stats);

}  // namespace gpt2c::cuda
