#include "isa.h"
#include "reduce.h"

namespace gpt2c::GPT2C_ISA {
namespace {

struct Moments {
    float mean, variance;
};

// Two passes: the sum of (x - mean)^2 loses nothing where E[x^2] - mean^2 would. The second also sums x - mean itself,
// which would be 0 but for the first pass's rounding, and corrects both by it (Chan, Golub & LeVeque, 1983, eq. 1.7).
template <class T>
Moments moments(const T* x, int64_t C) {
    const float size = static_cast<float>(C);
    Sum total, centred, squares;
    for_lanes4(C, [&](int64_t c, auto lanes, auto part) { total.parts[part.value] += lanes.get(x + c); });
    const float mean = sum(total.total()) / size;
    for_lanes4(C, [&](int64_t c, auto lanes, auto part) {
        const vf d = lanes.masked(lanes.get(x + c) - mean);
        centred.parts[part.value] += d;
        squares.parts[part.value] += d * d;
    });
    const float error = sum(centred.total()) / size;
    const float variance = sum(squares.total()) / size - error * error;
    return {mean + error, variance < 0 ? 0 : variance};  // below 0 by rounding only; nan stays nan
}

template <class T>
void forward_row(const T* x, const T* residual, const T* weight, const T* bias, T* h, T* y, float* mean, float* rstd,
                 int64_t C, float eps) {
    if (residual) {
        for_lanes(C, [&](int64_t c, auto lanes) { lanes.put(h + c, lanes.get(x + c) + lanes.get(residual + c)); });
        x = h;  // as stored, since the backward will see it so
    }
    const Moments m = moments(x, C);
    const float r = 1.0f / __builtin_sqrtf(m.variance + eps);
    for_lanes(C, [&](int64_t c, auto lanes) {
        lanes.put(y + c, (lanes.get(x + c) - m.mean) * r * lanes.get(weight + c) + lanes.get(bias + c));
    });
    *mean = m.mean;
    *rstd = r;
}

// dx of one row; dweight and dbias are added to.
template <class T>
void backward_row(const T* dy, const T* dh, const T* h, const T* weight, float mean, float rstd, T* dx, float* dweight,
                  float* dbias, int64_t C) {
    vf sum_g{}, sum_gx{};
    for_lanes(C, [&](int64_t c, auto lanes) {
        const vf d = lanes.get(dy + c);
        const vf xhat = (lanes.get(h + c) - mean) * rstd;
        const vf g = d * lanes.get(weight + c);
        sum_g += g;
        sum_gx += g * xhat;
        lanes.put(dweight + c, lanes.get(dweight + c) + d * xhat);
        lanes.put(dbias + c, lanes.get(dbias + c) + d);
    });
    const float mean_g = sum(sum_g) / static_cast<float>(C);
    const float mean_gx = sum(sum_gx) / static_cast<float>(C);
    for_lanes(C, [&](int64_t c, auto lanes) {
        const vf xhat = (lanes.get(h + c) - mean) * rstd;
        vf d = (lanes.get(dy + c) * lanes.get(weight + c) - mean_g - xhat * mean_gx) * rstd;
        if (dh) d += lanes.get(dh + c);
        lanes.put(dx + c, d);
    });
}

}  // namespace

void layernorm_forward(DType dtype, const void* x, const void* residual, const void* weight, const void* bias, void* h,
                       void* y, float* mean, float* rstd, int64_t N, int64_t C, float eps, int threads) {
    constexpr int64_t kRows = 8;
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        const auto* x_ = static_cast<const T*>(x);
        const auto* residual_ = static_cast<const T*>(residual);
        auto* h_ = static_cast<T*>(h);
        auto* y_ = static_cast<T*>(y);
        parallel_for((N + kRows - 1) / kRows, threads, [&](int64_t task) {
            for (int64_t n = task * kRows; n < N && n < (task + 1) * kRows; ++n)
                forward_row(x_ + n * C, residual_ ? residual_ + n * C : nullptr, static_cast<const T*>(weight),
                            static_cast<const T*>(bias), h_ ? h_ + n * C : nullptr, y_ + n * C, mean + n, rstd + n, C,
                            eps);
        });
    });
}

void layernorm_backward(DType dtype, const void* dy, const void* dh, const void* h, const void* weight,
                        const float* mean, const float* rstd, void* dx, void* dweight, void* dbias, int64_t N,
                        int64_t C, void*, int threads) {
    const Pieces pieces(N);
    float* partials = scratch(Slot::call, pieces.count * 2 * C);
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        const auto* dy_ = static_cast<const T*>(dy);
        const auto* dh_ = static_cast<const T*>(dh);
        const auto* h_ = static_cast<const T*>(h);
        auto* dx_ = static_cast<T*>(dx);
        parallel_for(pieces.count, threads, [&](int64_t piece) {
            float* sums = partials + piece * 2 * C;
            for (int64_t c = 0; c < 2 * C; ++c) sums[c] = 0;
            for (int64_t n = piece * pieces.rows; n < N && n < (piece + 1) * pieces.rows; ++n)
                backward_row(dy_ + n * C, dh_ ? dh_ + n * C : nullptr, h_ + n * C, static_cast<const T*>(weight),
                             mean[n], rstd[n], dx_ + n * C, sums, sums + C, C);
        });
        add_pieces(partials, pieces.count, 2 * C, static_cast<T*>(dweight), C);
        add_pieces(partials + C, pieces.count, 2 * C, static_cast<T*>(dbias), C);
    });
}

}  // namespace gpt2c::GPT2C_ISA
