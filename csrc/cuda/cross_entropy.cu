// A block takes a row: the forward reads it once (each thread keeps the maximum of its logits and the sum of their
// exponentials below it), the backward reads and writes it once, in place if wanted.
#include "cuda/cuda.h"
#include "cuda/device.cuh"
#include "cuda/launch.cuh"

namespace gpt2c::cuda {
namespace {

constexpr int kThreads = 256;

// Targets out of range have been reported (kernels.h); here they are as if ignored.
GPT2C_DEVICE bool counts(int64_t target, int64_t V, int64_t ignore_index) {
    return target != ignore_index && target >= 0 && target < V;
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads) forward_kernel(const T* logits, double* lse, int64_t V, int64_t stride) {
    __shared__ float tops[kWarp];
    __shared__ double totals[kWarp];
    const int64_t n = blockIdx.x;
    const T* x = logits + n * stride;
    float top = -INFINITY, sum = 0;  // sum of e^(x - top)
    for (int64_t c = static_cast<int64_t>(threadIdx.x) * W; c < V; c += kThreads * W) {
        const Floats<W> v = load<W>(x + c, V - c);
        float highest = top;
#pragma unroll
        for (int i = 0; i < W; ++i)
            if (i < V - c) highest = fmaxf(highest, v[i]);
        // Nothing but -inf so far: the sum stays 0, without inf - inf.
        const float base = highest == -INFINITY ? 0.0f : highest;
        sum *= expf(top - base);
#pragma unroll
        for (int i = 0; i < W; ++i)
            if (i < V - c) sum += expf(v[i] - base);
        top = highest;
    }
    const float row_top = block_max(top, tops);
    double total[1] = {top == -INFINITY ? sum : static_cast<double>(sum) * expf(top - row_top)};
    block_sum(total, totals);
    if (threadIdx.x == 0) lse[n] = row_top + log(total[0]);
}

// total[0] += sum over rows of lse - logits[target], in a fixed order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    total_kernel(const T* logits, const int64_t* targets, const double* lse, double* total, int64_t N, int64_t V,
                 int64_t stride, int64_t ignore_index) {
    __shared__ double scratch[kWarp];
    double sum[1] = {0};
    for (int64_t n = threadIdx.x; n < N; n += kThreads) {
        const int64_t target = targets[n];
        if (counts(target, V, ignore_index)) sum[0] += lse[n] - to_float(logits[n * stride + target]);
    }
    block_sum(sum, scratch);
    if (threadIdx.x == 0) *total += sum[0];
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const float* dloss, const T* logits, const int64_t* targets, const double* lse, T* dlogits,
                    int64_t V, int64_t stride, int64_t ignore_index, float count) {
    const int64_t n = blockIdx.x, target = targets[n];
    const bool counted = counts(target, V, ignore_index);
    const float scale = *dloss / count;
    // lse in two floats: see the contract of attention's lse.
    const float high = static_cast<float>(lse[n]), low = static_cast<float>(lse[n] - high);
    for (int64_t c = static_cast<int64_t>(threadIdx.x) * W; c < stride; c += kThreads * W) {
        Floats<W> v{};
        if (counted && c < V) v = load<W>(logits + n * stride + c, V - c);
#pragma unroll
        for (int i = 0; i < W; ++i) {
            const float p = expf(v[i] - high - low);
            v[i] = counted && c + i < V ? (c + i == target ? p - 1.0f : p) * scale : 0.0f;
        }
        store<W>(dlogits + n * stride + c, v, stride - c);
    }
}

}  // namespace

void cross_entropy_forward(DType dtype, const void* logits, const int64_t* targets, double* lse, double* total,
                           int64_t N, int64_t V, int64_t stride, int64_t ignore_index, int) {
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        const auto* logits_ = static_cast<const T*>(logits);
        with_vector<T>(vectorizable<T>(N > 1 ? stride : 0, logits), [&](auto vector) {
            launch("cross_entropy_forward", forward_kernel<T, vector>, dim3(static_cast<unsigned>(N)), dim3(kThreads),
                   0, logits_, lse, V, stride);
        });
        launch("cross_entropy_forward", total_kernel<T>, dim3(1), dim3(kThreads), 0, logits_, targets, lse, total, N, V,
               stride, ignore_index);
    });
}

void cross_entropy_backward(DType dtype, const float* dloss, const void* logits, const int64_t* targets,
                            const double* lse, void* dlogits, int64_t N, int64_t V, int64_t stride,
                            int64_t ignore_index, int64_t count, int) {
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        with_vector<T>(vectorizable<T>(N > 1 ? stride : 0, logits, dlogits), [&](auto vector) {
            launch("cross_entropy_backward", backward_kernel<T, vector>, dim3(static_cast<unsigned>(N)), dim3(kThreads),
                   0, dloss, static_cast<const T*>(logits), targets, lse, static_cast<T*>(dlogits), V, stride,
                   ignore_index, static_cast<float>(count));
        });
    });
}

}  // namespace gpt2c::cuda
