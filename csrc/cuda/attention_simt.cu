#include "cuda/attention_launch.h"
#include "cuda/attention_simt.cuh"
#include "cuda/launch.cuh"

namespace gpt2c::cuda {
namespace {

template <class Tiling>
struct RowSoftmax {
    float top[Tiling::RM], sum[Tiling::RM];

    __device__ RowSoftmax() {
#pragma unroll
        for (int i = 0; i < Tiling::RM; ++i) top[i] = -INFINITY, sum[i] = 0.0f;
    }

    // Turns row i's scores into unnormalised probabilities and returns what the sums so far must be multiplied by.
    // `sum` is this thread's part: only the maximum is exchanged here.
    __device__ float update(int i, float (&scores)[Tiling::RN]) {
        float now = top[i];
#pragma unroll
        for (int j = 0; j < Tiling::RN; ++j) now = fmaxf(now, scores[j]);
#pragma unroll
        for (int step = Tiling::TX / 2; step > 0; step /= 2) now = fmaxf(now, __shfl_xor_sync(kAllLanes, now, step));
        const float base = now == -INFINITY ? 0.0f : now;  // no key seen yet: any finite number will do
        const float rescale = exp2_approx((top[i] - base) * kLog2E);
        top[i] = now;
        sum[i] *= rescale;
#pragma unroll
        for (int j = 0; j < Tiling::RN; ++j) {
            scores[j] = exp2_approx((scores[j] - base) * kLog2E);
            sum[i] += scores[j];
        }
        return rescale;
    }

    __device__ float total(int i) const {
        float all = sum[i];
#pragma unroll
        for (int step = Tiling::TX / 2; step > 0; step /= 2) all += __shfl_xor_sync(kAllLanes, all, step);
        return all;
    }
};

template <class T, int DP>
__global__ void __launch_bounds__(ForwardTiling<DP>::kThreads, 1)
    attention_forward_simt(AttentionShape s, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> o,
                           double* lse, unsigned blocks, bool aligned) {
    using Tiling = ForwardTiling<DP>;
    GPT2C_DYNAMIC_SHARED(shared);
    const Tile<DP, Tiling::RM> queries{reinterpret_cast<float*>(shared)};
    const Tile<DP, Tiling::RN> keys{queries.data + Tiling::kOwn * DP}, values = keys;
    const Factors<Tiling> factors{keys.data + Tiling::kOther * DP};

    const Piece piece(s, blocks);
    const Mask mask(s, piece.b);
    const Dropout dropout(s, piece.head);
    const int tx = threadIdx.x % Tiling::TX, ty = threadIdx.x / Tiling::TX;
    const int D = static_cast<int>(s.D), chunks = (D + 3) / 4;
    const int first_query = piece.index * Tiling::kOwn;
    const T *k_rows = k.row(piece.b, piece.h, 0), *v_rows = v.row(piece.b, piece.h, 0);

    load_tile<Tiling::kOwn, Tiling>(queries, q.row(piece.b, piece.h, 0), q.strides.t, first_query, mask.Tq, D, aligned);
    RowSoftmax<Tiling> softmax;
    Accumulator<Tiling> acc = {};
    int first_keys[Tiling::RM];
#pragma unroll
    for (int i = 0; i < Tiling::RM; ++i) first_keys[i] = mask.first_key(first_query + ty * Tiling::RM + i);
    const int start = mask.first_key(first_query) / Tiling::kOther * Tiling::kOther;
    const int end_key = mask.end_key(first_query + Tiling::kOwn - 1);
    for (int first_key = start; first_key < end_key; first_key += Tiling::kOther) {
        __syncthreads();  // the values of the previous tile have been read
        load_tile<Tiling::kOther, Tiling>(keys, k_rows, k.strides.t, first_key, mask.Tk, D, aligned);
        __syncthreads();
        float scores[Tiling::RM][Tiling::RN];
        multiply<Tiling>(queries, keys, tx, ty, chunks, scores);
#pragma unroll
        for (int i = 0; i < Tiling::RM; ++i) {
            const int query = first_query + ty * Tiling::RM + i, key = first_key + tx * Tiling::RN;
#pragma unroll
            for (int j = 0; j < Tiling::RN; ++j)
                scores[i][j] =
                    mask.sees(query, key + j) && key + j >= first_keys[i] ? scores[i][j] * s.scale : -INFINITY;
            const float rescale = softmax.update(i, scores[i]);
#pragma unroll
            for (int c = 0; c < Tiling::kColumns; ++c)
                acc[i][c].x *= rescale, acc[i][c].y *= rescale, acc[i][c].z *= rescale, acc[i][c].w *= rescale;
            if (dropout.on()) {
                float kept[Tiling::RN];
                dropout.factors(query, key, kept);
#pragma unroll
                for (int j = 0; j < Tiling::RN; ++j) scores[i][j] *= kept[j];
            }
            factors.put(tx, ty, i, scores[i]);
        }
        __syncthreads();  // the keys have been read
        load_tile<Tiling::kOther, Tiling>(values, v_rows, v.strides.t, first_key, mask.Tk, D, aligned);
        __syncthreads();
        accumulate<Tiling>(factors, values, tx, ty, chunks, acc);
    }

    float inverse[Tiling::RM];
#pragma unroll
    for (int i = 0; i < Tiling::RM; ++i) {
        const int query = first_query + ty * Tiling::RM + i;
        const float total = softmax.total(i);
        inverse[i] = total == 0.0f ? 0.0f : 1.0f / total;
        if (tx == 0 && query < mask.Tq) lse[int64_t{piece.head} * s.Tq + query] = softmax.top[i] + double{logf(total)};
    }
    store_rows<Tiling>(acc, inverse, o.row(piece.b, piece.h, 0), o.strides.t, first_query, mask.Tq, tx, ty, D, aligned);
}

// As many lanes take a row as it has 16-byte vectors.
template <class T, int DP>
struct StatsRows {
    static constexpr int V = kVector<T>, kLanes = DP / V < kWarp ? DP / V : kWarp;
    static constexpr int kThreads = 128, kCount = kThreads / kLanes;
};

template <class T, int DP>
__global__ void __launch_bounds__(StatsRows<T, DP>::kThreads)
    attention_stats(AttentionShape s, Heads<const T> do_, Heads<const T> o, const double* lse, RowStats* stats,
                    unsigned blocks, bool aligned) {
    using Rows = StatsRows<T, DP>;
    constexpr int V = Rows::V, kLanes = Rows::kLanes;
    const Piece piece(s, blocks);
    const int lane = threadIdx.x % kLanes, D = static_cast<int>(s.D);
    const int64_t query = int64_t{piece.index} * Rows::kCount + threadIdx.x / kLanes;
    const bool exists = query < s.Tq;
    const T *x = do_.row(piece.b, piece.h, query), *y = o.row(piece.b, piece.h, query);
    float sum = 0.0f;
#pragma unroll
    for (int d = V * lane; d < DP; d += V * kLanes) {
        const int count = exists ? D - d : 0;
        const Floats<V> v = load_some<V>(x + d, count, aligned), w = load_some<V>(y + d, count, aligned);
#pragma unroll
        for (int i = 0; i < V; ++i) sum += v[i] * w[i];
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (lane != 0 || !exists) return;
    const int64_t row = int64_t{piece.head} * s.Tq + query;
    const double exact = lse[row];
    const bool empty = exact == -INFINITY;
    const float high = static_cast<float>(exact);
    stats[row] = {empty ? INFINITY : high, empty ? 0.0f : static_cast<float>(exact - double{high}), sum,
                  Mask(s, piece.b).first_key(static_cast<int>(query))};
}

// One kernel for both sides of the backward, which are mirror images:
//   kKeys: own rows are keys:     own = k, own_up = v;   other = q, other_up = do;  d_own = dk, d_own_up = dv
//   else:  own rows are queries:  own = q, own_up = do;  other = k, other_up = v;   d_own = dq
// p = softmax, dp = do v^T, ds = p * (dropout(dp) - delta):  d_own = scale * ds other,  d_own_up = dropout(p) other_up.
template <class T, int DP, bool kKeys>
__global__ void __launch_bounds__(BackwardTiling<DP>::kThreads, 1)
    attention_backward_simt(AttentionShape s, Heads<const T> own, Heads<const T> own_up, Heads<const T> other,
                            Heads<const T> other_up, const RowStats* stats, Heads<T> d_own, Heads<T> d_own_up,
                            unsigned blocks, bool aligned) {
    using Tiling = BackwardTiling<DP>;
    constexpr int RM = Tiling::RM, RN = Tiling::RN;
    GPT2C_DYNAMIC_SHARED(shared);
    const Tile<DP, RM> own_tile{reinterpret_cast<float*>(shared)}, own_up_tile{own_tile.data + Tiling::kOwn * DP};
    const Tile<DP, RN> other_tile{own_up_tile.data + Tiling::kOwn * DP};
    const Tile<DP, RN> other_up_tile{other_tile.data + Tiling::kOther * DP};
    const Factors<Tiling> ds_factors{other_up_tile.data + Tiling::kOther * DP};
    const Factors<Tiling> p_factors{ds_factors.data + Tiling::kOwn * Tiling::kOther};

    const Piece piece(s, blocks);
    const Mask mask(s, piece.b);
    const Dropout dropout(s, piece.head);
    const int b = piece.b, h = piece.h;
    const int tx = threadIdx.x % Tiling::TX, ty = threadIdx.x / Tiling::TX;
    const int D = static_cast<int>(s.D), chunks = (D + 3) / 4;
    const int own_end = kKeys ? mask.Tk : mask.Tq;
    const int first_own = piece.index * Tiling::kOwn, my_own = first_own + ty * RM;
    stats += int64_t{piece.head} * s.Tq;

    load_tile<Tiling::kOwn, Tiling>(own_tile, own.row(b, h, 0), own.strides.t, first_own, own_end, D, aligned);
    load_tile<Tiling::kOwn, Tiling>(own_up_tile, own_up.row(b, h, 0), own_up.strides.t, first_own, own_end, D, aligned);
    Accumulator<Tiling> acc = {}, acc_up = {};

    const int last_own = first_own + Tiling::kOwn - 1;
    const int other_end = kKeys ? mask.end_query(last_own) : mask.end_key(last_own);
    const int start =
        (kKeys ? mask.first_query(first_own) : mask.first_key(first_own)) / Tiling::kOther * Tiling::kOther;
    for (int first_other = start; first_other < other_end; first_other += Tiling::kOther) {
        __syncthreads();  // the previous tiles have been read
        load_tile<Tiling::kOther, Tiling>(other_tile, other.row(b, h, 0), other.strides.t, first_other,
                                          kKeys ? mask.Tq : mask.Tk, D, aligned);
        load_tile<Tiling::kOther, Tiling>(other_up_tile, other_up.row(b, h, 0), other_up.strides.t, first_other,
                                          kKeys ? mask.Tq : mask.Tk, D, aligned);
        __syncthreads();
        float p[RM][RN], ds[RM][RN];
        multiply<Tiling>(own_tile, other_tile, tx, ty, chunks, p);
        multiply<Tiling>(own_up_tile, other_up_tile, tx, ty, chunks, ds);

        // Queries in the outer loop: a query's keys share the random words of dropout.
        constexpr int kQueries = kKeys ? RN : RM, kKeysEach = kKeys ? RM : RN;
        const int my_other = first_other + tx * RN;
        const int first_query = kKeys ? my_other : my_own, first_key = kKeys ? my_own : my_other;
#pragma unroll
        for (int i = 0; i < kQueries; ++i) {
            const int query = first_query + i;
            const bool exists = query < mask.Tq;
            const RowStats row = exists ? stats[query] : RowStats{INFINITY, 0, 0, 0};
            float kept[kKeysEach];
            dropout.factors(query, first_key, kept);
#pragma unroll
            for (int j = 0; j < kKeysEach; ++j) {
                float &score = kKeys ? p[j][i] : p[i][j], &dp = kKeys ? ds[j][i] : ds[i][j];
                const bool seen = mask.sees(query, first_key + j) && first_key + j >= row.first_key;
                const float prob = seen ? row.probability(score * s.scale) : 0.0f;
                dp = prob * (dp * kept[j] - row.delta);
                score = prob * kept[j];
            }
        }
#pragma unroll
        for (int i = 0; i < RM; ++i) {
            ds_factors.put(tx, ty, i, ds[i]);
            if (kKeys) p_factors.put(tx, ty, i, p[i]);
        }
        __syncwarp();
        accumulate<Tiling>(ds_factors, other_tile, tx, ty, chunks, acc);
        if (kKeys) accumulate<Tiling>(p_factors, other_up_tile, tx, ty, chunks, acc_up);
    }

    float scale[RM], one[RM];
#pragma unroll
    for (int i = 0; i < RM; ++i) scale[i] = s.scale, one[i] = 1.0f;
    store_rows<Tiling>(acc, scale, d_own.row(b, h, 0), d_own.strides.t, first_own, own_end, tx, ty, D, aligned);
    if (kKeys)
        store_rows<Tiling>(acc_up, one, d_own_up.row(b, h, 0), d_own_up.strides.t, first_own, own_end, tx, ty, D,
                           aligned);
}

template <class Tiling, int kOwnTiles, int kOtherTiles, int kFactors>
constexpr size_t shared_bytes() {
    constexpr int kFloats = (kOwnTiles * Tiling::kOwn + kOtherTiles * Tiling::kOther) * Tiling::DP +
                            kFactors * Tiling::kOwn * Tiling::kOther;
    static_assert(kFloats * sizeof(float) <= kLeastSharedBytes, "fits on every GPU");
    return kFloats * sizeof(float);
}

}  // namespace

void attention_forward_simt(const AttentionForward& a) {
    const AttentionShape& s = a.shape;
    dispatch(s.dtype, [&](auto t) {
        using T = decltype(t);
        with_head_dim(s.D, [&](auto dp) {
            using Tiling = ForwardTiling<dp>;
            const unsigned blocks = static_cast<unsigned>((s.Tq + Tiling::kOwn - 1) / Tiling::kOwn);
            const bool aligned = a.aligned(sizeof(T), 16);
            launch("attention_forward_simt", attention_forward_simt<T, dp>, grid_of(s.B * s.H * blocks),
                   Tiling::kThreads, shared_bytes<Tiling, 1, 1, 1>(), s, heads<const T>(a.q, a.q_strides),
                   heads<const T>(a.k, a.k_strides), heads<const T>(a.v, a.v_strides), heads<T>(a.o, a.o_strides),
                   a.lse, blocks, aligned);
        });
    });
}

void attention_stats(const AttentionBackward& a, RowStats* stats) {
    const AttentionShape& s = a.shape;
    dispatch(s.dtype, [&](auto t) {
        using T = decltype(t);
        const bool aligned =
            rows_aligned(a.do_, a.do_strides, sizeof(T), 16) && rows_aligned(a.o, a.o_strides, sizeof(T), 16);
        with_head_dim(s.D, [&](auto dp) {
            using Rows = StatsRows<T, dp>;
            const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(s.Tq, Rows::kCount));
            launch("attention_stats", attention_stats<T, dp>, grid_of(s.B * s.H * blocks), Rows::kThreads, 0, s,
                   heads<const T>(a.do_, a.do_strides), heads<const T>(a.o, a.o_strides), a.lse, stats, blocks,
                   aligned);
        });
    });
}

template <bool kKeys, class T, int DP>
static void backward_side(const AttentionBackward& a, const RowStats* stats, bool aligned) {
    using Tiling = BackwardTiling<DP>;
    const AttentionShape& s = a.shape;
    const Heads<const T> q = heads<const T>(a.q, a.q_strides), k = heads<const T>(a.k, a.k_strides);
    const Heads<const T> v = heads<const T>(a.v, a.v_strides), do_ = heads<const T>(a.do_, a.do_strides);
    const int64_t rows = kKeys ? s.Tk : s.Tq;
    const unsigned blocks = static_cast<unsigned>((rows + Tiling::kOwn - 1) / Tiling::kOwn);
    launch(kKeys ? "attention_backward_keys_simt" : "attention_backward_queries_simt",
           attention_backward_simt<T, DP, kKeys>, grid_of(s.B * s.H * blocks), Tiling::kThreads,
           shared_bytes<Tiling, 2, 2, kKeys ? 2 : 1>(), s, kKeys ? k : q, kKeys ? v : do_, kKeys ? q : k,
           kKeys ? do_ : v, stats, kKeys ? heads<T>(a.dk, a.dk_strides) : heads<T>(a.dq, a.dq_strides),
           heads<T>(a.dv, a.dv_strides), blocks, aligned);
}

void attention_backward_simt(const AttentionBackward& a, const RowStats* stats) {
    dispatch(a.shape.dtype, [&](auto t) {
        using T = decltype(t);
        with_head_dim(a.shape.D, [&](auto dp) {
            const bool aligned = a.aligned(sizeof(T), 16);
            if (a.shape.Tq > 0) backward_side<false, T, dp>(a, stats, aligned);
            if (a.shape.Tk > 0) backward_side<true, T, dp>(a, stats, aligned);
        });
    });
}

}  // namespace gpt2c::cuda
