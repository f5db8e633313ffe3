// The counter-based generator behind dropout: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as
// 1, 2, 3", SC 2011, section 3.3 and table 2), written once for scalars, vectors of them and GPU threads.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define GPT2C_PHILOX __device__
#else
#define GPT2C_PHILOX
#endif

namespace gpt2c {

// U is a 32-bit unsigned integer or a vector of them; mulhi(a, b) gives the high halves of the 64-bit products.
// counter is replaced by four random words.
template <class U, class MulHi>
GPT2C_PHILOX static inline void philox(uint64_t seed, U counter[4], MulHi&& mulhi) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const U high0 = mulhi(counter[0], 0xD2511F53u), low0 = counter[0] * 0xD2511F53u;
        const U high1 = mulhi(counter[2], 0xCD9E8D57u), low1 = counter[2] * 0xCD9E8D57u;
        counter[0] = high1 ^ counter[1] ^ key0;
        counter[1] = low1;
        counter[2] = high0 ^ counter[3] ^ key1;
        counter[3] = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

}  // namespace gpt2c
