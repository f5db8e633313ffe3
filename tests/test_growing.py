"""The files that grow with a run, touched by its user: a picture or a log is never worth the run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from gpt2c import checkpoint, curve, growing, logs
from gpt2c.errors import UserError
from gpt2c.train import train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after step 8, whose latest checkpoint is that of step 6."""
    torch.set_num_threads(1)
    whole = train(tiny.config(tmp_path_factory.mktemp("killed"))).run.folder
    return tiny.stopped_after(whole, 6, whole.with_name("copy"))


NOTE = b'{"note": "lr too high?"}\n'
TOUCHED: dict[str, Callable[[bytes], bytes]] = {
    "a line break before all": lambda text: b"\n" + text,
    "a row of one's own before all": lambda text: NOTE + text,
    "a row of one's own after all": lambda text: text + NOTE,
    "words without a line break after all": lambda text: text + b"stopped here",
    "the first row gone": lambda text: text.split(b"\n", 1)[1],
    "the checkpoint's rows gone": lambda text: b"".join(text.splitlines(True)[:3]),
    "bytes that are no text": lambda text: b"\xff\xfe\x00\n" + text,
    "half a row at the end": lambda text: text + b'{"step": 9, "lo',
    "no line break at the end": lambda text: text[:-1],
    "Windows' line breaks": lambda text: text.replace(b"\n", b"\r\n"),
    "empty": lambda text: b"",
}


@pytest.mark.parametrize("how", TOUCHED)
def test_a_touched_log_neither_ends_a_resume_nor_loses_a_row(killed: Path, tmp_path: Path, how: str) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    log = run / "metrics.jsonl"
    before = log.read_bytes().splitlines()
    log.write_bytes(TOUCHED[how](log.read_bytes()))
    touched = log.read_bytes().splitlines()
    assert train(tiny.config(tmp_path), resume=True).step == 8
    after = log.read_bytes().splitlines()
    lost = [line for line in touched if line not in after]
    assert all(json.loads(line)["step"] > 6 for line in lost if line != b'{"step": 9, "lo'), "only what came after"
    steps = [row["step"] for row in map(growing._row, after) if "loss" in row]
    kept = [row["step"] for row in map(growing._row, touched) if "loss" in row and row["step"] <= 6]
    assert steps == [*kept, 7, 8]
    assert all(line in before or line in touched or growing._row(line).get("step", 0) >= 6 for line in after)
    assert (run / "loss.png").stat().st_size > 5000


def test_touched_samples(killed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    expected = (run / "samples.txt").read_text()
    (run / "samples.txt").write_text("my notes\n" + expected)
    train(tiny.config(tmp_path), resume=True)
    assert (run / "samples.txt").read_text() == "my notes\n" + expected


def test_an_untouched_log_is_cut_at_its_byte_after_a_rollback(tmp_path: Path) -> None:
    """Rows of steps that were taken back come before the checkpoint: their steps are larger than its own."""
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step} for step in (1, 2, 3, 4)] + [{"step": 4, "event": "rollback"}, {"step": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = path.stat().st_size
    for later in ({"step": 3, "event": "resume"}, {"step": 4}):
        growing.append(path, json.dumps(later) + "\n")
    growing.cut(path, size, 3, growing.metrics_rows)
    assert tiny.all_rows(tmp_path) == rows


SPOILED: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(missing_ok=True),
    "a folder": lambda path: (path.unlink(missing_ok=True), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(missing_ok=True), path.symlink_to("/nowhere/there")),
}


@pytest.mark.parametrize("how", SPOILED)
def test_files_that_cannot_be_written(killed: Path, tmp_path: Path, how: str) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    for name in ("metrics.jsonl", "samples.txt", "loss.png"):
        SPOILED[how](run / name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert train(tiny.config(tmp_path), resume=True).step == 8
    assert checkpoint.latest(run).name == "step_000008"
    told = [str(warning.message) for warning in caught]
    assert len(told) == len(set(told)), "each is told once"
    if how == "gone":
        assert not told and [row["step"] for row in tiny.metrics(run)] == [7, 8, 8]
    else:
        assert any(f"cannot write {run / 'metrics.jsonl'}: " in text for text in told)
        assert all("; training goes on without it" in text for text in told)


def test_a_row_that_does_not_fit_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    growing.append(path, "one\n")

    class Full:
        """A disk that takes two bytes more."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            self.file, self.room = open(*args, **kwargs), 2

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: bytes) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room = 0
            return self.file.write(text[:2])

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(growing, "open", Full, raising=False)
        growing.append(path, "two\n")
    growing.append(path, "three\n")
    assert path.read_text() == "one\nthree\n"


def test_a_picture_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "loss_curve", lambda rows: 1 / 0)
    with pytest.warns(UserWarning, match=r"cannot write .*loss.png: division by zero; training goes on without it"):
        assert train(tiny.config(tmp_path, steps=2)).step == 2


def test_old_checkpoints_that_cannot_be_removed(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network's file system, where a file that is open stays under another name."""
    shutil.copytree(killed, tmp_path / "run")

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    monkeypatch.setattr(checkpoint.shutil, "rmtree", busy)
    with pytest.warns(UserWarning, match="older checkpoints stay: cannot write .*Directory not empty"):
        assert train(tiny.config(tmp_path, keep=1), resume=True).step == 8


def test_logs_that_cannot_be_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise UserError("Weights & Biases refuses the run")

    monkeypatch.setattr(logs, "TensorBoard", refused)
    monkeypatch.setattr(logs, "WeightsAndBiases", refused)
    config = tiny.config(tmp_path, tensorboard=True, wandb="mine")
    with pytest.raises(UserError, match="refuses the run"), logs.open_sinks(config, tmp_path):
        pass
    with pytest.warns(UserWarning, match="the run goes on without this log"), logs.open_sinks(config, tmp_path, 2) as s:
        assert s == []
