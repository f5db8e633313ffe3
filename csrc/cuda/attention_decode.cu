// One query against many keys: the keys are cut into pieces of kDecodeKeys by their number alone, each block takes a
// piece, and a second kernel adds the pieces up (Dao et al., "Flash-Decoding for long-context inference", 2023).
// Bound by reading k and v once: a group of lanes reads a row in 16-byte accesses, several rows under way at a time.
#include "cuda/attention_launch.h"
#include "cuda/launch.cuh"

namespace gpt2c::cuda {
namespace {

constexpr int kThreads = 128;

// The softmax of a piece: the largest score, sum of exp(score - top), and as many values, weighted by these.
struct Partial {
    float* data;  // top, sum, two unused, D values
    __device__ float& top() const { return data[0]; }
    __device__ float& sum() const { return data[1]; }
    __device__ float& value(int d) const { return data[4 + d]; }
};

// What a part's sums are multiplied by when `top` is the largest of all.
__device__ float weight_of(float part_top, float top) {
    return part_top == -INFINITY ? 0.0f : exp2_approx((part_top - top) * kLog2E);
}

// Lanes of a group cover a row of DP elements, one vector or more each.
template <class T, int DP>
struct Group {
    static constexpr int V = kVector<T>, kLanes = DP / V < kWarp ? DP / V : kWarp, kVectors = DP / V / kLanes;
    static constexpr int kCount = kThreads / kLanes, kRows = 4;  // groups of a block; rows that each has under way
    static constexpr size_t kSharedBytes = kCount * (DP + 2) * sizeof(float);
};

template <class T, int DP>
__global__ void __launch_bounds__(kThreads)
    attention_decode(AttentionShape s, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> o, double* lse,
                     float* partials, unsigned pieces, bool aligned) {
    using G = Group<T, DP>;
    constexpr int V = G::V;
    GPT2C_DYNAMIC_SHARED(shared);
    float* const values = reinterpret_cast<float*>(shared);  // (groups, DP)
    float *const tops = values + G::kCount * DP, *const sums = tops + G::kCount;

    const Piece piece(s, pieces);
    const Dropout dropout(s, piece.head);
    const int D = static_cast<int>(s.D), Tk = static_cast<int>(s.Tk);
    const int group = static_cast<int>(threadIdx.x) / G::kLanes, lane = static_cast<int>(threadIdx.x) % G::kLanes;
    const int first_key = piece.index * kDecodeKeys, end_key = min(first_key + kDecodeKeys, Tk);
    const T *k_rows = k.row(piece.b, piece.h, 0), *v_rows = v.row(piece.b, piece.h, 0);
    const auto load_row = [&](const T* row, Floats<V>(&out)[G::kVectors]) {
#pragma unroll
        for (int i = 0; i < G::kVectors; ++i) {
            const int d = (i * G::kLanes + lane) * V;
            out[i] = load_some<V>(row + d, D - d, aligned);
        }
    };

    Floats<V> query[G::kVectors], acc[G::kVectors] = {};
    load_row(q.row(piece.b, piece.h, 0), query);
    float top = -INFINITY, sum = 0.0f;
    for (int base = first_key; base < end_key; base += G::kRows * G::kCount) {
        Floats<V> keys[G::kRows][G::kVectors] = {}, weighted[G::kRows][G::kVectors] = {};
        float scores[G::kRows];
        float now = top;
#pragma unroll
        for (int r = 0; r < G::kRows; ++r) {
            const int key = base + r * G::kCount + group;
            if (key >= end_key) continue;
            load_row(k_rows + key * k.strides.t, keys[r]);
            load_row(v_rows + key * v.strides.t, weighted[r]);
        }
#pragma unroll
        for (int r = 0; r < G::kRows; ++r) {
            float dot = 0.0f;
#pragma unroll
            for (int i = 0; i < G::kVectors; ++i)
#pragma unroll
                for (int e = 0; e < V; ++e) dot += query[i][e] * keys[r][i][e];
#pragma unroll
            for (int step = G::kLanes / 2; step > 0; step /= 2) dot += __shfl_xor_sync(kAllLanes, dot, step);
            scores[r] = base + r * G::kCount + group < end_key ? dot * s.scale : -INFINITY;
            now = fmaxf(now, scores[r]);
        }
        const float rescale = weight_of(top, now);
        top = now;
        sum *= rescale;
#pragma unroll
        for (int i = 0; i < G::kVectors; ++i)
#pragma unroll
            for (int e = 0; e < V; ++e) acc[i][e] *= rescale;
#pragma unroll
        for (int r = 0; r < G::kRows; ++r) {
            float p = weight_of(scores[r], top);
            sum += p;
            if (dropout.on()) {
                uint32_t words[4];
                const int key = base + r * G::kCount + group;
                dropout.draw(0, key, words);
                p *= dropout.factor(select(words, key % 4));
            }
#pragma unroll
            for (int i = 0; i < G::kVectors; ++i)
#pragma unroll
                for (int e = 0; e < V; ++e) acc[i][e] += p * weighted[r][i][e];
        }
    }

    if (lane == 0) tops[group] = top, sums[group] = sum;
#pragma unroll
    for (int i = 0; i < G::kVectors; ++i)
        store_chunks(acc[i], lane, [&](int c) { return values + group * DP + (i * G::kLanes + lane) * V + 4 * c; });
    __syncthreads();
    float all_top = -INFINITY, all_sum = 0.0f;
#pragma unroll
    for (int g = 0; g < G::kCount; ++g) all_top = fmaxf(all_top, tops[g]);
#pragma unroll
    for (int g = 0; g < G::kCount; ++g) all_sum += sums[g] * weight_of(tops[g], all_top);
    const Partial partial{partials + (int64_t{piece.head} * pieces + piece.index) * (D + 4)};
    for (int d = threadIdx.x; d < D; d += kThreads) {
        float value = 0.0f;
#pragma unroll
        for (int g = 0; g < G::kCount; ++g) value += values[g * DP + d] * weight_of(tops[g], all_top);
        if (pieces == 1)
            o.row(piece.b, piece.h, 0)[d] = from_float<T>(all_sum == 0.0f ? 0.0f : value / all_sum);
        else
            partial.value(d) = value;
    }
    if (threadIdx.x != 0) return;
    if (pieces == 1)
        lse[piece.head] = double{all_top} + double{logf(all_sum)};
    else
        partial.top() = all_top, partial.sum() = all_sum;
}

// One block per head adds its pieces up, in order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_decode_add(AttentionShape s, Heads<T> o, double* lse, float* partials, unsigned pieces) {
    const Piece head(s, 1);
    const int D = static_cast<int>(s.D), count = static_cast<int>(pieces);
    const auto partial = [&](int i) { return Partial{partials + (int64_t{head.head} * count + i) * (D + 4)}; };
    float top = -INFINITY, sum = 0.0f;
    for (int i = 0; i < count; ++i) top = fmaxf(top, partial(i).top());
    for (int i = 0; i < count; ++i) sum += partial(i).sum() * weight_of(partial(i).top(), top);
    for (int d = threadIdx.x; d < D; d += kThreads) {
        float value = 0.0f;
        for (int i = 0; i < count; ++i) value += partial(i).value(d) * weight_of(partial(i).top(), top);
        o.row(head.b, head.h, 0)[d] = from_float<T>(sum == 0.0f ? 0.0f : value / sum);
    }
    if (threadIdx.x == 0) lse[head.head] = double{top} + double{logf(sum)};
}

}  // namespace

void attention_decode(const AttentionForward& a, float* partials) {
    const AttentionShape& s = a.shape;
    const unsigned pieces = s.Tk > kDecodeKeys ? static_cast<unsigned>(ceil_div<int64_t>(s.Tk, kDecodeKeys)) : 1;
    dispatch(s.dtype, [&](auto t) {
        using T = decltype(t);
        const Heads<T> o = heads<T>(a.o, a.o_strides);
        with_head_dim(s.D, [&](auto dp) {
            launch("attention_decode", attention_decode<T, dp>, grid_of(s.B * s.H * pieces), kThreads,
                   Group<T, dp>::kSharedBytes, s, heads<const T>(a.q, a.q_strides), heads<const T>(a.k, a.k_strides),
                   heads<const T>(a.v, a.v_strides), o, a.lse, partials, pieces, a.aligned(sizeof(T), 16));
        });
        if (pieces > 1)
            launch("attention_decode_add", attention_decode_add<T>, grid_of(s.B * s.H), kThreads, 0, s, o, a.lse,
                   partials, pieces);
    });
}

}  // namespace gpt2c::cuda
