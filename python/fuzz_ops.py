"""Calls every public op with arguments of all kinds, in a child process.

    python python/fuzz_ops.py 100000

Each call, and its gradients, must agree with the float64 reference within tests/tolerances.py or raise TypeError,
ValueError, IndexError or NotImplementedError with a sentence that names the op. A crash of the child is a finding, too:
it writes down what it is about to call. Prints the number of calls and what was found; exit code 1 if something was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from packages import missing
from torch import Tensor

try:
    from checks import as_tuple, assert_close, shifted, strided
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    missing(error)

from gpt2c import ops
from gpt2c.config import GPT2Config
from gpt2c.errors import memory_asked
from gpt2c.model import GPT2

REFUSALS = (TypeError, ValueError, IndexError, NotImplementedError)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "strided": strided,
    "shifted": shifted,
    "negated": lambda x: torch._neg_view(-x) if x.is_floating_point() else x,
    "broadcast": lambda x: x[:1].expand(x.shape) if x.dim() > 1 else x,
    "turned": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x,
}
ODD = (
    None, True, "text", 1.5, -1, 0, 2**40, float("nan"), float("inf"), [1], torch.tensor(1.0), torch.tensor(3),
    torch.zeros(0), torch.ones(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.int64),
    torch.ones(2, 2).to_sparse(), torch.empty(2, 2, device="meta"), torch.ones(2, 2, dtype=torch.complex64),
)  # fmt: skip


class Arguments:
    """Draws the arguments of one call; `odd`, one of them at most is replaced by something else."""

    def __init__(self, data: st.DataObject) -> None:
        self.data, self.log = data, []
        self.dtype = self.draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16]))
        self.odd_at = self.draw(st.integers(-12, 9))  # which argument, mostly none
        torch.manual_seed(self.draw(st.integers(0, 99)))
        self.scale = self.draw(st.sampled_from([1.0, 1.0, 1e-4, 1e4]))
        self.floor = 1.0  # the size of the terms, see checks.assert_close
        self.gradients = True

    def draw(self, strategy: st.SearchStrategy) -> object:
        value = self.data.draw(strategy)
        self.log.append(value)
        return value

    def size(self, least: int = 0, most: int = 9) -> int:
        return self.draw(st.integers(least, most))

    def floats(self, *shape: int, scale: float = 1.0) -> Tensor:
        return LAYOUTS[self.draw(st.sampled_from(sorted(LAYOUTS)))]((torch.randn(shape) * scale).to(self.dtype))

    def starts(self, B: int, T: int) -> Tensor | None:
        if not self.draw(st.booleans()):
            return None
        first = torch.rand(B, T) < 0.3
        starts = (first * torch.arange(T)).cummax(1).values if T else first.long()
        return starts - int(self.draw(st.integers(0, 19)) == 0)  # -1 is refused

    def ids(self, V: int, *shape: int) -> Tensor:
        high = V + (self.draw(st.integers(0, 9)) == 0)
        return LAYOUTS[self.draw(st.sampled_from(["contiguous", "strided"]))](torch.randint(0, max(high, 1), shape))

    def finish(self, *values: object) -> list[object]:
        values = list(values)
        if 0 <= self.odd_at < len(values):
            self.gradients = False  # of a scale of 2^40, say, nobody knows how near they should be
            values[self.odd_at] = ODD[self.draw(st.integers(0, len(ODD) - 1))]
        return values


def draw_layernorm(a: Arguments) -> tuple:
    C = a.size()
    x, weight, bias = a.floats(a.size(), C, scale=a.scale), a.floats(C), a.floats(C)
    eps = a.draw(st.sampled_from([1e-5, 1e-3]))
    _amplify(a, x, eps)
    return ops.layernorm, ops.layernorm_reference, a.finish(x, weight, bias, eps)


def draw_residual_layernorm(a: Arguments) -> tuple:
    N, C = a.size(), a.size()
    x, residual = a.floats(N, C, scale=a.scale), a.floats(N, C, scale=a.scale)
    _amplify(a, x.double().abs() + residual.double().abs(), 1e-5, x.double() + residual.double())
    values = a.finish(x, residual, a.floats(C), a.floats(C), 1e-5)
    return ops.residual_layernorm, ops.residual_layernorm_reference, values


def _amplify(a: Arguments, size: Tensor, eps: float, h: Tensor | None = None) -> None:
    """The mean, of the size of h, is rounded, and so is h where it is a sum: each moves (h - mean) rstd by up to an
    eps of h's size times rstd. That is more than the tolerance of 3e-6 where elements are nearly equal, and a
    gradient's sums cancel before their product with rstd."""
    h = size if h is None else h
    if h.numel():
        rstd = torch.rsqrt(h.double().var(-1, correction=0) + eps)
        amplified = float((size.double().abs().amax(-1) * rstd).max())
        a.floor = max(1.0, a.scale, amplified * 2**-23 * 3 / 3e-6)
        a.gradients = float(rstd.max()) * max(1.0, a.scale) < 3


def draw_gelu(a: Arguments) -> tuple:
    form = a.draw(st.sampled_from(["tanh", "none"]))
    return ops.gelu, ops.gelu_reference, a.finish(a.floats(a.size(), a.size(), scale=a.scale), form)


def draw_bias_gelu(a: Arguments) -> tuple:
    C = a.size()
    return ops.bias_gelu, ops.bias_gelu_reference, a.finish(a.floats(a.size(), C), a.floats(C), "tanh")


def draw_matmul(a: Arguments) -> tuple:
    M, K, N = a.size(), a.size(), a.size()
    bias = a.floats(N) if a.draw(st.booleans()) else None
    a.floor = 3 * K * max(1.0, a.scale)
    return ops.matmul, ops.matmul_reference, a.finish(a.floats(M, K, scale=a.scale), a.floats(K, N), bias)


def draw_attention(a: Arguments) -> tuple:
    B, H, Tq, Tk, D = a.size(0, 3), a.size(0, 3), a.size(), a.size(), a.size(0, 9)
    dropout = a.draw(st.sampled_from([0.0, 0.0, 0.3, 1.0, -0.5]))
    values = a.finish(
        a.floats(B, H, Tq, D), a.floats(B, H, Tk, D), a.floats(B, H, Tk, D), a.draw(st.booleans()),
        a.draw(st.sampled_from([None, 0.5])), dropout, torch.tensor([7]), a.starts(B, Tk) if Tq == Tk else None,
    )  # fmt: skip
    a.floor = 4.0  # products of two or, in gradients, three normal numbers, summed over D
    return ops.attention, ops.attention_reference, values


def draw_cross_entropy(a: Arguments) -> tuple:
    N, V = a.size(), a.size()
    a.floor = max(1.0, a.scale)
    values = a.finish(a.floats(N, V, scale=a.scale), a.ids(V, N), a.draw(st.sampled_from([-100, 0])))
    return ops.cross_entropy, ops.cross_entropy_reference, values


def draw_linear_cross_entropy(a: Arguments) -> tuple:
    N, C, V = a.size(), a.size(), a.size()
    values = a.finish(a.floats(N, C), a.floats(V, C), a.ids(V, N), -100, a.draw(st.sampled_from([None, 1, 3, 20])))
    return ops.linear_cross_entropy, ops.linear_cross_entropy_reference, values


def draw_embedding(a: Arguments) -> tuple:
    B, T, V, P, C = a.size(0, 3), a.size(), a.size(), a.size(), a.size()
    start, starts = a.draw(st.integers(-1, 3)), a.starts(B, T)
    a.floor = max(1.0, a.scale) * max(1, B * T)  # as many rows a gradient adds up
    values = a.finish(a.ids(V, B, T), a.floats(V, C, scale=a.scale), a.floats(P, C), start, None, starts)
    return ops.embedding, ops.embedding_reference, values


def draw_grad_norm(a: Arguments) -> tuple:
    a.gradients = False
    grads = [a.floats(a.size(), a.size(), scale=a.scale) for _ in range(a.size(0, 3))]
    return ops.grad_norm, ops.grad_norm_reference, [a.finish(*grads)]


def draw_block(a: Arguments) -> tuple:
    B, T, H, D = a.size(0, 2), a.size(), a.size(0, 3), a.size(0, 4)
    C = H * D
    shapes = [(C,), (C,), (C, 3 * C), (3 * C,), (C, C), (C,), (C,), (C,), (C, 4 * C), (4 * C,), (4 * C, C), (C,)]
    weights = [a.floats(*shape) * 0.3 for shape in shapes]
    h = a.floats(B, T, C) if a.draw(st.booleans()) else None
    a.gradients = C >= 8  # rarely are all elements of a row nearly equal
    a.floor = 10.0 * max(1, B * T)  # sums over tokens
    recompute, starts = a.draw(st.booleans()), a.starts(B, T)

    def block(*values: object) -> object:
        return ops.block(*values, recompute=recompute, starts=starts)

    def reference(*values: object) -> object:
        return ops.block_reference(*values, starts=starts)

    return block, reference, a.finish(a.floats(B, T, C), h, weights, H, 1e-5)


def draw_adamw(a: Arguments) -> tuple:
    shapes = [(a.size(), a.size()) for _ in range(a.size(0, 3))]
    a.gradients = False
    a.floor = a.scale * a.scale if a.scale > 1 else 1.0

    def state() -> list[Tensor]:
        return [torch.rand(shape) for shape in shapes]

    params = [a.floats(*shape).contiguous() for shape in shapes]
    grads = [a.floats(*shape, scale=a.scale) for shape in shapes]
    betas = a.draw(st.sampled_from([(0.9, 0.95), (0.0, 0.0), (0.9, 1.0)]))
    values = a.finish(params, grads, state(), state(), a.size(0, 3), 1e-2, *betas, 1e-8, 0.1)

    def on_copies(function: Callable) -> Callable:
        def adamw(params: object, grads: object, exp_avgs: object, exp_avg_sqs: object, *numbers: object) -> object:
            changed = [_copies(tensors) for tensors in (params, exp_avgs, exp_avg_sqs)]
            function(changed[0], grads, *changed[1:], *numbers)
            return [tensor for tensors in changed for tensor in tensors]

        return adamw

    return on_copies(ops.adamw_), on_copies(ops.adamw_reference), values


def _copies(tensors: object) -> object:
    is_list = isinstance(tensors, list) and all(isinstance(tensor, Tensor) for tensor in tensors)
    return [tensor.resolve_neg().clone() for tensor in tensors] if is_list else tensors


def draw_loss(a: Arguments) -> tuple:
    """The model's loss beside the cross entropy of its logits."""
    V = a.size(1)
    model = GPT2(GPT2Config(vocab_size=V, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    B, T = a.size(0, 3), a.size()
    targets, a.dtype = a.ids(V, B, T), torch.float32
    targets = torch.where(torch.rand(B, T) < 0.2, -100, targets)

    def linear_cross_entropy(idx: object, targets: object, starts: object) -> Tensor:
        return model(idx, targets, starts=starts)[1]

    def reference(idx: Tensor, targets: Tensor, starts: Tensor | None) -> Tensor:
        with torch.no_grad():
            logits = model(idx, starts=starts)[0].double()
        return ops.cross_entropy_reference(logits.flatten(0, 1), targets.flatten())

    values = a.finish(a.ids(V, B, T), targets, a.starts(B, T))
    values[1] = targets if values[1] is None else values[1]  # without them there is no loss
    return linear_cross_entropy, reference, values


def draw_generate(a: Arguments) -> tuple:
    """Greedy text beside that of the model without a cache."""
    V = a.size(1)
    model = GPT2(
        GPT2Config(vocab_size=V, n_positions=32, n_embd=8, n_layer=1, n_head=a.draw(st.sampled_from([1, 2, 8])))
    )

    def generate(idx: object, count: object, temperature: object, top_k: object, top_p: object) -> Tensor:
        return model.generate(idx, count, temperature, top_k, top_p)

    def reference(idx: Tensor, count: int, *_: object) -> Tensor:
        if not len(idx):
            return idx.new_empty(0, idx.shape[1] + count)
        with torch.no_grad():
            for _ in range(count):
                idx = torch.cat([idx, model(idx)[0][:, -1].argmax(-1, keepdim=True)], dim=1)
        return idx

    values = [*a.finish(a.ids(V, a.size(0, 3), a.size()), a.size(0, 5)), 0, None, None]
    return generate, reference, values


CASES = [value for name, value in sorted(globals().items()) if name.startswith("draw_")]


def exact(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [exact(item) for item in value]
    return value.detach().resolve_neg().double() if isinstance(value, Tensor) and value.is_floating_point() else value


def check(a: Arguments, case: Callable, note: Callable[[str], object]) -> str:
    """Runs one call; returns `refused` or `right`, or raises AssertionError with what is wrong."""
    run, reference, values = case(a)
    op = run.__name__
    note(f"{op} {describe(values)}")
    try:
        given = needing(values) if a.gradients else values
        found = run(*given)
    except REFUSALS as error:
        text = str(error)
        assert text.split(":")[0].split(" ")[0] in (op, "layernorm", "gelu", "GPT2", "embedding"), f"{op} says: {text}"
        assert "\n" not in text, f"{op} says: {text}"
        return "refused"
    except RuntimeError as error:
        if not memory_asked(error):  # of 2^40 tokens, say
            raise
        return "refused"
    wanted = needing(exact(values)) if a.gradients else exact(values)
    expected = reference(*wanted)
    name = {"residual_layernorm": "layernorm", "bias_gelu": "gelu"}.get(op, op)
    for got, want in zip(as_tuple(found), as_tuple(expected), strict=True):
        if got.is_meta:  # which has no values
            assert got.shape == want.shape, f"{op} gives the shape {tuple(got.shape)}, expected {tuple(want.shape)}"
        elif not want.is_floating_point():
            assert torch.equal(got, want), f"{op} gives {got.tolist()}, expected {want.tolist()}"
        else:
            finite = want.isfinite()  # a scale of nan, say, leaves rows that see no key
            lost = int(got[~finite].isfinite().sum())
            assert not lost, f"{op} gives {lost} finite numbers where none are expected"
            assert_close(name, "output", got[finite], want[finite], values_dtype(values), a.floor)
    if a.gradients:
        check_gradients(name, given, found, wanted, expected, a.floor)
    return "right"


def needing(values: object) -> object:
    """The same with floating-point tensors that need a gradient."""
    if isinstance(values, (list, tuple)):
        return [needing(value) for value in values]
    return values.detach().requires_grad_() if isinstance(values, Tensor) and values.is_floating_point() else values


def leaves(values: list) -> list[Tensor]:
    flat = (value for item in values for value in (item if isinstance(item, list) else [item]))
    return [value for value in flat if isinstance(value, Tensor) and value.requires_grad]


def check_gradients(name: str, given: list, found: object, wanted: list, expected: object, floor: float) -> None:
    pairs = [
        (got, want)
        for got, want in zip(as_tuple(found), as_tuple(expected), strict=True)
        if got.requires_grad and want.requires_grad and not got.is_meta and want.isfinite().all()
    ]
    if not pairs:
        return
    upstream = [torch.randn_like(got) for got, _ in pairs]
    inputs = leaves(given), leaves(wanted)
    got = torch.autograd.grad([got for got, _ in pairs], inputs[0], upstream, allow_unused=True)
    doubles = [u.double() for u in upstream]
    want = torch.autograd.grad([want for _, want in pairs], inputs[1], doubles, allow_unused=True)
    for i, (leaf, g, w) in enumerate(zip(inputs[0], got, want, strict=True)):
        if w is not None and w.isfinite().all():
            assert_close(name, f"gradient {i}", torch.zeros_like(leaf) if g is None else g, w, leaf.dtype, floor)


def values_dtype(values: list) -> torch.dtype:
    for value in values:
        if isinstance(value, list):
            return values_dtype(value)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.dtype
    return torch.float32


def describe(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(describe, value)) + "]"
    if not isinstance(value, Tensor):
        return repr(value)
    strides = value.stride() if value.layout is torch.strided else value.layout
    return f"<{tuple(value.shape)} {value.dtype} {strides} {value.device}{' negated' if value.is_neg() else ''}>"


def child(calls: int, number: int, path: Path) -> None:
    counts = {"right": 0, "refused": 0}
    findings: dict[str, str] = {}
    last = ""

    def note(text: str) -> None:
        nonlocal last
        last = text
        path.write_text(text)

    @seed(number)
    @settings(
        max_examples=calls, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def run(data: st.DataObject) -> None:
        case = data.draw(st.sampled_from(CASES))
        try:
            counts[check(Arguments(data), case, note)] += 1
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            findings.setdefault(f"{last.split(' ')[0]} {text[:60]}", f"{last}\n  {text[:300]}")

    run()
    print(
        f"{sum(counts.values())} calls: {counts['right']} right, {counts['refused']} refused; {len(findings)} findings"
    )
    print("\n".join(findings.values()))
    sys.exit(bool(findings))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("calls", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "call"
        code = subprocess.call([sys.executable, __file__, "--child", str(args.calls), str(args.seed), str(path)])
        if code not in (0, 1):
            print(f"the process ended with {code} in: {path.read_text()}")
    return code


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    sys.exit(main())
