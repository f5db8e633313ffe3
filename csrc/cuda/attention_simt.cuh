// Attention for every dtype, head dim and alignment, in fp32 arithmetic without tensor cores (Dao, FlashAttention-2,
// 2023, algorithms 1 and 2). Tiles of rows lie in shared memory in fp32; each thread computes a small rectangle.
#pragma once

#include "cuda/attention.cuh"

namespace gpt2c::cuda {

// How a block of threads divides a tile of own rows x other rows: TY x TX threads, each with RM own and RN other rows.
template <int DP_, int TX_, int RM_, int RN_>
struct Tiling {
    static constexpr int DP = DP_;  // head dim, padded with zeros
    static constexpr int TX = TX_, TY = 16, RM = RM_, RN = RN_;
    static constexpr int kThreads = TX * TY, kOwn = TY * RM, kOther = TX * RN;
    static constexpr int kColumns = DP / 4 / TX;  // chunks of 4 columns that a thread accumulates
    static_assert(DP % (4 * TX) == 0 && DP % 32 == 0 && kOther % 4 == 0, "whole chunks, 8 of them for the swizzle");
};

// Chosen to stay within kLeastSharedBytes.
template <int DP>
struct ForwardTiling;
template <>
struct ForwardTiling<64> : Tiling<64, 16, 4, 4> {};
template <>
struct ForwardTiling<128> : Tiling<128, 16, 4, 2> {};
template <>
struct ForwardTiling<256> : Tiling<256, 16, 2, 1> {};
template <int DP>
struct BackwardTiling;
template <>
struct BackwardTiling<64> : Tiling<64, 16, 4, 2> {};
template <>
struct BackwardTiling<128> : Tiling<128, 16, 2, 1> {};
template <>
struct BackwardTiling<256> : Tiling<256, 8, 1, 1> {};

// `rows` x DP floats in shared memory in chunks of 4. A warp reads one chunk of every GROUP-th row, or all chunks of
// one row: the exclusive or puts either into different banks.
template <int DP, int GROUP>
struct Tile {
    float* data;
    __device__ float* chunk(int row, int c) const { return data + row * DP + 4 * (c ^ (row / GROUP & 7)); }
};

// Four floats of shared memory.
__device__ inline float4 load4(const float* x) {
    const Floats<4> v = load<4>(x);
    return {v[0], v[1], v[2], v[3]};
}
__device__ inline void store4(float* out, float4 v) { store<4>(out, Floats<4>{v.x, v.y, v.z, v.w}); }

__device__ inline void store_four(float* out, float4 v) { store4(out, v); }
template <class Half>
__device__ void store_four(Half* out, float4 v) {
    store8(out, {pack<Half>(v.x, v.y), pack<Half>(v.z, v.w)});
}
template <class T>
__device__ void store_chunk(T* out, float4 v, int count, bool aligned) {
    if (aligned && count >= 4) return store_four(out, v);
    if (count > 0) out[0] = from_float<T>(v.x);
    if (count > 1) out[1] = from_float<T>(v.y);
    if (count > 2) out[2] = from_float<T>(v.z);
    if (count > 3) out[3] = from_float<T>(v.w);
}

// Fills a tile with ROWS rows of D from `first` on, zeros past the end of the tensor and past D.
template <int ROWS, class Tiling, int GROUP, class T>
__device__ void load_tile(Tile<Tiling::DP, GROUP> tile, const T* rows, int64_t stride, int first, int end, int D,
                          bool aligned) {
    constexpr int V = kVector<T>, kVectors = Tiling::DP / V;
    for (int i = threadIdx.x; i < ROWS * kVectors; i += Tiling::kThreads) {
        const int row = i / kVectors, d = i % kVectors * V;
        Floats<V> v = {};
        if (first + row < end && d < D) v = load_some<V>(rows + (first + row) * stride + d, D - d, aligned);
        store_chunks(v, d / V, [&](int c) { return tile.chunk(row, d / 4 + c); });
    }
}

// out[i][j] = own row ty * RM + i times other row tx * RN + j.
template <class Tiling, int A, int B>
__device__ void multiply(Tile<Tiling::DP, A> own, Tile<Tiling::DP, B> other, int tx, int ty, int chunks,
                         float (&out)[Tiling::RM][Tiling::RN]) {
#pragma unroll
    for (int i = 0; i < Tiling::RM; ++i)
#pragma unroll
        for (int j = 0; j < Tiling::RN; ++j) out[i][j] = 0.0f;
#pragma unroll 2
    for (int c = 0; c < chunks; ++c) {
        float4 b[Tiling::RN];
#pragma unroll
        for (int j = 0; j < Tiling::RN; ++j) b[j] = load4(other.chunk(tx * Tiling::RN + j, c));
#pragma unroll
        for (int i = 0; i < Tiling::RM; ++i) {
            const float4 a = load4(own.chunk(ty * Tiling::RM + i, c));
#pragma unroll
            for (int j = 0; j < Tiling::RN; ++j) {
                out[i][j] += a.x * b[j].x;
                out[i][j] += a.y * b[j].y;
                out[i][j] += a.z * b[j].z;
                out[i][j] += a.w * b[j].w;
            }
        }
    }
}

__device__ inline void add_scaled(float4& sum, float factor, float4 v) {
    sum.x += factor * v.x;
    sum.y += factor * v.y;
    sum.z += factor * v.z;
    sum.w += factor * v.w;
}

// A matrix of factors in shared memory: one row per own row, one column per other row. What a thread writes is read
// only by the TX threads of its rows, all in its warp. The rows that a warp writes at a time are neighbours in memory,
// and so in different banks.
template <class Tiling>
struct Factors {
    static constexpr int kPitch = Tiling::kOther;
    float* data;

    __device__ void put(int tx, int ty, int i, const float (&row)[Tiling::RN]) const {
        float* out = row_of(ty, i) + tx * Tiling::RN;
        if constexpr (Tiling::RN == 4) store4(out, {row[0], row[1], row[2], row[3]});
        if constexpr (Tiling::RN == 2) store8(out, {__float_as_uint(row[0]), __float_as_uint(row[1])});
        if constexpr (Tiling::RN == 1) *out = row[0];
    }
    __device__ float4 get(int ty, int i, int column) const { return load4(row_of(ty, i) + column); }

 private:
    __device__ float* row_of(int ty, int i) const { return data + (i * Tiling::TY + ty) * kPitch; }
};

template <class Tiling>
using Accumulator = float4[Tiling::RM][Tiling::kColumns];

// acc[i] += factors[ty * RM + i] times the other rows; thread tx has the chunks tx, tx + TX, ...
template <class Tiling, int B>
__device__ void accumulate(Factors<Tiling> factors, Tile<Tiling::DP, B> other, int tx, int ty, int chunks,
                           Accumulator<Tiling>& acc) {
#pragma unroll 1
    for (int row = 0; row < Tiling::kOther; row += 4) {
        float4 f[Tiling::RM];
#pragma unroll
        for (int i = 0; i < Tiling::RM; ++i) f[i] = factors.get(ty, i, row);
#pragma unroll
        for (int k = 0; k < Tiling::kColumns; ++k) {
            const int c = tx + k * Tiling::TX;
            if (c >= chunks) break;
            const float4 b[4] = {load4(other.chunk(row, c)), load4(other.chunk(row + 1, c)),
                                 load4(other.chunk(row + 2, c)), load4(other.chunk(row + 3, c))};
#pragma unroll
            for (int i = 0; i < Tiling::RM; ++i) {
                add_scaled(acc[i][k], f[i].x, b[0]);
                add_scaled(acc[i][k], f[i].y, b[1]);
                add_scaled(acc[i][k], f[i].z, b[2]);
                add_scaled(acc[i][k], f[i].w, b[3]);
            }
        }
    }
}

template <class Tiling, class T>
__device__ void store_rows(const Accumulator<Tiling>& acc, const float (&scale)[Tiling::RM], T* rows, int64_t stride,
                           int first, int end, int tx, int ty, int D, bool aligned) {
#pragma unroll
    for (int i = 0; i < Tiling::RM; ++i) {
        const int row = first + ty * Tiling::RM + i;
        if (row >= end) break;
#pragma unroll
        for (int k = 0; k < Tiling::kColumns; ++k) {
            const int column = 4 * (tx + k * Tiling::TX);
            const float4 v = acc[i][k];
            const float4 scaled = {v.x * scale[i], v.y * scale[i], v.z * scale[i], v.w * scale[i]};
            store_chunk(rows + row * stride + column, scaled, D - column, aligned);
        }
    }
}

}  // namespace gpt2c::cuda
