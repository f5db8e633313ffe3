// A thread owns a vector of columns and walks down a piece of rows, so that the bias is read once and its gradient is
// summed in registers. Without a bias the elements are rows of as many columns as a block has.
#include "cuda/cuda.h"
#include "cuda/reduce.cuh"

namespace gpt2c::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 4;                  // in a piece where no sums are needed: a block is worth its start
constexpr int64_t kManyBlocks = 4 * 132;  // with fewer, on 132 multiprocessors, a piece is one row

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

// The tensors as blocks see them, in vectors: N rows of `columns`, of which the last may end early, `vectors` in all,
// and `rest` elements behind that are none, only without a bias. blockIdx.x counts pieces of `rows` rows, and within
// them blocks of columns.
struct Layout {
    int64_t N, columns, vectors, rest, rows;
    unsigned column_blocks;
};

// This thread's vectors: in its piece, its column of each row.
struct Share {
    int64_t piece, column, begin, end;

    __device__ __forceinline__ explicit Share(const Layout& layout)
        : piece(blockIdx.x / layout.column_blocks),
          column(int64_t{blockIdx.x % layout.column_blocks} * kThreads + threadIdx.x),
          begin(piece * layout.rows * layout.columns + column),
          end((piece + 1) * layout.rows * layout.columns) {
        if (end > layout.vectors) end = layout.vectors;
    }
};

template <class Form, int V, class T>
GPT2C_DEVICE void forward_at(const T* x, const Floats<V>& b, T* y) {
    Floats<V> v = load<V>(x);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = Form::value(v[i] + b[i]);
    store<V>(y, v);
}

template <class Form, class T, int V>
__global__ void __launch_bounds__(kThreads) forward_kernel(const T* x, const T* bias, T* y, Layout layout) {
    const Share share(layout);
    if (share.column >= layout.columns) return;
    const Floats<V> b = bias ? load<V>(vector_at<V>(bias, share.column)) : Floats<V>{};
    for (int64_t i = share.begin; i < share.end; i += layout.columns)
        forward_at<Form>(vector_at<V>(x, i), b, vector_at<V>(y, i));
    const int64_t rest = layout.vectors * V + threadIdx.x;
    if (blockIdx.x == 0 && threadIdx.x < layout.rest) forward_at<Form>(x + rest, Floats<1>{}, y + rest);
}

template <class Form, int V, class T>
GPT2C_DEVICE void backward_at(const T* dy, const T* x, const Floats<V>& b, T* dx, Floats<V>& sums) {
    const Floats<V> v = load<V>(x);
    Floats<V> d = load<V>(dy);
#pragma unroll
    for (int i = 0; i < V; ++i) {
        d[i] *= Form::slope(v[i] + b[i]);
        sums[i] += d[i];
    }
    store<V>(dx, d);
}

// partials (pieces, C) receives the column sums of each piece's rows; null without a bias.
template <class Form, class T, int V>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* dy, const T* x, const T* bias, T* dx, float* partials, Layout layout) {
    const Share share(layout);
    if (share.column >= layout.columns) return;
    const Floats<V> b = bias ? load<V>(vector_at<V>(bias, share.column)) : Floats<V>{};
    Floats<V> sums{};
    for (int64_t i = share.begin; i < share.end; i += layout.columns)
        backward_at<Form>(vector_at<V>(dy, i), vector_at<V>(x, i), b, vector_at<V>(dx, i), sums);
    if (partials) store_floats<V>(partials + (share.piece * layout.columns + share.column) * V, sums);
    const int64_t rest = layout.vectors * V + threadIdx.x;
    Floats<1> unused{};
    if (blockIdx.x == 0 && threadIdx.x < layout.rest)
        backward_at<Form>(dy + rest, x + rest, Floats<1>{}, dx + rest, unused);
}

// With a bias the tensor's own rows, without one rows as long as a block. `piece`: rows that are summed up together, or
// 0 where none are: then enough for a block to be worth its start, if that leaves many blocks.
template <int V>
Layout layout_of(int64_t N, int64_t C, bool bias, int64_t piece) {
    const int64_t vectors = N * C / V, columns = bias ? C / V : kThreads;
    const int64_t all_rows = bias ? N : ceil_div<int64_t>(N * C, V * kThreads);
    const int64_t column_blocks = ceil_div<int64_t>(columns, kThreads);
    const int64_t rows = piece ? piece : all_rows * column_blocks >= kRows * kManyBlocks ? kRows : 1;
    return {all_rows, columns, vectors, N * C - vectors * V, rows, static_cast<unsigned>(column_blocks)};
}

dim3 grid_of(const Layout& layout) {
    return dim3(static_cast<unsigned>(ceil_div(layout.N, layout.rows) * layout.column_blocks));
}

// Calls f with values of the form and of the vector length. Rows without a bias may start anywhere.
template <class T, class F, class... Pointers>
void with_form(bool exact, bool bias, int64_t C, F&& f, const Pointers*... pointers) {
    with_vector<T>(vectorizable<T>(bias ? C : 0, pointers...), [&](auto vector) {
        if (exact)
            f(Erf{}, vector);
        else
            f(Tanh{}, vector);
    });
}

}  // namespace

void gelu_forward(DType dtype, const void* x, const void* bias, void* y, int64_t N, int64_t C, bool exact, int) {
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        const auto run = [&](auto form, auto vector) {
            const Layout layout = layout_of<vector>(N, C, bias != nullptr, 0);
            launch("gelu_forward", forward_kernel<decltype(form), T, vector>, grid_of(layout), dim3(kThreads), 0,
                   static_cast<const T*>(x), static_cast<const T*>(bias), static_cast<T*>(y), layout);
        };
        with_form<T>(exact, bias != nullptr, C, run, x, bias, y);
    });
}

void gelu_backward(DType dtype, const void* dy, const void* x, const void* bias, void* dx, void* dbias, int64_t N,
                   int64_t C, bool exact, void* workspace, int) {
    auto* partials = bias ? static_cast<float*>(workspace) : nullptr;
    const Pieces pieces(N);
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        const auto run = [&](auto form, auto vector) {
            const Layout layout = layout_of<vector>(N, C, bias != nullptr, bias ? pieces.rows : 0);
            launch("gelu_backward", backward_kernel<decltype(form), T, vector>, grid_of(layout), dim3(kThreads), 0,
                   static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(bias),
                   static_cast<T*>(dx), partials, layout);
        };
        with_form<T>(exact, bias != nullptr, C, run, dy, x, bias, dx, workspace);
        if (bias) add_pieces<T>("gelu_backward", partials, pieces.count, static_cast<T*>(dbias), nullptr, C);
    });
}

}  // namespace gpt2c::cuda
