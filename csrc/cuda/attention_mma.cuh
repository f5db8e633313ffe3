// Attention on tensor cores: 16-bit elements, fp32 accumulators, head dims up to 128. Each warp owns 16 rows of a block
// of queries (or of keys) per row tile; the other side streams past in shared memory, two tiles in turn.
//
// Fragments are those of mma.m16n8k16 (PTX ISA): a lane's four values of a 16 x 8 result belong to the rows lane / 4
// and lane / 4 + 8, two columns from 2 (lane % 4) on each. Two such results side by side, packed to 16 bits, are
// the left operand of a product over their columns, so that probabilities never leave the registers.
#pragma once

#include "cuda/attention.cuh"

namespace gpt2c::cuda {

// Whether there are kernels with small tiles (two_fit): large ones of 64 columns are too large for sm_75 alone, which
// has no bf16.
template <class T, int D>
constexpr bool kSmallTiles = D == 128 || kDType<T> == DType::f16;

constexpr int kMmaThreads = 128, kMmaWarps = kMmaThreads / kWarp;

template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (kDType<T> == DType::bf16)
        mma_bf16(d, a, b0, b1);
    else
        mma_f16(d, a, b0, b1);
}

// Rows of D elements in shared memory in chunks of 16 bytes. ldmatrix reads one chunk of 8 rows in turn: the exclusive
// or puts them into different banks.
template <class T, int D>
struct HalfTile {
    T* data;
    __device__ __forceinline__ T* chunk(int row, int c) const { return data + row * D + 8 * (c ^ (row & 7)); }
};

// Starts copying ROWS rows from `first` on; zeros past the end of the tensor and past its `columns`.
template <int ROWS, int D, class T>
__device__ __forceinline__ void copy_tile(HalfTile<T, D> tile, const T* rows, int64_t stride, int first, int end,
                                          int columns) {
    constexpr int kChunks = D / 8;
    static_assert(ROWS * kChunks % kMmaThreads == 0, "each thread copies as many chunks");
#pragma unroll
    for (int i = 0; i < ROWS * kChunks / kMmaThreads; ++i) {
        const int id = i * kMmaThreads + static_cast<int>(threadIdx.x), row = id / kChunks, c = id % kChunks;
        const bool valid = first + row < end && 8 * c < columns;
        cp_async16(tile.chunk(row, c), rows + (valid ? (first + row) * stride + 8 * c : 0), valid);
    }
}

// M tiles of 16 rows times N columns, as accumulated by mma.
template <int M, int N>
using Fragments = float[M][N / 8][4];

// The left operand: 16 M own rows of a tile, from `row` on; kept in registers if `held`.
template <class T, int D, int M, bool held>
struct OwnRows {
    HalfTile<T, D> tile;
    int row;
    uint32_t kept[held ? D / 16 : 1][M][4];

    __device__ __forceinline__ OwnRows(HalfTile<T, D> tile_, int row_) : tile(tile_), row(row_) {}

    // Once the tile is there.
    __device__ __forceinline__ void hold() {
        if constexpr (held) {
#pragma unroll
            for (int s = 0; s < D / 16; ++s) fetch(s, kept[s]);
        }
    }
    __device__ __forceinline__ void get(int s, uint32_t (&a)[M][4]) const {
        if constexpr (held) {
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i) a[m][i] = kept[s][m][i];
        } else {
            fetch(s, a);
        }
    }

 private:
    __device__ __forceinline__ void fetch(int s, uint32_t (&a)[M][4]) const {
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int m = 0; m < M; ++m) ldmatrix_x4(a[m], tile.chunk(row + 16 * m + lane % 16, 2 * s + lane / 16));
    }
};

// out = own rows times the transpose of N other rows.
template <int N, class T, int D, int M, bool held>
__device__ __forceinline__ void multiply(const OwnRows<T, D, M, held>& own, HalfTile<T, D> other,
                                         Fragments<M, N>& out) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) out[m][n][e] = 0.0f;
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
        uint32_t a[M][4];
        own.get(s, a);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            uint32_t b[4];
            ldmatrix_x4(b, other.chunk(16 * n + lane / 16 * 8 + lane % 8, 2 * s + lane / 8 % 2));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma<T>(out[m][2 * n], a[m], b[0], b[1]);
                mma<T>(out[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// acc += factors (rounded to 16 bits) times N other rows.
template <int N, class T, int D, int M>
__device__ __forceinline__ void accumulate(const Fragments<M, N>& factors, HalfTile<T, D> other, Fragments<M, D>& acc) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int s = 0; s < N / 16; ++s) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            const float (&left)[4] = factors[m][2 * s], (&right)[4] = factors[m][2 * s + 1];
            a[m][0] = pack<T>(left[0], left[1]);
            a[m][1] = pack<T>(left[2], left[3]);
            a[m][2] = pack<T>(right[0], right[1]);
            a[m][3] = pack<T>(right[2], right[3]);
        }
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, other.chunk(16 * s + lane % 16, 2 * n + lane / 16));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma<T>(acc[m][2 * n], a[m], b[0], b[1]);
                mma<T>(acc[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Writes a warp's rows, multiplied by scale, by way of their place in a tile that only this warp still uses, so that
// memory sees whole chunks.
template <class T, int D, int M>
__device__ __forceinline__ void store_rows(const Fragments<M, D>& acc, const float (&scale)[M][2], HalfTile<T, D> tile,
                                           int tile_row, T* rows, int64_t stride, int first, int end, int columns) {
    const int lane = threadIdx.x % kWarp;
    __syncwarp();  // the warp has read what the tile held
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = tile_row + 16 * m + 8 * half + lane / 4;
                *reinterpret_cast<uint32_t*>(tile.chunk(row, n) + 2 * (lane % 4)) =
                    pack<T>(acc[m][n][2 * half] * scale[m][half], acc[m][n][2 * half + 1] * scale[m][half]);
            }
    __syncwarp();
    constexpr int kChunks = D / 8;
#pragma unroll
    for (int i = 0; i < 16 * M * kChunks / kWarp; ++i) {
        const int id = i * kWarp + lane, row = tile_row + id / kChunks, c = id % kChunks;
        if (first + row < end && 8 * c < columns)
            store16(rows + (first + row) * stride + 8 * c, load16(tile.chunk(row, c)));
    }
}

// Dropout's factors of a lane's four values of a 16 x 8 fragment, whose first is at (row, column): queries x keys, or
// keys x queries if kKeys. Four keys share a draw, and their values belong to lanes that share four draws: each of
// these lanes draws once, and the words are exchanged.
template <bool kKeys>
__device__ __forceinline__ void dropout_factors(const Dropout& dropout, int row, int column, float (&kept)[4]) {
    const int lane = threadIdx.x % kWarp;
    uint32_t mine[4], words[4];
    if constexpr (kKeys) {
        // The values of lanes 4 apart are of neighbouring keys: lane `own` draws for value `own` of all four.
        const int own = lane / 4 % 4;
        dropout.draw(column + own % 2, row + own / 2 * 8, mine);
        uint32_t got[4] = {select(mine, own), 0, 0, 0};
#pragma unroll
        for (int other = 1; other < 4; ++other)
            got[other] = __shfl_xor_sync(kAllLanes, select(mine, own ^ other), 4 * other);
#pragma unroll
        for (int e = 0; e < 4; ++e) words[e] = select(got, e ^ own);
    } else {
        // Two neighbouring lanes have the two halves of four keys, in two rows: each draws for one row.
        const bool odd = lane % 2;
        dropout.draw(row + (odd ? 8 : 0), column, mine);
        const uint32_t first = __shfl_xor_sync(kAllLanes, odd ? mine[0] : mine[2], 1);
        const uint32_t second = __shfl_xor_sync(kAllLanes, odd ? mine[1] : mine[3], 1);
        words[0] = odd ? first : mine[0];
        words[1] = odd ? second : mine[1];
        words[2] = odd ? mine[2] : first;
        words[3] = odd ? mine[3] : second;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) kept[e] = dropout.factor(words[e]);
}

}  // namespace gpt2c::cuda
