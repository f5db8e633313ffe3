#include "cpuid.h"

namespace gpt2c {

#define GPT2C_ISA_TABLE(name)     \
    namespace name {              \
    extern const Kernels kernels; \
    }
GPT2C_ISA_TABLE(scalar)
#if defined(__x86_64__) || defined(_M_X64)
GPT2C_ISA_TABLE(avx2)
GPT2C_ISA_TABLE(avx2x16)
GPT2C_ISA_TABLE(avx512)
#elif defined(__aarch64__)
GPT2C_ISA_TABLE(neon)
#endif

const Isa* isas(int* count) {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    static const Isa list[] = {
        {"scalar", true, true, &scalar::kernels},
#if defined(__x86_64__) || defined(_M_X64)
        // AVX-512's sixteen lanes compiled for AVX2: never faster, but it tests that logic where there is no AVX-512.
        {"avx2x16", has_avx2, false, &avx2x16::kernels},
        {"avx2", has_avx2, true, &avx2::kernels},
        {"avx512", has_avx512, true, &avx512::kernels},
#elif defined(__aarch64__)
        {"neon", true, true, &neon::kernels},
#endif
    };
    *count = static_cast<int>(sizeof list / sizeof *list);
    return list;
}

}  // namespace gpt2c
