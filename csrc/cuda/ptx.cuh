// The only inline PTX, and the only device code with two bodies: PTX for nvcc, calls of tests/emulation for g++, which
// compiles the same kernels to run them on a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define GPT2C_DEVICE static __device__ __forceinline__

#ifdef __CUDACC__

// The launch's dynamic shared memory, 128-byte aligned.
#define GPT2C_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

namespace gpt2c::cuda {

GPT2C_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// One access of 16 or 8 bytes, of global or shared memory, at an address that is a multiple of as many.
GPT2C_DEVICE uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }
GPT2C_DEVICE void store16(void* p, uint4 value) { *static_cast<uint4*>(p) = value; }
GPT2C_DEVICE void store8(void* p, uint2 value) { *static_cast<uint2*>(p) = value; }

// 16 bytes from global to shared memory, asynchronous from sm_80 on; zeros where not valid (global is not read then).
GPT2C_DEVICE void cp_async16(void* shared, const void* global, bool valid = true) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    store16(shared, valid ? load16(global) : make_uint4(0, 0, 0, 0));
#endif
}
GPT2C_DEVICE void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most `keep` of this thread's youngest groups are under way. Other threads see the data after a
// barrier.
template <int keep>
GPT2C_DEVICE void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(keep) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8, a
// 16-byte aligned row of 8; lane l receives elements (l / 4, 2 (l % 4)) and the next of each matrix.
GPT2C_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same of each matrix's transpose.
GPT2C_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Marks what is not reached before sm_80, so that no code is made of it there.
GPT2C_DEVICE void needs_sm80() {
#if __CUDA_ARCH__ < 800
    __trap();
#endif
}

// d (16 x 8, fp32) += a (16 x 16, row-major) b (16 x 8, column-major), in the fragment layouts of the PTX ISA, section
// "Matrix fragments for mma.m16n8k16".
#if __CUDA_ARCH__ >= 800
#define GPT2C_MMA(type)                                                       \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
GPT2C_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { GPT2C_MMA("bf16"); }
GPT2C_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { GPT2C_MMA("f16"); }
#undef GPT2C_MMA
#else
// sm_75 has none for bf16, and for fp16 one over 8 columns of a.
GPT2C_DEVICE void mma_bf16(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t) { needs_sm80(); }
GPT2C_DEVICE void mma_f16_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
}
GPT2C_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_f16_k8(d, a[0], a[1], b0);
    mma_f16_k8(d, a[2], a[3], b1);
}
#endif

// 2^x to 2 ulp; results below 2^-126 are 0.
GPT2C_DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace gpt2c::cuda

#else

// Each primitive takes the place of its call, which a report of the emulator names.
#define GPT2C_DYNAMIC_SHARED(name) unsigned char* const name = emulator::dynamic_shared()

namespace gpt2c::cuda {

using emulator::load16;
using emulator::store16;
using emulator::store8;
GPT2C_DEVICE void cp_async16(void* shared, const void* global, bool valid = true, EMULATOR_SITE) {
    if (emulator::gpu().capability >= 80)
        emulator::cp_async(shared, global, valid, site);
    else
        store16(shared, valid ? load16(global) : make_uint4(0, 0, 0, 0));
}
GPT2C_DEVICE void cp_async_commit() { emulator::cp_async_commit(); }
template <int keep>
GPT2C_DEVICE void cp_async_wait(EMULATOR_SITE) {
    emulator::cp_async_wait(keep, site);
}
GPT2C_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMULATOR_SITE) {
    emulator::ldmatrix_x4(r, row, false, site);
}
GPT2C_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, EMULATOR_SITE) {
    emulator::ldmatrix_x4(r, row, true, site);
}
GPT2C_DEVICE void needs_sm80(EMULATOR_SITE) { emulator::require(80, site); }
GPT2C_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, EMULATOR_SITE) {
    emulator::mma_m16n8k16(d, a, b0, b1, emulator::Half::bf16, site);
}
GPT2C_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, EMULATOR_SITE) {
    if (emulator::gpu().capability >= 80) return emulator::mma_m16n8k16(d, a, b0, b1, emulator::Half::f16, site);
    emulator::mma_m16n8k8(d, a[0], a[1], b0, site);
    emulator::mma_m16n8k8(d, a[2], a[3], b1, site);
}
GPT2C_DEVICE float exp2_approx(float x) { return exp2f(x); }

}  // namespace gpt2c::cuda

#endif
