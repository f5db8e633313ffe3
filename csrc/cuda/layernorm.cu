// The forward gives a warp to each row and keeps the row in shared memory, so that it is read once; every lane reads
// back only what it wrote there, and no barrier is needed. The backward gives a piece of rows to each block, whose
// threads own columns, so that the sums over rows need no barrier either. Up to a few thousand columns a thread owns
// one vector of them: its part of a row stays in registers between the two passes, as do its sums.
#include "cuda/cuda.h"
#include "cuda/reduce.cuh"

namespace gpt2c::cuda {
namespace {

constexpr int kForwardWarps = 4;
constexpr int64_t kFewRows = 4 * 132;  // one to a block, since blocks of more would not fill 132 multiprocessors

// `cache` of C floats is the row's place in shared memory, or null where the row is too long for that: then it is read
// again. Moments as the CPU's (cpu/layernorm.cpp): two passes and a correction.
template <class T, int V>
GPT2C_DEVICE void forward_row(const T* x, const T* residual, const T* weight, const T* bias, T* h, T* y, float* mean,
                              float* rstd, int64_t C, float eps, float* cache) {
    const int lane = threadIdx.x % kWarp;
    const float size = static_cast<float>(C);
    const T* row = residual ? h : x;  // as stored, since the backward will see it so
    const auto get = [&](int64_t c) { return cache ? load_floats<V>(cache + c) : load<V>(row + c); };
    float total = 0;
    for (int64_t c = lane * V; c < C; c += kWarp * V) {
        Floats<V> v = load<V>(x + c);
        if (residual) {
            const Floats<V> r = load<V>(residual + c);
#pragma unroll
            for (int i = 0; i < V; ++i) v[i] = to_float(from_float<T>(v[i] + r[i]));
            store<V>(h + c, v);
        }
        if (cache) store_floats<V>(cache + c, v);
#pragma unroll
        for (int i = 0; i < V; ++i) total += v[i];
    }
    const float centre = warp_sum(total) / size;
    float centred = 0, squares = 0;
    for (int64_t c = lane * V; c < C; c += kWarp * V) {
        const Floats<V> v = get(c);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float d = v[i] - centre;
            centred += d;
            squares += d * d;
        }
    }
    const float error = warp_sum(centred) / size;
    const float m = centre + error;
    const float variance = warp_sum(squares) / size - error * error;
    const float r = 1.0f / sqrtf((variance < 0 ? 0 : variance) + eps);
    for (int64_t c = lane * V; c < C; c += kWarp * V) {
        Floats<V> v = get(c);
        const Floats<V> w = load<V>(weight + c), b = load<V>(bias + c);
#pragma unroll
        for (int i = 0; i < V; ++i) v[i] = (v[i] - m) * r * w[i] + b[i];
        store<V>(y + c, v);
    }
    if (lane == 0) {
        *mean = m;
        *rstd = r;
    }
}

template <class T, int V>
__global__ void __launch_bounds__(kWarp* kForwardWarps)
    forward_kernel(const T* x, const T* residual, const T* weight, const T* bias, T* h, T* y, float* mean, float* rstd,
                   int64_t N, int64_t C, float eps, bool cached) {
    GPT2C_DYNAMIC_SHARED(shared);
    const int warp = threadIdx.x / kWarp;
    const int64_t n = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp;
    if (n >= N) return;
    // The caches begin on 16 bytes where V > 1: then C is a multiple of 4.
    float* cache = cached ? reinterpret_cast<float*>(shared) + warp * C : nullptr;
    forward_row<T, V>(x + n * C, residual ? residual + n * C : nullptr, weight, bias, h ? h + n * C : nullptr,
                      y + n * C, mean + n, rstd + n, C, eps, cache);
}

constexpr int kBackwardThreads = 256;
constexpr int kRowThreads = 512;  // the most that own one vector each

// What a thread reads of a row.
template <class T, int V>
struct RowPart {
    Raw<T, V> dy, h, dh;
    float mean, rstd;
};

// dx of the piece's rows; partials (pieces, 2 C) receives dweight and dbias of each piece. While a row waits for the
// block's sums, the next one is on its way.
template <class T, int V>
__global__ void __launch_bounds__(kRowThreads)
    backward_kernel(const T* dy, const T* dh, const T* h, const T* weight, const float* mean, const float* rstd, T* dx,
                    float* partials, int64_t N, int64_t C, int64_t rows) {
    __shared__ float scratch[2][2 * kWarp];  // of even and odd rows, so that one barrier a row is enough
    const int64_t c = static_cast<int64_t>(threadIdx.x) * V;
    const int64_t begin = blockIdx.x * rows, end = begin + rows < N ? begin + rows : N;
    const float per_column = 1.0f / static_cast<float>(C);
    const bool owner = c < C;
    const auto fetch = [&](int64_t n) {
        RowPart<T, V> part{};
        if (n >= end || !owner) return part;
        part.dy = load_raw<V>(dy + n * C + c);
        part.h = load_raw<V>(h + n * C + c);
        if (dh) part.dh = load_raw<V>(dh + n * C + c);
        part.mean = mean[n];
        part.rstd = rstd[n];
        return part;
    };
    const Floats<V> w = owner ? load<V>(weight + c) : Floats<V>{};
    Floats<V> dw{}, db{};
    RowPart<T, V> row = fetch(begin);
    for (int64_t n = begin; n < end; ++n) {
        const RowPart<T, V> next = fetch(n + 1);
        Floats<V> d = widen(row.dy), x = widen(row.h);
        float totals[2] = {0, 0};  // of g and of g * xhat
#pragma unroll
        for (int i = 0; i < V; ++i) {
            x[i] = (x[i] - row.mean) * row.rstd;
            dw[i] += d[i] * x[i];
            db[i] += d[i];
            d[i] *= w[i];
            totals[0] += d[i];
            totals[1] += d[i] * x[i];
        }
        block_sum<2>(totals, scratch[n & 1]);
        const float mean_g = totals[0] * per_column, mean_gx = totals[1] * per_column;
        const Floats<V> more = widen(row.dh);
#pragma unroll
        for (int i = 0; i < V; ++i) d[i] = (d[i] - mean_g - x[i] * mean_gx) * row.rstd + more[i];
        if (owner) store<V>(dx + n * C + c, d);
        row = next;
    }
    if (!owner) return;
    store_floats<V>(partials + blockIdx.x * 2 * C + c, dw);
    store_floats<V>(partials + blockIdx.x * 2 * C + C + c, db);
}

// The same for rows that are too long for that: thread t owns the vectors of columns t, t + blockDim, ..., and reads a
// row twice.
template <class T, int V>
__global__ void __launch_bounds__(kBackwardThreads)
    long_backward_kernel(const T* dy, const T* dh, const T* h, const T* weight, const float* mean, const float* rstd,
                         T* dx, float* partials, int64_t N, int64_t C, int64_t rows, bool in_shared) {
    GPT2C_DYNAMIC_SHARED(shared);
    __shared__ float scratch[2][2 * kWarp];  // of even and odd rows, so that one barrier a row is enough
    float* piece = partials + static_cast<int64_t>(blockIdx.x) * 2 * C;
    float* sums = in_shared ? reinterpret_cast<float*>(shared) : piece;
    const int64_t first = static_cast<int64_t>(threadIdx.x) * V, step = static_cast<int64_t>(blockDim.x) * V;
    for (int64_t c = first; c < C; c += step) {
        store_floats<V>(sums + c, Floats<V>{});
        store_floats<V>(sums + C + c, Floats<V>{});
    }
    const int64_t begin = blockIdx.x * rows, end = begin + rows < N ? begin + rows : N;
    const float per_column = 1.0f / static_cast<float>(C);
    for (int64_t n = begin; n < end; ++n) {
        const float m = mean[n], r = rstd[n];
        float totals[2] = {0, 0};  // of g and of g * xhat
        for (int64_t c = first; c < C; c += step) {
            const Floats<V> d = load<V>(dy + n * C + c), x = load<V>(h + n * C + c), w = load<V>(weight + c);
            Floats<V> dw = load_floats<V>(sums + c), db = load_floats<V>(sums + C + c);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const float xhat = (x[i] - m) * r, g = d[i] * w[i];
                totals[0] += g;
                totals[1] += g * xhat;
                dw[i] += d[i] * xhat;
                db[i] += d[i];
            }
            store_floats<V>(sums + c, dw);
            store_floats<V>(sums + C + c, db);
        }
        block_sum<2>(totals, scratch[n & 1]);
        const float mean_g = totals[0] * per_column, mean_gx = totals[1] * per_column;
        for (int64_t c = first; c < C; c += step) {
            Floats<V> d = load<V>(dy + n * C + c);
            const Floats<V> x = load<V>(h + n * C + c), w = load<V>(weight + c);
#pragma unroll
            for (int i = 0; i < V; ++i) d[i] = (d[i] * w[i] - mean_g - (x[i] - m) * r * mean_gx) * r;
            if (dh) {
                const Floats<V> more = load<V>(dh + n * C + c);
#pragma unroll
                for (int i = 0; i < V; ++i) d[i] += more[i];
            }
            store<V>(dx + n * C + c, d);
        }
    }
    if (in_shared)
        for (int64_t c = first; c < C; c += step) {
            store_floats<V>(piece + c, load_floats<V>(sums + c));
            store_floats<V>(piece + C + c, load_floats<V>(sums + C + c));
        }
}

}  // namespace

void layernorm_forward(DType dtype, const void* x, const void* residual, const void* weight, const void* bias, void* h,
                       void* y, float* mean, float* rstd, int64_t N, int64_t C, float eps, int) {
    const auto row_bytes = static_cast<int64_t>(sizeof(float)) * C;
    const bool cached = row_bytes <= static_cast<int64_t>(kDefaultSharedBytes);
    const bool single =
        N <= kFewRows || (cached && row_bytes * kForwardWarps > static_cast<int64_t>(kDefaultSharedBytes));
    const int warps = single ? 1 : kForwardWarps;
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        with_vector<T>(vectorizable<T>(C, x, residual, weight, bias, h, y), [&](auto vector) {
            launch("layernorm_forward", forward_kernel<T, vector>,
                   dim3(static_cast<unsigned>(ceil_div<int64_t>(N, warps))), dim3(kWarp * warps),
                   cached ? row_bytes * warps : 0, static_cast<const T*>(x), static_cast<const T*>(residual),
                   static_cast<const T*>(weight), static_cast<const T*>(bias), static_cast<T*>(h), static_cast<T*>(y),
                   mean, rstd, N, C, eps, cached);
        });
    });
}

void layernorm_backward(DType dtype, const void* dy, const void* dh, const void* h, const void* weight,
                        const float* mean, const float* rstd, void* dx, void* dweight, void* dbias, int64_t N,
                        int64_t C, void* workspace, int) {
    if (!C) return;
    const Pieces pieces(N);
    const dim3 grid(static_cast<unsigned>(pieces.count));
    auto* partials = static_cast<float*>(workspace);
    const auto sums_bytes = static_cast<int64_t>(2 * sizeof(float)) * C;
    // scratch takes 512 bytes of the default, too
    const bool in_shared = sums_bytes <= static_cast<int64_t>(kDefaultSharedBytes) - 512;
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        const auto* dy_ = static_cast<const T*>(dy);
        const auto* dh_ = static_cast<const T*>(dh);
        const auto* h_ = static_cast<const T*>(h);
        const auto* weight_ = static_cast<const T*>(weight);
        auto* dx_ = static_cast<T*>(dx);
        with_vector<T>(vectorizable<T>(C, dy, dh, h, weight, dx, workspace), [&](auto vector) {
            const int64_t threads = ceil_div<int64_t>(ceil_div<int64_t>(C, vector), kWarp) * kWarp;
            if (threads <= kRowThreads)
                launch("layernorm_backward", backward_kernel<T, vector>, grid, dim3(static_cast<unsigned>(threads)), 0,
                       dy_, dh_, h_, weight_, mean, rstd, dx_, partials, N, C, pieces.rows);
            else
                launch("layernorm_backward", long_backward_kernel<T, vector>, grid, dim3(kBackwardThreads),
                       in_shared ? sums_bytes : 0, dy_, dh_, h_, weight_, mean, rstd, dx_, partials, N, C, pieces.rows,
                       in_shared);
        });
        add_pieces("layernorm_backward", partials, pieces.count, static_cast<T*>(dweight), static_cast<T*>(dbias), C);
    });
}

}  // namespace gpt2c::cuda
