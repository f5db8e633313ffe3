"""A few hundred calls of python/fuzz_ops.py, which has the sentences of what it looks for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tiny import REPOSITORY, environment

pytest.importorskip("hypothesis")


def test_every_call_is_right_or_refused() -> None:
    script = str(REPOSITORY / "python" / "fuzz_ops.py")
    found = subprocess.run([sys.executable, script, "400"], env=environment(), capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 findings" in found.stdout
