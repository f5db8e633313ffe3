"""What a run and `gpt2c eval` show of how far they are, without a terminal."""

from __future__ import annotations

import pytest

from gpt2c import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_count_says_every_ten_seconds_how_far_it_is(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with progress.Count("window") as count:
        for second in range(1, 26):
            clock[0] = 100.0 + second
            count.update(8 * second, 8 * 1000)
    assert capsys.readouterr().err.splitlines() == [
        "80 of 8,000 windows, 16 min left",  # 990 s
        "160 of 8,000 windows, 16 min left",  # 980 s
    ]


@pytest.mark.parametrize(("steps", "left"), [(100, "45 s"), (1000, "8 min"), (100_000, "13 h 53 min")])
def test_a_run_says_what_is_left_in_units_that_fit(
    capsys: pytest.CaptureFixture[str], clock: list[float], steps: int, left: str
) -> None:
    with progress.Progress(0, steps) as shown:
        clock[0] += 0.5 if steps > 100 else 45 / 99
        shown.update(1, 2.0, 1e-3, 1.0, 1234.5)
    assert capsys.readouterr().out == f"step 1/{steps}  loss 2.000  1,234 tok/s  {left} left\n"
