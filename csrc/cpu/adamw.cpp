#include "isa.h"
#include "philox.h"

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

// Rounds to bf16 up or down at random, by adding 16 random bits below the ones that stay (kernels.h). The random bits
// of kBlock elements are drawn at once, eight for each lane's counter.
class StochasticRounding {
 public:
    StochasticRounding(const int64_t* seed, int64_t tensor)
        : seed_(seed ? static_cast<uint64_t>(*seed) : 0), tensor_(static_cast<uint32_t>(tensor)) {}

    // W elements from the one at `position`, a multiple of W; positions come in order, from a multiple of kBlock.
    vf round(vf x, int64_t position) {
        if (position % kBlock == 0) draw(position / 8);
        vh random;
        __builtin_memcpy(&random, bits_ + position % kBlock, sizeof random);
        const vu bits = bitcast<vu>(x);
        const vu rounded = (bits + __builtin_convertvector(random, vu)) & 0xffff0000u;
        return bitcast<vf>((bits & 0x7fffffffu) < 0x7f800000u ? rounded : bits);  // inf and nan stay
    }

 private:
    static constexpr int64_t kBlock = 8 * W;
    static_assert(kChunk % kBlock == 0, "chunks start with a block");

    void draw(int64_t group) {
        vu words[4] = {vu{} + static_cast<uint32_t>(group), vu{} + static_cast<uint32_t>(group >> 32), vu{} + tensor_,
                       vu{}};
        for (int lane = 0; lane < W; ++lane) words[0][lane] += static_cast<uint32_t>(lane);
        philox(seed_, words, [](vu a, uint32_t b) {
            return __builtin_convertvector((__builtin_convertvector(a, vul) * static_cast<uint64_t>(b)) >> 32, vu);
        });
        for (int lane = 0; lane < W; ++lane)
            for (int i = 0; i < 8; ++i) bits_[8 * lane + i] = static_cast<uint16_t>(words[i / 2][lane] >> 16 * (i % 2));
    }

    uint64_t seed_;
    uint32_t tensor_;
    uint16_t bits_[kBlock];
};

// A moving average, which keeps little of itself if its rate is high: then the step is taken from x, whose digits the
// difference from a much larger average has lost.
struct Average {
    float rate, keep;

    explicit Average(double beta) : rate(static_cast<float>(1 - beta)), keep(static_cast<float>(beta)) {}

    vf moved(vf average, vf x) const { return rate < 0.5f ? average + (x - average) * rate : x - (x - average) * keep; }
};

}  // namespace

void adamw(DType dtype, void* const* params, const void* const* grads, void* const* m, void* const* v,
           void* const* masters, const int64_t* sizes, int64_t n_tensors, double lr, double beta1, double beta2,
           double eps, double weight_decay, double bias1, double bias2, const float* grad_scale, const int64_t* seed,
           int threads) {
    const float decay = static_cast<float>(1 - lr * weight_decay), step = static_cast<float>(lr / bias1);
    const Average first(beta1), second(beta2);
    const float inv_sqrt_bias2 = static_cast<float>(1 / __builtin_sqrt(bias2));
    const float eps_ = static_cast<float>(eps), scale = grad_scale ? *grad_scale : 1.0f;
    if (!__builtin_isfinite(scale)) return;
    dispatch(dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(count_chunks(sizes, n_tensors), threads, [&](int64_t task) {
            const Chunk chunk = find_chunk(sizes, task);
            T* param = static_cast<T*>(params[chunk.tensor]) + chunk.start;
            const T* grad = static_cast<const T*>(grads[chunk.tensor]) + chunk.start;
            float* m_ = static_cast<float*>(m[chunk.tensor]) + chunk.start;
            float* v_ = static_cast<float*>(v[chunk.tensor]) + chunk.start;
            float* master = masters ? static_cast<float*>(masters[chunk.tensor]) + chunk.start : nullptr;
            StochasticRounding rounding(seed, chunk.tensor);
            for_lanes(chunk.size, [&](int64_t i, auto lanes) {
                const vf g = lanes.get(grad + i) * scale;
                const vf m1 = first.moved(lanes.get(m_ + i), g);
                const vf v1 = second.moved(lanes.get(v_ + i), g * g);
                lanes.put(m_ + i, m1);
                lanes.put(v_ + i, v1);
                vf p = master ? lanes.get(master + i) : lanes.get(param + i);
                p = p * decay - m1 * step / (sqrt(v1) * inv_sqrt_bias2 + eps_);
                if (master) lanes.put(master + i, p);
                lanes.put(param + i, seed ? rounding.round(p, chunk.start + i) : p);
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
                Sum squares;
                for_lanes4(left < 1024 ? left : 1024, [&](int64_t i, auto lanes, auto part) {
                    const vf g = lanes.get(grad + start + i);
                    squares.parts[part.value] += g * g;
                });
                total += sum(squares.total());
            }
            partials[task] = total;
        });
    });
    double total = 0;
    for (int64_t i = 0; i < chunks; ++i) total += partials[i];
    *norm = static_cast<float>(__builtin_sqrt(total));
}

}  // namespace gpt2c::GPT2C_ISA
