"""The AdamW update, gradient scaling included, in one pass over memory.

    g = grad_scale * grad
    m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2
    param = param (1 - lr weight_decay) - lr m_hat / (sqrt(v_hat) + eps)
    m_hat = m / (1 - beta1^step),   v_hat = v / (1 - beta2^step)

(Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2, with lr as the schedule multiplier
too, as torch.optim.AdamW has it.) Updates of 16-bit parameters are mostly smaller than half the distance to the next
16-bit number, and rounding to the nearest loses them. Two remedies: the update happens on fp32 master weights, which
the parameters are rounded from (Micikevicius et al., "Mixed Precision Training", 2018, section 3.1), or parameters are
rounded up or down at random with the true value as the mean (Gupta et al., "Deep Learning with Limited Numerical
Precision", 2015, section 3). Kernels: csrc/cpu/adamw.cpp, csrc/cuda/adamw.cu.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2c import _native
from gpt2c.ops._library import as_number, as_tensors, check_integers, check_shape, check_tensors, define
from gpt2c.ops.philox import philox_reference


def adamw_reference(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    grad_scale: float | Tensor = 1.0, masters: list[Tensor] | None = None, seed: Tensor | None = None,
) -> None:  # fmt: skip
    for n, (param, grad, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        g = grad.to(m.dtype) * grad_scale
        m.mul_(beta1).add_((1 - beta1) * g)
        v.mul_(beta2).add_((1 - beta2) * g * g)
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        weight = masters[n] if masters else param.to(m.dtype)
        weight = weight * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + eps)
        if masters:
            masters[n].copy_(weight)
        param.copy_(weight if seed is None else stochastic_rounding_reference(weight, seed, n))


def stochastic_rounding_reference(x: Tensor, seed: Tensor, n: int) -> Tensor:
    """x, the n-th fp32 tensor of a list, as bf16: 16 random bits are added to each element's bits, of which the upper
    16 are kept. inf and nan stay."""
    i = torch.arange(x.numel(), device="cpu")
    words = philox_reference(int(seed), (i // 8 % 2**32, i // 8 // 2**32, torch.tensor(n, device="cpu"), i * 0))
    word = torch.stack(words).gather(0, (i % 8 // 2)[None])[0]
    bits = x.flatten().view(torch.int32).long() + (word >> 16 * (i % 2) & 0xFFFF)
    rounded = (bits >> 16 << 16).to(torch.int32).view(torch.float32).view(x.shape)
    return torch.where(x.isfinite(), rounded, x).bfloat16()


def adamw_(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    grad_scale: float | Tensor = 1.0, masters: list[Tensor] | None = None, seed: Tensor | None = None,
) -> None:  # fmt: skip
    """One AdamW step; params, exp_avgs, exp_avg_sqs and masters are changed in place.

    Lists of equal length: params and grads fp32, bf16 or on CUDA fp16 (one dtype for all), exp_avgs and exp_avg_sqs
    fp32, each of its parameter's shape, contiguous (grads of any strides). step counts from 1; lr, eps of 0 or
    more, weight_decay and the betas in [0, 1) as in the formula above.

    grad_scale: what grads are multiplied by, a number or one fp32 element on the device of params, which nobody waits
    for; if it is inf or nan the step changes nothing. masters: for 16-bit params, fp32 tensors of their shapes,
    contiguous: they are updated, and params receive them rounded. seed: for bf16 params without masters, one int64
    element on their device that decides how each element is rounded, up or down at random.

    Raises ValueError or TypeError where lists, shapes, dtypes or devices differ from that.
    """
    if not isinstance(grad_scale, Tensor):
        params = as_tensors("adamw", "params", params)
        device = params[0].device if params else "cpu"
        scale = as_number("adamw", "grad_scale", grad_scale)
        grad_scale = None if scale == 1.0 else torch.full((), scale, dtype=torch.float32, device=device)
    _adamw(
        params, grads, exp_avgs, exp_avg_sqs, step, lr, beta1, beta2, eps, weight_decay, grad_scale, masters or [], seed
    )  # fmt: skip


def _check(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    grad_scale: Tensor | None, masters: list[Tensor], seed: Tensor | None,
) -> None:  # fmt: skip
    sizes = len(params), len(grads), len(exp_avgs), len(exp_avg_sqs)
    if len(set(sizes)) != 1:
        raise ValueError(f"adamw: params, grads, exp_avgs, exp_avg_sqs have {sizes} tensors, expected the same number")
    if masters and len(masters) != len(params):
        raise ValueError(f"adamw: masters has {len(masters)} tensors, expected {len(params)} like params")
    if not step >= 1:
        raise ValueError(f"adamw: step is {step}, expected 1 or more")
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"adamw: betas are ({beta1}, {beta2}), expected both in [0, 1)")
    if not eps >= 0:
        raise ValueError(f"adamw: eps is {eps}, expected 0 or more")
    first = params[0] if params else None
    alike = zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)
    if not all(_is_right(first, *tensors) for tensors in alike) or masters:
        _check_each(params, grads, exp_avgs, exp_avg_sqs, masters)
    if params:
        check_tensors("adamw", params=first)
        _check_options(first, grad_scale, masters, seed)


def _is_right(first: Tensor, param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> bool:
    """What _check_each asks, without names for the failures: those of 50 parameters take half a millisecond."""
    return (
        grad.layout is torch.strided
        and param.dtype is grad.dtype is first.dtype
        and exp_avg.dtype is exp_avg_sq.dtype is torch.float32
        and param.device == grad.device == exp_avg.device == exp_avg_sq.device == first.device
        and param.shape == grad.shape == exp_avg.shape == exp_avg_sq.shape
        and param.is_contiguous()
        and exp_avg.is_contiguous()
        and exp_avg_sq.is_contiguous()
    )


def _check_each(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], masters: list[Tensor]
) -> None:
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        check_tensors("adamw", **{"params[0]": params[0], f"params[{i}]": param, f"grads[{i}]": grad})
        check_shape("adamw", f"grads[{i}]", grad, tuple(param.shape))
        _check_contiguous(f"params[{i}]", param)
    for name, tensors in (("exp_avgs", exp_avgs), ("exp_avg_sqs", exp_avg_sqs), ("masters", masters)):
        for i, (tensor, param) in enumerate(zip(tensors, params, strict=False)):
            check_tensors("adamw", torch.float32, **{f"{name}[{i}]": tensor})
            if tensor.device != param.device:
                raise ValueError(f"adamw: {name}[{i}] is on {tensor.device}, expected {param.device}")
            check_shape("adamw", f"{name}[{i}]", tensor, tuple(param.shape))
            _check_contiguous(f"{name}[{i}]", tensor)


def _check_contiguous(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"adamw: {name} has strides {tensor.stride()}, expected a contiguous tensor")


def _check_options(param: Tensor, grad_scale: Tensor | None, masters: list[Tensor], seed: Tensor | None) -> None:
    if grad_scale is not None:
        check_tensors("adamw", torch.float32, grad_scale=grad_scale)
        if grad_scale.numel() != 1 or grad_scale.device != param.device:
            raise ValueError(
                f"adamw: grad_scale has shape {tuple(grad_scale.shape)} on {grad_scale.device}, expected one element on"
                f" {param.device}"
            )
    if masters and param.dtype == torch.float32:
        raise TypeError("adamw: params have dtype torch.float32 and masters were given, which only 16-bit params need")
    if seed is None:
        return
    check_integers("adamw", "seed", seed, param)
    if seed.numel() != 1:
        raise ValueError(f"adamw: seed has shape {tuple(seed.shape)}, expected one element")
    if param.dtype != torch.bfloat16:
        raise TypeError(f"adamw: params have dtype {param.dtype}, expected torch.bfloat16 to round at random (seed)")
    if masters:
        raise ValueError("adamw: masters and seed were both given, expected one: masters are rounded to the nearest")


def _run(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    grad_scale: Tensor | None, masters: list[Tensor], seed: Tensor | None,
) -> None:  # fmt: skip
    if not params:
        return
    grads = [grad.contiguous() for grad in grads]
    sizes = torch.tensor([p.numel() for p in params], device="cpu")  # read by the host, whatever torch's default device
    _native.call(
        "adamw", params[0].dtype, params, grads, exp_avgs, exp_avg_sqs, masters, sizes, len(params),
        lr, beta1, beta2, eps, weight_decay, 1 - beta1**step, 1 - beta2**step, grad_scale, seed,
    )  # fmt: skip
    for tensor in (*params, *exp_avgs, *exp_avg_sqs, *masters):
        torch.autograd.graph.increment_version(tensor)


_adamw = define(
    "adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, SymInt step,"
    " float lr, float beta1, float beta2, float eps, float weight_decay, Tensor? grad_scale, Tensor(d!)[] masters,"
    " Tensor? seed) -> ()",
    _check,
    _run,
    lambda *args: None,
)
