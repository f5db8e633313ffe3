// Attention's entry points: which kernels compute it.
#include "cuda/attention_launch.h"

namespace gpt2c::cuda {

void attention_forward(const AttentionShape& s, const void* q, const void* k, const void* v, void* o, double* lse,
                       Strides q_strides, Strides k_strides, Strides v_strides, Strides o_strides, void*, int) {
    if (s.B * s.H * s.Tq == 0) return;
    const AttentionForward a{s, q, k, v, o, lse, q_strides, k_strides, v_strides, o_strides};
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
    float* delta = static_cast<float*>(workspace);
    if (s.Tq > 0) attention_delta(a, delta);
    attention_backward_simt(a, delta);
}

}  // namespace gpt2c::cuda
