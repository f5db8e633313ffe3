// A thread owns a vector of columns and walks down rows, so that the bias is read once and its gradient is summed in
// registers. Without a bias all elements are one row.
#include "cuda/cuda.h"
#include "cuda/reduce.cuh"

namespace gpt2c::cuda {
namespace {

constexpr int kThreads = 128;

// The formulas of cpu/gelu.cpp, and why they are these, stand there and in cpu/vec.h.
struct Tanh {
    static constexpr float kTwoSqrt2OverPi = 1.5957691216f;
    static constexpr float kCubic = 0.044715f;

    GPT2C_DEVICE float sigmoid(float x) { return 1.0f / (expf(x * (x * x * kCubic + 1.0f) * -kTwoSqrt2OverPi) + 1.0f); }
    GPT2C_DEVICE float value(float x) {
        x = x < -20.0f ? -20.0f : x;
        return x * sigmoid(x);
    }
    GPT2C_DEVICE float slope(float x) {
        x = x < -20.0f ? -20.0f : x;
        x = x > 20.0f ? 20.0f : x;
        const float s = sigmoid(x);
        return s + x * s * (1.0f - s) * (x * x * (3.0f * kCubic) + 1.0f) * kTwoSqrt2OverPi;
    }
};

struct Erf {
    static constexpr float kSqrtHalf = 0.70710678119f, kDensity0 = 0.39894228040f;

    // e^(z^2) erfc(z) for z >= 0.
    GPT2C_DEVICE float scaled_erfc(float z) {
        const float t = 1.0f / (z * 0.45f + 1.0f);
        float p = t * -3.8176727e-2f + 1.7362478e-1f;
        p = p * t - 2.6183301e-1f;
        p = p * t + 9.3207650e-2f;
        p = p * t + 1.5922045e-2f;
        p = p * t + 1.0112458e-1f;
        p = p * t + 1.8106623e-1f;
        p = p * t + 2.2719161e-1f;
        p = p * t + 2.5399196e-1f;
        p = p * t + 2.5388083e-1f;
        return p * t;
    }
    GPT2C_DEVICE float cdf(float x, float gauss) {
        const float tail = scaled_erfc(fabsf(x) * kSqrtHalf) * gauss * 0.5f;
        return x > 0.0f ? 1.0f - tail : tail;
    }
    GPT2C_DEVICE float value(float x) { return x * cdf(x, expf(x * x * -0.5f)); }
    GPT2C_DEVICE float slope(float x) {
        const float gauss = expf(x * x * -0.5f);
        return cdf(x, gauss) + x * gauss * kDensity0;
    }
};

template <class Form, class T, int V>
__global__ void __launch_bounds__(kThreads) forward_kernel(const T* x, const T* bias, T* y, int64_t N, int64_t C) {
    const int64_t c = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V, left = C - c;
    if (left <= 0) return;
    const Floats<V> b = bias ? load<V>(bias + c, left) : Floats<V>{};
    for (int64_t n = blockIdx.y; n < N; n += gridDim.y) {
        Floats<V> v = load<V>(x + n * C + c, left);
#pragma unroll
        for (int i = 0; i < V; ++i) v[i] = Form::value(v[i] + b[i]);
        store<V>(y + n * C + c, v, left);
    }
}

// partials (pieces, C) receives the column sums of each piece's rows; null without a bias.
template <class Form, class T, int V>
__global__ void __launch_bounds__(kThreads) backward_kernel(const T* dy, const T* x, const T* bias, T* dx,
                                                            float* partials, int64_t N, int64_t C, int64_t rows) {
    const int64_t c = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V, left = C - c;
    if (left <= 0) return;
    const Floats<V> b = bias ? load<V>(bias + c, left) : Floats<V>{};
    Floats<V> sums{};
    const int64_t begin = blockIdx.y * rows, end = begin + rows < N ? begin + rows : N;
    for (int64_t n = begin; n < end; ++n) {
        const Floats<V> v = load<V>(x + n * C + c, left);
        Floats<V> d = load<V>(dy + n * C + c, left);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            d[i] *= Form::slope(v[i] + b[i]);
            sums[i] += d[i];
        }
        store<V>(dx + n * C + c, d, left);
    }
    if (partials) store_floats<V>(partials + blockIdx.y * C + c, sums);
}

template <int V>
unsigned column_blocks(int64_t C) {
    return static_cast<unsigned>(ceil_div<int64_t>(C, V * kThreads));
}

// Calls f with values of the form and of the vector length; the one row without a bias may end within a vector.
template <class T, class F, class... Pointers>
void with_form(bool exact, bool rows, int64_t C, F&& f, const Pointers*... pointers) {
    with_vector<T>(vectorizable<T>(rows ? C : 0, pointers...), [&](auto vector) {
        if (exact)
            f(Erf{}, vector);
        else
            f(Tanh{}, vector);
    });
}

}  // namespace

void gelu_forward(DType dtype, const void* x, const void* bias, void* y, int64_t N, int64_t C, bool exact, int) {
    if (!bias) C *= N, N = 1;
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        const auto run = [&](auto form, auto vector) {
            const dim3 grid(column_blocks<vector>(C), static_cast<unsigned>(N < 65535 ? N : 65535));
            launch("gelu_forward", forward_kernel<decltype(form), T, vector>, grid, dim3(kThreads), 0,
                   static_cast<const T*>(x), static_cast<const T*>(bias), static_cast<T*>(y), N, C);
        };
        with_form<T>(exact, bias != nullptr, C, run, x, bias, y);
    });
}

void gelu_backward(DType dtype, const void* dy, const void* x, const void* bias, void* dx, void* dbias, int64_t N,
                   int64_t C, bool exact, void* workspace, int) {
    if (!bias) C *= N, N = 1;
    const Pieces pieces(N);
    auto* partials = bias ? static_cast<float*>(workspace) : nullptr;
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        const auto run = [&](auto form, auto vector) {
            const dim3 grid(column_blocks<vector>(C), static_cast<unsigned>(pieces.count));
            launch("gelu_backward", backward_kernel<decltype(form), T, vector>, grid, dim3(kThreads), 0,
                   static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(bias),
                   static_cast<T*>(dx), partials, N, C, pieces.rows);
        };
        with_form<T>(exact, bias != nullptr, C, run, dy, x, bias, dx, workspace);
        if (bias) add_pieces("gelu_backward", partials, pieces.count, C, static_cast<T*>(dbias), C);
    });
}

}  // namespace gpt2c::cuda
