// What lanes of a warp exchange: shuffles, votes, and the matrix fragments of the PTX ISA.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "internal.h"

namespace emulator {
namespace {

using Lanes = Fibre* const (&)[kLanes];

struct LdmatrixOperands {
    uint32_t* r;
    const void* row;
};

// a and b have 8 columns and rows, of two registers and one, for every step.
struct MmaOperands {
    float* d;
    const uint32_t *a, *b;
    unsigned steps;
    Half type;
};

// The lane whose value lane i receives (PTX ISA, shfl.sync; out of the segment means its own).
unsigned source_lane(const Request& request, unsigned i) {
    const int width = request.width, lane = static_cast<int>(i), first = lane & ~(width - 1), by = request.argument;
    int source = lane;
    if (request.kind == Exchange::shuffle) source = first | (by & (width - 1));
    if (request.kind == Exchange::shuffle_xor) source = lane ^ by;
    if (request.kind == Exchange::shuffle_down) source = lane + by;
    if (request.kind == Exchange::shuffle_up) source = lane - by;
    const bool outside = source >= first + width || (request.kind == Exchange::shuffle_up && source < first);
    return static_cast<unsigned>(outside ? lane : source);
}

void shuffle(Lanes lanes) {
    for (unsigned i = 0; i < kLanes; ++i) {
        if (!lanes[i]) continue;
        const unsigned source = source_lane(lanes[i]->request, i);
        if (!lanes[source])
            return fail("shuffle at %s: lane %u reads lane %u, which is not in the mask", lanes[i]->site.name().c_str(),
                        i, source);
        lanes[i]->result = lanes[source]->request.value;
    }
}

void vote(Lanes lanes) {
    uint64_t votes = 0;
    for (unsigned i = 0; i < kLanes; ++i)
        if (lanes[i] && lanes[i]->request.value) votes |= uint64_t{1} << i;
    for (Fibre* lane : lanes)
        if (lane) lane->result = votes;
}

LdmatrixOperands& ldmatrix_operands(Fibre* lane) { return *static_cast<LdmatrixOperands*>(lane->request.operands); }

void load_matrices(Lanes lanes, bool transposed) {
    for (unsigned m = 0; m < 4; ++m) {
        uint16_t matrix[8][8];
        for (unsigned row = 0; row < 8; ++row)
            std::memcpy(matrix[row], ldmatrix_operands(lanes[m * 8 + row]).row, sizeof matrix[row]);
        for (unsigned i = 0; i < kLanes; ++i) {
            const unsigned row = i / 4, column = i % 4 * 2;
            const uint32_t low = transposed ? matrix[column][row] : matrix[row][column];
            const uint32_t high = transposed ? matrix[column + 1][row] : matrix[row][column + 1];
            ldmatrix_operands(lanes[i]).r[m] = low | high << 16;
        }
    }
}

float half_of(uint32_t pair, unsigned which, Half type) {
    const auto bits = static_cast<uint16_t>(pair >> 16 * which);
    return type == Half::bf16 ? __bfloat162float(__nv_bfloat16_raw{bits}) : __half2float(__half_raw{bits});
}

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type", of which those of m16n8k8 are the first half:
// group = lane / 4, pair = lane % 4.
void multiply(Lanes lanes) {
    double a[16][16] = {}, b[16][8] = {}, product[16][8] = {};
    const auto operands = [&](unsigned i) -> MmaOperands& {
        return *static_cast<MmaOperands*>(lanes[i]->request.operands);
    };
    for (unsigned i = 0; i < kLanes; ++i) {
        const MmaOperands& own = operands(i);
        const unsigned group = i / 4, pair = i % 4;
        for (unsigned k = 0; k < 4 * own.steps; ++k)
            a[group + (k & 2 ? 8 : 0)][pair * 2 + (k & 1) + (k >= 4 ? 8 : 0)] = half_of(own.a[k / 2], k & 1, own.type);
        for (unsigned k = 0; k < 2 * own.steps; ++k)
            b[pair * 2 + (k & 1) + (k >= 2 ? 8 : 0)][group] = half_of(own.b[k / 2], k & 1, own.type);
    }
    for (unsigned row = 0; row < 16; ++row)
        for (unsigned k = 0; k < 8 * operands(0).steps; ++k)
            for (unsigned column = 0; column < 8; ++column) product[row][column] += a[row][k] * b[k][column];
    for (unsigned i = 0; i < kLanes; ++i)
        for (unsigned k = 0; k < 4; ++k) {
            float& d = operands(i).d[k];
            d = static_cast<float>(d + product[i / 4 + (k >= 2 ? 8 : 0)][i % 4 * 2 + (k & 1)]);
        }
}

}  // namespace

void complete_exchange(Lanes lanes) {
    const Fibre* first = nullptr;
    for (unsigned i = 0; i < kLanes && !first; ++i) first = lanes[i];
    switch (first->request.kind) {
        case Exchange::sync:
            // Only a barrier of all lanes is taken for an order of memory accesses.
            if (first->request.mask == 0xffffffffu) ++clock_.warp[first->warp()];
            break;
        case Exchange::ballot:
            return vote(lanes);
        case Exchange::ldmatrix:
        case Exchange::ldmatrix_trans:
            return load_matrices(lanes, first->request.kind == Exchange::ldmatrix_trans);
        case Exchange::mma:
            return multiply(lanes);
        default:
            return shuffle(lanes);
    }
}

__attribute__((noinline)) void ldmatrix_x4(uint32_t (&r)[4], const void* row, bool transposed, Site site) {
    check_shared16(row, "ldmatrix", site);
    check_access(row, 16, Access::read, __builtin_return_address(0));
    count_banks(row, 16, __builtin_return_address(0));
    LdmatrixOperands operands{r, row};
    warp_exchange({transposed ? Exchange::ldmatrix_trans : Exchange::ldmatrix, 0xffffffffu, 0, 0, 32, &operands}, site);
}

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Half type, Site site) {
    require(80, site);
    const uint32_t b[2] = {b0, b1};
    MmaOperands operands{d, a, b, 2, type};
    warp_exchange({Exchange::mma, 0xffffffffu, 0, 0, 32, &operands}, site);
}

void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, Site site) {
    const uint32_t a[2] = {a0, a1};
    MmaOperands operands{d, a, &b, 1, Half::f16};
    warp_exchange({Exchange::mma, 0xffffffffu, 0, 0, 32, &operands}, site);
}

}  // namespace emulator
