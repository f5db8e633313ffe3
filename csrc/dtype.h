// The element types of tensors, and the one way from a runtime dtype to a type.
#pragma once

#include <cstdint>

namespace gpt2c {

// The numbers are shared with gpt2c/_native.py.
enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, i8 = 3 };  // i8: of weights, for decode alone

// Storage only: arithmetic is always fp32 (cpu/vec.h and cuda/device.cuh convert on load and store).
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

template <class T>
constexpr DType kDType = DType::f32;
template <>
constexpr DType kDType<bf16> = DType::bf16;
template <>
constexpr DType kDType<f16> = DType::f16;
template <>
constexpr DType kDType<int8_t> = DType::i8;

// Calls f with a value of that one of the types that dtype names: dispatch_among<float, bf16>(dtype, [&](auto t) {
// using T = decltype(t); ... }). Each backend has a dispatch(dtype, f) among the types that it has kernels for.
template <class... Types, class F>
static inline void dispatch_among(DType dtype, F&& f) {
    ((dtype == kDType<Types> ? f(Types{}) : void()), ...);
}

}  // namespace gpt2c
