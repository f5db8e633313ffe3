// The register-tiled product that all of attention's matrix products are made of.
#pragma once

#include "vec.h"

namespace gpt2c::GPT2C_ISA {

// Rows and vectors of the tile whose accumulators, with a row of B and a broadcast, fit the register file. On AVX2 6 x
// 2 reaches 104 of 116 GFLOP/s per core (Zen 4), 4 x 3 95; with 32 registers all such shapes are alike.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 8, kTileVecs = 3;
#else
constexpr int kTileRows = 6, kTileVecs = 2;
#endif

// A's elements: with either index the dense one. That rows lie at a fixed distance spares the tile its pointers.
struct DenseK {
    const float* a;
    int64_t stride;
    GPT2C_MEMBER float at(int64_t m, int64_t k) const { return a[m * stride + k]; }
    GPT2C_MEMBER DenseK from(int64_t m) const { return {a + m * stride, stride}; }
};
template <int kStride>
struct DenseM {
    const float* a;
    GPT2C_MEMBER float at(int64_t m, int64_t k) const { return a[k * kStride + m]; }
    GPT2C_MEMBER DenseM from(int64_t m) const { return {a + m}; }
};

// Unrolled by hand-written pragmas: GCC would unroll the loops only after it has put the accumulators into memory.
template <int M, int N, bool kAdd, class A>
GPT2C_INLINE void tile(int64_t K, A a, const float* b, int64_t b_stride, float* c, int64_t c_stride) {
    vf acc[M][N];
    GPT2C_UNROLL
    for (int m = 0; m < M; ++m) GPT2C_UNROLL
    for (int n = 0; n < N; ++n) acc[m][n] = kAdd ? load(c + m * c_stride + n * W) : vf{};
    for (int64_t k = 0; k < K; ++k) {
        vf row[N];
        GPT2C_UNROLL
        for (int n = 0; n < N; ++n) row[n] = load(b + k * b_stride + n * W);
        GPT2C_UNROLL
        for (int m = 0; m < M; ++m) {
            const vf value = broadcast(a.at(m, k));
            GPT2C_UNROLL
            for (int n = 0; n < N; ++n) acc[m][n] += value * row[n];
        }
    }
    GPT2C_UNROLL
    for (int m = 0; m < M; ++m) GPT2C_UNROLL
    for (int n = 0; n < N; ++n) store(c + m * c_stride + n * W, acc[m][n]);
}

template <int M, bool kAdd, class A>
static void tile_row(int64_t vecs, int64_t K, A a, const float* b, int64_t b_stride, float* c, int64_t c_stride) {
    for (; vecs >= kTileVecs; vecs -= kTileVecs, b += kTileVecs * W, c += kTileVecs * W)
        tile<M, kTileVecs, kAdd>(K, a, b, b_stride, c, c_stride);
    if (kTileVecs > 2 && vecs == 2) tile<M, 2, kAdd>(K, a, b, b_stride, c, c_stride);
    if (vecs == 1) tile<M, 1, kAdd>(K, a, b, b_stride, c, c_stride);
}

// C(m, n) = (kAdd: +=) sum over k < K of A(m, k) B(k, n), for m < M and n < vecs * W.
// Each element is summed in the order of k, whatever the tile it falls into.
template <bool kAdd, class A>
static void multiply(int64_t M, int64_t vecs, int64_t K, A a, const float* b, int64_t b_stride, float* c,
                     int64_t c_stride) {
    const auto rows = [&](auto count) {
        constexpr int kRows = decltype(count)::value;
        tile_row<kRows, kAdd>(vecs, K, a, b, b_stride, c, c_stride);
        a = a.from(kRows);
        c += kRows * c_stride;
        M -= kRows;
    };
    while (M >= kTileRows) rows(Int<kTileRows>{});
    if (M >= 4) rows(Int<4>{});
    if (M >= 2) rows(Int<2>{});
    if (M >= 1) rows(Int<1>{});
}

}  // namespace gpt2c::GPT2C_ISA
