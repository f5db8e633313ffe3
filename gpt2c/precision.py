"""Where and in which arithmetic a model is trained: device, autocast, and the loss's scale in fp16.

Weights, moments and the sums over a step's gradients are fp32 throughout; with autocast a copy of the weights and the
activations are 16 bits wide, while kernels compute layernorm, softmax and loss in fp32 inside (Micikevicius et al.,
"Mixed Precision Training", 2018).
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2c import _native
from gpt2c.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BF16_SINCE = (8, 0)  # compute capability of the first GPUs with bf16 tensor cores
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}  # of x86 processors, in /proc/cpuinfo


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `auto`, `cpu` or `cuda`, of several GPUs the one with this number; UserError if it is not
    there."""
    usable = torch.cuda.is_available() and _native.CUDA is not None
    if name == "cpu" or (name == "auto" and not usable):
        return torch.device("cpu")
    if not usable:
        raise UserError(f"--device is cuda, but there is none to use: {_native.cuda_status()}; use --device cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine finds {torch.cuda.device_count()} GPUs, expected one for each "
            "process: start fewer with torchrun's --nproc-per-node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def find_precision(name: str, device: torch.device) -> str:
    """What `auto` means there, or the name itself if it is possible; UserError for fp16 on a CPU."""
    if device.type == "cpu":
        if name == "fp16":
            raise UserError("--precision is fp16, which is for GPUs: expected fp32 or bf16 on a CPU")
        if name == "bf16" and not _cpu_has_bf16():
            warnings.warn(
                "--precision is bf16, but this CPU has no bf16 arithmetic: it saves memory, not time", stacklevel=2
            )
        return "fp32" if name == "auto" else name
    has_bf16 = torch.cuda.get_device_capability(device) >= BF16_SINCE
    if name == "auto":
        return "bf16" if has_bf16 else "fp16"
    return name


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context in which a model's forward is in that precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def _cpu_has_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and bool(BF16_FLAGS & set(cpuinfo.read_text().split()))


@dataclass
class LossScale:
    """What the loss is multiplied by before the backward, so that small gradients are not lost in fp16: halved when
    gradients overflow, doubled after so many steps without (Micikevicius et al. 2018, section 3.2)."""

    GROW_AFTER = 2000

    scale: float = 65536.0
    steps: int = 0

    @classmethod
    def of(cls, precision: str) -> LossScale:
        """One that is used, or for other precisions 1 for good."""
        return cls() if precision == "fp16" else cls(scale=1.0)

    @property
    def is_used(self) -> bool:
        return self.scale != 1.0

    def overflowed(self) -> bool:
        """Halve it; False if it cannot become smaller, so that the overflow is not the scale's fault."""
        self.steps = 0
        if self.scale <= 2.0:
            return False
        self.scale /= 2
        return True

    def held(self) -> None:
        """A step without an overflow."""
        self.steps += 1
        if self.is_used and self.steps >= self.GROW_AFTER:
            self.scale, self.steps = self.scale * 2, 0

    def state(self) -> dict[str, float]:
        """What a resumed run needs to go on with the same scale, for JSON."""
        return {"scale": self.scale, "steps": self.steps}

    def restore(self, state: dict[str, float]) -> None:
        """Take over what `state` gave, unless one of the two runs is not in fp16. Raises KeyError, TypeError or
        ValueError for anything else."""
        scale, steps = float(state["scale"]), int(state["steps"])
        if self.is_used and scale != 1.0:
            self.scale, self.steps = scale, steps
