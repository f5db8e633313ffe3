// A block takes a row: the forward reads it once (each thread keeps the maximum of its logits and the sum of their
// exponentials below it), the backward reads and writes it once, in place if wanted.
#include "cuda/cuda.h"
#include "cuda/device.cuh"
#include "cuda/launch.cuh"

namespace gpt2c::cuda {
namespace {

// A chunk of 256 rows is two blocks for each of 132 multiprocessors, so a block must have many accesses under way
// itself.
constexpr int kMostThreads = 1024;

// Targets out of range have been reported (kernels.h); here they are as if ignored.
GPT2C_DEVICE bool counts(int64_t target, int64_t V, int64_t ignore_index) {
    return target != ignore_index && target >= 0 && target < V;
}

// Calls f(c, length) for this thread's share of `size` elements that begin at p, anywhere: for aligned vectors of
// kVector<T> (if `vectors`), and for single elements before and behind them.
template <class T, class F>
GPT2C_DEVICE void for_row(const T* p, int64_t size, bool vectors, F&& f) {
    constexpr int V = kVector<T>;
    const int64_t to_aligned = (16 - reinterpret_cast<uintptr_t>(p) % 16) % 16 / sizeof(T);
    const int64_t head = vectors && to_aligned < size ? to_aligned : size;
    const int64_t body = (size - head) / V * V;
    for (int64_t c = head + threadIdx.x * V; c < head + body; c += blockDim.x * V)
        f(c, std::integral_constant<int, V>{});
    for (int64_t i = threadIdx.x; i < size - body; i += blockDim.x)
        f(i < head ? i : i + body, std::integral_constant<int, 1>{});
}

// The sum of exponentials of what was added, relative to the highest.
struct Softmax {
    float top = -INFINITY, sum = 0;  // sum of e^(x - top)

    template <int L>
    __device__ __forceinline__ void add(const Floats<L>& x) {
        float highest = top;
#pragma unroll
        for (int i = 0; i < L; ++i) highest = fmaxf(highest, x[i]);
        // Nothing but -inf so far: the sum stays 0, without inf - inf.
        const float base = highest == -INFINITY ? 0.0f : highest;
        sum *= expf(top - base);
#pragma unroll
        for (int i = 0; i < L; ++i) sum += expf(x[i] - base);
        top = highest;
    }
};

template <class T>
__global__ void __launch_bounds__(kMostThreads)
    forward_kernel(const T* logits, double* lse, int64_t V, int64_t stride) {
    __shared__ float tops[kWarp];
    __shared__ double totals[kWarp];
    const int64_t n = blockIdx.x;
    const T* x = logits + n * stride;
    Softmax softmax;
    for_row(x, V, true, [&](int64_t c, auto length) { softmax.add(load<decltype(length)::value>(x + c)); });
    const float row_top = block_max(softmax.top, tops);
    double total[1] = {softmax.sum};
    if (softmax.top != -INFINITY) total[0] *= expf(softmax.top - row_top);
    block_sum(total, totals);
    if (threadIdx.x == 0) lse[n] = row_top + log(total[0]);
}

// total[0] += sum over rows of lse - logits[target], in a fixed order.
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    total_kernel(const T* logits, const int64_t* targets, const double* lse, double* total, int64_t N, int64_t V,
                 int64_t stride, int64_t ignore_index) {
    __shared__ double scratch[kWarp];
    double sum[1] = {0};
#pragma unroll 4
    for (int64_t n = threadIdx.x; n < N; n += kMostThreads) {
        const int64_t target = targets[n];
        if (counts(target, V, ignore_index)) sum[0] += lse[n] - to_float(logits[n * stride + target]);
    }
    block_sum(sum, scratch);
    if (threadIdx.x == 0) *total += sum[0];
}

template <class T>
__global__ void __launch_bounds__(kMostThreads)
    backward_kernel(const float* dloss, const T* logits, const int64_t* targets, const double* lse, T* dlogits,
                    int64_t V, int64_t stride, int64_t ignore_index, float count) {
    const int64_t n = blockIdx.x, target = targets[n];
    const bool counted = counts(target, V, ignore_index);
    const float scale = *dloss / count;
    // lse in two floats: see the contract of attention's lse.
    const float high = static_cast<float>(lse[n]), low = static_cast<float>(lse[n] - high);
    const T* x = logits + n * stride;
    T* dx = dlogits + n * stride;
    const bool alike = (reinterpret_cast<uintptr_t>(x) - reinterpret_cast<uintptr_t>(dx)) % 16 == 0;
    for_row(dx, counted ? V : 0, alike, [&](int64_t c, auto length) {
        constexpr int L = decltype(length)::value;
        Floats<L> v = load<L>(x + c);
#pragma unroll
        for (int i = 0; i < L; ++i) {
            const float p = expf(v[i] - high - low);
            v[i] = (c + i == target ? p - 1.0f : p) * scale;
        }
        store<L>(dx + c, v);
    });
    const int64_t filled = counted ? V : 0;
    for_row(dx + filled, stride - filled, true, [&](int64_t c, auto length) {
        constexpr int L = decltype(length)::value;
        store<L>(dx + filled + c, Floats<L>{});
    });
}

// As many threads as a row of V elements has vectors, in whole warps; enough for the ends of for_row in any case.
template <class T>
dim3 threads_for(int64_t V) {
    const int64_t warps = ceil_div<int64_t>(ceil_div<int64_t>(V, kVector<T>), kWarp);
    return dim3(static_cast<unsigned>(warps < 1 ? kWarp : warps * kWarp < kMostThreads ? warps * kWarp : kMostThreads));
}

}  // namespace

void cross_entropy_forward(DType dtype, const void* logits, const int64_t* targets, double* lse, double* total,
                           int64_t N, int64_t V, int64_t stride, int64_t ignore_index, int) {
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        const auto* logits_ = static_cast<const T*>(logits);
        launch("cross_entropy_forward", forward_kernel<T>, dim3(static_cast<unsigned>(N)), threads_for<T>(V), 0,
               logits_, lse, V, stride);
        launch("cross_entropy_forward", total_kernel<T>, dim3(1), dim3(kMostThreads), 0, logits_, targets, lse, total,
               N, V, stride, ignore_index);
    });
}

void cross_entropy_backward(DType dtype, const float* dloss, const void* logits, const int64_t* targets,
                            const double* lse, void* dlogits, int64_t N, int64_t V, int64_t stride,
                            int64_t ignore_index, int64_t count, int) {
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        launch("cross_entropy_backward", backward_kernel<T>, dim3(static_cast<unsigned>(N)), threads_for<T>(stride), 0,
               dloss, static_cast<const T*>(logits), targets, lse, static_cast<T*>(dlogits), V, stride, ignore_index,
               static_cast<float>(count));
    });
}

}  // namespace gpt2c::cuda
