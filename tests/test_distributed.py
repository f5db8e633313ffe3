"""Several processes, one training: the same losses as one process, and clean ends when something goes wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist

from gpt2c import checkpoint, distributed
from gpt2c.errors import UserError
from gpt2c.settings import TrainConfig
from gpt2c.step import accumulate_gradients, micro_batches
from gpt2c.train import train

RELATIVE = 1e-5  # sums of fp32 in another order, and what eight updates make of their last bits


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def config(folder: Path, **changes: object) -> TrainConfig:
    folder.mkdir(exist_ok=True)
    return tiny.config(folder, **{"accumulation": 4, "dropout": 0.1, "log_every": 1, "keep": 9, **changes})


def start(settings: TrainConfig, *args: str, world: int = 2) -> tuple[list[BaseProcess], Path]:
    """A run of so many processes, and the file that gets what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    log = settings.out.parent / "log.txt"
    return [
        tiny.fork(
            "train", *tiny.flags(settings), *args, variables={**shared, "RANK": str(i), "LOCAL_RANK": str(i)}, log=log
        )
        for i in range(world)
    ], log


def finish(processes: list[BaseProcess]) -> list[int | None]:
    """The exit codes of all; none is left behind."""
    deadline = time.monotonic() + 60
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def losses(run: Path) -> list[float]:
    return [row[name] for row in tiny.metrics(run) for name in ("loss", "val_loss", "grad_norm") if name in row]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    torch.set_num_threads(1)
    return train(config(tmp_path_factory.mktemp("alone"))).run.folder


@pytest.fixture(scope="module", params=[False, True], ids=["ddp", "zero"])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The settings of a finished run of two processes."""
    settings = config(tmp_path_factory.mktemp("together"), shard_optimizer=request.param)
    processes, log = start(settings)
    assert finish(processes) == [0, 0], log.read_text()
    assert log.read_text().count("step 4: validation loss") == 1 and "2 processes" in log.read_text()
    return settings


def test_two_processes_give_the_losses_of_one(alone: Path, together: TrainConfig) -> None:
    assert losses(together.out) == pytest.approx(losses(alone), rel=RELATIVE)
    weights = [tiny.tensors(checkpoint.latest(run)) for run in (alone, together.out)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("world", [1, 4])
def test_a_run_goes_on_with_another_number_of_processes(
    alone: Path, together: TrainConfig, tmp_path: Path, world: int
) -> None:
    settings = config(tmp_path)  # whether the optimizer is sharded is the run's own setting
    shutil.copytree(together.out, settings.out)
    for name in ("step_000006", "step_000008"):
        shutil.rmtree(settings.out / "checkpoints" / name)
    processes, log = start(settings, "--resume", world=world)
    assert finish(processes) == [0] * world, log.read_text()
    assert losses(settings.out) == pytest.approx(losses(alone), rel=RELATIVE)
    assert tiny.events(settings.out) == [(4, "resume")]


@pytest.mark.parametrize("compiled", [False, True])
def test_processes_average_once_a_step(tmp_path: Path, compiled: bool) -> None:
    """In the backward of the last micro-step alone, whether compiled or not."""
    steps: list[int] = []
    done = 0

    def hook(_, bucket):  # torch looks at its annotations, and wants no strings
        steps.append(done)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    t = tiny.opened(config(tmp_path))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(t.model)
        model.register_comm_hook(None, hook)
        model = torch.compile(model, backend="eager") if compiled else model
        for done in range(3):
            accumulate_gradients(model, t.optimizer, micro_batches(t.dataset, done, t.config))
    finally:
        dist.destroy_process_group()
    assert t.config.accumulation == 4 and sorted(set(steps)) == [0, 1, 2]
    assert len(steps) <= 3 * 2, "at most two buckets a step: the model is a small one"


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    settings = config(tmp_path, accumulation=3)
    processes, log = start(settings)
    assert finish(processes) == [2, 2]
    *notes, mistake = log.read_text().splitlines()
    assert mistake == (
        "error: --accumulation is 3, expected a multiple of the number of processes, 2, "
        "which share a step's micro-steps"
    )
    assert len(notes) == len(set(notes)) and all(note.startswith("note: ") for note in notes)  # of flags without effect
    assert not settings.out.exists()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "the environment says WORLD_SIZE=2, but has no MASTER_ADDR and no MASTER_PORT",
        ),
        ({"WORLD_SIZE": "two"}, "the environment says WORLD_SIZE=two, expected a whole number of at least 1"),
        ({"RANK": "-1"}, "the environment says RANK=-1, expected a whole number of at least 0"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
            "the environment says RANK=2 and WORLD_SIZE=2, expected a rank below the size",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "http"},
            "the environment says MASTER_ADDR=localhost and MASTER_PORT=http, but the processes do not meet there: ",
        ),
    ],
)
def test_variables_of_no_torchrun_are_told(
    variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's or a scheduler's, say."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told), distributed.processes("cpu"):
        pass


def test_a_taken_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"MASTER_PORT={port}, but the processes do not meet there"):
            with distributed.processes("cpu"):
                pass


def endless(folder: Path) -> TrainConfig:
    return config(folder, steps=100_000, checkpoint_every=5, eval_every=100_000, sample_every=0, keep=2)


def wait_for(run: Path, processes: list[BaseProcess], at_least: int = 1) -> None:
    """Until a checkpoint of so many steps is there."""
    deadline = time.monotonic() + 60
    while not (last := checkpoint.latest(run)) or int(last.name[5:]) < at_least:
        assert all(p.is_alive() for p in processes) and time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path: Path) -> None:
    settings = endless(tmp_path)
    processes, log = start(settings)
    wait_for(settings.out, processes)
    os.kill(processes[1].pid, signal.SIGHUP)
    assert finish(processes) == [128 + signal.SIGHUP] * 2, log.read_text()
    last = checkpoint.read_record(checkpoint.latest(settings.out)).step
    assert f"stopped after step {last} of 100000" in log.read_text()
    assert tiny.metrics(settings.out)[-1]["step"] == last and tiny.events(settings.out) == [(last, "stop")]


def test_a_killed_process_ends_the_others_with_a_sentence_and_the_run_resumes(tmp_path: Path) -> None:
    settings = endless(tmp_path)
    processes, log = start(settings)
    wait_for(settings.out, processes)
    processes[1].kill()
    assert finish(processes)[0] == 2
    told = next(line for line in log.read_text().splitlines() if line.startswith("error: "))
    assert re.fullmatch(
        r'error: process 0 of 2 has lost another one \("[^/"]+"\), so training has stopped; go on from the latest '
        r"checkpoint with --resume, or let torchrun do so with --max-restarts",
        told,
    )
    assert "Traceback" not in log.read_text()
    step = checkpoint.read_record(checkpoint.latest(settings.out)).step
    processes, log = start(settings, "--resume")
    wait_for(settings.out, processes, step + 5)
    for process in processes:
        process.terminate()
    assert finish(processes) == [128 + signal.SIGTERM] * 2, log.read_text()
    assert tiny.events(settings.out)[0] == (step, "resume")


def test_torchrun_starts_a_run_anew_when_a_process_is_killed(tmp_path: Path) -> None:
    settings = config(tmp_path, steps=150, checkpoint_every=5, eval_every=150, sample_every=0, keep=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--standalone"]
    torchrun = subprocess.Popen(
        [*command, "-m", "gpt2c", "train", *tiny.flags(settings)],
        env=tiny.environment(), cwd=tempfile.gettempdir(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while not checkpoint.latest(settings.out):
            assert torchrun.poll() is None and time.monotonic() < deadline, torchrun.stdout.read()
            time.sleep(0.01)
        os.kill(max(children(torchrun.pid)), signal.SIGKILL)
        out, _ = torchrun.communicate(timeout=90)
    finally:
        torchrun.kill()
    assert torchrun.returncode == 0, out
    assert checkpoint.read_record(checkpoint.latest(settings.out)).step == 150
    assert [name for _, name in tiny.events(settings.out)] == ["resume"]
    assert [row["step"] for row in tiny.metrics(settings.out) if "loss" in row] == list(range(1, 151))


def test_a_restart_does_not_resume_the_run_of_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first start has refused the second refuses, too."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    train(config(tmp_path, steps=2))
    before = tiny.files(tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    with pytest.raises(UserError, match="is not empty: add --resume"):
        train(config(tmp_path, steps=4))
    assert tiny.files(tmp_path / "run") == before
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    assert train(config(tmp_path, steps=4)).step == 2, "its own goes on with its own settings"


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
