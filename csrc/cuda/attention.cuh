// What all attention kernels share: where tensors lie, what the causal mask hides, dropout's factors.
#pragma once

#include "cuda/device.cuh"
#include "kernels.h"
#include "philox.h"

namespace gpt2c::cuda {

constexpr float kLog2E = 1.4426950408889634f;

// A (B, H, T, D) tensor whose last dimension is dense.
template <class T>
struct Heads {
    T* data;
    Strides strides;

    __device__ T* row(int64_t b, int64_t h, int64_t t) const {
        return data + b * strides.b + h * strides.h + t * strides.t;
    }
};

template <class T>
Heads<T> heads(const void* data, Strides strides) {
    return {static_cast<T*>(const_cast<void*>(data)), strides};
}

// Whether every row of the tensor starts at a multiple of `bytes`.
static inline bool rows_aligned(const void* data, Strides s, int64_t element, int64_t bytes) {
    return (reinterpret_cast<uintptr_t>(data) | (s.b * element) | (s.h * element) | (s.t * element)) % bytes == 0;
}

// V elements of which `count` exist, zeros after them; in one access where `aligned` says that it can be one.
template <int V, class T>
__device__ Floats<V> load_some(const T* x, int count, bool aligned) {
    if (aligned && count >= V) return load<V>(x);
    Floats<V> v;
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = i < count ? to_float(x[i]) : 0.0f;
    return v;
}

// Stores the `index`-th V floats of a row in shared memory as chunks of four, the c-th of them at chunk(c). Lanes with
// neighbouring indices that all stored their first of two chunks would use every other bank: half of them begin with
// the second.
template <int V, class Chunk>
__device__ void store_chunks(const Floats<V>& v, int index, Chunk&& chunk) {
    static_assert(V == 4 || V == 8, "one chunk or two");
    const int first = V == 8 && index & 4 ? 1 : 0;
#pragma unroll
    for (int c = 0; c < V / 4; ++c) {
        Floats<4> four;
#pragma unroll
        for (int i = 0; i < 4; ++i) four[i] = first ? v[(4 * c + 4) % V + i] : v[4 * c + i];
        store<4>(chunk(c ^ first), four);
    }
}

// word[index] without memory.
__device__ __forceinline__ uint32_t select(const uint32_t (&word)[4], int index) {
    const uint32_t low = index & 1 ? word[1] : word[0], high = index & 1 ? word[3] : word[2];
    return index & 2 ? high : low;
}

// Two elements in one word, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

// A block's head and which of the head's `blocks` pieces it has. The last pieces come first: under a causal mask they
// have the most to do.
struct Piece {
    int b, h, head, index;

    __device__ Piece(const AttentionShape& s, unsigned blocks) {
        // In 32 bits, like the grid: 64-bit divisions are calls of a function.
        const unsigned H = static_cast<unsigned>(s.H), head_ = blockIdx.x / blocks;
        head = static_cast<int>(head_);
        b = static_cast<int>(head_ / H);
        h = static_cast<int>(head_ % H);
        index = static_cast<int>(blocks - 1 - blockIdx.x % blocks);
    }
};

// Query i sees the keys from first_key(i) up to i + offset, and key j is seen by the queries from j - offset on that do
// not start after it.
struct Mask {
    bool causal;
    int Tq, Tk, offset;
    const int64_t* starts;  // the first key of each query of all rows, or null: 0
    int b;                  // the row: a pointer to it would take a register more, which attention's backward has not

    __device__ Mask(const AttentionShape& s, int b_)
        : causal(s.causal),
          Tq(static_cast<int>(s.Tq)),
          Tk(static_cast<int>(s.Tk)),
          offset(static_cast<int>(s.Tk - s.Tq)),
          starts(s.starts),
          b(b_) {}

    // As far as the ends of keys and the causal mask go; first_key says the rest.
    __device__ bool sees(int query, int key) const { return key < Tk && (!causal || key <= query + offset); }
    // No query from this one on sees a key before it.
    __device__ int first_key(int query) const { return starts ? start(min(query, Tq - 1)) : 0; }
    // No query up to `query` sees this key or a later one.
    __device__ int end_key(int query) const { return causal ? max(0, min(Tk, min(query, Tq - 1) + offset + 1)) : Tk; }
    // No query before this one sees `key` or a later one.
    __device__ int first_query(int key) const { return causal ? max(0, key - offset) : 0; }
    // No query from this one on sees `key` or an earlier one. Called by whole warps, which look at 32 places at a time.
    __device__ int end_query(int key) const {
        if (!starts) return Tq;
        int end = 0, left = Tq;  // the queries before `end` start by then; `left` queries after them may
        while (left > 0) {
            const int step = (left + kWarp - 1) / kWarp, place = (static_cast<int>(threadIdx.x) % kWarp + 1) * step - 1;
            const bool by_then = place < left && start(end + place) <= key;
            const int passed = __popc(__ballot_sync(kAllLanes, by_then)) * step;
            end += passed;
            left = min(left - passed, step - 1);
        }
        return end;
    }

 private:
    __device__ int start(int query) const { return static_cast<int>(starts[int64_t{b} * Tq + query]); }
};

// The dropout mask of one head: a function of seed and position alone.
class Dropout {
 public:
    __device__ Dropout(const AttentionShape& s, int head)
        : on_(s.seed != nullptr),
          seed_(on_ ? static_cast<uint64_t>(*s.seed) : 0),
          head_(static_cast<uint32_t>(head)),
          drop_below_(s.drop_below),
          keep_scale_(s.keep_scale) {}

    __device__ bool on() const { return on_; }

    // The four words of the keys key / 4 * 4 and the three after it.
    __device__ void draw(int query, int key, uint32_t (&words)[4]) const {
        words[0] = static_cast<uint32_t>(query);
        words[1] = static_cast<uint32_t>(key) / 4;
        words[2] = head_;
        words[3] = 0;
        philox(seed_, words, [](uint32_t a, uint32_t b) { return __umulhi(a, b); });
    }
    // What a key's probability is multiplied by.
    __device__ float factor(uint32_t word) const { return word >= drop_below_ ? keep_scale_ : 0.0f; }

    // The factors of N keys from `key`, a multiple of N, which is 1, 2 or 4.
    template <int N>
    __device__ void factors(int query, int key, float (&out)[N]) const {
#pragma unroll
        for (int r = 0; r < N; ++r) out[r] = 1.0f;
        if (!on_) return;
        uint32_t words[4];
        draw(query, key, words);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            // Indices known at compile time keep the words in registers.
            if (r / N * N == key % 4) out[r % N] = factor(words[r]);
        }
    }

 private:
    bool on_;
    uint64_t seed_;
    uint32_t head_, drop_below_;
    float keep_scale_;
};

// What the backward needs of a query: its logsumexp in two fp32 parts, whose difference from a score is exact where the
// score is large, and delta = do . o. Rows that see no key have high = inf: their probabilities are 0.
struct __align__(16) RowStats {
    float high, low, delta;
    int first_key;  // that the query sees

    __device__ float probability(float score) const { return exp2_approx((score - high - low) * kLog2E); }
};

}  // namespace gpt2c::cuda
