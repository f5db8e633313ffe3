#include "isa.h"

namespace gpt2c::GPT2C_ISA {
namespace {

template <class T>
float row_max(const T* x, int64_t V) {
    const vf lowest = broadcast(-__builtin_inff());
    vf top[4] = {lowest, lowest, lowest, lowest};
    for_lanes4(V, [&](int64_t c, auto lanes, auto part) {
        top[part.value] = max(top[part.value], lanes.masked(lanes.get(x + c), lowest));
    });
    return max_lane(max(max(top[0], top[1]), max(top[2], top[3])));
}

// Sum of e^(x - top). Spans are added in fp64: fifty thousand terms in fp32 would cost the last two digits.
template <class T>
double row_sum_exp(const T* x, float top, int64_t V) {
    constexpr int64_t kSpan = 1024;
    double total = 0;
    for (int64_t start = 0; start < V; start += kSpan) {
        Sum span;
        for_lanes4(V - start < kSpan ? V - start : kSpan, [&](int64_t c, auto lanes, auto part) {
            span.parts[part.value] += lanes.masked(exp(lanes.get(x + start + c) - top));
        });
        total += sum(span.total());
    }
    return total;
}

template <class T>
void backward_row(const T* x, T* dx, int64_t target, double lse, float scale, int64_t V) {
    // lse in two floats: see the contract of attention's lse.
    const float high = static_cast<float>(lse), low = static_cast<float>(lse - high);
    const float at_target = load1(x + target);  // read first: dx may be x
    for_lanes(V, [&](int64_t c, auto lanes) { lanes.put(dx + c, exp(lanes.get(x + c) - high - low) * scale); });
    const vf p = exp(broadcast(at_target) - high - low);
    store_n(dx + target, (p - 1.0f) * scale, 1);
}

}  // namespace

int64_t cross_entropy_count(const int64_t* targets, int64_t N, int64_t V, int64_t ignore_index) {
    int64_t count = 0;
    for (int64_t n = 0; n < N; ++n) {
        if (targets[n] == ignore_index) continue;
        if (targets[n] < 0 || targets[n] >= V) return -1 - n;
        ++count;
    }
    return count;
}

void cross_entropy_forward(DType dtype, const void* logits, const int64_t* targets, double* lse, double* total,
                           int64_t N, int64_t V, int64_t stride, int64_t ignore_index, int threads) {
    auto* losses = reinterpret_cast<double*>(scratch(Slot::call, 2 * N));
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(N, threads, [&](int64_t n) {
            const T* x = static_cast<const T*>(logits) + n * stride;
            const float top = row_max(x, V);
            const double log_sum = __builtin_log(row_sum_exp(x, top, V));
            lse[n] = top + log_sum;
            losses[n] = targets[n] == ignore_index ? 0 : log_sum - (load1(x + targets[n]) - top);
        });
    });
    for (int64_t n = 0; n < N; ++n) *total += losses[n];
}

void cross_entropy_backward(DType dtype, const float* dloss, const void* logits, const int64_t* targets,
                            const double* lse, void* dlogits, int64_t N, int64_t V, int64_t stride,
                            int64_t ignore_index, int64_t count, int threads) {
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        const float scale = *dloss / static_cast<float>(count);
        parallel_for(N, threads, [&](int64_t n) {
            const T* x = static_cast<const T*>(logits) + n * stride;
            T* dx = static_cast<T*>(dlogits) + n * stride;
            const bool ignored = targets[n] == ignore_index;
            if (!ignored) backward_row(x, dx, targets[n], lse[n], scale, V);
            const int64_t done = ignored ? 0 : V;
            __builtin_memset(dx + done, 0, sizeof(T) * (stride - done));
        });
    });
}

}  // namespace gpt2c::GPT2C_ISA
