// What kernels share: elements in and out of memory, and sums over warps and blocks.
#pragma once

#include <type_traits>

#include "cuda/ptx.cuh"
#include "dtype.h"

namespace gpt2c::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

template <class Int>
constexpr Int ceil_div(Int n, Int d) {
    return (n + d - 1) / d;
}

template <class F>
void dispatch(DType dtype, F&& f) {
    dispatch_among<float, bf16, f16>(dtype, f);
}

// ---- elements: storage of any dtype, arithmetic in fp32; rounded to nearest even on store, to infinity past the range
GPT2C_DEVICE float to_float(float x) { return x; }
GPT2C_DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
GPT2C_DEVICE float to_float(f16 x) { return __half2float(__half_raw{x.bits}); }

template <class T>
GPT2C_DEVICE T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return {static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(x)).x};
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
    return {static_cast<__half_raw>(__float2half_rn(x)).x};
}

// ---- vectors: V elements in one access. V is kVector<T> (16 bytes) where all rows are 16-byte aligned, else 1.
template <class T>
constexpr int kVector = 16 / sizeof(T);

// The i-th vector of an array of them. nvcc takes a 16-byte store apart where it does not see that the address is a
// multiple of 16: as an offset in elements that is sums of products it may not, as one in vectors it does.
template <int V, class T>
GPT2C_DEVICE T* vector_at(T* p, int64_t i) {
    if constexpr (V == 1) {
        return p + i;
    } else {
        static_assert(V * sizeof(T) % 16 == 0, "a vector is one element or a multiple of 16 bytes");
        using Bits = std::conditional_t<std::is_const_v<T>, const uint4, uint4>;
        return reinterpret_cast<T*>(reinterpret_cast<Bits*>(p) + i * (V * sizeof(T) / 16));
    }
}

template <int V>
struct Floats {
    float at[V];
    __device__ __forceinline__ float& operator[](int i) { return at[i]; }
    __device__ __forceinline__ float operator[](int i) const { return at[i]; }
};

// V elements as they lie in memory: nobody waits for the load until they are widened.
template <class T, int V>
struct Raw {
    static_assert(V == 1 || V == kVector<T>, "a vector is one element or 16 bytes");
    std::conditional_t<V == 1, T, uint4> bits;
};

template <int V, class T>
GPT2C_DEVICE Raw<T, V> load_raw(const T* p) {
    if constexpr (V == 1)
        return {*p};
    else
        return {load16(p)};
}

template <class T, int V>
GPT2C_DEVICE Floats<V> widen(const Raw<T, V>& raw) {
    union {
        decltype(raw.bits) bits;
        T elements[V];
    } u{raw.bits};
    Floats<V> v;
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = to_float(u.elements[i]);
    return v;
}

template <int V, class T>
GPT2C_DEVICE Floats<V> load(const T* p) {
    return widen(load_raw<V>(p));
}

template <int V, class T>
GPT2C_DEVICE void store(T* p, const Floats<V>& v) {
    if constexpr (V == 1) {
        *p = from_float<T>(v[0]);
    } else {
        static_assert(V == kVector<T>, "a vector is one element or 16 bytes");
        union {
            T elements[V];
            uint4 bits;
        } u;
#pragma unroll
        for (int i = 0; i < V; ++i) u.elements[i] = from_float<T>(v[i]);
        store16(p, u.bits);
    }
}

// V floats at a 16-byte aligned address (or one at any), whatever the vector's dtype in memory is.
template <int V>
GPT2C_DEVICE Floats<V> load_floats(const float* p) {
    if constexpr (V == 1) {
        return {*p};
    } else {
        Floats<V> v;
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            const Floats<4> part = load<4>(p + i);
#pragma unroll
            for (int j = 0; j < 4; ++j) v[i + j] = part[j];
        }
        return v;
    }
}

template <int V>
GPT2C_DEVICE void store_floats(float* p, const Floats<V>& v) {
    if constexpr (V == 1) {
        *p = v[0];
    } else {
#pragma unroll
        for (int i = 0; i < V; i += 4) store<4>(p + i, Floats<4>{v[i], v[i + 1], v[i + 2], v[i + 3]});
    }
}

// On the host: whether rows of `stride` elements of T at each address (null: no matter) start on 16 bytes.
template <class T, class... Pointers>
bool vectorizable(int64_t stride, const Pointers*... pointers) {
    return stride % kVector<T> == 0 && (((reinterpret_cast<uintptr_t>(pointers) % 16) == 0) && ...);
}

// Calls f with the vector length as a constant.
template <class T, class F>
void with_vector(bool vectorizable, F&& f) {
    if (vectorizable)
        f(std::integral_constant<int, kVector<T>>{});
    else
        f(std::integral_constant<int, 1>{});
}

// ---- sums, in a fixed order; every lane or thread gets the result
template <class Float>
GPT2C_DEVICE Float warp_sum(Float x) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
}

GPT2C_DEVICE float warp_max(float x) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
    return x;
}

// Sums of a block's N values each. `scratch` holds kWarp * N of them of shared memory, which is free again only after
// the block's next barrier: callers that sum twice between two barriers give two of them.
template <int N, class Float>
GPT2C_DEVICE void block_sum(Float (&x)[N], Float* scratch) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        x[i] = warp_sum(x[i]);
        if (lane == 0) scratch[warp * N + i] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) {
        x[i] = scratch[i];
        for (int w = 1; w < warps; ++w) x[i] += scratch[w * N + i];
    }
}

// The same for the maximum of one value; nan is no maximum.
GPT2C_DEVICE float block_max(float x, float* scratch) {
    x = warp_max(x);
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
    __syncthreads();
    x = scratch[0];
    for (int w = 1; w < static_cast<int>(blockDim.x / kWarp); ++w) x = fmaxf(x, scratch[w]);
    return x;
}

}  // namespace gpt2c::cuda
