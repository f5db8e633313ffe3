// The element types of tensors, and the one way from a runtime dtype to a type.
#pragma once

#include <cstdint>

namespace gpt2c {

// The numbers are shared with gpt2c/_native.py.
enum class DType : int { f32 = 0, bf16 = 1 };

// Storage only: arithmetic is always fp32 (cpu/vec.h and cuda/device.cuh convert on load and store).
struct bf16 {
    uint16_t bits;
};

// Calls f with a value of the C++ type that dtype names: dispatch(dtype, [&](auto t) { using T = decltype(t); ... }).
template <class F>
static inline void dispatch(DType dtype, F&& f) {
    switch (dtype) {
        case DType::f32:
            f(float{});
            break;
        case DType::bf16:
            f(bf16{});
            break;
    }
}

}  // namespace gpt2c
