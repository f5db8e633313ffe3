"""TensorBoard and Weights & Biases get what metrics.jsonl gets; both are read back with their own readers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import tiny
import torch

from gpt2c.errors import UserError
from gpt2c.logs import open_sinks
from gpt2c.train import train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """Each name's values by step, as TensorBoard itself reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_every_number_of_the_metrics_also_of_a_resumed_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    train(tiny.config(tmp_path, tensorboard=True, steps=8))
    train(tiny.config(tmp_path, tensorboard=True, steps=10), resume=True)
    found = scalars(tmp_path / "run")
    rows = [row for row in tiny.all_rows(tmp_path / "run") if "event" not in row]
    for name in ("loss", "lr", "grad_norm", "tok_per_s", "val_loss"):
        expected = {row["step"]: row[name] for row in rows if name in row}
        assert len(expected) >= 3 and found[name] == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_and_biases_gets_every_row_and_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    opened, logged = [], []
    init = wandb.init

    def spy(**settings: object) -> object:
        opened.append(settings)
        run = init(**settings)
        log = run.log
        monkeypatch.setattr(run, "log", lambda row, step: (logged.append((step, row)), log(row, step=step)))
        return run

    monkeypatch.setattr(wandb, "init", spy)
    config = tiny.config(tmp_path, wandb="gpt2c-test", lr=0.0625)
    config.out.mkdir()
    for resumed_at in (None, 2):
        with open_sinks(config, config.out, resumed_at) as (sink,):
            sink.add({"step": 3, "loss": 2.5, "event": "skip", "reason": "why"})
            sink.text(3, "a sample")
    assert logged == [(3, {"loss": 2.5, "event": "skip", "reason": "why"}), (3, {"sample": "a sample"})] * 2
    first, second = opened
    assert first["id"] == second["id"] == (config.out / "wandb" / "run-id.txt").read_text().strip()
    assert first["project"] == "gpt2c-test" and first["config"]["lr"] == 0.0625
    assert list((config.out / "wandb").glob("offline-run-*")), "its own files are in the run's folder"


@pytest.mark.parametrize(
    ("settings", "module", "package"),
    [({"tensorboard": True}, "torch.utils.tensorboard", "tensorboard"), ({"wandb": "mine"}, "wandb", "wandb")],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(UserError, match=rf'needs the package {package}: pip install "gpt2c\[{package}\]"'):
        train(tiny.config(tmp_path, **settings))
    assert not (tmp_path / "run").exists()


def test_a_sink_that_fails_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from gpt2c import logs

    rows = []

    def fail_later(self: object, row: object) -> None:
        rows.append(row)
        if len(rows) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs.TensorBoard, "add", fail_later)
    with pytest.warns(UserWarning, match=r"^TensorBoard has failed and gets no more: .*No space left on device"):
        end = train(tiny.config(tmp_path, tensorboard=True, log_every=1))
    assert end.step == 8 and len(rows) == 3 and len(tiny.metrics(tmp_path / "run")) > 8


def test_sinks_are_closed_however_a_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from gpt2c import logs

    closed = []
    monkeypatch.setattr(logs.TensorBoard, "close", lambda self: closed.append(self))
    with pytest.raises(UserError):
        train(tiny.config(tmp_path, tensorboard=True, lr=1e30, min_lr=0.0, warmup_steps=0, eval_every=1))
    assert len(closed) == 1
