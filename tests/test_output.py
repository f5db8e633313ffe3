"""Where a command's output goes: a run goes on without its display, other commands end with a sentence."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
import tiny
import torch

from gpt2c import checkpoint, interrupt
from gpt2c.cli import main
from gpt2c.train import train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny.config(tmp_path_factory.mktemp("finished"), steps=2)).run.folder


PROBLEMS = {
    "full": "No space left on device",
    "hung up": "Input/output error",
    "no reader": "Broken pipe",
    "closed": "it is closed",
    "closed meanwhile": "I/O operation on closed file",
}


def stream(kind: str) -> TextIO | None:
    """A real stream that fails so: a full device, a terminal that has gone, a pipe that nobody reads."""
    if kind == "full":
        return open("/dev/full", "w")
    if kind == "closed":
        return None
    if kind == "closed meanwhile":
        file = open(os.devnull, "w")
        file.close()
        return file
    other, ours = os.openpty() if kind == "hung up" else os.pipe()
    os.close(other)
    return open(ours, "w")


@contextlib.contextmanager
def standard_output(kind: str, patch: pytest.MonkeyPatch, name: str = "stdout") -> Iterator[None]:
    """Have such a stream as sys.stdout."""
    with contextlib.ExitStack() as stack, patch.context() as patch:
        file = stream(kind)
        if file is not None:
            stack.enter_context(contextlib.closing(file))  # raises if what was lost is still in its buffer
        patch.setattr(sys, name, file)
        yield


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_run_goes_on_without_its_display(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = tiny.config(tmp_path, steps=2, warmup_steps=1)
    with standard_output(kind, monkeypatch):
        assert main(["train", *tiny.flags(config)]) == 0
    assert checkpoint.read_record(checkpoint.latest(config.out)).step == 2
    told = f"note: the standard output cannot be written ({PROBLEMS[kind]}): the run goes on unseen\n"
    assert capsys.readouterr().err == told


def test_a_run_goes_on_without_a_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A bar on a terminal that goes away in the middle of the run."""
    main_end, user_end = os.openpty()
    terminal = open(user_end, "w")
    monkeypatch.setattr(sys, "stderr", terminal)
    update = interrupt.StopSignal.__init__

    def hang_up(self: interrupt.StopSignal) -> None:
        update(self)
        os.close(main_end)

    monkeypatch.setattr(interrupt.StopSignal, "__init__", hang_up)
    config = tiny.config(tmp_path)
    assert main(["train", *tiny.flags(config)]) == 0
    assert "What the model writes after 8 steps" in capsys.readouterr().out
    terminal.close()


@pytest.mark.parametrize(
    "args",
    [["info"], ["--help"], ["train", "--help"], ["sample", "RUN", "--max-new-tokens", "3"], ["export", "RUN", "OUT"],
     ["eval", "RUN", "--data", "embedded", "--val-tokens", "64"], ["report", "RUN", "--out", "OUT"]],
    ids=lambda args: " ".join(args[:2]),
)  # fmt: skip
@pytest.mark.parametrize("kind", ["full", "closed"])
def test_other_commands_say_a_sentence(
    kind: str,
    args: list[str],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    names = {"RUN": str(finished), "OUT": str(tmp_path / "out.html")}
    with standard_output(kind, monkeypatch):
        assert main([names.get(arg, arg) for arg in args]) == 2
    assert capsys.readouterr().err == f"error: cannot write the standard output: {PROBLEMS[kind]}\n"


def test_a_reader_that_has_gone_needs_no_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with standard_output("no reader", monkeypatch):
        assert main(["info"]) == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


def test_a_mistake_without_a_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in PROBLEMS:
        with standard_output(kind, monkeypatch, "stderr"):
            assert main(["sample", "./nowhere"]) == 2


def test_text_that_cannot_be_encoded_is_replaced(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["sample", str(finished), "--prompt", "naïve", "--max-new-tokens", "0"]) == 0
    assert written.getvalue() == b"na?ve\n"
    assert sys.stdout.errors == "strict", "the stream is as it was"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    (tmp_path / "\udcff").mkdir()  # a name that is not UTF-8
    assert main(["export", str(finished), str(tmp_path / "\udcff" / "out")]) == 0
    assert f"{tmp_path}/?/out".encode() in written.getvalue()


def test_no_file_of_a_run_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What is told there, by a signal's handler say, would be written into it."""
    config = tiny.config(tmp_path, steps=100_000, eval_every=100_000, sample_every=0, checkpoint_every=100_000)
    process = tiny.fork("train", *tiny.flags(config), closed=(0, 1, 2))
    while not (config.out / "metrics.jsonl").exists():
        assert process.is_alive()
        process.join(0.01)
    process.terminate()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert tiny.events(config.out)[-1][1] == "stop" and len(tiny.metrics(config.out)) == tiny.events(config.out)[-1][0]
