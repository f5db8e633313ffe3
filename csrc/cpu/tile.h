// The register-tiled product that all of attention's matrix products are made of.
#pragma once

#include "vec.h"

namespace gpt2c::GPT2C_ISA {

// Rows and vectors of the tile whose accumulators, with one row of B and one broadcast, fill the register file.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 8;  // 32 registers
#else
constexpr int kTileRows = 4;  // 16 registers
#endif
constexpr int kTileVecs = 3;

// A(m, k) = a[m * m_stride + k * k_stride]: element by element, so either index may be the dense one.
struct Broadcasts {
    const float* a;
    int64_t m_stride, k_stride;
};

template <int M, int N, bool kAdd>
static inline void tile(int64_t K, Broadcasts A, const float* b, int64_t b_stride, float* c, int64_t c_stride) {
    vf acc[M][N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) acc[m][n] = kAdd ? load(c + m * c_stride + n * W) : vf{};
    for (int64_t k = 0; k < K; ++k) {
        vf row[N];
        for (int n = 0; n < N; ++n) row[n] = load(b + k * b_stride + n * W);
        for (int m = 0; m < M; ++m) {
            const vf value = broadcast(A.a[m * A.m_stride + k * A.k_stride]);
            for (int n = 0; n < N; ++n) acc[m][n] += value * row[n];
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) store(c + m * c_stride + n * W, acc[m][n]);
}

template <int M, bool kAdd>
static inline void tile_row(int64_t vecs, int64_t K, Broadcasts A, const float* b, int64_t b_stride, float* c,
                            int64_t c_stride) {
    for (; vecs >= kTileVecs; vecs -= kTileVecs, b += kTileVecs * W, c += kTileVecs * W)
        tile<M, kTileVecs, kAdd>(K, A, b, b_stride, c, c_stride);
    if (vecs == 2) tile<M, 2, kAdd>(K, A, b, b_stride, c, c_stride);
    if (vecs == 1) tile<M, 1, kAdd>(K, A, b, b_stride, c, c_stride);
}

// C(m, n) = (kAdd: +=) sum over k < K of A(m, k) B(k, n), for m < M <= kTileRows and n < vecs * W.
// Each element is summed in the order of k, whatever the tile it falls into.
template <bool kAdd>
static inline void multiply(int64_t M, int64_t vecs, int64_t K, Broadcasts A, const float* b, int64_t b_stride,
                            float* c, int64_t c_stride) {
    if (M == kTileRows) return tile_row<kTileRows, kAdd>(vecs, K, A, b, b_stride, c, c_stride);
    for (int64_t m = 0; m < M; ++m)
        tile_row<1, kAdd>(vecs, K, {A.a + m * A.m_stride, A.m_stride, A.k_stride}, b, b_stride, c + m * c_stride,
                          c_stride);
}

}  // namespace gpt2c::GPT2C_ISA
