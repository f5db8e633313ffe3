// Products of a few rows with a matrix that is read once from memory, where reading it is nearly all the work.
//
// Every matrix is read in long runs of consecutive addresses, several at a time: 512 MB of GPT-2's matrices (Zen 4, two
// threads) come at 31 to 36 GB/s that way, and at 15 GB/s as strips of 64 to 256 columns, with software prefetch or
// without. Each element of a result is summed in the order of k, in the same number of partial sums, however many rows
// there are: a row's result does not depend on its batch.
//
// Where several rows make a weight's use longer than its way from memory, the next ones are asked for early: decoding
// 8 rows of GPT-2 124M takes 27.6 ms instead of 33.4 in fp32, and 18.9 instead of 23.0 in bf16.
#pragma once

#include "isa.h"

namespace gpt2c::GPT2C_ISA {

// Rows that share one load (and one conversion) of a weight, so that the sums stay in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRowTile = 8;
#else
constexpr int kRowTile = 4;
#endif

template <int N>
struct Count {
    static constexpr int value = N;
};

template <int N, class F>
GPT2C_INLINE void with_count(int64_t n, F&& f) {
    if constexpr (N > 0) {
        if (n == N)
            f(Count<N>{});
        else
            with_count<N - 1>(n, f);
    }
}

// Calls f(first row, Count<rows>) for tiles of at most kRowTile of B rows.
template <class F>
GPT2C_INLINE void for_row_tiles(int64_t B, F&& f) {
    for (int64_t b = 0; b < B; b += kRowTile)
        with_count<kRowTile>(B - b < kRowTile ? B - b : kRowTile, [&](auto rows) { f(b, rows); });
}

// ---- matrices (K, N), one row for each input: where they lie, and so only in fp32
// A piece is kPieceRows inputs, whose products with kPieceColumns outputs are a task; what the pieces of K give is
// added up by whoever uses it.
constexpr int64_t kPieceRows = 96, kPieceColumns = 1024;
constexpr int64_t kStreams = 8;  // rows of the matrix that are read side by side

inline int64_t pieces_of(int64_t K) { return (K + kPieceRows - 1) / kPieceRows; }
inline int64_t column_tasks(int64_t K, int64_t N) { return pieces_of(K) * ((N + kPieceColumns - 1) / kPieceColumns); }

// y (M rows, y_stride apart) += x (M rows, x_stride apart; R columns) times R rows of w, for n columns.
template <int M, int R>
static inline void add_streams(const float* x, int64_t x_stride, const float* w, int64_t w_stride, float* y,
                               int64_t y_stride, int64_t n) {
    for_lanes(n, [&](int64_t c, auto lanes) {
        vf acc[M];
        for (int m = 0; m < M; ++m) acc[m] = lanes.get(y + m * y_stride + c);
        for (int r = 0; r < R; ++r) {
            const vf row = lanes.get(w + r * w_stride + c);
            if (M > 1) __builtin_prefetch(w + (R + r) * w_stride + c);
            for (int m = 0; m < M; ++m) acc[m] += row * x[m * x_stride + r];
        }
        for (int m = 0; m < M; ++m) lanes.put(y + m * y_stride + c, acc[m]);
    });
}

// Task i of y (pieces_of(K), B, N) = x (B, K) w (K, N).
static void column_task(int64_t i, const float* x, const float* w, float* y, int64_t B, int64_t K, int64_t N) {
    const int64_t pieces = pieces_of(K), piece = i % pieces, c = i / pieces * kPieceColumns;
    const int64_t n = N - c < kPieceColumns ? N - c : kPieceColumns;
    const int64_t end = (piece + 1) * kPieceRows < K ? (piece + 1) * kPieceRows : K;
    float* out = y + piece * B * N + c;
    for (int64_t b = 0; b < B; ++b)
        for (int64_t j = 0; j < n; ++j) out[b * N + j] = 0;
    int64_t k = piece * kPieceRows;
    for (; k + kStreams <= end; k += kStreams)
        for_row_tiles(B, [&](int64_t b, auto rows) {
            add_streams<rows.value, kStreams>(x + b * K + k, K, w + k * N + c, N, out + b * N, N, n);
        });
    for (; k < end; ++k)
        for_row_tiles(B, [&](int64_t b, auto rows) {
            add_streams<rows.value, 1>(x + b * K + k, K, w + k * N + c, N, out + b * N, N, n);
        });
}

// ---- matrices (N, K), one row for each output: the token embedding, and packed weights
// sums[r * M + m] = x[m] . w[r], for M rows of x (K apart) and R rows of w (w_stride apart).
template <int M, int R, class T>
static inline void dots(const float* x, const T* w, int64_t w_stride, int64_t K, float* sums) {
    vf acc[R * M] = {};
    for_lanes(K, [&](int64_t k, auto lanes) {
        vf row[R];
        for (int r = 0; r < R; ++r) {
            row[r] = lanes.get(w + r * w_stride + k);
            if (M > 2) __builtin_prefetch(reinterpret_cast<const char*>(w + r * w_stride + k) + 1024);
        }
        for (int m = 0; m < M; ++m) {
            const vf value = lanes.get(x + m * K + k);
            for (int r = 0; r < R; ++r) acc[r * M + m] += row[r] * value;
        }
    });
    for (int i = 0; i < R * M; ++i) sums[i] = sum(acc[i]);
}

// Rows of w that are read side by side for M rows of x: four, or as many as leave their sums in registers.
constexpr int streams_of(int M) { return M * 4 <= kRowTile * 2 ? 4 : 2; }

// A task is about 64 KB of the matrix, in whole sets of four rows.
template <class T>
static inline int64_t rows_of_task(int64_t K) {
    const int64_t rows = 65536 / (static_cast<int64_t>(sizeof(T)) * (K ? K : 1)) / 4 * 4;
    return rows < 4 ? 4 : rows;
}
template <class T>
static inline int64_t row_tasks(int64_t K, int64_t N) {
    return (N + rows_of_task<T>(K) - 1) / rows_of_task<T>(K);
}

// Task i of y (B, N) = x (B, K) w^T scale, w (N, K), scale (N) or null.
template <class T>
static void row_task(int64_t i, const float* x, const T* w, const float* scale, float* y, int64_t B, int64_t K,
                     int64_t N) {
    const int64_t first = i * rows_of_task<T>(K), left = N - first;
    const int64_t count = left < rows_of_task<T>(K) ? left : rows_of_task<T>(K);
    for_row_tiles(B, [&](int64_t b, auto rows) {
        constexpr int M = rows.value, R = streams_of(M);
        const int64_t run = count / R;  // consecutive rows of one stream
        float sums[R * M];
        auto finish = [&](int64_t n, const float* values) {
            for (int m = 0; m < M; ++m) y[(b + m) * N + n] = scale ? values[m] * scale[n] : values[m];
        };
        for (int64_t j = 0; j < run; ++j) {
            dots<M, R>(x + b * K, w + (first + j) * K, run * K, K, sums);
            for (int r = 0; r < R; ++r) finish(first + r * run + j, sums + r * M);
        }
        for (int64_t j = R * run; j < count; ++j) {
            dots<M, 1>(x + b * K, w + (first + j) * K, K, K, sums);
            finish(first + j, sums);
        }
    });
}

}  // namespace gpt2c::GPT2C_ISA
