// What tests/test_emulation_formulas.py compares with formulas of its own: random words, shuffles, matrix fragments.
#include "cuda/attention.cuh"
#include "cuda/launch.cuh"
#include "test_kernels.h"

using namespace gpt2c::cuda;

namespace {

template <class T>
T* elements(const Buffer& tensor) {
    return reinterpret_cast<T*>(tensor.data);
}

// words (n, 4): counters, replaced by random words.
__global__ void philox_words(const int64_t* seed, uint32_t* words, int n) {
    const int i = blockIdx.x * kWarp + threadIdx.x;
    if (i >= n) return;
    uint32_t counter[4] = {words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]};
    gpt2c::philox(static_cast<uint64_t>(*seed), counter, [](uint32_t a, uint32_t b) { return __umulhi(a, b); });
    for (int r = 0; r < 4; ++r) words[4 * i + r] = counter[r];
}
TEST_KERNEL(philox) {
    const int n = static_cast<int>(tensors[1].size / 16);
    launch("philox", philox_words, ceil_div(n, kWarp), kWarp, 0, elements<int64_t>(tensors[0]),
           elements<uint32_t>(tensors[1]), n);
    return 0;
}

// settings: mask, lane or distance, width. values (32) float; out (32) for the lanes in the mask.
enum class Shuffle { index, exclusive_or, up, down };
template <Shuffle kind>
__global__ void shuffle(const int32_t* settings, const float* values, float* out) {
    const unsigned mask = static_cast<unsigned>(settings[0]);
    const int lane = threadIdx.x, by = settings[1], width = settings[2];
    if (!(mask >> lane & 1)) return;
    if (kind == Shuffle::index) out[lane] = __shfl_sync(mask, values[lane], by, width);
    if (kind == Shuffle::exclusive_or) out[lane] = __shfl_xor_sync(mask, values[lane], by, width);
    if (kind == Shuffle::up) out[lane] = __shfl_up_sync(mask, values[lane], by, width);
    if (kind == Shuffle::down) out[lane] = __shfl_down_sync(mask, values[lane], by, width);
}
template <Shuffle kind>
int64_t start_shuffle(const Buffer* t) {
    launch("shuffle", shuffle<kind>, 1, kWarp, 0, elements<int32_t>(t[0]), elements<float>(t[1]),
           elements<float>(t[2]));
    return 0;
}
TEST_KERNEL(shuffle_index) { return start_shuffle<Shuffle::index>(tensors); }
TEST_KERNEL(shuffle_xor) { return start_shuffle<Shuffle::exclusive_or>(tensors); }
TEST_KERNEL(shuffle_up) { return start_shuffle<Shuffle::up>(tensors); }
TEST_KERNEL(shuffle_down) { return start_shuffle<Shuffle::down>(tensors); }

// settings: mask. out (32, 3): ballot, any and all, for the lanes in the mask.
__global__ void votes(const int32_t* settings, const int32_t* predicates, int32_t* out) {
    const unsigned mask = static_cast<unsigned>(settings[0]);
    const int lane = threadIdx.x;
    if (!(mask >> lane & 1)) return;
    out[3 * lane] = static_cast<int32_t>(__ballot_sync(mask, predicates[lane]));
    out[3 * lane + 1] = __any_sync(mask, predicates[lane]);
    out[3 * lane + 2] = __all_sync(mask, predicates[lane]);
}
TEST_KERNEL(votes) {
    launch("votes", votes, 1, kWarp, 0, elements<int32_t>(tensors[0]), elements<int32_t>(tensors[1]),
           elements<int32_t>(tensors[2]));
    return 0;
}

// rows (32, 8) of 16 bits; out (32, 4) words: row l is lane l's address.
template <bool transposed>
__global__ void load_matrices(const void* rows, uint32_t* out) {
    GPT2C_DYNAMIC_SHARED(shared);
    const int lane = threadIdx.x;
    store16(shared + 16 * lane, load16(static_cast<const char*>(rows) + 16 * lane));
    __syncwarp();
    uint32_t r[4];
    if (transposed)
        ldmatrix_x4_trans(r, shared + 16 * lane);
    else
        ldmatrix_x4(r, shared + 16 * lane);
    for (int i = 0; i < 4; ++i) out[4 * lane + i] = r[i];
}
TEST_KERNEL(ldmatrix_x4) {
    launch("ldmatrix_x4", load_matrices<false>, 1, kWarp, 512, tensors[0].data, elements<uint32_t>(tensors[1]));
    return 0;
}
TEST_KERNEL(ldmatrix_x4_trans) {
    launch("ldmatrix_x4_trans", load_matrices<true>, 1, kWarp, 512, tensors[0].data, elements<uint32_t>(tensors[1]));
    return 0;
}

// a (32, 4) and b (32, 2) words, d (32, 4) floats, each lane's fragments in a row; d is added to.
template <void multiply(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t, emulator::Site)>
__global__ void mma(const uint32_t* a, const uint32_t* b, float* d) {
    const int lane = threadIdx.x;
    float sums[4];
    uint32_t left[4];
    for (int i = 0; i < 4; ++i) sums[i] = d[4 * lane + i], left[i] = a[4 * lane + i];
    multiply(sums, left, b[2 * lane], b[2 * lane + 1], {__FILE__, __LINE__});
    for (int i = 0; i < 4; ++i) d[4 * lane + i] = sums[i];
}
template <class Kernel>
int64_t start_mma(Kernel kernel, const Buffer* t) {
    launch("mma", kernel, 1, kWarp, 0, elements<uint32_t>(t[0]), elements<uint32_t>(t[1]), elements<float>(t[2]));
    return 0;
}
TEST_KERNEL(mma_bf16) { return start_mma(mma<mma_bf16>, tensors); }
TEST_KERNEL(mma_f16) { return start_mma(mma<mma_f16>, tensors); }

}  // namespace
