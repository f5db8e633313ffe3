// Fused attention: online softmax forward (Milakov & Gimelshein 2018; Dao et al., FlashAttention, 2022, algorithm 1),
// recomputation backward (Dao, FlashAttention-2, 2023, section 3.1, algorithm 2).
//
// A block of queries meets the keys block by block. Scores are kept transposed, one row per key and one lane per
// query, so that maximum, exponential and sum of the softmax are vertical operations without any shuffle, and keys
// and values are read where they lie, element by element, as the broadcast side of the products.
#include "attention_block.h"

namespace gpt2c::GPT2C_ISA {
namespace {

// The running softmax of one block of queries.
struct Softmax {
    float top[kQueries], sum[kQueries], rescale[kQueries];
};

// Turns scores into unnormalised probabilities in place and updates the running maximum and sum. `rescale` is what
// the sums so far must be multiplied by, now that the maximum has grown.
void online_softmax(const Block& block, float* scores, Softmax& softmax, const Dropout& dropout) {
    for (int64_t col = 0; col < block.query_vecs(); ++col) {
        block.mask(col, scores);
        float* s = scores + col * W;
        const int64_t first = block.first_key_of_vec(col), end = block.end_key_of_vec(col);
        const vf old_top = load(softmax.top + col * W);
        vf top = old_top;
        for (int64_t j = first; j < end; ++j) top = max(top, load(s + j * kQueries));
        const vf base = top > -__builtin_inff() ? top : vf{};  // no key seen yet: any finite number will do
        vf total{};
        for (int64_t j = first; j < end; ++j) {
            const vf p = exp(load(s + j * kQueries) - base);
            total += p;
            store(s + j * kQueries, p);
        }
        const vf rescale = exp(old_top - base);
        store(softmax.sum + col * W, load(softmax.sum + col * W) * rescale + total);
        store(softmax.top + col * W, top);
        store(softmax.rescale + col * W, rescale);
        dropout.apply(block, col, s);
    }
}

void rescale_rows(const Block& block, const float* rescale, float* acc, int64_t Dp) {
    for (int64_t i = 0; i < block.queries; ++i) {
        if (rescale[i] == 1.0f) continue;
        for (int64_t d = 0; d < Dp; d += W) store(acc + i * Dp + d, load(acc + i * Dp + d) * rescale[i]);
    }
}

template <class T>
void forward_block(const AttentionShape& s, const T* q, const T* k, const T* v, T* o, double* lse, int64_t q_stride,
                   int64_t k_stride, int64_t v_stride, int64_t o_stride, int64_t first_query, int64_t head) {
    const int64_t D = s.D, Dp = round_up(D, W);
    Arena arena(Slot::task, 3 * kQueries * Dp + 2 * kKeys * Dp + kKeys * kQueries);
    float* rows = arena.take(kQueries * Dp);
    float* queries = arena.take(kQueries * Dp);  // transposed and scaled: (D, kQueries)
    float* acc = arena.take(kQueries * Dp);
    float* scores = arena.take(kKeys * kQueries);
    float* key_pack = arena.take(kKeys * Dp);
    float* value_pack = arena.take(kKeys * Dp);
    const Dropout dropout(s, head);

    Block block(s, head / s.H, first_query);
    pack_rows(q + first_query * q_stride, q_stride, block.queries, kQueries, D, rows);
    transpose(rows, Dp, D, s.scale, queries);
    Softmax softmax;
    for (int64_t i = 0; i < kQueries; ++i) softmax.top[i] = -__builtin_inff(), softmax.sum[i] = 0;
    for (int64_t i = 0; i < kQueries * Dp; ++i) acc[i] = 0;

    while (block.next_keys()) {
        const Rows keys = rows_of(k + block.first_key * k_stride, k_stride, block.keys, D, key_pack);
        const Rows values = rows_of(v + block.first_key * v_stride, v_stride, block.keys, D, value_pack);
        scores_of(block, keys, queries, D, scores);
        online_softmax(block, scores, softmax, dropout);
        rescale_rows(block, softmax.rescale, acc, Dp);
        for (int64_t i = 0; i < block.queries; i += kTileRows) {
            const int64_t j = block.first_key_of(i), end = block.end_key_of(i + kTileRows - 1);
            multiply<true>(kTileRows, Dp / W, end - j, DenseM<kQueries>{scores + j * kQueries + i},
                           values.data + j * values.stride, values.stride, acc + i * Dp, Dp);
        }
    }
    for (int64_t i = 0; i < block.queries; ++i) {
        const float sum = softmax.sum[i], inverse = sum > 0 ? 1.0f / sum : 0.0f;  // of nan, acc is nan, too
        T* out = o + (first_query + i) * o_stride;
        for_lanes(D, [&](int64_t d, auto lanes) { lanes.put(out + d, lanes.get(acc + i * Dp + d) * inverse); });
        lse[first_query + i] = softmax.top[i] + __builtin_log(static_cast<double>(sum));
    }
}

// What the backward keeps for one block of queries.
struct QueryBlock {
    float *q, *do_;                 // (kQueries, Dp), padded with zeros
    float *q_columns, *do_columns;  // (D, kQueries); q_columns scaled
    float *p, *ds;                  // (kKeys, kQueries)
    float* dq;                      // (kQueries, Dp)
    float lse_high[kQueries], lse_low[kQueries], delta[kQueries];

    QueryBlock(Arena& arena, int64_t Dp)
        : q(arena.take(kQueries * Dp)),
          do_(arena.take(kQueries * Dp)),
          q_columns(arena.take(kQueries * Dp)),
          do_columns(arena.take(kQueries * Dp)),
          p(arena.take(kKeys * kQueries)),
          ds(arena.take(kKeys * kQueries)),
          dq(arena.take(kQueries * Dp)) {}

    // q, do_, o and lse start at the block's first query. delta = rowsum(do * o).
    template <class T>
    void load_queries(const Block& block, const T* q_, int64_t q_stride, const T* do__, int64_t do_stride, const T* o,
                      int64_t o_stride, const double* lse, int64_t D, float scale) {
        const int64_t Dp = round_up(D, W);
        pack_rows(q_, q_stride, block.queries, kQueries, D, q);
        pack_rows(do__, do_stride, block.queries, kQueries, D, do_);
        transpose(q, Dp, D, scale, q_columns);
        transpose(do_, Dp, D, 1.0f, do_columns);
        for (int64_t i = 0; i < kQueries * Dp; ++i) dq[i] = 0;
        for (int64_t i = 0; i < kQueries; ++i) {
            // Rows that see no key, and the padding: exp(score - inf) makes their probabilities 0.
            const bool empty = i >= block.queries || lse[i] == -__builtin_inf();
            lse_high[i] = empty ? __builtin_inff() : static_cast<float>(lse[i]);
            lse_low[i] = empty ? 0 : static_cast<float>(lse[i] - lse_high[i]);
            vf total{};
            if (!empty)
                for_lanes(D, [&](int64_t d, auto lanes) {
                    total += lanes.get(o + i * o_stride + d) * lanes.get(do_ + i * Dp + d);
                });
            delta[i] = sum(total);
        }
    }

    // p holds scores and ds holds do v^T: turns them into the (dropped out) probabilities and dscores / scale.
    void softmax_backward(const Block& block, const Dropout& dropout) {
        for (int64_t col = 0; col < block.query_vecs(); ++col) {
            block.mask(col, p);
            const int64_t first = block.first_key_of_vec(col), end = block.end_key_of_vec(col), c = col * W;
            const vf high = load(lse_high + c), low = load(lse_low + c), delta_ = load(delta + c);
            for (int64_t j = first; j < end; ++j) {
                float* score = p + j * kQueries + c;
                store(score, exp(load(score) - high - low));
            }
            // ds = p * (dropout(dp) - delta): the factors go into dp first, into p only after.
            dropout.apply(block, col, ds + c);
            for (int64_t j = first; j < end; ++j) {
                float* dp = ds + j * kQueries + c;
                store(dp, load(p + j * kQueries + c) * (load(dp) - delta_));
            }
            for (int64_t j = 0; j < first; ++j) store(ds + j * kQueries + c, vf{});
            for (int64_t j = end > first ? end : first; j < block.keys; ++j) store(ds + j * kQueries + c, vf{});
            dropout.apply(block, col, p + c);
        }
    }

    // dv += p do, dk += ds q (both from the block's first key on), dq += ds k.
    void accumulate(const Block& block, Rows keys, float* dk, float* dv, int64_t Dp) {
        for (int64_t j = 0; j < block.keys; j += kTileRows) {
            const int64_t left = block.keys - j, M = left < kTileRows ? left : kTileRows;
            const int64_t i = block.first_query_of(j), seen = block.end_query_of(j + M - 1) - i;
            multiply<true>(M, Dp / W, seen, DenseK{p + j * kQueries + i, kQueries}, do_ + i * Dp, Dp, dv + j * Dp, Dp);
            multiply<true>(M, Dp / W, seen, DenseK{ds + j * kQueries + i, kQueries}, q + i * Dp, Dp, dk + j * Dp, Dp);
        }
        for (int64_t i = 0; i < block.queries; i += kTileRows) {
            const int64_t j = block.first_key_of(i), end = block.end_key_of(i + kTileRows - 1);
            multiply<true>(kTileRows, Dp / W, end - j, DenseM<kQueries>{ds + j * kQueries + i},
                           keys.data + j * keys.stride, keys.stride, dq + i * Dp, Dp);
        }
    }
};

template <class T>
void store_rows(const float* rows, int64_t Dp, int64_t count, int64_t D, float scale, T* out, int64_t stride) {
    for (int64_t i = 0; i < count; ++i)
        for_lanes(
            D, [&](int64_t d, auto lanes) { lanes.put(out + i * stride + d, lanes.get(rows + i * Dp + d) * scale); });
}

// One head, queries in the outer loop: dq is finished block by block, dk and dv add up in fp32 over all of them.
template <class T>
void backward_head(const AttentionShape& s, const T* do_, const T* q, const T* k, const T* v, const T* o,
                   const double* lse, T* dq, T* dk, T* dv, int64_t do_stride, int64_t q_stride, int64_t k_stride,
                   int64_t v_stride, int64_t o_stride, int64_t dq_stride, int64_t dk_stride, int64_t dv_stride,
                   int64_t head) {
    const int64_t D = s.D, Dp = round_up(D, W), rows = s.Tk;
    Arena arena(Slot::task, 2 * rows * Dp + 2 * kKeys * Dp + 5 * kQueries * Dp + 2 * kKeys * kQueries);
    float* dk_sum = arena.take(rows * Dp);
    float* dv_sum = arena.take(rows * Dp);
    float* key_pack = arena.take(kKeys * Dp);
    float* value_pack = arena.take(kKeys * Dp);
    for (int64_t i = 0; i < rows * Dp; ++i) dk_sum[i] = dv_sum[i] = 0;
    QueryBlock queries(arena, Dp);
    const Dropout dropout(s, head);

    for (int64_t first = 0; first < s.Tq; first += kQueries) {
        Block block(s, head / s.H, first);
        queries.load_queries(block, q + first * q_stride, q_stride, do_ + first * do_stride, do_stride,
                             o + first * o_stride, o_stride, lse + first, D, s.scale);
        while (block.next_keys()) {
            const int64_t j = block.first_key;
            const Rows keys = rows_of(k + j * k_stride, k_stride, block.keys, D, key_pack);
            const Rows values = rows_of(v + j * v_stride, v_stride, block.keys, D, value_pack);
            scores_of(block, keys, queries.q_columns, D, queries.p);
            scores_of(block, values, queries.do_columns, D, queries.ds);
            queries.softmax_backward(block, dropout);
            queries.accumulate(block, keys, dk_sum + j * Dp, dv_sum + j * Dp, Dp);
        }
        store_rows(queries.dq, Dp, block.queries, D, s.scale, dq + first * dq_stride, dq_stride);
    }
    store_rows(dk_sum, Dp, s.Tk, D, s.scale, dk, dk_stride);
    store_rows(dv_sum, Dp, s.Tk, D, 1.0f, dv, dv_stride);
}

}  // namespace

void attention_forward(const AttentionShape& s, const void* q, const void* k, const void* v, void* o, double* lse,
                       Strides q_strides, Strides k_strides, Strides v_strides, Strides o_strides, void*, int threads) {
    const int64_t blocks = (s.Tq + kQueries - 1) / kQueries;
    dispatch(s.dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(s.B * s.H * blocks, threads, [&](int64_t task) {
            const int64_t head = task / blocks, b = head / s.H, h = head % s.H;
            const int64_t block = blocks - 1 - task % blocks;  // the last one, which sees most keys, first
            forward_block(s, at<T>(q, q_strides, b, h), at<T>(k, k_strides, b, h), at<T>(v, v_strides, b, h),
                          at<T>(o, o_strides, b, h), lse + head * s.Tq, q_strides.t, k_strides.t, v_strides.t,
                          o_strides.t, block * kQueries, head);
        });
    });
}

// A task is a whole head: dk and dv then need neither atomics nor a second pass.
void attention_backward(const AttentionShape& s, const void* do_, const void* q, const void* k, const void* v,
                        const void* o, const double* lse, void* dq, void* dk, void* dv, Strides do_strides,
                        Strides q_strides, Strides k_strides, Strides v_strides, Strides o_strides, Strides dq_strides,
                        Strides dk_strides, Strides dv_strides, void*, int threads) {
    dispatch(s.dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(s.B * s.H, threads, [&](int64_t head) {
            const int64_t b = head / s.H, h = head % s.H;
            backward_head(s, at<T>(do_, do_strides, b, h), at<T>(q, q_strides, b, h), at<T>(k, k_strides, b, h),
                          at<T>(v, v_strides, b, h), at<T>(o, o_strides, b, h), lse + head * s.Tq,
                          at<T>(dq, dq_strides, b, h), at<T>(dk, dk_strides, b, h), at<T>(dv, dv_strides, b, h),
                          do_strides.t, q_strides.t, k_strides.t, v_strides.t, o_strides.t, dq_strides.t, dk_strides.t,
                          dv_strides.t, head);
        });
    });
}

}  // namespace gpt2c::GPT2C_ISA
