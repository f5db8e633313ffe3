"""Too little memory: told before a run begins, and as one sentence where it is met."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from gpt2c.bench import machine
from gpt2c.cli import told
from gpt2c.errors import UserError, memory_asked, reason
from gpt2c.plan.fits import check_memory
from gpt2c.plan.memory import Place, plan_memory
from gpt2c.settings import TrainConfig
from gpt2c.train import train

CONFIG = TrainConfig(n_layer=2, n_head=2, n_embd=64, context=64, batch_size=8)
SIZES = CONFIG.model_config(257)
NEEDED = int(plan_memory(CONFIG, SIZES, Place("cpu", "fp32", 0.0)).total)


def of_torch() -> int:
    return len(torch.empty(2**50, dtype=torch.uint8))


def of_numpy() -> int:
    return len(np.empty(2**50, np.uint8))


@pytest.mark.parametrize(("work", "size"), [(of_torch, "1,125,899.9 GB"), (of_numpy, "1,125,899.9 GB")])
def test_a_command_without_enough_memory_ends_in_one_sentence(
    work: Callable[[], int], size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(work) == 2
    assert capsys.readouterr().err == (
        f"error: not enough memory, {size} were asked for: close other programs, or choose a smaller model, batch or "
        "context\n"
    )


def test_the_gpus_memory_is_told_as_such() -> None:
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 80 GiB"
    )
    assert reason(error) == "not enough memory on the GPU, 21.0 MB were asked for"
    assert memory_asked(MemoryError()) == "not enough memory"
    assert memory_asked(RuntimeError("mat1 and mat2 do not fit")) is None


def test_another_error_is_not_hidden() -> None:
    def fail() -> int:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        told(fail)


def check(monkeypatch: pytest.MonkeyPatch, free: float, swap: float = 0.0, world: int = 1) -> list[str]:
    """The notes of a run's check."""
    monkeypatch.setattr(machine, "available_bytes", lambda: int(free))
    monkeypatch.setattr(machine, "swap_bytes", lambda: int(swap))
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        check_memory(CONFIG, SIZES, "fp32", world)
    return [str(note.message) for note in notes]


def test_what_fits_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(monkeypatch, 1.1 * NEEDED) == []
    assert check(monkeypatch, 2.2 * NEEDED, world=2) == []


def test_what_may_not_fit_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    for notes in (check(monkeypatch, 0.95 * NEEDED), check(monkeypatch, 0.5 * NEEDED, swap=0.5 * NEEDED)):
        assert len(notes) == 1 and "training takes about 0.0 GB, of 0.0 GB" in notes[0]
        assert "it may be slow, or ended by the system; --batch-size " in notes[0]


def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"of memory that are free: --batch-size [1-7] fits, or close other programs"):
        check(monkeypatch, 0.8 * NEEDED)
    with pytest.raises(UserError, match=r"in each of 2 processes, of .* are free"):
        check(monkeypatch, 1.2 * NEEDED, world=2)
    with pytest.raises(UserError, match="take a smaller model; `gpt2c plan` shows what takes it"):
        check(monkeypatch, 1000)


def test_a_run_that_cannot_fit_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: 1000)
    monkeypatch.setattr(machine, "swap_bytes", lambda: 0)
    with pytest.raises(UserError, match="training takes about"):
        train(tiny.config(tmp_path))
    assert not (tmp_path / "run").exists()


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    assert machine._group_bytes(groups, root) is None, "a system without control groups"
    groups.write_text("0::/outer/inner\n")
    group(root / "outer" / "inner", {"memory.max": "max", "memory.current": "10", "memory.stat": "inactive_file 4"})
    assert machine._group_bytes(groups, root) is None, "no limit"
    group(root / "outer", {"memory.max": "1000", "memory.current": "300", "memory.stat": "anon 1\ninactive_file 50"})
    assert machine._group_bytes(groups, root) == 750, "of the group around it"
    group(root / "outer" / "inner", {"memory.max": "200"})
    assert machine._group_bytes(groups, root) == 194
    group(root / "outer" / "inner", {"memory.current": "500"})
    assert machine._group_bytes(groups, root) == 0


def test_the_first_versions_groups_count_too(tmp_path: Path) -> None:
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text("5:cpu,memory:/job\n3:cpuset:/\n0::/\n")
    files = {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "400", "memory.stat": "total_inactive_file 30"}
    group(root / "memory" / "job", files)
    assert machine._group_bytes(groups, root) == 630
