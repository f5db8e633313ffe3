// Every kernel's prototype and contract, the same for each backend.
//
// Common to all:
//  * Pointers are to elements of `dtype` unless typed otherwise. Python has checked shapes, dtypes and devices
//    (gpt2c/ops/<op>.py) and has allocated every output; kernels trust that and allocate no tensor.
//  * Tensors are contiguous unless strides are given; strides count elements, and the last dimension's is 1.
//  * No alignment beyond the element's own is needed. Outputs do not overlap inputs unless said so.
//  * dtypes are fp32 and bf16, and on CUDA fp16, whose results beyond 65504 are inf as IEEE has it.
//  * Arithmetic and every accumulation are fp32 (sums over rows of losses and of squares: fp64).
//  * Each result is a function of the inputs alone: work is cut into pieces by the sizes, never by `threads`,
//    and pieces are added up in a fixed order.
//  * Sizes may be zero; an output that is a sum is then zero.
//  * `threads` is the largest number of CPU threads to use; CUDA ignores it.
//  * "Moves" gives the bytes that a call must read and write of the GPU's memory, s being sizeof(dtype); small terms
//    are left out. CUDA kernels move that much where rows are 16-byte aligned, and 16 bytes at a time.
//  * `workspace` is memory for CUDA kernels to use as they like, at least as large as said, 16-byte aligned; the CPU
//    keeps its own and ignores it. CUDA kernels neither allocate nor wait: they are queued on launch_stream()
//    (cuda/launch.cuh), and tensors must live until they have run. Lists of addresses and of sizes are the host's.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace gpt2c {

// Strides of a (B, H, T, D) tensor whose last dimension is dense.
struct Strides {
    int64_t b, h, t;
};

// What forward and backward of attention share. Query i sees key j iff not causal or j <= i + Tk - Tq, and, where
// starts are given, j >= starts[b, i]. Hidden keys and values must be finite: a probability of 0 times a nan is a nan.
// CUDA counts in 32 bits: Tq and Tk are below 2^31 - 128 and B H ceil(T / 16) below 2^31, as what fits into memory is.
struct AttentionShape {
    DType dtype;
    int64_t B, H, Tq, Tk, D;  // D <= 256
    bool causal;
    float scale;  // scores are scale * q.k
    // Dropout, off where seed is null: the probability at (b, h, i, j) is multiplied by keep_scale if
    // philox(seed[0]; counter i, j / 4, b * H + h, 0)[j % 4] >= drop_below, else by 0 (philox.h).
    const int64_t* seed;
    uint32_t drop_below;
    float keep_scale;
    // The first key that each query sees, (B, T), never falling within a row, 0 <= starts[b, t] <= t; only with causal
    // and Tq = Tk = T: documents packed in a row. Null: 0 for all. What no query of a tile sees is not computed.
    const int64_t* starts;
};

// ---- layernorm: y = (h - mean) * rstd * weight + bias over rows of C, h = x + residual (or x, where null).
// x, residual, h, y (N, C); weight, bias (C); mean, rstd (N) fp32. h is written only where residual is given.
// Moves 2 s N C; with residual 4 s N C. (CUDA: rows of more than 12288 columns are read up to three times.)
using layernorm_forward_t = void(DType dtype, const void* x, const void* residual, const void* weight, const void* bias,
                                 void* h, void* y, float* mean, float* rstd, int64_t N, int64_t C, float eps,
                                 int threads);
// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dh, where g = dy * weight, xhat = (h - mean) * rstd.
// dh (N, C) is what flows into h from elsewhere, or null. dweight, dbias (C).
// Moves 3 s N C, with dh 4 s N C, and twice 8 C min(N / 4, 512) of partial sums. (CUDA: dy and h are read twice in rows
// of more than 512 vectors of 16 bytes.)
// workspace: 2 C min(N, 512) floats.
using layernorm_backward_t = void(DType dtype, const void* dy, const void* dh, const void* h, const void* weight,
                                  const float* mean, const float* rstd, void* dx, void* dweight, void* dbias, int64_t N,
                                  int64_t C, void* workspace, int threads);

// ---- gelu: y = gelu(x + bias) on (N, C); bias (C) or null; exact: the erf form, else GPT-2's tanh form.
// Moves 2 s N C.
using gelu_forward_t = void(DType dtype, const void* x, const void* bias, void* y, int64_t N, int64_t C, bool exact,
                            int threads);
// dx = dy * gelu'(x + bias); dbias (C) = column sums of dx, null iff bias is. workspace, null iff bias is:
// C min(N, 512) floats. Moves 3 s N C, with bias twice 4 C min(N / 4, 512) more.
using gelu_backward_t = void(DType dtype, const void* dy, const void* x, const void* bias, void* dx, void* dbias,
                             int64_t N, int64_t C, bool exact, void* workspace, int threads);

// ---- attention: o = dropout(softmax(scale * q k^T)) v, without the (Tq, Tk) matrix. lse (B, H, Tq) fp64 is each
// row's logsumexp of the scores: in fp64, since in fp32 large scores would swallow the logarithm and the backward
// could not rebuild the probabilities. A row that sees no key has o = 0, lse = -inf and zero gradient.
// workspace: (D + 4) B H ceil(Tk / 128) floats if Tq = 1, else none.
// CUDA: 4 B H Tq Tk D flops, half if causal. Bytes at least, of e to an element: e B H D (2 Tq + 2 Tk) + 8 B H Tq, that
// is q, o and lse once, and k and v once if they stay in the cache between the blocks of queries; 8 B H (D + 4)
// ceil(Tk / 128) more for the workspace if Tq = 1 and Tk > 128.
// In 16 bits with D a multiple of 8 up to 128, rows on 16 bytes and scale > 0, CUDA takes tensor cores (for bf16 from
// sm_80 on). Probabilities, relative to the largest of their row so far, are then rounded to the dtype before they meet
// v: those below 3e-8 are 0 in fp16.
using attention_forward_t = void(const AttentionShape& s, const void* q, const void* k, const void* v, void* o,
                                 double* lse, Strides q_strides, Strides k_strides, Strides v_strides,
                                 Strides o_strides, void* workspace, int threads);
// workspace: 4 B H Tq floats.
// CUDA gives dq a kernel and dk with dv another, so that none needs atomics: 14 B H Tq Tk D flops, half if causal, of
// which 4 are scores and do v^T a second time. Bytes at least, with k, v, q and do in the cache between blocks:
// e B H D (7 Tq + 6 Tk) + 56 B H Tq, the latter for lse and the workspace, written once and read twice.
// On tensor cores p and ds = p (do v^T - do . o) are rounded to the dtype before their products. So in fp16 gradients
// are inf or nan where do v^T - do . o exceeds 65504, and lose a ds below 3e-8: the loss must be scaled to lie between.
using attention_backward_t = void(const AttentionShape& s, const void* do_, const void* q, const void* k, const void* v,
                                  const void* o, const double* lse, void* dq, void* dk, void* dv, Strides do_strides,
                                  Strides q_strides, Strides k_strides, Strides v_strides, Strides o_strides,
                                  Strides dq_strides, Strides dk_strides, Strides dv_strides, void* workspace,
                                  int threads);

// ---- cross_entropy: rows of logits (N, V), `stride` >= V elements apart; targets (N).
// The number of targets that are not ignore_index; or -1 - n for the first n whose target is not in [0, V) either.
// CUDA has none, since its answer would have to be waited for: there a torch operation counts on the device and
// asserts that targets are in range (gpt2c/_native.py), and kernels take a target out of range for an ignored one.
using cross_entropy_count_t = int64_t(const int64_t* targets, int64_t N, int64_t V, int64_t ignore_index);
// lse (N) fp64 = logsumexp of each row; total[0] += sum over rows not ignored of lse - logits[target].
// Moves s N V, at any stride and alignment.
using cross_entropy_forward_t = void(DType dtype, const void* logits, const int64_t* targets, double* lse,
                                     double* total, int64_t N, int64_t V, int64_t stride, int64_t ignore_index,
                                     int threads);
// dlogits = (softmax(logits) - onehot(target)) * dloss[0] / count, zero where ignored and in columns V .. stride.
// dlogits has logits' stride and may be logits itself. Moves s N (V + stride); 16 bytes at a time at any stride where
// logits and dlogits are as far from a multiple of 16 bytes as one another.
using cross_entropy_backward_t = void(DType dtype, const float* dloss, const void* logits, const int64_t* targets,
                                      const double* lse, void* dlogits, int64_t N, int64_t V, int64_t stride,
                                      int64_t ignore_index, int64_t count, int threads);

// ---- embedding: x[b, t] = wte[idx[b, t]] + wpe[positions[b, t]]; idx, positions (B, T), wte (V, C), wpe (P, C).
// positions: all in [0, P), or null, for start + t in [0, P).
// Returns the index of the first token whose id is not in [0, V), or -1; when there is one nothing is written. CUDA
// does not wait to know it and always returns -1: a torch operation asserts the range on the device (gpt2c/_native.py),
// and a row of x whose id is out of range becomes nan. Moves 2 s B T C, and wpe's rows once.
using embedding_forward_t = int64_t(DType dtype, const int64_t* idx, const void* wte, const void* wpe, void* x,
                                    int64_t B, int64_t T, int64_t C, int64_t V, int64_t start, const int64_t* positions,
                                    int threads);
// Adds to dwte (V, C), and fills dwpe (P, C), both fp32: rows are added in the order of tokens (CUDA, for dwte and
// with positions: 32 at a time to four sums in turn, which are added in order, and then to what is there). Returns as
// the forward does. order (B T): the tokens, stably sorted by id; position_order (B T): the same by position, null
// without positions; only CUDA needs them. Moves 2 s B T C + 4 P C, 8 C more for each id that occurs and 4 C for each
// of T positions.
using embedding_backward_t = int64_t(DType dtype, const int64_t* idx, const int64_t* order, const void* dx, float* dwte,
                                     float* dwpe, int64_t B, int64_t T, int64_t C, int64_t V, int64_t P, int64_t start,
                                     const int64_t* positions, const int64_t* position_order, int threads);

// ---- adamw: one pass over lists of `n_tensors` tensors of sizes[i] elements, updating params (dtype), m and v (fp32)
// in place:  g = grad_scale * grad;  m += (1 - beta1)(g - m);  v += (1 - beta2)(g^2 - v);
// param = param * (1 - lr * weight_decay) - lr / bias1 * m / (sqrt(v / bias2) + eps), bias_i = 1 - beta_i^step.
// Constants are combined in fp64: 1 - beta2 taken in fp32 would be off by 1e-5 of itself at 0.999.
// grad_scale: one float, where the tensors are, so that nobody waits for a norm to clip by; null: 1. If it is inf or
// nan nothing is changed.
// masters: fp32 tensors that are updated in place of 16-bit params, which receive them rounded; null: none.
// seed: where not null (bf16 without masters), params are rounded up or down at random, so that on average nothing is
// lost: with the 16 random bits r of element i of tensor n, the fp32 result becomes the upper half of (its bits + r);
// r is half-word i % 8, low halves first, of philox(seed[0]; counter (i / 8) % 2^32, i / 8 / 2^32, n, 0) (philox.h).
// CUDA: one launch for every 64 tensors, however large: a flat buffer is one launch. It moves for each element
// 3 sizeof(dtype) + 16 bytes, with masters 2 sizeof(dtype) + 24.
using adamw_t = void(DType dtype, void* const* params, const void* const* grads, void* const* m, void* const* v,
                     void* const* masters, const int64_t* sizes, int64_t n_tensors, double lr, double beta1,
                     double beta2, double eps, double weight_decay, double bias1, double bias2, const float* grad_scale,
                     const int64_t* seed, int threads);

// ---- grad_norm: norm (1) fp32 = sqrt(sum of squares of all elements of all tensors); squares and runs of
// 1024 of them are summed in fp32, the runs in fp64.
// Moves s bytes for each element. CUDA: one launch for every 64 tensors, and one more.
// workspace: sum over tensors of ceil(size / 16384) doubles.
using grad_norm_t = void(DType dtype, const void* const* grads, const int64_t* sizes, int64_t n_tensors, float* norm,
                         void* workspace, int threads);

// ---- matmul: c = a b + bias, or c += a b. a (M, K) and b (K, N) with any strides, of which one of each is 1; bias (N)
// or null, and null with accumulate; c (M, N) fp32, rows c_stride apart, no part of a or b. 2 M N K flops.
// A row of c is a function of its row of a and of b alone. CUDA has none: there torch calls cuBLAS.
using matmul_t = void(DType dtype, const void* a, const void* b, const void* bias, float* c, int64_t M, int64_t N,
                      int64_t K, int64_t a_stride_m, int64_t a_stride_k, int64_t b_stride_k, int64_t b_stride_n,
                      int64_t c_stride, bool accumulate, int threads);

// ---- decode: the logits (B, V) of one more token of each of B rows, at positions[b] of the model's context, with the
// keys and values of those before it in the row's caches, where its own are put. Reads every weight once, whatever B.
// Returns the first row whose id is not in [0, V), or -1; when there is one nothing is written.
// weights: the matrices' type, f32, bf16 or i8; everything else is fp32. ids, positions, capacities (B).
// matrices: of each layer (L) attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj, and then the head; in f32 (in, out) as in
// GPT-2, otherwise (out, in); the head is (V, C) in either case.
// scales: for i8 a list like matrices of factors (out) for what a row gives; otherwise empty.
// vectors: wte (V, C), wpe; of each layer ln_1.weight, .bias, c_attn.bias, attn.c_proj.bias, ln_2.weight, .bias,
// c_fc.bias, mlp.c_proj.bias; then ln_f.weight, .bias.
// caches: of each row, of each layer keys and values (H, capacities[b], D), D = C / H; positions[b] < capacities[b].
// The CPU's alone: CUDA has none.
using decode_t = int64_t(DType weights, const int64_t* ids, const int64_t* positions, const int64_t* capacities,
                         const void* const* matrices, const float* const* scales, const float* const* vectors,
                         float* const* caches, float* logits, int64_t B, int64_t L, int64_t C, int64_t H, int64_t V,
                         float eps, int threads);

// ---- checksum: 64 bits of the bytes, by which gpt2c/decode.py knows whether a packed copy is still that of the
// weights. The CPU's alone: CUDA has none.
using checksum_t = int64_t(const void* data, int64_t bytes, int threads);

#define GPT2C_KERNELS(X)      \
    X(layernorm_forward)      \
    X(layernorm_backward)     \
    X(gelu_forward)           \
    X(gelu_backward)          \
    X(attention_forward)      \
    X(attention_backward)     \
    X(cross_entropy_count)    \
    X(cross_entropy_forward)  \
    X(cross_entropy_backward) \
    X(embedding_forward)      \
    X(embedding_backward)     \
    X(decode)                 \
    X(checksum)               \
    X(adamw)                  \
    X(grad_norm)              \
    X(matmul)

// One backend: a pointer to each kernel.
struct Kernels {
#define GPT2C_MEMBER(name) name##_t* name;
    GPT2C_KERNELS(GPT2C_MEMBER)
#undef GPT2C_MEMBER
};

}  // namespace gpt2c
