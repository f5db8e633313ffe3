// Column sums over rows, in an order that depends on the number of rows alone: rows are cut into pieces, each piece
// adds its own rows into a partial row of its own, and the partial rows are added up in order.
#pragma once

#include "isa.h"

namespace gpt2c::GPT2C_ISA {

struct Pieces {
    int64_t rows;   // in each piece, the last may have fewer
    int64_t count;  // 32 at most: enough for the cores of a desktop, few enough for the partial rows to be cheap

    explicit Pieces(int64_t N) {
        rows = (N + 31) / 32;
        if (rows < 16) rows = 16;
        count = (N + rows - 1) / rows;
    }
};

// out[c] = sum of partials[p * C + c] over p < count, for c < C.
template <class T>
static void add_pieces(const float* partials, int64_t count, int64_t stride, T* out, int64_t C) {
    for_lanes(C, [&](int64_t c, auto lanes) {
        vf total{};
        for (int64_t p = 0; p < count; ++p) total += lanes.get(partials + p * stride + c);
        lanes.put(out + c, total);
    });
}

}  // namespace gpt2c::GPT2C_ISA
