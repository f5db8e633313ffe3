#include "isa.h"

namespace gpt2c::GPT2C_ISA {
namespace {

int64_t first_out_of_range(const int64_t* idx, int64_t size, int64_t V) {
    for (int64_t n = 0; n < size; ++n)
        if (idx[n] < 0 || idx[n] >= V) return n;
    return -1;
}

}  // namespace

int64_t embedding_forward(DType dtype, const int64_t* idx, const void* wte, const void* wpe, void* x, int64_t B,
                          int64_t T, int64_t C, int64_t V, int64_t start, const int64_t* positions, int threads) {
    const int64_t bad = first_out_of_range(idx, B * T, V);
    if (bad >= 0) return bad;
    constexpr int64_t kRows = 8;
    dispatch(dtype, [&](auto t) {
        using E = decltype(t);
        const auto* wte_ = static_cast<const E*>(wte);
        const auto* wpe_ = static_cast<const E*>(wpe);
        auto* x_ = static_cast<E*>(x);
        parallel_for((B * T + kRows - 1) / kRows, threads, [&](int64_t task) {
            for (int64_t n = task * kRows; n < B * T && n < (task + 1) * kRows; ++n) {
                const E* token = wte_ + idx[n] * C;
                const E* position = wpe_ + (positions ? positions[n] : start + n % T) * C;
                for_lanes(C, [&](int64_t c, auto lanes) {
                    lanes.put(x_ + n * C + c, lanes.get(token + c) + lanes.get(position + c));
                });
            }
        });
    });
    return -1;
}

// Tasks are blocks of columns: each walks all positions in order, so that no two tasks write the same element and no
// sorting is needed for a fixed order of addition.
int64_t embedding_backward(DType dtype, const int64_t* idx, const int64_t*, const void* dx, float* dwte, float* dwpe,
                           int64_t B, int64_t T, int64_t C, int64_t V, int64_t P, int64_t start,
                           const int64_t* positions, const int64_t*, int threads) {
    const int64_t bad = first_out_of_range(idx, B * T, V);
    if (bad >= 0) return bad;
    constexpr int64_t kZeros = 1 << 16, kColumns = 64;
    parallel_for((P * C + kZeros - 1) / kZeros, threads, [&](int64_t task) {
        const int64_t left = P * C - task * kZeros;
        __builtin_memset(dwpe + task * kZeros, 0, sizeof(float) * (left < kZeros ? left : kZeros));
    });
    dispatch(dtype, [&](auto t) {
        using E = decltype(t);
        const auto* dx_ = static_cast<const E*>(dx);
        parallel_for((C + kColumns - 1) / kColumns, threads, [&](int64_t task) {
            const int64_t c0 = task * kColumns, size = C - c0 < kColumns ? C - c0 : kColumns;
            for (int64_t n = 0; n < B * T; ++n) {
                const E* row = dx_ + n * C + c0;
                float* token = dwte + idx[n] * C + c0;
                float* position = dwpe + (positions ? positions[n] : start + n % T) * C + c0;
                for_lanes(size, [&](int64_t c, auto lanes) {
                    const vf d = lanes.get(row + c);
                    lanes.put(token + c, lanes.get(token + c) + d);
                    lanes.put(position + c, lanes.get(position + c) + d);
                });
            }
        });
    });
    return -1;
}

}  // namespace gpt2c::GPT2C_ISA
