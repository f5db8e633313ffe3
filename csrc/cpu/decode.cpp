// One token of each row through the whole model, in one parallel region: entering one for each of the step's hundred
// phases would cost as much again as the waiting between them.
#include "stream_weights.h"

namespace gpt2c::GPT2C_ISA {
namespace {

// How matrices, scales and vectors are listed (kernels.h).
enum Matrix { kQkv, kAttentionOut, kUp, kDown, kMatrices };
enum Vector { kLn1Weight, kLn1Bias, kQkvBias, kAttentionOutBias, kLn2Weight, kLn2Bias, kUpBias, kDownBias, kVectors };
constexpr int64_t kEmbeddings = 2;

// A layer's phases. All tasks of one are done before the first of the next.
enum Phase { kQkvProduct, kAttend, kOutProduct, kNorm2, kUpProduct, kActivate, kDownProduct, kNextNorm1, kPhases };

constexpr int64_t kActivations = 512;  // columns of a gelu's task

struct Sizes {
    int64_t B, L, C, H, V;
    float eps;
};

template <class T>
class Step {
 public:
    Step(const Sizes& s, const int64_t* ids, const int64_t* positions, const int64_t* capacities,
         const void* const* matrices, const float* const* scales, const float* const* vectors, float* const* caches,
         float* logits)
        : s_(s),
          ids_(ids),
          positions_(positions),
          capacities_(capacities),
          matrices_(matrices),
          scales_(scales),
          vectors_(vectors),
          caches_(caches),
          logits_(logits) {
        const int64_t wide = 4 * pieces(s.C), deep = pieces(4 * s.C);
        h_ = scratch(Slot::call, s.B * s.C * (6 + (wide > deep ? wide : deep)));
        y_ = h_ + s.B * s.C;
        wide_ = y_ + s.B * s.C;
        sums_ = wide_ + s.B * 4 * s.C;
    }

    // The embedding, the layers, the head.
    int64_t phases() const { return 1 + s_.L * kPhases + 1; }

    int64_t tasks(int64_t phase) const {
        const int64_t C = s_.C;
        if (phase == 0) return s_.B;
        if (phase == phases() - 1) return row_tasks<T>(C, s_.V);
        switch ((phase - 1) % kPhases) {
            case kQkvProduct:
                return product_tasks(C, 3 * C);
            case kAttend:
                return s_.B * s_.H;
            case kOutProduct:
                return product_tasks(C, C);
            case kUpProduct:
                return product_tasks(C, 4 * C);
            case kActivate:
                return s_.B * activation_tasks();
            case kDownProduct:
                return product_tasks(4 * C, C);
            default:
                return s_.B;  // norms
        }
    }

    void run(int64_t phase, int64_t i) const {
        if (phase == 0) return embed(i);
        const int64_t C = s_.C, layer = (phase - 1) / kPhases;
        if (layer == s_.L) return row_task(i, y_, matrix(layer, 0), scale(layer, 0), logits_, s_.B, C, s_.V);
        switch ((phase - 1) % kPhases) {
            case kQkvProduct:
                return product(i, layer, kQkv, y_, C, 3 * C);
            case kAttend:
                return attend(layer, i / s_.H, i % s_.H);
            case kOutProduct:
                return product(i, layer, kAttentionOut, y_, C, C);
            case kNorm2:
                return add_and_norm(i, C, vector(layer, kAttentionOutBias), layer, kLn2Weight);
            case kUpProduct:
                return product(i, layer, kUp, y_, C, 4 * C);
            case kActivate:
                return activate(layer, i / activation_tasks(), i % activation_tasks());
            case kDownProduct:
                return product(i, layer, kDown, wide_, 4 * C, C);
            case kNextNorm1:
                return add_and_norm(i, 4 * C, vector(layer, kDownBias), layer + 1, kLn1Weight);
        }
    }

 private:
    static int64_t pieces(int64_t K) {
        if constexpr (sizeof(T) == sizeof(float)) return pieces_of(K);
        return 1;
    }
    static int64_t product_tasks(int64_t K, int64_t N) {
        if constexpr (sizeof(T) == sizeof(float)) return column_tasks(K, N);
        return row_tasks<T>(K, N);
    }
    int64_t activation_tasks() const { return (4 * s_.C + kActivations - 1) / kActivations; }

    const T* matrix(int64_t layer, int which) const {
        return static_cast<const T*>(matrices_[layer * kMatrices + which]);
    }
    const float* scale(int64_t layer, int which) const {
        return scales_ ? scales_[layer * kMatrices + which] : nullptr;
    }
    const float* vector(int64_t layer, int which) const { return vectors_[kEmbeddings + layer * kVectors + which]; }

    // sums_ (pieces, B, N) = x times the matrix.
    void product(int64_t i, int64_t layer, Matrix which, const float* x, int64_t K, int64_t N) const {
        const T* w = matrix(layer, which);
        if constexpr (sizeof(T) == sizeof(float))
            column_task(i, x, w, sums_, s_.B, K, N);
        else
            row_task(i, x, w, scale(layer, which), sums_, s_.B, K, N);
    }

    // out[j] = the product's sum for row b and column c + j, plus start[j], for j < n.
    void add_up(int64_t b, int64_t c, int64_t n, int64_t K, int64_t N, const float* start, float* out) const {
        const float* first = sums_ + b * N + c;
        const int64_t count = pieces(K), step = s_.B * N;
        for_lanes(n, [&](int64_t j, auto lanes) {
            vf total = lanes.get(first + j);
            for (int64_t p = 1; p < count; ++p) total += lanes.get(first + p * step + j);
            lanes.put(out + j, lanes.get(start + j) + total);
        });
    }

    void norm(int64_t b, int64_t layer, Vector weight) const {
        float mean, rstd;
        layernorm_forward(DType::f32, h_ + b * s_.C, nullptr, vector(layer, weight), vector(layer, weight + 1), nullptr,
                          y_ + b * s_.C, &mean, &rstd, 1, s_.C, s_.eps, 1);
    }

    void embed(int64_t b) const {
        embedding_forward(DType::f32, ids_ + b, vectors_[0], vectors_[1], h_ + b * s_.C, 1, 1, s_.C, s_.V,
                          positions_[b], nullptr, 1);
        norm(b, 0, kLn1Weight);
    }

    // h += product + bias; y = layernorm(h).
    void add_and_norm(int64_t b, int64_t K, const float* bias, int64_t layer, Vector weight) const {
        float *h = h_ + b * s_.C, *x = y_ + b * s_.C;
        add_up(b, 0, s_.C, K, s_.C, bias, x);
        for_lanes(s_.C, [&](int64_t c, auto lanes) { lanes.put(h + c, lanes.get(h + c) + lanes.get(x + c)); });
        norm(b, layer, weight);
    }

    void activate(int64_t layer, int64_t b, int64_t task) const {
        const int64_t C = s_.C, c = task * kActivations, n = 4 * C - c < kActivations ? 4 * C - c : kActivations;
        float x[kActivations];
        add_up(b, c, n, C, 4 * C, vector(layer, kUpBias) + c, x);
        gelu_forward(DType::f32, x, nullptr, wide_ + b * 4 * C + c, 1, n, false, 1);
    }

    // One head of one row: its key and value go into the cache, its output into y.
    void attend(int64_t layer, int64_t b, int64_t head) const {
        const int64_t C = s_.C, D = C / s_.H, position = positions_[b], length = position + 1, c = head * D;
        float* cache[2];
        for (int part = 0; part < 2; ++part)
            cache[part] = caches_[2 * (b * s_.L + layer) + part] + head * capacities_[b] * D;
        float* q = scratch(Slot::task, D + length);
        float* p = q + D;
        const float* bias = vector(layer, kQkvBias) + c;
        add_up(b, c, D, C, 3 * C, bias, q);
        add_up(b, C + c, D, C, 3 * C, bias + C, cache[0] + position * D);
        add_up(b, 2 * C + c, D, C, 3 * C, bias + 2 * C, cache[1] + position * D);
        int64_t t = 0;
        for (; t + 4 <= length; t += 4) dots<1, 4>(q, cache[0] + t * D, D, D, p + t);
        for (; t < length; ++t) dots<1, 1>(q, cache[0] + t * D, D, D, p + t);
        const float total = softmax(p, length, 1.0f / __builtin_sqrtf(static_cast<float>(D)));
        average(p, 1.0f / total, cache[1], length, D, y_ + b * C + c);
    }

    // p = e^(scale p - max); returns the sum.
    static float softmax(float* p, int64_t n, float scale) {
        vf top = broadcast(p[0]);
        for_lanes(n, [&](int64_t t, auto lanes) { top = max(top, lanes.masked(lanes.get(p + t), broadcast(p[0]))); });
        const float highest = max_lane(top);
        vf total{};
        for_lanes(n, [&](int64_t t, auto lanes) {
            const vf e = exp((lanes.get(p + t) - highest) * scale);
            lanes.put(p + t, e);
            total += lanes.masked(e);
        });
        return sum(total);
    }

    // out = factor * sum over t of p[t] values[t], in four sums, so that one addition need not wait for the last.
    static void average(const float* p, float factor, const float* values, int64_t n, int64_t D, float* out) {
        for_lanes(D, [&](int64_t d, auto lanes) {
            const float* v = values + d;
            vf acc[4] = {};
            int64_t t = 0;
            for (; t + 4 <= n; t += 4)
                for (int j = 0; j < 4; ++j) acc[j] += lanes.get(v + (t + j) * D) * p[t + j];
            for (; t < n; ++t) acc[0] += lanes.get(v + t * D) * p[t];
            lanes.put(out + d, ((acc[0] + acc[1]) + (acc[2] + acc[3])) * factor);
        });
    }

    Sizes s_;
    const int64_t* ids_;
    const int64_t* positions_;
    const int64_t* capacities_;
    const void* const* matrices_;
    const float* const* scales_;
    const float* const* vectors_;
    float* const* caches_;
    float* logits_;
    float *h_, *y_, *wide_, *sums_;  // (B, C), (B, C), (B, 4C), and what the present product gave: (pieces, B, N)
};

}  // namespace

int64_t decode(DType weights, const int64_t* ids, const int64_t* positions, const int64_t* capacities,
               const void* const* matrices, const float* const* scales, const float* const* vectors,
               float* const* caches, float* logits, int64_t B, int64_t L, int64_t C, int64_t H, int64_t V, float eps,
               int threads) {
    for (int64_t b = 0; b < B; ++b)
        if (ids[b] < 0 || ids[b] >= V) return b;
    dispatch_among<float, bf16, int8_t>(weights, [&](auto t) {
        const Sizes sizes{B, L, C, H, V, eps};
        const Step<decltype(t)> step(sizes, ids, positions, capacities, matrices, scales, vectors, caches, logits);
        parallel_phases(
            step.phases(), threads, [&](int64_t phase) { return step.tasks(phase); },
            [&](int64_t phase, int64_t i) { step.run(phase, i); });
    });
    return -1;
}

}  // namespace gpt2c::GPT2C_ISA
