// The update and the norm take lists of tensors in one launch for every kMost of them: addresses and sizes travel in
// the kernel's arguments. Each block takes a chunk of one tensor.
#include <type_traits>

#include "cuda/cuda.h"
#include "cuda/device.cuh"
#include "cuda/launch.cuh"
#include "philox.h"

namespace gpt2c::cuda {
namespace {

// Chunks are multiples of every vector, so that they are as aligned as their tensors. The update's are short: GPT-2's
// 124M elements are 30 thousand blocks, whose last wave then hardly counts on 132 SMs; its four or more streams keep
// enough accesses under way. The norm's are longer, since each ends with a sum over the block.
constexpr int64_t kUpdateChunk = 4096, kNormChunk = 16384;
constexpr int kThreads = 256;
constexpr int kNormThreads = 1024;  // of the one block that adds the chunks' sums up
constexpr int kMost = 64;           // tensors of a launch: with five addresses each they fit into 4 KB of arguments

template <int P, int64_t chunk>
struct Tensors {
    static constexpr int64_t kChunk = chunk;
    void* at[P][kMost];
    int64_t sizes[kMost];
    int64_t first_chunk[kMost + 1];
    int64_t first = 0;  // the number of this launch's first tensor
    int count = 0;

    int64_t chunks() const { return first_chunk[count]; }
    void add(int64_t size) {
        sizes[count] = size;
        first_chunk[count + 1] = first_chunk[count] + ceil_div(size, kChunk);
        ++count;
    }
};

struct Chunk {
    int tensor;
    int64_t start, size;
};

// The chunk of this block. A walk over at most kMost tensors, the same for all threads.
template <class Tensors>
GPT2C_DEVICE Chunk find_chunk(const Tensors& tensors) {
    const int64_t index = blockIdx.x;
    int tensor = 0;
    while (index >= tensors.first_chunk[tensor + 1]) ++tensor;
    const int64_t start = (index - tensors.first_chunk[tensor]) * Tensors::kChunk;
    const int64_t left = tensors.sizes[tensor] - start;
    return {tensor, start, left < Tensors::kChunk ? left : Tensors::kChunk};
}

template <class... Pointers>
GPT2C_DEVICE bool aligned(const Pointers*... p) {
    return ((reinterpret_cast<uintptr_t>(p) | ...) % 16) == 0;
}

// A moving average, which keeps little of itself if its rate is high: then the step is taken from x, whose digits the
// difference from a much larger average has lost.
struct Average {
    float rate, keep;

    __device__ __forceinline__ float moved(float average, float x) const {
        return rate < 0.5f ? average + (x - average) * rate : x - (x - average) * keep;
    }
};

struct Constants {
    float decay, step;
    Average first, second;
    float inv_sqrt_bias2, eps;

    __device__ __forceinline__ float update(float p, float g, float& m, float& v) const {
        m = first.moved(m, g);
        v = second.moved(v, g * g);
        return p * decay - m * step / (sqrtf(v) * inv_sqrt_bias2 + eps);
    }
};

// V elements from the one at `position`, of one group of eight, rounded to bf16 up or down at random (kernels.h).
template <int V>
GPT2C_DEVICE void round_stochastically(Floats<V>& x, uint64_t seed, uint32_t tensor, int64_t position) {
    static_assert(V == 1 || V == 8, "one element or a whole group");
    const int64_t group = position / 8;
    uint32_t words[4] = {static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), tensor, 0};
    philox(seed, words, [](uint32_t a, uint32_t b) { return __umulhi(a, b); });
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const int at = V == 1 ? static_cast<int>(position % 8) : i;
        const uint32_t low = at & 2 ? words[1] : words[0], high = at & 2 ? words[3] : words[2];
        const uint32_t random = (at & 4 ? high : low) >> 16 * (at & 1) & 0xffffu;
        const uint32_t bits = __float_as_uint(x[i]);
        if ((bits & 0x7fffffffu) < 0x7f800000u) x[i] = __uint_as_float((bits + random) & 0xffff0000u);
    }
}

enum class Weights { plain, masters, stochastic };

// What a block updates, V elements at a time.
template <Weights weights, class T>
struct Update {
    Constants constants;
    float scale;
    T* param;
    const T* grad;
    float *m, *v, *master;
    uint64_t seed;
    uint32_t tensor;

    template <int V>
    __device__ __forceinline__ void run(int64_t begin, int64_t end) const {
        for (int64_t i = begin + threadIdx.x * V; i < end; i += kThreads * V) {
            Floats<V> p, first = load_floats<V>(m + i), second = load_floats<V>(v + i);
            if constexpr (weights == Weights::masters)
                p = load_floats<V>(master + i);
            else
                p = load<V>(param + i);
            const Floats<V> g = load<V>(grad + i);
#pragma unroll
            for (int j = 0; j < V; ++j) p[j] = constants.update(p[j], g[j] * scale, first[j], second[j]);
            store_floats<V>(m + i, first);
            store_floats<V>(v + i, second);
            if constexpr (weights == Weights::masters) store_floats<V>(master + i, p);
            if constexpr (weights == Weights::stochastic) round_stochastically(p, seed, tensor, i);
            store<V>(param + i, p);
        }
    }
};

template <Weights weights, class T>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(Tensors<5, kUpdateChunk> tensors, Constants constants, const float* grad_scale, const int64_t* seed) {
    const float scale = grad_scale ? *grad_scale : 1.0f;
    if (!(fabsf(scale) < INFINITY)) return;
    const Chunk chunk = find_chunk(tensors);
    const auto at = [&](int i) { return tensors.at[i][chunk.tensor]; };
    const Update<weights, T> update{constants,
                                    scale,
                                    static_cast<T*>(at(0)),
                                    static_cast<const T*>(at(1)),
                                    static_cast<float*>(at(2)),
                                    static_cast<float*>(at(3)),
                                    static_cast<float*>(at(4)),
                                    weights == Weights::stochastic ? static_cast<uint64_t>(*seed) : 0,
                                    static_cast<uint32_t>(tensors.first + chunk.tensor)};
    const bool vectors = aligned(at(0), at(1), at(2), at(3), at(4));
    const int64_t end = chunk.start + chunk.size, rest = vectors ? end - chunk.size % kVector<T> : chunk.start;
    update.template run<kVector<T>>(chunk.start, rest);
    update.template run<1>(rest, end);
}

// A thread's at most kNormChunk / kThreads = 64 squares are summed in fp32, all else in fp64.
template <int V, class T>
GPT2C_DEVICE void add_squares(float& sum, const T* grad, int64_t begin, int64_t end) {
    for (int64_t i = begin + threadIdx.x * V; i < end; i += kThreads * V) {
        const Floats<V> g = load<V>(grad + i);
#pragma unroll
        for (int j = 0; j < V; ++j) sum += g[j] * g[j];
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) squares_kernel(Tensors<1, kNormChunk> tensors, double* partials) {
    __shared__ double scratch[kWarp];
    const Chunk chunk = find_chunk(tensors);
    const T* grad = static_cast<const T*>(tensors.at[0][chunk.tensor]) + chunk.start;
    const int64_t rest = aligned(grad) ? chunk.size - chunk.size % kVector<T> : 0;
    float squares = 0;
    add_squares<kVector<T>>(squares, grad, 0, rest);
    add_squares<1>(squares, grad, rest, chunk.size);
    double sum[1] = {squares};
    block_sum(sum, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum[0];
}

__global__ void __launch_bounds__(kNormThreads) norm_kernel(const double* partials, int64_t count, float* norm) {
    __shared__ double scratch[kWarp];
    double sum[1] = {0};
    for (int64_t i = threadIdx.x; i < count; i += kNormThreads) sum[0] += partials[i];
    block_sum(sum, scratch);
    if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(sum[0]));
}

// Calls f(tensors) for every kMost tensors; pointers[i] names the i-th address of each, or is null.
template <int64_t chunk, int P, class F>
void for_each_launch(const void* const* const (&pointers)[P], const int64_t* sizes, int64_t n_tensors, F&& f) {
    for (int64_t start = 0; start < n_tensors; start += kMost) {
        Tensors<P, chunk> tensors{};
        tensors.first = start;
        for (int64_t i = start; i < n_tensors && i < start + kMost; ++i) {
            for (int p = 0; p < P; ++p)
                tensors.at[p][tensors.count] = pointers[p] ? const_cast<void*>(pointers[p][i]) : nullptr;
            tensors.add(sizes[i]);
        }
        f(tensors);
    }
}

// Calls f with what is done with the parameters, for a dtype that it can be done with.
template <class T, class F>
void with_weights(bool masters, bool stochastic, F&& f) {
    if constexpr (sizeof(T) == 2)
        if (masters) return f(std::integral_constant<Weights, Weights::masters>{});
    if constexpr (std::is_same_v<T, bf16>)
        if (stochastic) return f(std::integral_constant<Weights, Weights::stochastic>{});
    f(std::integral_constant<Weights, Weights::plain>{});
}

}  // namespace

void adamw(DType dtype, void* const* params, const void* const* grads, void* const* m, void* const* v,
           void* const* masters, const int64_t* sizes, int64_t n_tensors, double lr, double beta1, double beta2,
           double eps, double weight_decay, double bias1, double bias2, const float* grad_scale, const int64_t* seed,
           int) {
    const Constants constants{static_cast<float>(1 - lr * weight_decay),
                              static_cast<float>(lr / bias1),
                              {static_cast<float>(1 - beta1), static_cast<float>(beta1)},
                              {static_cast<float>(1 - beta2), static_cast<float>(beta2)},
                              static_cast<float>(1 / sqrt(bias2)),
                              static_cast<float>(eps)};
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        with_weights<T>(masters != nullptr, seed != nullptr, [&](auto weights) {
            for_each_launch<kUpdateChunk, 5>(
                {params, grads, m, v, masters}, sizes, n_tensors, [&](const auto& tensors) {
                    launch("adamw", adamw_kernel<weights, T>, dim3(static_cast<unsigned>(tensors.chunks())),
                           dim3(kThreads), 0, tensors, constants, grad_scale, seed);
                });
        });
    });
}

void grad_norm(DType dtype, const void* const* grads, const int64_t* sizes, int64_t n_tensors, float* norm,
               void* workspace, int) {
    auto* partials = static_cast<double*>(workspace);
    int64_t count = 0;
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        for_each_launch<kNormChunk, 1>({grads}, sizes, n_tensors, [&](const auto& tensors) {
            launch("grad_norm", squares_kernel<T>, dim3(static_cast<unsigned>(tensors.chunks())), dim3(kThreads), 0,
                   tensors, partials + count);
            count += tensors.chunks();
        });
    });
    launch("grad_norm", norm_kernel, dim3(1), dim3(kNormThreads), 0, static_cast<const double*>(partials), count, norm);
}

}  // namespace gpt2c::cuda
