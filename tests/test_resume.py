"""Runs that are killed, stopped and resumed: as if never stopped, and only with the settings they began with."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import tiny
import torch

from gpt2c import checkpoint, interrupt, progress, settings
from gpt2c import train as loop
from gpt2c.errors import UserError
from gpt2c.settings import TrainConfig
from gpt2c.train import train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two threads have nothing to share in so small a model, and on a busy machine they wait for each other."""
    torch.set_num_threads(1)


def test_stopping_and_resuming_is_as_if_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings_of = {}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        settings_of[name] = tiny.config(tmp_path / name, steps=12, dropout=0.1, accumulation=2)
    whole = train(settings_of["whole"])

    update = progress.Progress.update

    def interrupted(self: progress.Progress, step: int, *args: float) -> None:
        update(self, step, *args)
        if step in (3, 4, 9):
            os.kill(os.getpid(), {3: signal.SIGTERM, 4: signal.SIGINT, 9: signal.SIGHUP}[step])

    monkeypatch.setattr(progress.Progress, "update", interrupted)
    stops = []
    for attempt in range(4):
        part = train(settings_of["parts"], resume=attempt > 0)
        stops.append((part.step, part.stopped_by))
    assert stops == [(3, signal.SIGTERM), (4, signal.SIGINT), (9, signal.SIGHUP), (12, None)]
    assert tiny.state(part.checkpoint) == tiny.state(whole.checkpoint)
    assert tiny.metrics(tmp_path / "parts" / "run") == tiny.metrics(tmp_path / "whole" / "run")
    assert part.run.samples.read_bytes() == whole.run.samples.read_bytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_stops_at_once_but_its_echo_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun hands on the Ctrl-C that its processes have from the terminal already."""
    clock = iter((10.0, 10.1, 11.0))
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: next(clock))
    stop = interrupt.StopSignal()
    stop.handle(signal.SIGINT, None)
    stop.handle(signal.SIGTERM, None)
    assert stop.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)


def test_a_warning_that_comes_again_does_not_stop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGXCPU comes each second; what follows a warning asks for the first time."""
    clock = iter(range(10, 20))
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: next(clock))
    stop = interrupt.StopSignal()
    for number in (signal.SIGXCPU, signal.SIGXCPU, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
        stop.handle(number, None)
    assert stop.received == signal.SIGXCPU
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGTERM, None)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGINT])
def test_signals_are_caught_unless_they_were_ignored_before(number: int) -> None:
    before = signal.getsignal(number)
    with interrupt.stop_signal() as stop:
        os.kill(os.getpid(), number)
    assert stop.received == number and signal.getsignal(number) is before
    signal.signal(number, signal.SIG_IGN)  # as nohup does
    try:
        with interrupt.stop_signal() as stop:
            os.kill(os.getpid(), number)
        assert stop.received is None and signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_run_is_one_process_s_alone(tmp_path: Path) -> None:
    """Also to resume; and a kill releases it."""
    endless = tiny.config(tmp_path, steps=100_000, eval_every=0, sample_every=0, checkpoint_every=1)
    holder = tiny.fork("train", *tiny.flags(endless))
    while not checkpoint.latest(endless.out):
        assert holder.is_alive()
        time.sleep(0.01)
    told = f"another process, pid {holder.pid}, on host {socket.gethostname()}, is training in {endless.out}"
    for resume in (False, True):
        assert told in refusal(endless, resume)
    holder.kill()
    holder.join()
    step = checkpoint.read_record(checkpoint.latest(endless.out)).step
    assert train(dataclasses.replace(endless, steps=step + 1), resume=True).step == step + 1
    assert not list(endless.out.glob(".*"))


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL at whatever it is doing: stepping, evaluating, drawing, writing a checkpoint or removing one."""
    draw = random.Random()
    commands = {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        busy = {"steps": 60, "checkpoint_every": 1, "eval_every": 15, "sample_every": 5, "keep": 2}
        changed = tiny.config(tmp_path / name, dropout=0.1, accumulation=2, log_every=1, **busy)
        commands[name] = ["train", *tiny.flags(changed)]
    whole, killed = (tmp_path / name / "run" for name in commands)

    process = tiny.fork(*commands["whole"])
    process.join(60)
    assert process.exitcode == 0

    moments = []
    for kill in range(4):
        process = tiny.fork(*commands["killed"], *(["--resume"] if kill else []))
        size, step = file_size(killed / "metrics.jsonl"), 12 * kill + draw.randint(1, 12)
        deadline = time.monotonic() + 60
        # It has begun once the file changes: to resume cuts it back.
        while file_size(killed / "metrics.jsonl") == size or last_step(killed / "metrics.jsonl") < step:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        moments.append(last_step(killed / "metrics.jsonl"))
    process = tiny.fork(*commands["killed"], "--resume")
    process.join(60)
    assert process.exitcode == 0

    ends = [checkpoint.latest(folder) for folder in (whole, killed)]
    assert tiny.state(ends[0]) == tiny.state(ends[1]), f"killed after {moments} steps"
    assert (ends[0] / "model.safetensors").read_bytes() == (ends[1] / "model.safetensors").read_bytes()
    assert tiny.metrics(killed) == tiny.metrics(whole), f"killed after {moments} steps"
    assert (killed / "samples.txt").read_bytes() == (whole / "samples.txt").read_bytes()
    assert [p.name for p in checkpoint.list_all(killed)] == [p.name for p in checkpoint.list_all(whole)]
    assert not list(killed.rglob(".*")), "nothing of the killed processes may be left"


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def last_step(metrics: Path) -> int:
    """The step of the last whole row; the last line may be half written."""
    rows = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []
    return json.loads(rows[-1])["step"] if rows else 0


def test_resuming_before_the_first_checkpoint_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole").mkdir()
    whole = train(tiny.config(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(loop, "save", power_cut)
        train(tiny.config(tmp_path))
    assert tiny.metrics(tmp_path / "run")
    resumed = train(tiny.config(tmp_path), resume=True)
    assert tiny.state(resumed.checkpoint) == tiny.state(whole.checkpoint)
    assert tiny.metrics(resumed.run.folder) == tiny.metrics(whole.run.folder)


def power_cut(*args: object) -> None:
    raise RuntimeError("power cut")


def test_a_finished_run_has_nothing_to_do_and_can_go_on(tmp_path: Path) -> None:
    first = train(tiny.config(tmp_path))
    again = train(tiny.config(tmp_path), resume=True)
    assert again.step == 8 and again.sample is None and again.checkpoint == first.checkpoint
    assert not any("event" in json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    longer = train(tiny.config(tmp_path, steps=10, eval_every=5, keep=1, log_every=2), resume=True)
    assert longer.step == 10
    assert [row["step"] for row in tiny.metrics(tmp_path / "run") if "loss" in row] == [*range(1, 9), 10]


def test_a_moved_run_resumes(tmp_path: Path) -> None:
    train(tiny.config(tmp_path))
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    (tmp_path / "text.txt").rename(tmp_path / "same.txt")
    config = tiny.config(tmp_path, out=tmp_path / "elsewhere", steps=9, data=str(tmp_path / "same.txt"))
    assert train(config, resume=True).step == 9


# What the versions before did not have: settings in run.json, and fields of a checkpoint's training.json.
LATER = ["device", "precision", "compile", "shard_optimizer", "init", "freeze_layers", "lora_rank", "lora_alpha"]
LATER += ["spike_z", "skip_limit", "hellaswag", "hellaswag_items", "tensorboard", "wandb"]
VERSIONS: dict[str, tuple[list[str], list[str]]] = {
    "the last one": (["spike_z"], []),
    "one process, fp32": (LATER, ["guard", "loss_scale", "sha256", checkpoint.DIGEST]),
    "no recompute": ([*LATER, "recompute"], ["guard", "loss_scale", "sha256", checkpoint.DIGEST]),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_of_an_earlier_version_resumes(finished: Path, tmp_path: Path, version: str) -> None:
    shutil.copytree(finished, tmp_path / "run")
    settings, fields = VERSIONS[version]
    last = checkpoint.latest(tmp_path / "run")
    for path, section, names in (
        (tmp_path / "run/run.json", "settings", settings),
        (last / checkpoint.RECORD, None, fields),
    ):
        record = json.loads(path.read_text())
        for name in names:
            del (record[section] if section else record)[name]
        path.write_text(json.dumps(record))
    config = tiny.config(tmp_path, steps=9)
    assert train(config, resume=True).step == 9
    message = refusal(dataclasses.replace(config, spike_z=5.0), resume=True)
    assert "was started with --spike-z 0.0, found 5.0" in message


# Refusals


def refusal(config: TrainConfig, resume: bool = False) -> str:
    with pytest.raises(UserError) as error:
        train(config, resume)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.filterwarnings("ignore:--precision is bf16, but this CPU has no bf16")
@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layer", 2), ("n_head", 4), ("n_embd", 64), ("context", 8), ("dropout", 0.1), ("batch_size", 3)]
    + [("accumulation", 2), ("lr", 2e-3), ("min_lr", 0.0), ("warmup_steps", 3), ("weight_decay", 0.0), ("beta1", 0.8)]
    + [("precision", "bf16"), ("spike_z", 5.0), ("freeze_layers", 1), ("lora_rank", 4), ("lora_alpha", 8.0)]
    + [("beta2", 0.9), ("grad_clip", 2.0), ("seed", 2), ("val_fraction", 0.2), ("tokenizer", "gpt2")],
)
def test_a_resume_with_another_setting_is_refused(finished: Path, tmp_path: Path, name: str, value: object) -> None:
    config = tiny.config(tmp_path, out=finished)
    before = tiny.files(finished)
    message = refusal(dataclasses.replace(config, **{name: value}), resume=True)
    assert f"was started with --{name.replace('_', '-')} {getattr(config, name)}, found {value}" in message
    assert tiny.files(finished) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny.config(tmp_path_factory.mktemp("finished"))).run.folder


def test_every_setting_is_either_fixed_or_free() -> None:
    """The list above and MAY_CHANGE together are all settings, so that a new one is thought about."""
    [mark] = [m for m in test_a_resume_with_another_setting_is_refused.pytestmark if m.name == "parametrize"]
    fixed = {name for name, _ in mark.args[1]}
    assert fixed | settings.MAY_CHANGE == {field.name for field in dataclasses.fields(TrainConfig)}
    assert not fixed & settings.MAY_CHANGE


def test_a_resume_on_other_data_is_refused(finished: Path, tmp_path: Path) -> None:
    config = tiny.config(tmp_path, out=finished)
    Path(config.data).write_text("x" + Path(config.data).read_text()[1:])
    before = tiny.files(finished)
    assert "was started on" in (message := refusal(config, resume=True)) and "give the same text" in message
    assert tiny.files(finished) == before


def test_a_resume_with_other_threads_is_told(tmp_path: Path) -> None:
    train(tiny.config(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    with pytest.warns(UserWarning, match=f"was trained with {before} threads and goes on with {before + 1}"):
        train(tiny.config(tmp_path, steps=9), resume=True)


def test_resuming_nothing(tmp_path: Path) -> None:
    assert "holds no run to resume" in refusal(tiny.config(tmp_path), resume=True)
    assert not (tmp_path / "run").exists()
