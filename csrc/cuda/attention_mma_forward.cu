#include "cuda/attention_launch.h"
#include "cuda/attention_mma.cuh"
#include "cuda/launch.cuh"

namespace gpt2c::cuda {
namespace {

// The online softmax of a warp's rows (Milakov & Gimelshein, 2018). Scores are unscaled here; scale_log2e > 0.
template <int M, int N>
struct RowSoftmax {
    float top[M][2], sum[M][2];

    __device__ __forceinline__ RowSoftmax() {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) top[m][half] = -INFINITY, sum[m][half] = 0.0f;
    }

    // Turns a row's scores into unnormalised probabilities, in place, and returns what the row's sums so far must be
    // multiplied by. `sum` is this lane's part. The difference is taken first, so that large scores lose nothing.
    __device__ __forceinline__ float update(int m, int half, float (&scores)[N / 8][4], float scale_log2e) {
        float now = top[m][half];
#pragma unroll
        for (int n = 0; n < N / 8; ++n) now = fmaxf(now, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        now = fmaxf(now, __shfl_xor_sync(kAllLanes, now, 1));
        now = fmaxf(now, __shfl_xor_sync(kAllLanes, now, 2));
        const float base = now == -INFINITY ? 0.0f : now;  // no key seen yet: any finite number will do
        const float rescale = exp2_approx((top[m][half] - base) * scale_log2e);
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < N / 8; ++n)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) {
                scores[n][e] = exp2_approx((scores[n][e] - base) * scale_log2e);
                total += scores[n][e];
            }
        top[m][half] = now;
        sum[m][half] = sum[m][half] * rescale + total;
        return rescale;
    }

    __device__ __forceinline__ float total(int m, int half) const {
        float all = sum[m][half];
        all += __shfl_xor_sync(kAllLanes, all, 1);
        return all + __shfl_xor_sync(kAllLanes, all, 2);
    }
};

// D = 64 or 128, M tiles of 16 queries per warp, tiles of kKeys keys.
template <class T, int D, int M, int kKeys, bool kDropout>
__global__ void __launch_bounds__(kMmaThreads, 1)
    attention_forward_mma(AttentionShape s, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> o,
                          double* lse, unsigned blocks) {
    if constexpr (kKeys == 64 || kDType<T> == DType::bf16) needs_sm80();  // see two_fit and suits_tensor_cores
    if constexpr (M == 2) s.starts = nullptr;                             // see attention_forward_mma
    constexpr int kQueries = 16 * M * kMmaWarps;
    constexpr bool held = M * D <= (kDropout ? 64 : 128);  // as registers allow
    GPT2C_DYNAMIC_SHARED(shared);
    const HalfTile<T, D> query_tile{reinterpret_cast<T*>(shared)};
    const auto key_tile = [&](int tile) {
        return HalfTile<T, D>{query_tile.data + (kQueries + tile % 2 * 2 * kKeys) * D};
    };
    const auto value_tile = [&](int tile) { return HalfTile<T, D>{key_tile(tile).data + kKeys * D}; };

    const Piece piece(s, blocks);
    const Mask mask(s, piece.b);
    const Dropout dropout(s, piece.head);
    const int columns = static_cast<int>(s.D), lane = threadIdx.x % kWarp;
    const int first_query = piece.index * kQueries, warp_row = static_cast<int>(threadIdx.x) / kWarp * 16 * M;
    const int warp_query = first_query + warp_row, lane_query = warp_query + lane / 4;
    const T *k_rows = k.row(piece.b, piece.h, 0), *v_rows = v.row(piece.b, piece.h, 0);
    const auto copy_keys = [&](int tile) {
        copy_tile<kKeys>(key_tile(tile), k_rows, k.strides.t, tile * kKeys, mask.Tk, columns);
        copy_tile<kKeys>(value_tile(tile), v_rows, v.strides.t, tile * kKeys, mask.Tk, columns);
        cp_async_commit();
    };

    const int start = mask.first_key(first_query) / kKeys;
    const int stop = (mask.end_key(first_query + kQueries - 1) + kKeys - 1) / kKeys;
    const int all_from = mask.first_key(warp_query + 16 * M - 1);  // what comes before, not all queries of the warp see
    if (start < stop) {
        copy_tile<kQueries>(query_tile, q.row(piece.b, piece.h, 0), q.strides.t, first_query, mask.Tq, columns);
        copy_keys(start);
    }
    OwnRows<T, D, M, held> queries(query_tile, warp_row);
    RowSoftmax<M, kKeys> softmax;
    Fragments<M, D> acc = {};
    for (int tile = start; tile < stop; ++tile) {
        cp_async_wait<0>();
        __syncthreads();  // this tile is there, and the one before it has been read
        if (tile + 1 < stop) copy_keys(tile + 1);
        if (tile == start) queries.hold();

        Fragments<M, kKeys> scores;
        multiply<kKeys>(queries, key_tile(tile), scores);
        const int lane_key = tile * kKeys + 2 * (lane % 4), last_key = tile * kKeys + kKeys - 1;
        if (!mask.sees(warp_query, last_key) || tile * kKeys < all_from) {
#pragma unroll
            for (int m = 0; m < M; ++m) {
                const int query = lane_query + 16 * m;
                const int first_keys[2] = {mask.first_key(query), mask.first_key(query + 8)};
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int key = lane_key + 8 * n + e % 2;
                        if (!mask.sees(query + e / 2 * 8, key) || key < first_keys[e / 2]) scores[m][n][e] = -INFINITY;
                    }
            }
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float rescale = softmax.update(m, half, scores[m], s.scale * kLog2E);
#pragma unroll
                for (int n = 0; n < D / 8; ++n) acc[m][n][2 * half] *= rescale, acc[m][n][2 * half + 1] *= rescale;
            }
            if constexpr (kDropout) {
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) {
                    float kept[4];
                    dropout_factors<false>(dropout, lane_query + 16 * m, lane_key + 8 * n, kept);
#pragma unroll
                    for (int e = 0; e < 4; ++e) scores[m][n][e] *= kept[e];
                }
            }
        }
        accumulate<kKeys>(scores, value_tile(tile), acc);
    }

    float inverse[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int query = lane_query + 16 * m + 8 * half;
            const float total = softmax.total(m, half);
            inverse[m][half] = total == 0.0f ? 0.0f : 1.0f / total;
            if (lane % 4 == 0 && query < mask.Tq)
                lse[int64_t{piece.head} * s.Tq + query] =
                    static_cast<double>(softmax.top[m][half]) * static_cast<double>(s.scale) + double{logf(total)};
        }
    store_rows(acc, inverse, query_tile, warp_row, o.row(piece.b, piece.h, 0), o.strides.t, first_query, mask.Tq,
               columns);
}

template <class T, int D, int M, int kKeys>
constexpr size_t kSharedBytes = (16 * M * kMmaWarps + 4 * kKeys) * D * sizeof(T);

template <class T, int D, int M, int kKeys, bool kDropout>
void start(const AttentionForward& a) {
    static_assert(kKeys == 64 || kSharedBytes<T, D, M, kKeys> <= kLeastSharedBytes, "small tiles fit on every GPU");
    const AttentionShape& s = a.shape;
    const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(s.Tq, 16 * M * kMmaWarps));
    launch("attention_forward_mma", attention_forward_mma<T, D, M, kKeys, kDropout>, grid_of(s.B * s.H * blocks),
           kMmaThreads, kSharedBytes<T, D, M, kKeys>, s, heads<const T>(a.q, a.q_strides),
           heads<const T>(a.k, a.k_strides), heads<const T>(a.v, a.v_strides), heads<T>(a.o, a.o_strides), a.lse,
           blocks);
}

template <class T, int D, int M, bool kDropout>
void start_fitting(const AttentionForward& a) {
    if constexpr (kSmallTiles<T, D>)
        if (!two_fit(kSharedBytes<T, D, M, 64>)) return start<T, D, M, 32, kDropout>(a);
    start<T, D, M, 64, kDropout>(a);
}

}  // namespace

void attention_forward_mma(const AttentionForward& a) {
    const bool small = a.shape.D <= 64, dropout = a.shape.seed != nullptr, documents = a.shape.starts != nullptr;
    // Two row tiles a warp take every register. They know no documents: so sm_100 and sm_120 spill nothing, where they
    // spilled 28 and 12 bytes, and without documents a tile costs there 852 and 961 instructions instead of 920 and
    // 999, as before there were documents. These take one row tile: 165 to 179 registers.
    dispatch_among<bf16, f16>(a.shape.dtype, [&](auto t) {
        using T = decltype(t);
        if (small)
            dropout     ? start_fitting<T, 64, 1, true>(a)
            : documents ? start_fitting<T, 64, 1, false>(a)
                        : start_fitting<T, 64, 2, false>(a);
        else
            dropout ? start_fitting<T, 128, 1, true>(a) : start_fitting<T, 128, 1, false>(a);
    });
}

}  // namespace gpt2c::cuda
