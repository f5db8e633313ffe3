#include "isa.h"

namespace gpt2c::GPT2C_ISA {
namespace {

constexpr int64_t kChunk = 16384;  // elements in one task: long enough to stream, short enough to balance

struct Chunk {
    int64_t tensor, start, size;
};

int64_t count_chunks(const int64_t* sizes, int64_t n_tensors) {
    int64_t total = 0;
    for (int64_t i = 0; i < n_tensors; ++i) total += (sizes[i] + kChunk - 1) / kChunk;
    return total;
}

// The index-th chunk of all tensors taken in order. A walk over a few hundred sizes costs far less than the chunk.
Chunk find_chunk(const int64_t* sizes, int64_t index) {
    int64_t tensor = 0;
    for (;; ++tensor) {
        const int64_t chunks = (sizes[tensor] + kChunk - 1) / kChunk;
        if (index < chunks) break;
        index -= chunks;
    }
    const int64_t start = index * kChunk, left = sizes[tensor] - start;
    return {tensor, start, left < kChunk ? left : kChunk};
}

}  // namespace

void adamw(DType dtype, void* const* params, const void* const* grads, void* const* m, void* const* v,
           const int64_t* sizes, int64_t n_tensors, double lr, double beta1, double beta2, double eps,
           double weight_decay, double bias1, double bias2, double grad_scale, int threads) {
    const float decay = static_cast<float>(1 - lr * weight_decay), step = static_cast<float>(lr / bias1);
    const float rate1 = static_cast<float>(1 - beta1), rate2 = static_cast<float>(1 - beta2);
    const float inv_sqrt_bias2 = static_cast<float>(1 / __builtin_sqrt(bias2));
    const float eps_ = static_cast<float>(eps), scale = static_cast<float>(grad_scale);
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(count_chunks(sizes, n_tensors), threads, [&](int64_t task) {
            const Chunk chunk = find_chunk(sizes, task);
            T* param = static_cast<T*>(params[chunk.tensor]) + chunk.start;
            const T* grad = static_cast<const T*>(grads[chunk.tensor]) + chunk.start;
            float* m_ = static_cast<float*>(m[chunk.tensor]) + chunk.start;
            float* v_ = static_cast<float*>(v[chunk.tensor]) + chunk.start;
            for_lanes(chunk.size, [&](int64_t i, auto lanes) {
                const vf g = lanes.get(grad + i) * scale;
                const vf m0 = lanes.get(m_ + i), v0 = lanes.get(v_ + i);
                const vf m1 = m0 + (g - m0) * rate1;
                const vf v1 = v0 + (g * g - v0) * rate2;
                lanes.put(m_ + i, m1);
                lanes.put(v_ + i, v1);
                lanes.put(param + i, lanes.get(param + i) * decay - m1 * step / (sqrt(v1) * inv_sqrt_bias2 + eps_));
            });
        });
    });
}

void grad_norm(DType dtype, const void* const* grads, const int64_t* sizes, int64_t n_tensors, float* norm, void*,
               int threads) {
    const int64_t chunks = count_chunks(sizes, n_tensors);
    auto* partials = reinterpret_cast<double*>(scratch(Slot::call, chunks * 2));
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(chunks, threads, [&](int64_t task) {
            const Chunk chunk = find_chunk(sizes, task);
            const T* grad = static_cast<const T*>(grads[chunk.tensor]) + chunk.start;
            double total = 0;
            for (int64_t start = 0; start < chunk.size; start += 1024) {
                const int64_t left = chunk.size - start;
                vf squares{};
                for_lanes(left < 1024 ? left : 1024, [&](int64_t i, auto lanes) {
                    const vf g = lanes.get(grad + start + i);
                    squares += g * g;
                });
                total += sum(squares);
            }
            partials[task] = total;
        });
    });
    double total = 0;
    for (int64_t i = 0; i < chunks; ++i) total += partials[i];
    *norm = static_cast<float>(__builtin_sqrt(total));
}

}  // namespace gpt2c::GPT2C_ISA
