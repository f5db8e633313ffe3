// The forward gives a block to each token. The backward gives blocks to each token in the order of ids, of which the
// first of an id adds all rows of that id up, always in the same order: no atomics. Positions that are given are ids,
// too.
#include "cuda/cuda.h"
#include "cuda/device.cuh"
#include "cuda/launch.cuh"

namespace gpt2c::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kIdWarps = 4;  // of a block: most ids have few rows, some hundreds

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const int64_t* idx, const int64_t* positions, const T* wte, const T* wpe, T* x, int64_t T_,
                   int64_t C, int64_t vocabulary, int64_t first) {
    const int64_t n = blockIdx.x, id = idx[n];
    const bool known = id >= 0 && id < vocabulary;
    const T* token = wte + (known ? id : 0) * C;
    const T* position = wpe + (positions ? positions[n] : first + n % T_) * C;
    for (int64_t c = static_cast<int64_t>(threadIdx.x) * V; c < C; c += blockDim.x * V) {
        Floats<V> v = load<V>(token + c);
        const Floats<V> p = load<V>(position + c);
#pragma unroll
        for (int i = 0; i < V; ++i) v[i] = known ? v[i] + p[i] : __int_as_float(0x7fffffff);
        store<V>(x + n * C + c, v);
    }
}

// A warp's lanes own a vector of columns each. The warps take 32 of the id's rows in turn: which they are is read at
// once, so that the rows' own loads wait for nothing; and the warps' sums are added in their order.
template <class T, int V>
__global__ void __launch_bounds__(kWarp* kIdWarps)
    id_kernel(const int64_t* ids, const int64_t* order, const T* dx, float* dw, int64_t N, int64_t C, int64_t count) {
    __shared__ __align__(16) float sums[kIdWarps][kWarp * V];
    const int64_t first = blockIdx.x, id = ids[order[first]];
    if (id < 0 || id >= count || (first > 0 && ids[order[first - 1]] == id)) return;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int64_t column = int64_t{blockIdx.y} * kWarp + lane, c = column * V;
    Floats<V> sum{};
    for (int64_t base = first + warp * kWarp; base < N; base += kWarp * kIdWarps) {
        const int64_t own = base + lane < N ? order[base + lane] : -1;
        const unsigned same = __ballot_sync(kAllLanes, own >= 0 && ids[own] == id);
        for (int j = 0; j < kWarp && (same >> j & 1); ++j) {
            const int64_t n = __shfl_sync(kAllLanes, own, j);
            const Floats<V> d = c < C ? load<V>(dx + n * C + c) : Floats<V>{};
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] += d[i];
        }
        if (same != kAllLanes) break;
    }
    store_floats<V>(sums[warp] + lane * V, sum);
    __syncthreads();
    if (warp > 0 || c >= C) return;
    for (int w = 1; w < kIdWarps; ++w) {
        const Floats<V> more = load_floats<V>(sums[w] + lane * V);
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += more[i];
    }
    float* to = vector_at<V>(dw, id * (C / V) + column);
    const Floats<V> before = load_floats<V>(to);
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += before[i];
    store_floats<V>(to, sum);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    position_kernel(const T* dx, float* dwpe, int64_t B, int64_t T_, int64_t C) {
    const int64_t t = blockIdx.x;
    for (int64_t c = static_cast<int64_t>(threadIdx.x) * V; c < C; c += blockDim.x * V) {
        Floats<V> sum{};
        for (int64_t b = 0; b < B; ++b) {
            const Floats<V> d = load<V>(dx + (b * T_ + t) * C + c);
#pragma unroll
            for (int j = 0; j < V; ++j) sum[j] += d[j];
        }
        store_floats<V>(dwpe + t * C + c, sum);
    }
}

dim3 threads_for(int64_t C, int V) {
    const int64_t needed = ceil_div<int64_t>(ceil_div<int64_t>(C, V), kWarp) * kWarp;
    return dim3(static_cast<unsigned>(needed < kThreads ? needed : kThreads));
}

}  // namespace

int64_t embedding_forward(DType dtype, const int64_t* idx, const void* wte, const void* wpe, void* x, int64_t B,
                          int64_t T, int64_t C, int64_t V, int64_t start, const int64_t* positions, int) {
    if (!C) return -1;
    dispatch(dtype, [&](auto t) {
        using E = decltype(t);
        with_vector<E>(vectorizable<E>(C, wte, wpe, x), [&](auto vector) {
            launch("embedding_forward", forward_kernel<E, vector>, dim3(static_cast<unsigned>(B * T)),
                   threads_for(C, vector), 0, idx, positions, static_cast<const E*>(wte), static_cast<const E*>(wpe),
                   static_cast<E*>(x), T, C, V, start);
        });
    });
    return -1;
}

int64_t embedding_backward(DType dtype, const int64_t* idx, const int64_t* order, const void* dx, float* dwte,
                           float* dwpe, int64_t B, int64_t T, int64_t C, int64_t V, int64_t P, int64_t start,
                           const int64_t* positions, const int64_t* position_order, int) {
    fill_zero("embedding_backward", dwpe, P * C * sizeof(float));
    if (!C || !B) return -1;
    dispatch(dtype, [&](auto t) {
        using E = decltype(t);
        const auto* dx_ = static_cast<const E*>(dx);
        with_vector<E>(vectorizable<E>(C, dx, dwte, dwpe), [&](auto vector) {
            const auto add_by_id = [&](const int64_t* ids, const int64_t* order_, float* dw, int64_t count) {
                const dim3 blocks(static_cast<unsigned>(B * T),
                                  static_cast<unsigned>(ceil_div<int64_t>(C, vector * kWarp)));
                launch("embedding_backward", id_kernel<E, vector>, blocks, dim3(kWarp * kIdWarps), 0, ids, order_, dx_,
                       dw, B * T, C, count);
            };
            add_by_id(idx, order, dwte, V);
            if (positions)
                add_by_id(positions, position_order, dwpe, P);
            else
                launch("embedding_backward", position_kernel<E, vector>, dim3(static_cast<unsigned>(T)),
                       threads_for(C, vector), 0, dx_, dwpe + start * C, B, T, C);
        });
    });
    return -1;
}

}  // namespace gpt2c::cuda
