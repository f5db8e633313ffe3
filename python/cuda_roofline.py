"""FLOPs, bytes and the least time of each CUDA kernel at GPT-2 124M's shapes: computed from datasheets, not measured.

The bytes are those of the contracts in csrc/kernels.h: what must cross the memory bus if every launch reads each of its
inputs once and writes each output once. FLOPs are what the kernels compute, a multiply-add counted as two, exp and
division as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cuda_table import markdown

# GPT-2 124M, a batch of 8 windows.
B, T, H, D, C, V, P = 8, 1024, 12, 64, 768, 50304, 1024  # V: GPT-2's 50257 ids, padded
N = B * T
ROWS = 256  # of logits that linear_cross_entropy takes at a time
PARAMETERS = 124_439_808
HALF = 2  # bytes of bf16 and fp16

PAIRS = B * H * T * (T + 1) // 2  # of a query and a key that it sees
HEADS = HALF * B * H * T * D  # bytes of q, and of each tensor like it
STATS = 16 * B * H * T  # bytes of the backward's logsumexp and delta
LSE = 8 * B * H * T


@dataclass(frozen=True)
class Work:
    """One operation of csrc/kernels.h at the shapes above, in bf16 (fp16 where there is none)."""

    name: str
    label: str  # in the picture
    shapes: str
    flops: int
    bytes: int
    formula: str  # of the two
    tensor_cores: bool = False

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.bytes


WORK = (
    Work("attention_forward", "attention fwd", "B8 H12 T1024 D64, causal",
         4 * D * PAIRS, 4 * HEADS + LSE, "4 D pairs; q, k, v, o, lse", tensor_cores=True),
    # delta reads do and o; both sides of the backward read q, k, v, do and write dq, or dk and dv.
    Work("attention_backward", "attention bwd", "B8 H12 T1024 D64, causal",
         14 * D * PAIRS, (2 + 5 + 6) * HEADS + LSE + 3 * STATS, "14 D pairs; three launches: 2 + 5 + 6 tensors",
         tensor_cores=True),
    Work("attention_forward, Tq = 1", "decode", "B8 H12 Tk1024 D64",
         4 * B * H * T * D, 2 * HEADS + 2 * HALF * B * H * D + 8 * B * H * (1 + (D + 4) * T // 128),
         "4 B H Tk D; k, v, q, o, lse, partial sums twice"),
    Work("layernorm_forward", "layernorm fwd", "N8192 C768, with residual",
         9 * N * C, 4 * HALF * N * C + 8 * N, "9 N C; x, residual, h, y"),
    Work("layernorm_backward", "layernorm bwd", "N8192 C768, with residual",
         16 * N * C, 4 * HALF * N * C + 8 * N, "16 N C; dy, dh, h, dx"),
    Work("gelu_forward", "gelu fwd", "N8192 C3072, tanh, with bias",
         11 * N * 4 * C, 2 * HALF * N * 4 * C, "11 N C; x, y"),
    Work("gelu_backward", "gelu bwd", "N8192 C3072, tanh, with bias",
         22 * N * 4 * C, 3 * HALF * N * 4 * C, "22 N C; dy, x, dx"),
    Work("cross_entropy_forward", "cross entropy fwd", "N256 V50304, a chunk",
         4 * ROWS * V, HALF * ROWS * V, "4 N V; logits"),
    Work("cross_entropy_backward", "cross entropy bwd", "N256 V50304, a chunk",
         4 * ROWS * V, 2 * HALF * ROWS * V, "4 N V; logits, dlogits"),
    Work("embedding_forward", "embedding fwd", "B8 T1024 C768",
         N * C, (2 * N + P) * HALF * C + 8 * N, "N C; rows of wte, wpe, x"),
    Work("embedding_backward", "embedding bwd", "B8 T1024 C768",
         2 * N * C, 2 * HALF * N * C + 4 * C * (2 * N + 2 * P), "2 N C; dx twice; dwte's rows, dwpe twice"),
    Work("adamw", "AdamW", "124,439,808 parameters",
         15 * PARAMETERS, (3 * HALF + 16) * PARAMETERS, "15 n; param twice, grad, m twice, v twice"),
    Work("grad_norm", "grad norm", "124,439,808 parameters",
         2 * PARAMETERS, HALF * PARAMETERS, "2 n; grad"),
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """Dense peaks: 16-bit tensor cores with fp32 accumulation, and fp32, in TFLOP/s; memory in GB/s."""

    name: str
    tensor: float
    fp32: float
    memory: float
    source: str

    def peak(self, work: Work) -> float:
        """FLOP/s."""
        return 1e12 * (self.tensor if work.tensor_cores else self.fp32)

    def seconds(self, work: Work) -> float:
        """The least time: neither arithmetic nor memory can be faster."""
        return max(work.flops / self.peak(work), work.bytes / (1e9 * self.memory))


GPUS = (
    Gpu("T4", 65, 8.1, 320, "NVIDIA T4 datasheet; fp16 only, it has no bf16"),
    Gpu("RTX 3070 Laptop", 33.2, 16.6, 448,
        "NVIDIA's specifications: 5120 cores at 1.62 GHz (the highest boost clock), 256 bits of 14 Gb/s GDDR6; tensor"
        " cores twice that rate (GA102 whitepaper, appendix A: fp16 with fp32 accumulation)"),
    Gpu("A100 80 GB SXM", 312, 19.5, 2039, "NVIDIA A100 datasheet"),
    Gpu("H100 SXM", 989.4, 66.9, 3350, "NVIDIA H100 datasheet, halved where it counts sparsity"),
)  # fmt: skip


def work_table() -> str:
    header = ("operation", "shapes", "FLOPs; bytes", "GFLOP", "MB", "FLOP/byte", *(f"{g.name}, us" for g in GPUS))
    lines = [
        (f"`{w.name}`", w.shapes, w.formula, f"{w.flops / 1e9:.3g}", f"{w.bytes / 1e6:.4g}", f"{w.intensity:.3g}",
         *(f"{1e6 * g.seconds(w):.3g}" if g.seconds(w) < 1e-3 else f"{1e6 * g.seconds(w):.0f}" for g in GPUS))
        for w in WORK
    ]  # fmt: skip
    return markdown(header, lines, text_columns=3)


def gpu_table() -> str:
    header = ("GPU", "from", "tensor cores, TFLOP/s", "fp32, TFLOP/s", "memory, GB/s")
    lines = [(g.name, g.source, f"{g.tensor:g}", f"{g.fp32:g}", f"{g.memory:g}") for g in GPUS]
    return markdown(header, lines, text_columns=2)


def draw(path: Path) -> None:
    """The roofs of each GPU and the highest rate that each operation can have under them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(13, 9.5), sharex=True, sharey=True, layout="constrained")
    for gpu, ax in zip(GPUS, axes.flat, strict=True):
        _draw_gpu(ax, gpu)
    for ax in axes[1]:
        ax.set_xlabel("arithmetic intensity, FLOP/byte")
    for ax in axes[:, 0]:
        ax.set_ylabel("highest possible rate, TFLOP/s")
    figure.suptitle(
        "Rooflines of the CUDA kernels at GPT-2 124M's shapes, bf16 (T4: fp16).\n"
        "Computed from datasheets and byte counts. Nothing here was measured."
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_gpu(ax: object, gpu: Gpu) -> None:
    low, high = 0.03, 2000.0
    for peak, name, style in ((gpu.tensor, "tensor cores", "-"), (gpu.fp32, "fp32", "--")):
        ridge = 1e3 * peak / gpu.memory
        ax.plot([low, ridge, high], [low * gpu.memory / 1e3, peak, peak], style, color="0.45", linewidth=1.4)
        ax.annotate(f"{name}: {peak:g} TFLOP/s", (high, peak), (-4, 4), textcoords="offset points", ha="right",
                    fontsize=9, color="0.35")  # fmt: skip
    points = sorted(((w.intensity, w.flops / gpu.seconds(w) / 1e12, w) for w in WORK), key=lambda p: p[0])
    on_tensor_cores = [p for p in points if p[2].tensor_cores]
    others = [p for p in points if not p[2].tensor_cores]
    for number, (x, y, work) in enumerate(on_tensor_cores):
        ax.plot(x, y, "o", color="tab:red", markersize=5)
        ax.annotate(work.label, (x, y), (0, 22 + 12 * number), textcoords="offset points", ha="right", fontsize=9,
                    color="tab:red")  # fmt: skip
    # All of these lie on the slope of memory, some at the same place: their names make a column beside it.
    top = 0.6 * others[-1][1]
    for number, (x, y, work) in enumerate(reversed(others)):
        ax.plot(x, y, "o", color="tab:blue", markersize=5)
        ax.annotate(work.label, (x, y), (14, top / 10 ** (0.2 * number)), va="center", fontsize=9, color="tab:blue",
                    arrowprops={"arrowstyle": "-", "color": "tab:blue", "linewidth": 0.5, "alpha": 0.6,
                                "relpos": (0, 0.5)})  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(0.003, 20000), title=f"{gpu.name}, {gpu.memory:g} GB/s")
    ax.grid(True, which="major", color="0.9")
