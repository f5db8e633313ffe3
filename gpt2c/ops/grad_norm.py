"""The global norm of a list of tensors, for clipping (Pascanu et al., "On the difficulty of training recurrent neural
networks", 2013, section 3.2).

    norm = sqrt(sum over all elements of all tensors of g^2)

Squares, and runs of 1024 of them, are summed in fp32, the runs in float64, in a fixed order. So elements beyond 1e19
give inf, as with torch's clipping.

Kernels: csrc/cpu/adamw.cpp, csrc/cuda/adamw.cu, next to the update that uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2c import _native
from gpt2c.ops._library import check_tensors, define


def grad_norm_reference(grads: list[Tensor]) -> Tensor:
    return torch.sqrt(sum((g.double() ** 2).sum() for g in grads)).float()


def grad_norm(grads: list[Tensor]) -> Tensor:
    """sqrt of the sum of squares of all elements. grads: at least one tensor, fp32, bf16 or, on CUDA, fp16 (one dtype
    for all), any shapes.

    Returns the norm, 0-dim fp32: inf or nan if any element is. Raises ValueError or TypeError otherwise.
    """
    return _grad_norm(grads)


def _check(grads: list[Tensor]) -> None:
    if not grads:
        raise ValueError("grad_norm: grads is empty, expected at least one tensor")
    for i, grad in enumerate(grads):
        check_tensors("grad_norm", **{"grads[0]": grads[0], f"grads[{i}]": grad})


def _run(grads: list[Tensor]) -> Tensor:
    norm = _fake(grads)
    contiguous = [g.contiguous() for g in grads]
    sizes = torch.tensor([g.numel() for g in grads], device="cpu")  # read by the host, whatever torch's default device
    chunks = sum(-(-g.numel() // 16384) for g in grads)
    _native.call("grad_norm", grads[0].dtype, contiguous, sizes, len(grads), norm, _native.workspace(norm, 2 * chunks))
    return norm


def _fake(grads: list[Tensor]) -> Tensor:
    return torch.empty((), dtype=torch.float32, device=grads[0].device)


_grad_norm = define("grad_norm(Tensor[] grads) -> Tensor", _check, _run, _fake)
