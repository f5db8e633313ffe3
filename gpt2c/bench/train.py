"""`gpt2c bench train`: training steps beside those of a plain PyTorch model, the same weights, batches and settings.

Each side runs in a process of its own, so that its peak memory is its own; the processes take turns step by step, so
that all meet the same machine. PyTorch's side is twin.py in eager mode, or compiled, with torch's fused AdamW and its
clipping; gpt2c's keeps its heap, as `gpt2c train` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gpt2c.bench import machine, recipes, train_plots
from gpt2c.bench.benchmark import Benchmark, using_threads
from gpt2c.bench.case import COMPILED, OURS, RECOMPUTING
from gpt2c.bench.floors import Floors, measure_floors
from gpt2c.bench.kernels import thread_counts
from gpt2c.bench.plots import Pictures
from gpt2c.bench.recipes import Job
from gpt2c.bench.report import Report, Table, duration, megabytes, spread
from gpt2c.bench.side import Memory, Side, SideError
from gpt2c.bench.timing import Timing
from gpt2c.errors import UserError

SCALING_STEPS = 3  # the first warms up
LONG = 1024  # tokens; longer windows have a step less
TYPICAL = 1.8  # a step's time over its floor
SECONDS_TO_START, SECONDS_TO_COMPILE = 12, 90  # of a side, about
VALIDATION_BATCHES = 200  # at most


@dataclass(frozen=True)
class Train(Benchmark):
    """Measure training steps beside those of a plain PyTorch model: same weights, batches and settings, in turns."""

    recipe: Literal[tuple(recipes.RECIPES)] = "124m"
    """`124m`: GPT-2's smallest size; `shakespeare`: nanoGPT's small recipe, on bytes."""
    sizes: tuple[str, ...] = ()
    """Batches, like `B4xT64 B1xT1024`: windows and tokens in each; the recipe's own if not given."""
    data: str = "embedded"
    """Text file, or `embedded`: Python's help, 0.5 MB."""
    steps: int = 20
    """Optimizer steps; the learning rate's cosine ends there."""
    compile: bool = False
    """Also beside torch.compile, whose first step takes a minute and needs a C++ compiler."""
    recompute: bool = False
    """Also with activations computed again in the backward, which takes less memory and more time."""
    scaling: tuple[Literal["model", "length", "threads"], ...] = ()
    """Instead, three steps each: models from 10M to 774M, windows from 64 to 4096 tokens, one thread to all."""

    def measure(self, report: Report, threads: int) -> None:
        if self.steps < 2:
            raise UserError(f"--steps is {self.steps}, expected at least 2: the first ones warm up")
        for part in self.scaling or ("sizes",):
            jobs = self._jobs(part, threads)
            print(f"{TITLES[part]}: about {_estimate(jobs, report, self._sides()):.0f} minutes", flush=True)
            results = [compare(report, part, job, self._sides(), self._floors(report, job)) for job in jobs]
            report.tables.append(_table(TITLES[part], [r for r in results if r]))

    def draw(self, report: Report) -> Pictures:
        return train_plots.draw(report)

    def _floors(self, report: Report, job: Job) -> Floors:
        """With the job's threads."""
        if job.threads == int(report.machine["threads"]):
            return report.floors
        with using_threads(job.threads):
            return measure_floors(quick=self.quick)

    def _sides(self) -> tuple[str, ...]:
        return (OURS, "torch", *[COMPILED] * self.compile, *[RECOMPUTING] * self.recompute)

    def _jobs(self, part: str, threads: int) -> list[Job]:
        steps = SCALING_STEPS if part != "sizes" or self.quick else self.steps
        base = recipes.config_of(self.recipe, self.data, steps, self.quick)
        if part == "sizes":
            configs = [recipes.resized(base, size) for size in self.sizes] or [base]
            name = "tiny" if self.quick else self.recipe
            return [Job(f"{name}, {recipes.size_of(c)}", c, threads, steps) for c in configs]
        if part == "threads":
            return [Job(f"{n} threads" if n > 1 else "1 thread", base, n, steps) for n in thread_counts(threads)]
        if part == "length":
            T_of = recipes.QUICK_LENGTHS if self.quick else recipes.LENGTHS
            windows = {T: dataclasses.replace(base, batch_size=1, context=T) for T in T_of}
            return [Job(f"T = {T}", c, threads, steps if T <= LONG else steps - 1) for T, c in windows.items()]
        models = recipes.QUICK_MODELS if self.quick else recipes.MODELS
        return [
            Job(name, dataclasses.replace(base, n_layer=n_layer, n_head=n_head, n_embd=n_embd), threads, steps)
            for name, (n_layer, n_head, n_embd) in models.items()
        ]


TITLES = {
    "sizes": "Training steps",
    "model": "Training steps as the model grows",
    "length": "Training steps as the context grows, one window",
    "threads": "Training steps with one thread and several",
}


def _estimate(jobs: list[Job], report: Report, sides: tuple[str, ...]) -> float:
    """Minutes."""
    seconds = sum(
        len(sides) * (SECONDS_TO_START + job.steps * TYPICAL * job.floor(report.floors))
        + SECONDS_TO_COMPILE * (COMPILED in sides)
        for job in jobs
    )
    return max(1.0, seconds / 60)


def compare(report: Report, part: str, job: Job, names: tuple[str, ...], floors: Floors) -> dict | None:
    """The job's result, which the report gets too: all sides in turns, or, where they have not the memory to be there
    at once, one after the other. None, with a note, if no side has the memory."""
    print(f"{job.what}: {job.parameters:,} parameters, {job.tokens:,} tokens a step, {job.config.data}", flush=True)
    available = machine.available_bytes()
    room = len(names) if available is None else available // job.bytes
    if room < 1:
        report.note(
            f"{job.what} needs about {megabytes(job.bytes)} MB, and {megabytes(available)} MB are free: not measured"
        )
        return None
    groups = [names] if room >= len(names) else [(name,) for name in names]
    sides: dict[str, dict] = {}
    for group in groups:
        sides |= _train(report, job, group)
    if OURS not in sides:
        return None
    result = {
        "part": part, "what": job.what, "size": recipes.size_of(job.config), "threads": job.threads,
        "parameters": job.parameters, "tokens": job.tokens, "flops": job.flops, "T": job.config.context,
        "floor": job.floor(floors), "in_turns": len(groups) == 1, "sides": sides,
    }  # fmt: skip
    report.results.append(result)
    return result


def _train(report: Report, job: Job, names: tuple[str, ...]) -> dict[str, dict]:
    """What each side that did not fail has measured."""
    sides = {name: Side(name, job.config, job.threads) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    found = {}
    try:
        for name in names:
            _attempt(report, job, sides, name, lambda side: side.ready())
        for step in range(1, job.steps + 1):
            for name in list(sides) if step % 2 else list(reversed(sides)):
                answer = _attempt(report, job, sides, name, lambda side, step=step: side.step(step))
                if answer:
                    losses[name].append(answer[0])
                    times[name].append(answer[1])
            if step <= 20 or step % 100 == 0:
                print(_line(step, {n: losses[n][-1] for n in sides}, {n: times[n][-1] for n in sides}), flush=True)
        for name in list(sides):
            batches = min(job.steps, VALIDATION_BATCHES)
            memory = _attempt(report, job, sides, name, lambda side: side.memory())
            val_loss = _attempt(report, job, sides, name, lambda side, n=batches: side.validation_loss(n))
            if val_loss is not None:
                found[name] = _measured(job, times[name], losses[name], memory, val_loss)
    finally:
        for side in sides.values():
            side.close()
    return found


def _attempt(report: Report, job: Job, sides: dict[str, Side], name: str, ask: Callable[[Side], Any]) -> Any:
    """The side's answer; where it fails it is left out from then on, with a note."""
    if name not in sides:
        return None
    try:
        return ask(sides[name])
    except SideError as error:
        report.note(f"{job.what}: {name} cannot go on: {error}")
        sides.pop(name).close()
        return None


def _line(step: int, losses: dict[str, float], seconds: dict[str, float]) -> str:
    sides = ", ".join(f"{name} loss {losses[name]:.5f} in {1e3 * seconds[name]:.1f} ms" for name in losses)
    return f"  step {step}: {sides}"


def _measured(job: Job, times: list[float], losses: list[float], memory: Memory, val_loss: float) -> dict:
    warm = times[min(3, len(times) // 2) :]
    beyond = memory.peak - memory.imports
    return {
        "seconds": dataclasses.asdict(Timing.of(warm)), "total_seconds": sum(times), "losses": losses,
        "validation_loss": val_loss, "peak_bytes": memory.peak, "peak_beyond_imports": beyond,
        "peak_beyond_state": beyond - recipes.STATE_BYTES * job.parameters,
    }  # fmt: skip


def _table(title: str, results: list[dict]) -> Table:
    header = ("what", "side", "a step", "spread", "tokens/s", "of floor", "side / gpt2c", "peak MB", "beyond imports",
              "beyond 16 bytes a parameter", "validation loss")  # fmt: skip
    rows = []
    for result in results:
        ours = result["sides"][OURS]["seconds"]["median"]
        for name, side in result["sides"].items():
            taken = Timing(**side["seconds"])
            memory = (side["peak_bytes"], side["peak_beyond_imports"], side["peak_beyond_state"])
            rows.append((
                result["what"], name, duration(taken.median), spread(taken), f"{result['tokens'] / taken.median:,.0f}",
                f"{result['floor'] / taken.median:.0%}", f"{taken.median / ours:.2f}", *map(megabytes, memory),
                f"{side['validation_loss']:.4f}",
            ))  # fmt: skip
    return Table(title, header, rows, text=2)
