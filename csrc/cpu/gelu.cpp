#include "isa.h"
#include "reduce.h"

namespace gpt2c::GPT2C_ISA {
namespace {

// GPT-2's form, x / 2 (1 + tanh u) with u = sqrt(2 / pi) (x + 0.044715 x^3), is x * sigmoid(2u): one exp, no
// cancellation.
struct Tanh {
    static constexpr float kTwoSqrt2OverPi = 1.5957691216f;
    static constexpr float kCubic = 0.044715f;

    // e^(-2u) of x = 10 is 1e-38: from there up the sigmoid is 1, from -10 down the result below 1e-37. So clamped, the
    // powers of x do not overflow, and exp needs no limits of its own: measured 1.2 times the speed forward, 1.4
    // backward.
    static constexpr float kEnd = 10.0f;
    GPT2C_INLINE vf sigmoid(vf x) { return 1.0f / (exp_inside(x * (x * x * kCubic + 1.0f) * -kTwoSqrt2OverPi) + 1.0f); }
    GPT2C_INLINE vf value(vf x) {
        x = max(broadcast(-kEnd), x);
        return x * sigmoid(min(broadcast(kEnd), x));
    }
    GPT2C_INLINE vf slope(vf x) {
        x = min(broadcast(kEnd), max(broadcast(-kEnd), x));
        const vf s = sigmoid(x);
        return s + x * s * (1.0f - s) * (x * x * (3.0f * kCubic) + 1.0f) * kTwoSqrt2OverPi;
    }
};

// x * Phi(x), Phi(-z sqrt 2) = erfc(z) / 2.
struct Erf {
    static constexpr float kSqrtHalf = 0.70710678119f, kDensity0 = 0.39894228040f;

    GPT2C_INLINE vf cdf(vf x, vf gauss) {
        const vf tail = erfcx(abs(x) * kSqrtHalf) * gauss * 0.5f;
        return x > 0.0f ? 1.0f - tail : tail;
    }
    GPT2C_INLINE vf value(vf x) { return x * cdf(x, exp(x * x * -0.5f)); }
    GPT2C_INLINE vf slope(vf x) {
        const vf gauss = exp(x * x * -0.5f);
        return cdf(x, gauss) + x * gauss * kDensity0;
    }
};

template <class Form, class T>
void forward_row(const T* x, const T* bias, T* y, int64_t C) {
    for_lanes(C, [&](int64_t c, auto lanes) {
        vf v = lanes.get(x + c);
        if (bias) v += lanes.get(bias + c);
        lanes.put(y + c, Form::value(v));
    });
}

template <class Form, class T>
void backward_row(const T* dy, const T* x, const T* bias, T* dx, float* dbias, int64_t C) {
    for_lanes(C, [&](int64_t c, auto lanes) {
        vf v = lanes.get(x + c);
        if (bias) v += lanes.get(bias + c);
        const vf d = lanes.get(dy + c) * Form::slope(v);
        lanes.put(dx + c, d);
        if (bias) lanes.put(dbias + c, lanes.get(dbias + c) + d);
    });
}

// Without a bias rows mean nothing: the elements are cut into pieces of this many.
constexpr int64_t kSpan = 4096;

template <class Form, class T>
void forward(const T* x, const T* bias, T* y, int64_t N, int64_t C, int threads) {
    const int64_t size = N * C, span = bias ? C : kSpan;
    parallel_for((size + span - 1) / span, threads, [&](int64_t i) {
        const int64_t start = i * span;
        forward_row<Form>(x + start, bias, y + start, size - start < span ? size - start : span);
    });
}

template <class Form, class T>
void backward(const T* dy, const T* x, const T* bias, T* dx, T* dbias, int64_t N, int64_t C, int threads) {
    if (!bias) {
        const int64_t size = N * C;
        parallel_for((size + kSpan - 1) / kSpan, threads, [&](int64_t i) {
            const int64_t start = i * kSpan;
            backward_row<Form, T>(dy + start, x + start, nullptr, dx + start, nullptr,
                                  size - start < kSpan ? size - start : kSpan);
        });
        return;
    }
    const Pieces pieces(N);
    float* partials = scratch(Slot::call, pieces.count * C);
    parallel_for(pieces.count, threads, [&](int64_t piece) {
        float* sums = partials + piece * C;
        for (int64_t c = 0; c < C; ++c) sums[c] = 0;
        for (int64_t n = piece * pieces.rows; n < N && n < (piece + 1) * pieces.rows; ++n)
            backward_row<Form>(dy + n * C, x + n * C, bias, dx + n * C, sums, C);
    });
    add_pieces(partials, pieces.count, C, dbias, C);
}

}  // namespace

void gelu_forward(DType dtype, const void* x, const void* bias, void* y, int64_t N, int64_t C, bool exact,
                  int threads) {
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        auto* run = exact ? &forward<Erf, T> : &forward<Tanh, T>;
        run(static_cast<const T*>(x), static_cast<const T*>(bias), static_cast<T*>(y), N, C, threads);
    });
}

void gelu_backward(DType dtype, const void* dy, const void* x, const void* bias, void* dx, void* dbias, int64_t N,
                   int64_t C, bool exact, void*, int threads) {
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        auto* run = exact ? &backward<Erf, T> : &backward<Tanh, T>;
        run(static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(bias), static_cast<T*>(dx),
            static_cast<T*>(dbias), N, C, threads);
    });
}

}  // namespace gpt2c::GPT2C_ISA
