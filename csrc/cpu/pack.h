// How the matrix product's operands are laid out for its tile: by strips of lines (rows of a, columns of b), a stretch
// of at most kDepth steps of k at a time.
#pragma once

#include "isa.h"

namespace gpt2c::GPT2C_ISA {

// The tile's rows and vectors: its accumulators, with one row of b, fill the register file.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 8;  // 32 registers
#else
constexpr int kRows = 4;  // 16 registers
#endif
constexpr int kVecs = 3, kCols = kVecs * W;

// Steps of k between two visits to c. Twice 384 is GPT-2's smallest width; 256 costs 1 % in the tile, 128 3 %.
constexpr int64_t kDepth = 384;
// Between packed rows of a. Not a power of two apart, or they would share the cache's sets.
constexpr int64_t kRowStride = kDepth + 16;

// Element (line, k) is data[line * line_stride + k * k_stride], and one of the strides is 1.
template <class T>
struct Lines {
    const T* data;
    int64_t line_stride, k_stride;

    const T* at(int64_t line, int64_t k) const { return data + line * line_stride + k * k_stride; }
};

// ---- the transpose of W vectors, in log2 W rounds: round S exchanges lanes S apart with vectors S apart
template <int N, int... I>
struct Shuffle : Shuffle<N - 1, N - 1, I...> {};
template <int... I>
struct Shuffle<0, I...> {
#ifdef __clang__
    template <int S>
    GPT2C_INLINE vf low(vf a, vf b) {
        return __builtin_shufflevector(a, b, (I & S ? W + I - S : I)...);
    }
    template <int S>
    GPT2C_INLINE vf high(vf a, vf b) {
        return __builtin_shufflevector(a, b, (I & S ? W + I : I + S)...);
    }
#else
    template <int S>
    GPT2C_INLINE vf low(vf a, vf b) {
        return __builtin_shuffle(a, b, vi{(I & S ? W + I - S : I)...});
    }
    template <int S>
    GPT2C_INLINE vf high(vf a, vf b) {
        return __builtin_shuffle(a, b, vi{(I & S ? W + I : I + S)...});
    }
#endif
};

template <int S = W / 2>
GPT2C_INLINE void transpose(vf v[W]) {
    if constexpr (S > 0) {
        for (int i = 0; i < W; ++i) {
            if (i & S) continue;
            const vf a = v[i], b = v[i + S];
            v[i] = Shuffle<W>::template low<S>(a, b);
            v[i + S] = Shuffle<W>::template high<S>(a, b);
        }
        transpose<S / 2>(v);
    }
}

// ---- strips of kWidth lines, `out` [k][kWidth] in fp32; lines from `count` on are zero

// Lines side by side: k after k, a vector at a time.
template <int kWidth, class T>
static void pack_dense_lines(Lines<T> x, int64_t count, int64_t depth, float* out) {
    for (int64_t k = 0; k < depth; ++k, out += kWidth) {
        const T* from = x.at(0, k);
        if (count == kWidth) {
            if constexpr (kWidth % W == 0)
                for (int i = 0; i < kWidth; i += W) store(out + i, load(from + i));
            else
                for (int i = 0; i < kWidth; ++i) out[i] = load1(from + i);
        } else {
            for (int64_t i = 0; i < kWidth; ++i) out[i] = i < count ? load1(from + i) : 0.0f;
        }
    }
}

// Each line dense in k: squares of W x W are transposed.
template <int kWidth, class T>
static void pack_dense_k(Lines<T> x, int64_t count, int64_t depth, float* out) {
    static_assert(kWidth % W == 0, "whole vectors");
    for (int64_t first = 0; first < kWidth; first += W)
        for (int64_t k = 0; k < depth; k += W) {
            const int64_t steps = depth - k < W ? depth - k : W;
            vf square[W];
            for (int64_t i = 0; i < W; ++i) {
                if (first + i >= count) {
                    square[i] = vf{};
                    continue;
                }
                const T* from = x.at(first + i, k);
                __builtin_prefetch(from + 128);
                square[i] = steps == W ? load(from) : load_n(from, steps);
            }
            transpose(square);
            for (int64_t i = 0; i < steps; ++i) store(out + (k + i) * kWidth + first, square[i]);
        }
}

// A strip of b: kCols lines, [k][kCols].
template <class T>
static void pack_cols(Lines<T> x, int64_t count, int64_t depth, float* out) {
    if (x.line_stride == 1)
        pack_dense_lines<kCols>(x, count, depth, out);
    else
        pack_dense_k<kCols>(x, count, depth, out);
}

// A strip of a: kRows lines, [k][kRows] if they lie side by side, else one after the other, kRowStride apart. Either
// way it takes kRows * kRowStride floats.
template <class T>
static void pack_rows_of_a(Lines<T> x, int64_t count, int64_t depth, float* out) {
    if (x.k_stride != 1) return pack_dense_lines<kRows>(x, count, depth, out);
    for (int64_t i = 0; i < kRows; ++i) {
        float* row = out + i * kRowStride;
        if (i < count)
            for_lanes(depth, [&](int64_t k, auto lanes) { lanes.put(row + k, lanes.get(x.at(i, k))); });
        else
            for (int64_t k = 0; k < depth; ++k) row[k] = 0;
    }
}

}  // namespace gpt2c::GPT2C_ISA
