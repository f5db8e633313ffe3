"""A measurement: one op, forward or backward, beside its peers and the floor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt2c.bench.floors import Floors
from gpt2c.bench.report import duration
from gpt2c.bench.timing import CPU, Call, Timing, interleaved, repeats_within
from gpt2c.errors import reason

Function = Callable[..., Tensor | tuple[Tensor, ...]]
OURS = "gpt2c"
COMPILED = "torch.compile"
RECOMPUTING = "gpt2c, recompute"
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"


@dataclass(frozen=True)
class Work:
    """The bytes that any kernel must move and the operations that it must do; exp and division count as one."""

    bytes: float
    flops: float

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Case:
    """What to measure. prepare: makes the tensors, and of them functions without arguments, `gpt2c` and its peers."""

    op: str
    way: str
    label: str
    prepare: Callable[[], dict[str, Call]]
    work: Work


@dataclass
class Measured:
    """A case's times in seconds, ours and the peers'; its floor; and the peers that could not run, with the reason."""

    op: str
    way: str
    label: str
    seconds: dict[str, Timing]
    work: Work
    floor: float
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.way}, {self.label}"

    @property
    def ours(self) -> float:
        return self.seconds[OURS].median

    @property
    def ratios(self) -> dict[str, float]:
        """Each peer's time over ours: above 1 ours is faster."""
        return {name: taken.median / self.ours for name, taken in self.seconds.items() if name != OURS}

    @property
    def speedup(self) -> float | None:
        """The fastest peer's time over ours."""
        return min(self.ratios.values(), default=None)

    @property
    def of_floor(self) -> float:
        return self.floor / self.ours

    def __str__(self) -> str:
        times = ", ".join(f"{name} {duration(taken.median)}" for name, taken in self.seconds.items())
        return f"{self.op} {self.name}: {times}"

    def to_dict(self) -> dict:
        """As JSON can hold it."""
        return {**dataclasses.asdict(self), "of_floor": self.of_floor, "ratios": self.ratios}


@dataclass(frozen=True)
class Effort:
    """How long a case is measured: for about `seconds`, in `least` to `most` rounds; cold: with cold caches."""

    seconds: float = 1.5
    least: int = 3
    most: int = 100
    cold: bool = False
    calls: int = 1


def measure(case: Case, floors: Floors, effort: Effort, device: torch.device = CPU) -> Measured:
    """Drops the peers that cannot run here; an error of ours is an error."""
    run, unavailable = {}, {}
    for name, function in case.prepare().items():
        try:
            function()
            run[name] = function
        except Exception as error:  # whatever a peer's library raises
            if name == OURS:
                raise
            unavailable[name] = reason(error)
    repeats = repeats_within(effort.seconds / effort.calls, run, effort.least, effort.most)
    seconds = interleaved(run, repeats, device, effort.cold, effort.calls)
    floor = floors.seconds(case.work.bytes, case.work.flops)
    return Measured(case.op, case.way, case.label, seconds, case.work, floor, unavailable)


def function_cases(
    op: str, label: str, sides: Mapping[str, Function], inputs: Callable[[], list[Tensor]], works: Mapping[str, Work],
    plain: Function | None = None, compiled: bool = False,
) -> list[Case]:  # fmt: skip
    """A case for each way of `works`, of differentiable functions of the same inputs. plain: what torch.compile gets,
    torch's own function if not given."""

    def prepare(way: str) -> dict[str, Call]:
        functions = dict(sides)
        if compiled:
            functions[COMPILED] = compile_anew(plain or sides["torch"])
        given = inputs()
        return {name: WAYS[way](function, given) for name, function in functions.items()}

    return [Case(op, way, label, lambda way=way: prepare(way), work) for way, work in works.items()]


def compile_anew(function: Function) -> Function:
    """torch.compile for one set of shapes; what was compiled before is forgotten."""
    torch.compiler.reset()  # or torch gives up on a function after some sets of shapes and runs it as it is
    config = torch._functorch.config
    if hasattr(config, "donated_buffer"):
        config.donated_buffer = False  # or a compiled backward could run only once
    return torch.compile(function, dynamic=False)


def _forward(function: Function, inputs: list[Tensor]) -> Call:
    """Without a graph."""

    @torch.no_grad()
    def run() -> object:
        return function(*inputs)

    return run


def _backward(function: Function, inputs: list[Tensor]) -> Call:
    """Alone, on a graph that is made once, by the first call."""
    graph: list[list[Tensor]] = []

    def run() -> object:
        if not graph:
            graph.extend(_graph(function, _leaves(inputs)))
        return torch.autograd.grad(*graph, retain_graph=True)

    return run


def _both(function: Function, inputs: list[Tensor]) -> Call:
    given = _leaves(inputs)
    return lambda: torch.autograd.grad(*_graph(function, given))


def _leaves(inputs: list[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]


def _graph(function: Function, given: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs, the inputs that need a gradient, and what flows into the outputs."""
    outputs = function(*given)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return outputs, [t for t in given if t.requires_grad], [torch.ones_like(o) for o in outputs]


WAYS: dict[str, Callable[[Function, list[Tensor]], Call]] = {FORWARD: _forward, BACKWARD: _backward, BOTH: _both}
