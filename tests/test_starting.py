"""Ctrl-C before a command has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import tiny

from gpt2c.data import encode
from gpt2c.data.sources import Text
from gpt2c.starting import ends_at_once

INTERRUPTED = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"


def test_no_traceback_while_modules_are_loaded(tmp_path: Path) -> None:
    """With a torch that is interrupted as it is loaded."""
    (tmp_path / "torch.py").write_text(INTERRUPTED)
    environment = tiny.environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    command = [sys.executable, "-m", "gpt2c", "info"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_the_signal_is_as_before_afterwards() -> None:
    with ends_at_once():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with ends_at_once(False):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ends_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    errors = []

    def elsewhere() -> None:
        try:
            with ends_at_once():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert not errors


def test_the_processes_of_prepare_start_with_the_signal_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is blocked is inherited, also by a process that has loaded nothing yet."""
    masks = []

    class Pool:
        def __init__(self, *args: object) -> None: ...

        def submit(self, work: object, texts: list[Text]) -> Future:
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            future: Future = Future()
            future.set_result(np.empty(0, np.uint16))
            return future

        def shutdown(self, cancel_futures: bool) -> None: ...

    monkeypatch.setattr(encode, "ProcessPoolExecutor", Pool)
    for _ in encode.encoded(iter([encode.Batch(), encode.Batch()]), "bytes", 2):
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert len(masks) == 2 and all(signal.SIGINT in mask for mask in masks)
