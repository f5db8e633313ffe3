// The update and the norm take lists of tensors in one launch for every kMost of them: addresses and sizes travel in
// the kernel's arguments. Each block takes a chunk of one tensor.
#include "cuda/cuda.h"
#include "cuda/device.cuh"
#include "cuda/launch.cuh"

namespace gpt2c::cuda {
namespace {

constexpr int64_t kChunk = 16384;  // elements; a multiple of every vector, so that chunks are as aligned as tensors
constexpr int kThreads = 256;
constexpr int kMost = 64;  // tensors of a launch: with four addresses each they fit into 4 KB of arguments

template <int P>
struct Tensors {
    void* at[P][kMost];
    int64_t sizes[kMost];
    int64_t first_chunk[kMost + 1];
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
template <int P>
GPT2C_DEVICE Chunk find_chunk(const Tensors<P>& tensors) {
    const int64_t index = blockIdx.x;
    int tensor = 0;
    while (index >= tensors.first_chunk[tensor + 1]) ++tensor;
    const int64_t start = (index - tensors.first_chunk[tensor]) * kChunk, left = tensors.sizes[tensor] - start;
    return {tensor, start, left < kChunk ? left : kChunk};
}

GPT2C_DEVICE bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

struct Update {
    float decay, step, rate1, rate2, inv_sqrt_bias2, eps, grad_scale;

    __device__ __forceinline__ float operator()(float p, float g, float& m, float& v) const {
        g *= grad_scale;
        m += (g - m) * rate1;
        v += (g * g - v) * rate2;
        return p * decay - m * step / (sqrtf(v) * inv_sqrt_bias2 + eps);
    }
};

template <int V, class T>
GPT2C_DEVICE void update_chunk(const Update& update, T* param, const T* grad, float* m, float* v, int64_t size) {
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * V; i < size; i += kThreads * V) {
        const int64_t left = size - i;
        Floats<V> p = load<V>(param + i, left), first, second;
        const Floats<V> g = load<V>(grad + i, left);
        if (left >= V) {
            first = load_floats<V>(m + i);
            second = load_floats<V>(v + i);
        } else {
            for (int j = 0; j < V; ++j) {
                first[j] = j < left ? m[i + j] : 0;
                second[j] = j < left ? v[i + j] : 0;
            }
        }
#pragma unroll
        for (int j = 0; j < V; ++j) p[j] = update(p[j], g[j], first[j], second[j]);
        store<V>(param + i, p, left);
        if (left >= V) {
            store_floats<V>(m + i, first);
            store_floats<V>(v + i, second);
        } else {
            for (int j = 0; j < V; ++j)
                if (j < left) m[i + j] = first[j], v[i + j] = second[j];
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) adamw_kernel(Tensors<4> tensors, Update update) {
    const Chunk chunk = find_chunk(tensors);
    T* param = static_cast<T*>(tensors.at[0][chunk.tensor]) + chunk.start;
    const T* grad = static_cast<const T*>(tensors.at[1][chunk.tensor]) + chunk.start;
    float* m = static_cast<float*>(tensors.at[2][chunk.tensor]) + chunk.start;
    float* v = static_cast<float*>(tensors.at[3][chunk.tensor]) + chunk.start;
    if (aligned(param) && aligned(grad) && aligned(m) && aligned(v))
        update_chunk<kVector<T>>(update, param, grad, m, v, chunk.size);
    else
        update_chunk<1>(update, param, grad, m, v, chunk.size);
}

// A thread's at most kChunk / kThreads = 64 squares are summed in fp32, all else in fp64.
template <int V, class T>
GPT2C_DEVICE float sum_squares(const T* grad, int64_t size) {
    float sum = 0;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * V; i < size; i += kThreads * V) {
        const Floats<V> g = load<V>(grad + i, size - i);
#pragma unroll
        for (int j = 0; j < V; ++j) sum += g[j] * g[j];
    }
    return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) squares_kernel(Tensors<1> tensors, double* partials) {
    __shared__ double scratch[kWarp];
    const Chunk chunk = find_chunk(tensors);
    const T* grad = static_cast<const T*>(tensors.at[0][chunk.tensor]) + chunk.start;
    double sum[1] = {aligned(grad) ? sum_squares<kVector<T>>(grad, chunk.size) : sum_squares<1>(grad, chunk.size)};
    block_sum(sum, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum[0];
}

__global__ void __launch_bounds__(kThreads) norm_kernel(const double* partials, int64_t count, float* norm) {
    __shared__ double scratch[kWarp];
    double sum[1] = {0};
    for (int64_t i = threadIdx.x; i < count; i += kThreads) sum[0] += partials[i];
    block_sum(sum, scratch);
    if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(sum[0]));
}

// Calls f(tensors) for every kMost tensors; pointers[i] names the i-th address of each.
template <int P, class F>
void for_each_launch(void* const* const (&pointers)[P], const int64_t* sizes, int64_t n_tensors, F&& f) {
    for (int64_t start = 0; start < n_tensors; start += kMost) {
        Tensors<P> tensors{};
        for (int64_t i = start; i < n_tensors && i < start + kMost; ++i) {
            for (int p = 0; p < P; ++p) tensors.at[p][tensors.count] = pointers[p][i];
            tensors.add(sizes[i]);
        }
        f(tensors);
    }
}

}  // namespace

void adamw(DType dtype, void* const* params, const void* const* grads, void* const* m, void* const* v,
           const int64_t* sizes, int64_t n_tensors, double lr, double beta1, double beta2, double eps,
           double weight_decay, double bias1, double bias2, double grad_scale, int) {
    const Update update{static_cast<float>(1 - lr * weight_decay),
                        static_cast<float>(lr / bias1),
                        static_cast<float>(1 - beta1),
                        static_cast<float>(1 - beta2),
                        static_cast<float>(1 / sqrt(bias2)),
                        static_cast<float>(eps),
                        static_cast<float>(grad_scale)};
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        for_each_launch<4>({params, const_cast<void* const*>(grads), m, v}, sizes, n_tensors, [&](const auto& tensors) {
            launch("adamw", adamw_kernel<T>, dim3(static_cast<unsigned>(tensors.chunks())), dim3(kThreads), 0, tensors,
                   update);
        });
    });
}

void grad_norm(DType dtype, const void* const* grads, const int64_t* sizes, int64_t n_tensors, float* norm,
               void* workspace, int) {
    auto* partials = static_cast<double*>(workspace);
    int64_t count = 0;
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        for_each_launch<1>({const_cast<void* const*>(grads)}, sizes, n_tensors, [&](const auto& tensors) {
            launch("grad_norm", squares_kernel<T>, dim3(static_cast<unsigned>(tensors.chunks())), dim3(kThreads), 0,
                   tensors, partials + count);
            count += tensors.chunks();
        });
    });
    launch("grad_norm", norm_kernel, dim3(1), dim3(kThreads), 0, static_cast<const double*>(partials), count, norm);
}

}  // namespace gpt2c::cuda
