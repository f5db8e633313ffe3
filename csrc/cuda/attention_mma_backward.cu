#include "cuda/attention_launch.h"
#include "cuda/attention_mma.cuh"
#include "cuda/launch.cuh"

namespace gpt2c::cuda {
namespace {

constexpr int kOwn = 16 * kMmaWarps;

// One kernel for both sides of the backward, which are mirror images, as in attention_simt.cu:
//   kKeys: own rows are keys:     own = k, own_up = v;   other = q, other_up = do;  d_own = dk, d_own_up = dv
//   else:  own rows are queries:  own = q, own_up = do;  other = k, other_up = v;   d_own = dq
// p = softmax, dp = do v^T, ds = p * (dropout(dp) - delta):  d_own = scale * ds other,  d_own_up = dropout(p) other_up.
// Scores and ds are never exchanged between threads: transposed for keys, they lie as their products need them.
// D = 64 or 128; the other side comes in tiles of N rows.
template <class T, int D, int N, bool kKeys, bool kDropout>
__global__ void __launch_bounds__(kMmaThreads, D == 64 ? 3 : 2)
    attention_backward_mma(AttentionShape s, Heads<const T> own, Heads<const T> own_up, Heads<const T> other,
                           Heads<const T> other_up, const RowStats* stats, Heads<T> d_own, Heads<T> d_own_up,
                           unsigned blocks) {
    if constexpr (N == 32 || kDType<T> == DType::bf16) needs_sm80();  // see two_fit and suits_tensor_cores
    constexpr bool held = D == 64 && !kKeys;
    GPT2C_DYNAMIC_SHARED(shared);
    const HalfTile<T, D> own_tile{reinterpret_cast<T*>(shared)}, own_up_tile{own_tile.data + kOwn * D};
    const auto other_tile = [&](int tile) { return HalfTile<T, D>{own_up_tile.data + (kOwn + tile % 2 * 2 * N) * D}; };
    const auto other_up_tile = [&](int tile) { return HalfTile<T, D>{other_tile(tile).data + N * D}; };
    // Of a tile of queries, if those stream past.
    const auto tile_stats = [&](int tile) {
        return reinterpret_cast<RowStats*>(own_up_tile.data + (kOwn + 4 * N) * D) + tile % 2 * N;
    };

    const Piece piece(s, blocks);
    const Mask mask(s, piece.b);
    const Dropout dropout(s, piece.head);
    const int b = piece.b, h = piece.h, columns = static_cast<int>(s.D), lane = threadIdx.x % kWarp;
    const int own_end = kKeys ? mask.Tk : mask.Tq, other_end = kKeys ? mask.Tq : mask.Tk;
    const int first_own = piece.index * kOwn, warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
    const int warp_own = first_own + warp_row, lane_own = warp_own + lane / 4;
    stats += int64_t{piece.head} * s.Tq;
    const T *other_rows = other.row(b, h, 0), *other_up_rows = other_up.row(b, h, 0);
    const auto copy_other = [&](int tile) {
        copy_tile<N>(other_tile(tile), other_rows, other.strides.t, tile * N, other_end, columns);
        copy_tile<N>(other_up_tile(tile), other_up_rows, other_up.strides.t, tile * N, other_end, columns);
        if (kKeys && threadIdx.x < N) {
            const int query = tile * N + static_cast<int>(threadIdx.x);
            cp_async16(tile_stats(tile) + threadIdx.x, stats + (query < mask.Tq ? query : 0), query < mask.Tq);
        }
        cp_async_commit();
    };

    const int start = (kKeys ? mask.first_query(first_own) : mask.first_key(first_own)) / N;
    const int last_own = first_own + kOwn - 1;
    const int stop = ((kKeys ? mask.end_query(last_own) : mask.end_key(last_own)) + N - 1) / N;
    if (start < stop) {
        copy_tile<kOwn>(own_tile, own.row(b, h, 0), own.strides.t, first_own, own_end, columns);
        copy_tile<kOwn>(own_up_tile, own_up.row(b, h, 0), own_up.strides.t, first_own, own_end, columns);
        copy_other(start);
    }
    RowStats own_stats[2];
    if constexpr (!kKeys) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int query = lane_own + 8 * half;
            own_stats[half] = query < mask.Tq ? stats[query] : RowStats{INFINITY, 0.0f, 0.0f, 0};
        }
    }
    const int warp_from = kKeys ? 0 : mask.first_key(warp_own + 15);  // what comes before, not all its queries see
    OwnRows<T, D, 1, held> own_rows(own_tile, warp_row), own_up_rows(own_up_tile, warp_row);
    Fragments<1, D> acc = {}, acc_up = {};
    for (int tile = start; tile < stop; ++tile) {
        cp_async_wait<0>();
        __syncthreads();  // this tile is there, and the one before it has been read
        if (tile + 1 < stop) copy_other(tile + 1);
        if (tile == start) own_rows.hold(), own_up_rows.hold();

        Fragments<1, N> p, ds;
        multiply<N>(own_rows, other_tile(tile), p);
        multiply<N>(own_up_rows, other_up_tile(tile), ds);
        const int first_other = tile * N, lane_other = first_other + 2 * (lane % 4);
        bool masked;
        if constexpr (kKeys) {
            const int last_query = min(N, mask.Tq - first_other) - 1;
            masked = !mask.sees(first_other, warp_own + 15) || tile_stats(tile)[last_query].first_key > warp_own;
        } else {
            masked = !mask.sees(warp_own, first_other + N - 1) || first_other < warp_from;
        }
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
            float kept[4] = {1.0f, 1.0f, 1.0f, 1.0f};
            if constexpr (kDropout) dropout_factors<kKeys>(dropout, lane_own, lane_other + 8 * n, kept);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                RowStats row;
                if constexpr (kKeys)
                    row = tile_stats(tile)[8 * n + 2 * (lane % 4) + e % 2];
                else
                    row = own_stats[e / 2];
                const int own_index = lane_own + e / 2 * 8, other_index = lane_other + 8 * n + e % 2;
                const int query = kKeys ? other_index : own_index, key = kKeys ? own_index : other_index;
                float prob = row.probability(p[0][n][e] * s.scale);
                if (masked && (!mask.sees(query, key) || key < row.first_key)) prob = 0.0f;
                p[0][n][e] = prob * kept[e];
                ds[0][n][e] = prob * (ds[0][n][e] * kept[e] - row.delta);
            }
        }
        accumulate<N>(ds, other_tile(tile), acc);
        if constexpr (kKeys) accumulate<N>(p, other_up_tile(tile), acc_up);
    }

    const float scale[1][2] = {{s.scale, s.scale}}, one[1][2] = {{1.0f, 1.0f}};
    store_rows(acc, scale, own_tile, warp_row, d_own.row(b, h, 0), d_own.strides.t, first_own, own_end, columns);
    if constexpr (kKeys)
        store_rows(acc_up, one, own_up_tile, warp_row, d_own_up.row(b, h, 0), d_own_up.strides.t, first_own, own_end,
                   columns);
}

template <class T, int D, int N, bool kKeys>
constexpr size_t kSharedBytes = (2 * kOwn + 4 * N) * D * sizeof(T) + (kKeys ? 2 * N * sizeof(RowStats) : 0);

template <class T, int D, int N, bool kKeys, bool kDropout>
void start(const AttentionBackward& a, const RowStats* stats) {
    static_assert(N == 32 || kSharedBytes<T, D, N, kKeys> <= kLeastSharedBytes, "small tiles fit on every GPU");
    const AttentionShape& s = a.shape;
    const Heads<const T> q = heads<const T>(a.q, a.q_strides), k = heads<const T>(a.k, a.k_strides);
    const Heads<const T> v = heads<const T>(a.v, a.v_strides), do_ = heads<const T>(a.do_, a.do_strides);
    const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(kKeys ? s.Tk : s.Tq, kOwn));
    launch(kKeys ? "attention_backward_keys_mma" : "attention_backward_queries_mma",
           attention_backward_mma<T, D, N, kKeys, kDropout>, grid_of(s.B * s.H * blocks), kMmaThreads,
           kSharedBytes<T, D, N, kKeys>, s, kKeys ? k : q, kKeys ? v : do_, kKeys ? q : k, kKeys ? do_ : v, stats,
           kKeys ? heads<T>(a.dk, a.dk_strides) : heads<T>(a.dq, a.dq_strides), heads<T>(a.dv, a.dv_strides), blocks);
}

template <class T, int D, bool kDropout>
void start_both(const AttentionBackward& a, const RowStats* stats) {
    if constexpr (kSmallTiles<T, D>)
        if (!two_fit(kSharedBytes<T, D, 32, true>)) {
            start<T, D, 16, false, kDropout>(a, stats);
            start<T, D, 16, true, kDropout>(a, stats);
            return;
        }
    start<T, D, 32, false, kDropout>(a, stats);
    start<T, D, 32, true, kDropout>(a, stats);
}

}  // namespace

void attention_backward_mma(const AttentionBackward& a, const RowStats* stats) {
    const bool small = a.shape.D <= 64, dropout = a.shape.seed != nullptr;
    dispatch_among<bf16, f16>(a.shape.dtype, [&](auto t) {
        using T = decltype(t);
        if (small)
            dropout ? start_both<T, 64, true>(a, stats) : start_both<T, 64, false>(a, stats);
        else
            dropout ? start_both<T, 128, true>(a, stats) : start_both<T, 128, false>(a, stats);
    });
}

}  // namespace gpt2c::cuda
