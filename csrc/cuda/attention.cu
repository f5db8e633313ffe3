// Attention's entry points: which kernels compute it.
#include "cuda/attention_launch.h"
#include "cuda/cuda.h"

namespace gpt2c::cuda {
namespace {

// Tensor cores take 16-bit rows of whole 16-byte chunks, and before sm_80 (mma_bf16 in ptx.cuh) only fp16; the softmax
// of these kernels wants a positive scale.
bool suits_tensor_cores(const AttentionShape& s, bool aligned) {
    return s.dtype != DType::f32 && s.D <= 128 && s.D % 8 == 0 && s.scale > 0 && aligned &&
           (s.dtype == DType::f16 || device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8);
}

}  // namespace

void attention_forward(const AttentionShape& s, const void* q, const void* k, const void* v, void* o, double* lse,
                       Strides q_strides, Strides k_strides, Strides v_strides, Strides o_strides, void* workspace,
                       int) {
    if (s.B * s.H * s.Tq == 0) return;
    const AttentionForward a{s, q, k, v, o, lse, q_strides, k_strides, v_strides, o_strides};
    if (s.Tq == 1)
        attention_decode(a, static_cast<float*>(workspace));
    else if (suits_tensor_cores(s, a.aligned(2, 16)))
        attention_forward_mma(a);
    else
        attention_forward_simt(a);
}

void attention_backward(const AttentionShape& s, const void* do_, const void* q, const void* k, const void* v,
                        const void* o, const double* lse, void* dq, void* dk, void* dv, Strides do_strides,
                        Strides q_strides, Strides k_strides, Strides v_strides, Strides o_strides, Strides dq_strides,
                        Strides dk_strides, Strides dv_strides, void* workspace, int) {
    if (s.B * s.H == 0) return;
    const AttentionBackward a{s,         do_,       q,         k,          v,          o,
                              lse,       dq,        dk,        dv,         do_strides, q_strides,
                              k_strides, v_strides, o_strides, dq_strides, dk_strides, dv_strides};
    RowStats* stats = static_cast<RowStats*>(workspace);
    if (s.Tq > 0) attention_stats(a, stats);
    if (suits_tensor_cores(s, a.aligned(2, 16)))
        attention_backward_mma(a, stats);
    else
        attention_backward_simt(a, stats);
}

}  // namespace gpt2c::cuda
