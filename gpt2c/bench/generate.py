"""`gpt2c bench generate`: tokens a second of generation beside transformers' and CTranslate2's, of one random GPT-2.

All sides live in one process and take turns. Every time is that of a whole greedy generation; a token's time is the
difference to a generation of one token, divided by the further ones. The floor of a token is the time to read its
weights once: their bytes over the bandwidth at which torch sums the fp32 ones in the same turns.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import gpt2c
from gpt2c.bench import generate_plots
from gpt2c.bench.benchmark import Benchmark
from gpt2c.bench.case import OURS
from gpt2c.bench.generators import Generator, generators
from gpt2c.bench.plots import Pictures
from gpt2c.bench.report import Report, Table, digits, spread
from gpt2c.bench.timing import Timing
from gpt2c.config import PRESETS
from gpt2c.decode import WEIGHTS
from gpt2c.errors import UserError

OURS_FP32 = f"{OURS} fp32"
PAUSE = 0.25  # seconds after which no side's idle threads spin any more (OpenMP's do for 0.2)
READS = 5  # of the weights in each turn, of which the fastest counts
ENOUGH, LEAST = 40.0, 2  # seconds after which a prompt and batch gets no further turn, once it has had so many
TINY = gpt2c.GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=2)
QUICK = {"prompts": (4, 8), "batches": (1, 2), "new_tokens": 16, "rounds": 2}


@dataclass(frozen=True)
class Generate(Benchmark):
    """Measure generation beside transformers and CTranslate2, as far as they are installed: same weights, in turns."""

    preset: Literal[tuple(PRESETS)] = "gpt2"
    """Size of the model."""
    prompts: tuple[int, ...] = (16, 512)
    """Lengths of the prompts, in tokens."""
    batches: tuple[int, ...] = (1, 8)
    """Numbers of sequences; each with each of the prompts."""
    new_tokens: int = 32
    """Tokens that are generated in each sequence."""
    rounds: int = 5
    """Turns of every side; fewer, but at least two, where they take more than 40 seconds."""

    def measure(self, report: Report, threads: int) -> None:
        self._check()
        asked = dataclasses.replace(self, **QUICK) if self.quick else self
        torch.manual_seed(0)
        model = gpt2c.GPT2(TINY if self.quick else gpt2c.GPT2Config.preset(self.preset)).eval()
        matrices = [p.detach() for name, p in model.named_parameters() if p.ndim == 2 and name != "wpe.weight"]
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            sides = generators(model, Path(folder), threads, report)
            for side in sides.values():  # what libraries do at their first call is not counted
                side(torch.zeros(1, asked.prompts[0], dtype=torch.int64), 2)
            for prompt in asked.prompts:
                for batch in asked.batches:
                    ids = torch.randint(0, model.config.vocab_size - 1, (batch, prompt))
                    report.results.append(asked._compare(report, sides, matrices, ids))
        for note in _unsteady(report.results):
            report.note(note)
        report.tables.append(_table("tiny" if self.quick else self.preset, report.results))

    def draw(self, report: Report) -> Pictures:
        return generate_plots.draw(report)

    def _check(self) -> None:
        for name, least in (("prompts", 1), ("batches", 1), ("new_tokens", 2), ("rounds", 1)):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,), default=0) < least:
                raise UserError(f"--{name.replace('_', '-')} is {value}, expected at least {least}")
        context = gpt2c.GPT2Config.preset(self.preset).n_positions
        if max(self.prompts) + self.new_tokens > context:
            raise UserError(
                f"a prompt of {max(self.prompts)} tokens and --new-tokens {self.new_tokens} exceed the model's context "
                f"of {context}"
            )

    def _compare(
        self, report: Report, sides: dict[str, Generator], matrices: list[torch.Tensor], prompt: torch.Tensor
    ) -> dict:
        """The result of one prompt (B,T): all sides in turns, in an order that turns around each time."""
        B, T = prompt.shape
        print(f"{B} x {T} tokens of prompt, {self.new_tokens} new ones", flush=True)
        pause = 0.0 if self.quick else PAUSE
        first: dict[str, list[float]] = {name: [] for name in sides}
        token: dict[str, list[float]] = {name: [] for name in sides}
        reads = []
        start = time.monotonic()
        for turn in range(self.rounds):
            if turn >= LEAST and time.monotonic() - start > ENOUGH:
                report.note(f"{B} x {T} tokens of prompt: {turn} turns only, since they take long")
                break
            reads.append(_seconds_to_read(matrices, pause))
            for name in list(sides) if turn % 2 == 0 else reversed(sides):
                short, long = _generations(sides[name], prompt, self.new_tokens, pause)
                first[name].append(short)
                token[name].append((long - short) / (self.new_tokens - 1))
        return _result(prompt, self.new_tokens, matrices, reads, first, token)


def _generations(side: Generator, prompt: torch.Tensor, new: int, pause: float) -> tuple[float, float]:
    """Seconds of a generation of one token and of `new` ones."""
    # Other sides' idle threads have stopped spinning, and this one's have been woken, when time begins to count.
    time.sleep(pause)
    side(prompt[:, :1], 2)
    return _seconds(lambda: side(prompt, 1)), _seconds(lambda: side(prompt, new))


def _seconds_to_read(matrices: list[torch.Tensor], pause: float) -> float:
    """Seconds in which all threads read the fp32 weights, at best."""
    time.sleep(pause)
    matrices[0].sum()
    return min(_seconds(lambda: [matrix.sum() for matrix in matrices]) for _ in range(READS))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _result(
    prompt: torch.Tensor,
    new_tokens: int,
    matrices: list[torch.Tensor],
    reads: list[float],
    first: dict[str, list[float]],
    token: dict[str, list[float]],
) -> dict:
    """As JSON can hold it: seconds of the prompt with its first token, of each further token, and of reading."""
    B, T = prompt.shape
    read, weights = Timing.of(reads), sum(matrix.numel() for matrix in matrices)
    ours = Timing.of(token[OURS_FP32]).median
    sides = {}
    for name in token:
        taken, before = Timing.of(token[name]), Timing.of(first[name])
        size = weights * WEIGHTS[name.split()[-1]].itemsize
        floor = read.median * size / (4 * weights)
        known = taken.median > 0  # a difference, which noise may turn round
        sides[name] = {
            "token": dataclasses.asdict(taken), "first": dataclasses.asdict(before), "bytes": size, "floor": floor,
            "tokens_per_s": B / taken.median if known else None,
            "prompt_tokens_per_s": B * T / before.median,
            "of_floor": floor / taken.median if known else None,
            "ratio": taken.median / ours if known and ours > 0 else None,
        }  # fmt: skip
    return {
        "part": "generate", "prompt": T, "batch": B, "new_tokens": new_tokens, "weights": weights,
        "read": dataclasses.asdict(read), "bandwidth": 4 * weights / read.median, "sides": sides,
    }  # fmt: skip


def _unsteady(results: list[dict]) -> list[str]:
    """A note for each token's time that is not to be told from the noise of the prompt's."""
    return [
        f"{r['batch']} x {r['prompt']} tokens of prompt: the machine was too unsteady to tell {name}'s time of a token"
        for r in results
        for name, side in r["sides"].items()
        if side["tokens_per_s"] is None
    ]


def _table(what: str, results: list[dict]) -> Table:
    header = (
        "side",
        "prompt",
        "batch",
        "tokens/s",
        "spread of time",
        "of floor",
        "side / gpt2c fp32",
        "prompt tokens/s",
    )
    rows = [
        (name, str(result["prompt"]), str(result["batch"]), *_cells(side))
        for result in results
        for name, side in result["sides"].items()
    ]
    low, high = (pick(result["bandwidth"] for result in results) / 1e9 for pick in (min, max))
    weights = f"{results[0]['weights']:,} weights, read at {low:.1f} to {high:.1f} GB/s"
    return Table(f"Generation, {what}: {weights}; {results[0]['new_tokens']} new tokens", header, rows)


def _cells(side: dict) -> tuple[str, ...]:
    prefill = f"{side['prompt_tokens_per_s']:,.0f}"
    if side["tokens_per_s"] is None:
        return "", "", "", "", prefill
    ratio = "" if side["ratio"] is None else f"{side['ratio']:.2f}"
    return digits(side["tokens_per_s"]), spread(Timing(**side["token"])), f"{side['of_floor']:.0%}", ratio, prefill
