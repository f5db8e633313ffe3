"""The AdamW update, gradient scaling included, in one pass over memory.

    g = grad_scale * grad
    m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2
    param = param (1 - lr weight_decay) - lr m_hat / (sqrt(v_hat) + eps)
    m_hat = m / (1 - beta1^step),   v_hat = v / (1 - beta2^step)

(Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2, with lr as the schedule multiplier
too, as torch.optim.AdamW has it.) Kernels: csrc/cpu/adamw.cpp, csrc/cuda/adamw.cu.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2c import _native
from gpt2c.ops._library import check_shape, check_tensors, define


def adamw_reference(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, grad_scale: float = 1.0,
) -> None:  # fmt: skip
    for param, grad, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        g = grad.to(m.dtype) * grad_scale
        m.mul_(beta1).add_((1 - beta1) * g)
        v.mul_(beta2).add_((1 - beta2) * g * g)
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        param.copy_(param.to(m.dtype) * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + eps))


def adamw_(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, grad_scale: float = 1.0,
) -> None:  # fmt: skip
    """One AdamW step; params, exp_avgs and exp_avg_sqs are changed in place.

    Four lists of equal length: params and grads fp32 or bf16 (one dtype for all), exp_avgs and exp_avg_sqs fp32, each
    of its parameter's shape, contiguous (grads of any strides). step counts from 1; lr, eps, weight_decay and the
    betas in [0, 1) as in the formula above; grads are multiplied by grad_scale. Raises ValueError or TypeError where
    lists, shapes, dtypes or devices differ from that.
    """
    _adamw(params, grads, exp_avgs, exp_avg_sqs, step, lr, beta1, beta2, eps, weight_decay, grad_scale)


def _check(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, grad_scale: float,
) -> None:  # fmt: skip
    sizes = len(params), len(grads), len(exp_avgs), len(exp_avg_sqs)
    if len(set(sizes)) != 1:
        raise ValueError(f"adamw: params, grads, exp_avgs, exp_avg_sqs have {sizes} tensors, expected the same number")
    if not step >= 1:
        raise ValueError(f"adamw: step is {step}, expected 1 or more")
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"adamw: betas are ({beta1}, {beta2}), expected both in [0, 1)")
    for i, (param, grad, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        check_tensors("adamw", **{"params[0]": params[0], f"params[{i}]": param, f"grads[{i}]": grad})
        check_tensors("adamw", torch.float32, **{f"exp_avgs[{i}]": m, f"exp_avg_sqs[{i}]": v})
        if m.device != param.device:
            raise ValueError(f"adamw: exp_avgs[{i}] is on {m.device}, expected {param.device}")
        for name, tensor in (("grads", grad), ("exp_avgs", m), ("exp_avg_sqs", v)):
            check_shape("adamw", f"{name}[{i}]", tensor, tuple(param.shape))
        for name, tensor in (("params", param), ("exp_avgs", m), ("exp_avg_sqs", v)):
            if not tensor.is_contiguous():
                raise ValueError(f"adamw: {name}[{i}] has strides {tensor.stride()}, expected a contiguous tensor")


def _run(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, grad_scale: float,
) -> None:  # fmt: skip
    if not params:
        return
    grads = [grad.contiguous() for grad in grads]
    sizes = torch.tensor([p.numel() for p in params])
    _native.call(
        "adamw", params[0].dtype, params, grads, exp_avgs, exp_avg_sqs, sizes, len(params),
        lr, beta1, beta2, eps, weight_decay, 1 - beta1**step, 1 - beta2**step, grad_scale,
    )  # fmt: skip
    for tensor in (*params, *exp_avgs, *exp_avg_sqs):
        torch.autograd.graph.increment_version(tensor)


_adamw = define(
    "adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, int step, float lr,"
    " float beta1, float beta2, float eps, float weight_decay, float grad_scale) -> ()",
    _check,
    _run,
    lambda *args: None,
)
