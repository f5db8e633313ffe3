// 64 bits that tell whether bytes have changed. Every step is a bijection of the state for a given word, and of the
// word for a given state, so that one changed word always shows.
#include "isa.h"

namespace gpt2c::GPT2C_ISA {
namespace {

constexpr int64_t kPart = 1 << 20;  // bytes of one task
constexpr int64_t kLanes = 32;      // states that wait for their multiplications side by side

uint64_t mix(uint64_t state, uint64_t word) {
    const uint64_t sum = state + word * 0xc2b2ae3d27d4eb4fu;
    return (sum << 31 | sum >> 33) * 0x9e3779b97f4a7c15u;  // both odd, so that nothing is lost
}

uint64_t sum_of(const char* data, int64_t bytes) {
    uint64_t state[kLanes], words[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) state[lane] = static_cast<uint64_t>(lane + 1);
    int64_t at = 0;
    for (; at + static_cast<int64_t>(sizeof words) <= bytes; at += sizeof words) {
        __builtin_memcpy(words, data + at, sizeof words);
        for (int64_t lane = 0; lane < kLanes; ++lane) state[lane] = mix(state[lane], words[lane]);
    }
    uint64_t total = mix(0, static_cast<uint64_t>(bytes));
    for (; at < bytes; at += 8) {
        uint64_t word = 0;
        __builtin_memcpy(&word, data + at, bytes - at < 8 ? bytes - at : 8);
        total = mix(total, word);
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) total = mix(total, state[lane]);
    return total;
}

}  // namespace

int64_t checksum(const void* data, int64_t bytes, int threads) {
    const int64_t parts = (bytes + kPart - 1) / kPart;
    auto* sums = reinterpret_cast<uint64_t*>(scratch(Slot::call, 2 * parts));
    parallel_for(parts, threads, [&](int64_t i) {
        const int64_t start = i * kPart, left = bytes - start;
        sums[i] = sum_of(static_cast<const char*>(data) + start, left < kPart ? left : kPart);
    });
    uint64_t total = 0;
    for (int64_t i = 0; i < parts; ++i) total = mix(total, sums[i]);
    return static_cast<int64_t>(total);
}

}  // namespace gpt2c::GPT2C_ISA
