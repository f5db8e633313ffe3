// The only vector types: W lanes of fp32 in the compiler's own vector extension (GCC, Clang, clang-cl), so that one
// text serves every ISA. CMake compiles each kernel once per ISA with GPT2C_ISA (its namespace) and GPT2C_WIDTH (W).
// Per-ISA files include only this, dtype.h, kernels.h and parallel.h: a standard container's inline function compiled
// for AVX-512 could be the copy that the linker keeps for everyone.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "dtype.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#define GPT2C_INLINE static inline __attribute__((always_inline))
#define GPT2C_MEMBER inline __attribute__((always_inline))
#ifdef __clang__
#define GPT2C_UNROLL _Pragma("unroll")
#else
#define GPT2C_UNROLL _Pragma("GCC unroll 32")
#endif

namespace gpt2c::GPT2C_ISA {

constexpr int W = GPT2C_WIDTH;

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef int16_t vs __attribute__((vector_size(2 * W)));
typedef int8_t vb __attribute__((vector_size(W)));
typedef uint64_t vul __attribute__((vector_size(8 * W)));

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

template <int N>
struct Int {
    static constexpr int value = N;
};

template <class To, class From>
GPT2C_INLINE To bitcast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bitcast keeps the size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// x - 0 rather than 0 + x: it keeps the sign of -0.
GPT2C_INLINE vf broadcast(float x) { return x - vf{}; }

// No fp16 on the CPU, where nothing is gained over bf16, which has the range of fp32: Python refuses it.
template <class F>
GPT2C_INLINE void dispatch(DType dtype, F&& f) {
    dispatch_among<float, bf16>(dtype, f);
}

// ---- memory: any alignment; bf16 is widened on load and rounded to nearest even on store
GPT2C_INLINE vf load(const float* p) {
    vf v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

GPT2C_INLINE vf load(const bf16* p) {
    vh h;
    __builtin_memcpy(&h, p, sizeof h);
    return bitcast<vf>(__builtin_convertvector(h, vu) << 16);
}

// GCC 12's __builtin_convertvector from 8 to 32 bits takes one element after the other, at a sixth of the speed.
GPT2C_INLINE vf load(const int8_t* p) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const vi v = bitcast<vi>(_mm512_maskz_cvtepi8_epi32(0xffff, bytes));
#elif defined(__AVX2__)
    __m256i parts[W / 8];
    for (int i = 0; i < W / 8; ++i)
        parts[i] = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * i)));
    vi v;
    __builtin_memcpy(&v, parts, sizeof v);
#else
    vb b;
    __builtin_memcpy(&b, p, sizeof b);
    const vi v = __builtin_convertvector(__builtin_convertvector(b, vs), vi);
#endif
    return __builtin_convertvector(v, vf);
}

GPT2C_INLINE void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }

GPT2C_INLINE void store(bf16* p, vf v) {
    const vu bits = bitcast<vu>(v);
    const vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const vu quiet_nan = (bits >> 16) | 0x40;
    const vh h = __builtin_convertvector(v == v ? rounded : quiet_nan, vh);
    __builtin_memcpy(p, &h, sizeof h);
}

// The first n < W lanes; the others load as zero and are not stored.
template <class T>
GPT2C_INLINE vf load_n(const T* p, int64_t n) {
    T lanes[W] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
}

template <class T>
GPT2C_INLINE void store_n(T* p, vf v, int64_t n) {
    T lanes[W];
    store(lanes, v);
    for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

GPT2C_INLINE float load1(const float* p) { return *p; }
GPT2C_INLINE float load1(const bf16* p) { return bitcast<float>(static_cast<uint32_t>(p->bits) << 16); }

// How for_lanes hands out vectors: whole ones, and the last, partial one.
struct Full {
    template <class T>
    GPT2C_INLINE vf get(const T* p) {
        return load(p);
    }
    template <class T>
    GPT2C_INLINE void put(T* p, vf v) {
        store(p, v);
    }
    // Lanes past the end become `other`'s, for sums and maxima.
    GPT2C_INLINE vf masked(vf v, vf = vf{}) { return v; }
};

struct Tail {
    int64_t n;
    template <class T>
    __attribute__((always_inline)) vf get(const T* p) const {
        return load_n(p, n);
    }
    template <class T>
    __attribute__((always_inline)) void put(T* p, vf v) const {
        store_n(p, v, n);
    }
    __attribute__((always_inline)) vf masked(vf v, vf other = vf{}) const {
        float lanes[W];
        store(lanes, other);
        store_n(lanes, v, n);
        return load(lanes);
    }
};

// Calls f(i, lanes) for i = 0, W, 2W, ... below n, where lanes.get and lanes.put load and store the lanes that exist.
template <class F>
GPT2C_INLINE void for_lanes(int64_t n, F&& f) {
    int64_t i = 0;
    for (; i + W <= n; i += W) f(i, Full{});
    if (i < n) f(i, Tail{n - i});
}

// A sum in four accumulators: one would wait four cycles for each of its own additions. Vectors are dealt out in turn.
struct Sum {
    vf parts[4] = {};
    GPT2C_MEMBER vf total() const { return (parts[0] + parts[1]) + (parts[2] + parts[3]); }
};

// Calls f(i, lanes, part) as for_lanes does, four vectors to a round; part = 0, 1, 2, 3 in turn is known to the
// compiler.
template <class F>
GPT2C_INLINE void for_lanes4(int64_t n, F&& f) {
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        f(i, Full{}, Int<0>{});
        f(i + W, Full{}, Int<1>{});
        f(i + 2 * W, Full{}, Int<2>{});
        f(i + 3 * W, Full{}, Int<3>{});
    }
    for (; i + W <= n; i += W) f(i, Full{}, Int<0>{});
    if (i < n) f(i, Tail{n - i}, Int<1>{});
}

// ---- arithmetic
// b if either is nan, as x86 has it; of the general text GCC makes a comparison and a blend. (maskz: without a mask,
// GCC 12 warns of its own header.)
#if defined(__AVX512F__) && GPT2C_WIDTH == 16
GPT2C_INLINE vf max(vf a, vf b) { return _mm512_maskz_max_ps(0xffff, a, b); }
GPT2C_INLINE vf min(vf a, vf b) { return _mm512_maskz_min_ps(0xffff, a, b); }
#elif defined(__AVX2__) && GPT2C_WIDTH == 8
GPT2C_INLINE vf max(vf a, vf b) { return _mm256_max_ps(a, b); }
GPT2C_INLINE vf min(vf a, vf b) { return _mm256_min_ps(a, b); }
#else
GPT2C_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
GPT2C_INLINE vf min(vf a, vf b) { return a < b ? a : b; }
#endif
GPT2C_INLINE vf abs(vf a) { return bitcast<vf>(bitcast<vu>(a) & 0x7fffffffu); }

GPT2C_INLINE vf sqrt(vf a) {
    for (int i = 0; i < W; ++i) a[i] = __builtin_sqrtf(a[i]);
    return a;
}

// Lanes are combined as a balanced tree: the same order whatever the instructions. It is made of halves of vectors: the
// same tree as a loop over an array made decoding take 18.9 ms instead of 16.5 (GPT-2 124M in int8, 8 rows, AVX-512).
template <int N>
struct Lanes {
    typedef float type __attribute__((vector_size(4 * N)));
};
template <int N>
GPT2C_INLINE float sum_lanes(typename Lanes<N>::type v) {
    if constexpr (N == 1) {
        return v[0];
    } else {
        typename Lanes<N / 2>::type halves[2];
        __builtin_memcpy(halves, &v, sizeof v);
        return sum_lanes<N / 2>(halves[0] + halves[1]);
    }
}
GPT2C_INLINE float sum(vf v) { return sum_lanes<W>(v); }

GPT2C_INLINE float max_lane(vf v) {
    float lanes[W];
    store(lanes, v);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}

// e^x to 1.5 ulp for |x| <= 87.33 and nan: x = n ln2 + r, e^r by a polynomial fitted on |r| <= ln2 / 2 (relative error
// 4e-9).
GPT2C_INLINE vf exp_inside(vf x) {
    const float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    const vf shifted = x * 1.44269504f + round_magic;
    const vf n = shifted - round_magic;
    const vf r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vf p = r * 1.37579266e-3f + 8.36883392e-3f;
    p = p * r + 4.16694060e-2f;
    p = p * r + 1.66665196e-1f;
    p = p * r + 4.99999881e-1f;
    p = p * (r * r) + r + 1.0f;
    // Multiplied, not added to the exponent, so that a nan in p stays one.
    const vf power = bitcast<vf>((bitcast<vu>(shifted) + 127u) << 23);
    return p * power;
}

// e^x everywhere. Below -87.3 the result is 0, above 88.3 it stays at e^88.3; nan gives nan.
GPT2C_INLINE vf exp(vf x) {
    const vf p = exp_inside(min(broadcast(88.3f), x));
    return x < -87.3f ? vf{} : p;
}

// e^(z^2) erfc(z) for z >= 0, in t = 1 / (1 + 0.45 z), fitted on [0, 14]: relative error 4e-7 in fp32.
GPT2C_INLINE vf erfcx(vf z) {
    const vf t = 1.0f / (z * 0.45f + 1.0f);
    vf p = t * -3.8176727e-2f + 1.7362478e-1f;
    p = p * t - 2.6183301e-1f;
    p = p * t + 9.3207650e-2f;
    p = p * t + 1.5922045e-2f;
    p = p * t + 1.0112458e-1f;
    p = p * t + 1.8106623e-1f;
    p = p * t + 2.2719161e-1f;
    p = p * t + 2.5399196e-1f;
    p = p * t + 2.5388083e-1f;
    return p * t;
}

}  // namespace gpt2c::GPT2C_ISA
