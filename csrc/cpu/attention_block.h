// What attention's forward and backward share: a block of queries meeting a block of keys.
#pragma once

#include "isa.h"
#include "philox.h"
#include "tile.h"

namespace gpt2c::GPT2C_ISA {

// Block sizes, the same on every ISA. 48 queries are whole tiles of three vectors for W = 16 and 8, and with 64 keys
// the transposed scores (12 KB) share a 32 KB cache with the transposed queries of D = 64.
constexpr int64_t kQueries = 48, kKeys = 64;
static_assert(kQueries % W == 0 && kQueries % kTileRows == 0, "blocks are whole vectors and tiles");

// Hands out pieces of one scratch buffer.
class Arena {
 public:
    Arena(Slot slot, int64_t floats) : next_(scratch(slot, floats + kMaxPieces * 16)) {}
    float* take(int64_t floats) {
        float* piece = next_;
        next_ += round_up(floats, 16);  // pieces start on cache lines
        return piece;
    }

 private:
    static constexpr int64_t kMaxPieces = 16;
    float* next_;
};

template <class T>
GPT2C_INLINE const T* at(const void* p, Strides s, int64_t b, int64_t h) {
    return static_cast<const T*>(p) + b * s.b + h * s.h;
}

template <class T>
GPT2C_INLINE T* at(void* p, Strides s, int64_t b, int64_t h) {
    return static_cast<T*>(p) + b * s.b + h * s.h;
}

// Where the mask lets the block's queries look, and the walk over the keys.
struct Block {
    int64_t first_query, queries;     // queries of this block, at most kQueries
    int64_t first_key = 0, keys = 0;  // keys of the present block, at most kKeys
    int64_t end_key;                  // no query of this block sees this key or a later one
    int64_t offset;                   // query i sees keys up to i + offset
    const int64_t* starts;            // the first key that each of the block's queries sees, or null: 0
    bool causal;

    Block(const AttentionShape& s, int64_t b, int64_t first) : first_query(first) {
        queries = s.Tq - first < kQueries ? s.Tq - first : kQueries;
        causal = s.causal;
        offset = s.Tk - s.Tq;
        end_key = causal && first + queries + offset < s.Tk ? first + queries + offset : s.Tk;
        starts = s.starts ? s.starts + b * s.Tq + first : nullptr;
        if (starts) first_key = starts[0] / 4 * 4;  // dropout draws for four keys at a time
    }

    bool next_keys() {
        first_key += keys;
        keys = end_key - first_key < kKeys ? end_key - first_key : kKeys;
        return keys > 0;
    }

    int64_t query_vecs() const { return (queries + W - 1) / W; }

    // The present keys that the block's i-th query sees: from the one to before the other. Both grow with i.
    int64_t first_key_of(int64_t i) const {
        if (!starts) return 0;
        const int64_t hidden = starts[i < queries ? i : queries - 1] - first_key;
        return hidden < 0 ? 0 : hidden < keys ? hidden : keys;
    }
    int64_t end_key_of(int64_t i) const {
        if (!causal) return keys;
        const int64_t seen = first_query + i + offset + 1 - first_key;
        return seen < 0 ? 0 : seen < keys ? seen : keys;
    }
    // The same of a vector of queries: what any of them sees.
    int64_t first_key_of_vec(int64_t col) const { return first_key_of(col * W); }
    int64_t end_key_of_vec(int64_t col) const { return end_key_of(col * W + W - 1); }

    // The block's queries that see the present block's j-th key: from the one to before the other.
    int64_t first_query_of(int64_t j) const {
        if (!causal) return 0;
        const int64_t i = first_key + j - offset - first_query;
        return i < 0 ? 0 : i < queries ? i : queries;
    }
    int64_t end_query_of(int64_t j) const {
        int64_t end = queries;
        if (starts)
            while (end > 0 && starts[end - 1] > first_key + j) --end;
        return end;
    }

    // Sets the scores that the mask hides to -inf, in the rows of a column that some of its queries see, or to 0, in
    // those before and after, of which scores_of has not written all.
    void mask(int64_t col, float* scores) const {
        float* s = scores + col * W;
        const int64_t first = first_key_of_vec(col), end = end_key_of_vec(col);
        const int64_t all_from = first_key_of(col * W + W - 1), all_to = end_key_of(col * W);
        for (int64_t j = first; j < (all_from < end ? all_from : end); ++j)
            for (int64_t lane = 0; lane < W; ++lane)
                if (j < first_key_of(col * W + lane)) s[j * kQueries + lane] = -__builtin_inff();
        for (int64_t j = all_to > first ? all_to : first; j < end; ++j)
            for (int64_t lane = 0; lane < W; ++lane)
                if (j >= end_key_of(col * W + lane)) s[j * kQueries + lane] = -__builtin_inff();
        for (int64_t j = 0; j < first; ++j) store(s + j * kQueries, vf{});
        for (int64_t j = end > first ? end : first; j < keys; ++j) store(s + j * kQueries, vf{});
    }
};

// Rows of D in fp32, `stride` apart, readable up to the next multiple of W.
struct Rows {
    const float* data;
    int64_t stride;
};

// Copies `count` rows into `out`, padded with zeros to `rows` rows of round_up(D, W).
template <class T>
static void pack_rows(const T* x, int64_t stride, int64_t count, int64_t rows, int64_t D, float* out) {
    const int64_t Dp = round_up(D, W);
    for (int64_t i = 0; i < rows; ++i) {
        float* row = out + i * Dp;
        if (i < count)
            for_lanes(D, [&](int64_t d, auto lanes) { store(row + d, lanes.get(x + i * stride + d)); });
        else
            for (int64_t d = 0; d < Dp; d += W) store(row + d, vf{});
    }
}

// fp32 rows of whole vectors are used where they lie; others are packed first.
template <class T>
static Rows rows_of(const T* x, int64_t stride, int64_t count, int64_t D, float* pack) {
    pack_rows(x, stride, count, count, D, pack);
    return {pack, round_up(D, W)};
}
static inline Rows rows_of(const float* x, int64_t stride, int64_t count, int64_t D, float* pack) {
    if (D % W == 0) return {x, stride};
    return rows_of<float>(x, stride, count, D, pack);
}

// out (D, kQueries) = scale * rows (kQueries, Dp) transposed.
static inline void transpose(const float* rows, int64_t Dp, int64_t D, float scale, float* out) {
    for (int64_t i = 0; i < kQueries; i += W)
        for (int64_t d = 0; d < D; ++d) {
            vf column;
            for (int64_t lane = 0; lane < W; ++lane) column[lane] = rows[(i + lane) * Dp + d];
            store(out + d * kQueries + i, column * scale);
        }
}

// out (keys, kQueries) = rows (keys, D) times columns (D, kQueries), where the mask lets anything be seen.
static inline void scores_of(const Block& block, Rows rows, const float* columns, int64_t D, float* out) {
    for (int64_t j = 0; j < block.keys; j += kTileRows) {
        const int64_t left = block.keys - j, M = left < kTileRows ? left : kTileRows;
        const int64_t col = block.first_query_of(j) / W * W, end = block.end_query_of(j + M - 1);
        multiply<false>(M, (end + W - 1) / W - col / W, D, DenseK{rows.data + j * rows.stride, rows.stride},
                        columns + col, kQueries, out + j * kQueries + col, kQueries);
    }
}

// The dropout mask of one head: a function of seed and position alone.
class Dropout {
 public:
    Dropout(const AttentionShape& s, int64_t head)
        : on_(s.seed != nullptr),
          seed_(on_ ? static_cast<uint64_t>(*s.seed) : 0),
          head_(static_cast<uint32_t>(head)),
          drop_below_(s.drop_below),
          keep_scale_(s.keep_scale) {}

    // Multiplies what the column that starts at a sees by 0 or keep_scale.
    void apply(const Block& block, int64_t col, float* a) const {
        if (!on_) return;
        const int64_t end = block.end_key_of_vec(col);
        for (int64_t j = block.first_key_of_vec(col) / 4 * 4; j < end; j += 4) {
            vu words[4];
            draw(block, col, j, words);
            for (int64_t r = 0; r < 4 && j + r < end; ++r) {
                const vf factor = words[r] >= drop_below_ ? broadcast(keep_scale_) : vf{};
                store(a + (j + r) * kQueries, load(a + (j + r) * kQueries) * factor);
            }
        }
    }

 private:
    void draw(const Block& block, int64_t col, int64_t j, vu words[4]) const {
        uint32_t queries[W];
        for (int64_t lane = 0; lane < W; ++lane)
            queries[lane] = static_cast<uint32_t>(block.first_query + col * W + lane);
        __builtin_memcpy(&words[0], queries, sizeof queries);
        words[1] = vu{} + static_cast<uint32_t>((block.first_key + j) / 4);
        words[2] = vu{} + head_;
        words[3] = vu{};
        philox(seed_, words, [](vu a, uint32_t b) {
            return __builtin_convertvector((__builtin_convertvector(a, vul) * static_cast<uint64_t>(b)) >> 32, vu);
        });
    }

    bool on_;
    uint64_t seed_;
    uint32_t head_, drop_below_;
    float keep_scale_;
};

}  // namespace gpt2c::GPT2C_ISA
