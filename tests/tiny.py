"""A run so small that it takes a second, for the tests of training, checkpoints and the command line."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from safetensors.torch import load_file

import gpt2c
from gpt2c.checkpoint import list_all, read_record
from gpt2c.cli import main
from gpt2c.distributed import Processes
from gpt2c.settings import TrainConfig, load_recipe
from gpt2c.training import Training, open_training

REPOSITORY = Path(__file__).resolve().parent.parent
MAIN = "import sys; from gpt2c.cli import main; sys.exit(main())"
TIMES = ("seconds", "tok_per_s")
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * 'a'}\nsize 548105171\n"


def write_text(folder: Path) -> Path:
    """20 kB of English."""
    path = folder / "text.txt"
    path.write_text("\n".join(topics[key] for key in sorted(topics))[:20_000], encoding="utf-8")
    return path


def config(folder: Path, **changes: Any) -> TrainConfig:
    """One layer of width 32, 8 steps; the run folder is `folder`/run."""
    settings: dict[str, Any] = {
        "data": str(write_text(folder)),
        "out": folder / "run",
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 32,
        "context": 16,
        "batch_size": 2,
        "steps": 8,
        "warmup_steps": 2,
        "eval_every": 4,
        "eval_tokens": 64,
        "sample_every": 4,
        "sample_tokens": 20,
        "checkpoint_every": 2,
        "device": "cpu",
    }
    return TrainConfig(**{**settings, **changes})


def opened(settings: TrainConfig) -> Training:
    """The run before its first step, in this process alone."""
    return open_training(settings, False, Processes(0, 1, torch.device("cpu")))


def flags(settings: TrainConfig) -> list[str]:
    """The command line of `gpt2c train` for these settings: what the default recipe has is not typed."""
    default = load_recipe("demo").to_dict()
    changed = {name: value for name, value in settings.to_dict().items() if value != default[name]}
    named = {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    switches = [flag for flag, value in named.items() if value is True]
    return switches + [f"{flag}={value}" for flag, value in named.items() if not isinstance(value, bool)]


def environment() -> dict[str, str]:
    """One thread, and the package that this process has imported, installed or not."""
    package = str(Path(gpt2c.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def start(*args: str, program: str = MAIN) -> subprocess.Popen[str]:
    """`gpt2c ARGS` as a process of its own, with one thread."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *args],
        env=environment(),
        cwd=tempfile.gettempdir(),  # not the repository, whose sources `-c` would import instead of what is installed
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fork(
    *args: str, variables: Mapping[str, str] | None = None, log: Path | None = None, closed: Sequence[int] = ()
) -> BaseProcess:
    """`gpt2c ARGS` as a process of its own that has imported everything before it is forked: it starts at once.

    variables: added to its environment. log: gets what it prints. closed: standard streams that it does not have.
    """
    context = multiprocessing.get_context("forkserver")
    # torch.optim imports torch._dynamo at its first use, which takes longer than the whole run.
    context.set_forkserver_preload(["gpt2c.cli", "torch._dynamo", "torch.distributed.optim", "matplotlib.figure"])
    process = context.Process(target=_run, args=(args, dict(variables or {}), log, closed))
    process.start()
    return process


def _run(args: tuple[str, ...], variables: dict[str, str], log: Path | None, closed: Sequence[int]) -> None:
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    for number in closed:
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)  # as Python has it then
        os.close(number)
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.exit(main(args))


def metrics(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without the times, which differ from run to run, and without the events."""
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in all_rows(run)]
    return [row for row in rows if "event" not in row]


def events(run: Path) -> list[tuple[int, str]]:
    """Step and name of each event of metrics.jsonl."""
    return [(row["step"], row["event"]) for row in all_rows(run) if "event" in row]


def all_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def stopped_after(run: Path, step: int, copy: Path) -> Path:
    """A copy of a finished run without the checkpoints after `step`."""
    shutil.copytree(run, copy)
    for path in list_all(copy):
        if read_record(path).step > step:
            shutil.rmtree(path)
    return copy


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: the weights and the moments."""
    return {
        f"{name}: {key}": value
        for name in ("model.safetensors", "training.safetensors")
        for key, value in load_file(checkpoint / name).items()
    }


def state(checkpoint: Path) -> dict[str, bytes]:
    """The same as bytes."""
    return {
        key: value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for key, value in tensors(checkpoint).items()
    }


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
