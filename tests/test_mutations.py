"""python/mutations.py and its list are up to date. Whether the tests notice a change, only the script finds out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mutants import ROOT, Mutant, all_mutants
from mutants.run import run_test

sys.path.insert(0, str(ROOT / "python"))
from mutations import chosen, verdict  # noqa: E402

MUTANTS = all_mutants()


def test_every_change_applies() -> None:
    for mutant in MUTANTS:
        assert mutant.changed() != (ROOT / mutant.file).read_text(encoding="utf-8"), mutant
        assert (ROOT / "tests" / f"test_{mutant.test}.py").exists(), mutant
    assert sum(m.file.startswith("csrc/") for m in MUTANTS) >= 100
    assert sum(m.file.startswith("gpt2c/") for m in MUTANTS) >= 100


def test_a_change_whose_text_is_gone_is_an_error() -> None:
    with pytest.raises(ValueError, match="LICENSE has 'no such text' 0 times, expected once: bring the change 'none'"):
        Mutant("LICENSE", "order", "none", "no such text", "x").changed()


def test_some_are_chosen_by_words() -> None:
    assert chosen(MUTANTS, ()) == MUTANTS
    assert {m.file for m in chosen(MUTANTS, ("gelu.cpp", "(order)"))} > {"csrc/cpu/gelu.cpp", "gpt2c/data/order.py"}


@pytest.mark.parametrize(
    ("size", "expected"),
    [("1", "noticed"), ("0", "SURVIVED"), ("broken syntax", "ERROR"), ("__import__('os').abort()", "noticed")],
)
def test_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, expected: str) -> None:
    """Of a package and a test that are made for it."""
    monkeypatch.setattr("mutants.run.ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "tests" / "test_size.py").write_text(
        "from changed import SIZE\ndef test_zero():\n    assert SIZE == 0\n"
    )
    (tmp_path / "changed.py").write_text(f"SIZE = {size}\n")
    outcome = run_test("size", tmp_path, "not cuda")
    assert verdict(Mutant("changed.py", "size", "", "", ""), outcome) == expected
    if size == "1":
        assert outcome.failed == "test_zero"
