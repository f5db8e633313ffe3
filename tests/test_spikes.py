"""Steps out of line: their updates are skipped, and after some in a row training goes back to a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from gpt2c import checkpoint
from gpt2c import train as loop
from gpt2c.errors import UserError
from gpt2c.precision import LossScale
from gpt2c.spikes import WINDOW, SpikeGuard
from gpt2c.step import accumulate_gradients, micro_batches
from gpt2c.train import train
from gpt2c.training import go_back, save


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# The guard


def filled(limit: float) -> SpikeGuard:
    """After a window of values 1 and 3: mean 2, standard deviation 1."""
    guard = SpikeGuard(limit)
    for i in range(WINDOW):
        assert guard.judge(1.0 + 2 * (i % 2), 1.0 + 2 * (i % 2)) is None
    return guard


@pytest.mark.parametrize("name", ["loss", "gradient norm"])
def test_a_value_far_above_the_window_is_out_of_line(name: str) -> None:
    guard = filled(limit=5.0)
    values = {"loss": 2.0, "gradient norm": 2.0}
    problem = guard.judge(*{**values, name: 7.1}.values())
    assert problem == f"the {name} is 7.1, 5.1 standard deviations above 2, the latest 128 steps' mean"
    assert guard.in_a_row == 1
    assert guard.judge(*{**values, name: 6.9}.values()) is None and guard.in_a_row == 0
    assert guard.judge(*{**values, name: -100.0}.values()) is None, "a low loss is no spike"


def test_it_is_silent_until_the_window_is_full_and_without_a_limit() -> None:
    guard = SpikeGuard(5.0)
    for i in range(WINDOW - 1):
        assert guard.judge(1.0 + i % 2, 1.0) is None
    assert guard.judge(100.0, 1.0) is None
    assert guard.judge(1000.0, 1.0) is not None
    assert filled(limit=0.0).judge(1e9, 1e9) is None


@pytest.mark.parametrize("limit", [0.0, 5.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_always_is(limit: float, value: float) -> None:
    guard = SpikeGuard(limit)
    assert guard.judge(value, 1.0) == f"the loss is {value}" and guard.judge(1.0, value) is not None
    assert guard.in_a_row == 2 and guard.judge(1.0, 1.0) is None and guard.in_a_row == 0


def test_what_is_out_of_line_does_not_enter_the_window() -> None:
    guard = filled(limit=5.0)
    problems = {guard.judge(8.0, 2.0) for _ in range(50)}
    assert len(problems) == 1 and guard.in_a_row == 50


def test_a_restored_guard_judges_as_the_first() -> None:
    guard = filled(limit=5.0)
    guard.judge(9.0, 2.0)
    other = SpikeGuard(5.0)
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.state() == guard.state() and other.judge(7.1, 2.0) == guard.judge(7.1, 2.0)


# In training


def disturb(monkeypatch: pytest.MonkeyPatch, factors: Mapping[int, float]) -> None:
    """Multiply loss, norm and gradients of the calls with these numbers."""
    honest, calls = loop.accumulate_gradients, iter(range(1, 10_000))

    def disturbed(model: torch.nn.Module, *args: object) -> tuple[Tensor, Tensor]:
        loss, norm = honest(model, *args)
        factor = factors.get(next(calls), 1.0)
        if factor != 1.0:
            for p in model.parameters():
                p.grad.mul_(factor)
        return loss * factor, norm * factor

    monkeypatch.setattr(loop, "accumulate_gradients", disturbed)


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in tiny.metrics(run) if "loss" in row}


def reasons(run: Path) -> list[str]:
    return [row["reason"] for row in tiny.all_rows(run) if "event" in row]


def test_a_spike_is_skipped_and_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"steps": 140, "spike_z": 8.0, "eval_every": 200, "sample_every": 0, "checkpoint_every": 200}
    disturb(monkeypatch, {135: 30.0})
    train(tiny.config(tmp_path, **changes))
    assert tiny.events(tmp_path / "run") == [(135, "skip")]
    assert "the latest 128 steps' mean" in reasons(tmp_path / "run")[0]
    spiked = losses(tmp_path / "run")
    assert spiked[135] > 10 * spiked[134] and abs(spiked[136] - spiked[134]) < 0.5


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moments and weights are those before the step."""
    disturb(monkeypatch, {8: math.inf})
    end = train(tiny.config(tmp_path, checkpoint_every=1, eval_every=8, keep=2)).run.folder
    before, after = (tiny.state(path) for path in checkpoint.list_all(end)[-2:])
    assert before == after and tiny.events(end) == [(8, "skip")]


def test_after_some_in_a_row_training_goes_back_and_past_those_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    honest = loop.micro_batches

    def spy(dataset: object, step: int, *args: object) -> object:
        seen.append(step)
        return honest(dataset, step, *args)

    monkeypatch.setattr(loop, "micro_batches", spy)
    disturb(monkeypatch, {5: math.nan, 6: math.nan, 7: math.nan})
    train(tiny.config(tmp_path, steps=10, checkpoint_every=4, eval_every=10, skip_limit=3))
    run = tmp_path / "run"
    assert tiny.events(run) == [(5, "skip"), (6, "skip"), (7, "rollback")]
    assert reasons(run)[2] == "the loss is nan, the last of 3 in a row; back to step_000004, past these data"
    # Data 5 to 7 are not seen again: steps 5 to 10 take 8 to 13.
    assert seen[seen.index(8, 5) :][-6:] == [8, 9, 10, 11, 12, 13]
    assert [row["step"] for row in tiny.metrics(run) if "lr" in row] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10]
    assert checkpoint.read_record(checkpoint.latest(run)).guard["offset"] == 3


def test_a_second_rollback_goes_past_both_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, dict.fromkeys((3, 4, 9, 10), math.nan))
    train(tiny.config(tmp_path, steps=8, checkpoint_every=2, eval_every=8, sample_every=0, skip_limit=2))
    run = tmp_path / "run"
    # Calls 5 to 8 are steps 3 to 6, with the data 5 to 8; the data 9 and 10 are left out, too.
    assert tiny.events(run) == [(3, "skip"), (4, "rollback"), (7, "skip"), (8, "rollback")]
    assert checkpoint.read_record(checkpoint.latest(run)).guard["offset"] == 4


def test_going_back_takes_weights_moments_and_scale_of_the_checkpoint(tmp_path: Path) -> None:
    t = tiny.opened(tiny.config(tmp_path, spike_z=9.0))

    def step() -> None:
        t.step += 1
        accumulate_gradients(t.model, t.optimizer, micro_batches(t.dataset, t.step, t.config))
        t.optimizer.step()
        t.guard.judge(float(t.step), 1.0)

    def state() -> list[Tensor | float]:
        moments = [
            value for values in t.optimizer.state_dict()["state"].values() for _, value in sorted(values.items())
        ]
        return [torch.as_tensor(value).clone() for value in [*t.model.parameters(), *moments]]

    step()
    save(t, None)
    before, latest = state(), t.guard.state()["latest"]
    step()
    assert not torch.equal(state()[-1], before[-1])
    go_back(t)
    assert t.step == 1 and t.guard.offset == 1 and t.guard.state()["latest"] == latest
    assert all(torch.equal(a, b) for a, b in zip(state(), before, strict=True))


def test_a_run_that_went_back_resumes_with_the_data_it_would_have_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for name, steps in (("whole", (12,)), ("parts", (12, 12))):
        (tmp_path / name).mkdir()
        disturb(monkeypatch, {3: math.nan, 4: math.nan})
        config = tiny.config(tmp_path / name, steps=12, checkpoint_every=2, eval_every=12, skip_limit=2, keep=99)
        end = train(config)
        if len(steps) == 2:
            monkeypatch.undo()
            for path in checkpoint.list_all(config.out)[-3:]:
                path.rename(tmp_path / path.name)
            end = train(config, resume=True)
        monkeypatch.undo()
        states.append(tiny.state(end.checkpoint))
    assert states[0] == states[1]


def test_a_second_time_at_the_same_checkpoint_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, dict.fromkeys(range(5, 100), math.nan))
    with pytest.raises(UserError, match=r"^step 6: the loss \(nan\) is not finite, so .* is .*step_000004; try a"):
        train(tiny.config(tmp_path, checkpoint_every=4, skip_limit=2))
    assert [name for _, name in tiny.events(tmp_path / "run")] == ["skip", "rollback", "skip", "stop"]


def test_a_checkpoint_among_skips_does_not_hide_that_nothing_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, dict.fromkeys(range(5, 100), math.nan))
    with pytest.raises(UserError, match=r"^step 13: the loss \(nan\) is not finite, so .* is .*step_000012; try a"):
        train(tiny.config(tmp_path, steps=40, checkpoint_every=4, eval_every=40, skip_limit=5))
    assert [name for _, name in tiny.events(tmp_path / "run")].count("rollback") == 1


def test_a_run_whose_updates_were_all_skipped_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint has no moments. The rows of its metrics are JSON, which has no nan."""
    disturb(monkeypatch, {1: math.nan, 2: math.inf})
    train(tiny.config(tmp_path, steps=2, eval_every=9, sample_every=0))
    monkeypatch.undo()
    end = train(tiny.config(tmp_path, steps=4, eval_every=9, sample_every=0), resume=True)
    assert end.step == 4 and sorted(losses(tmp_path / "run")) == [3, 4]
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_without_a_checkpoint_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, dict.fromkeys(range(2, 100), math.nan))
    with pytest.raises(UserError, match=r"^step 4: .* there is no checkpoint yet"):
        train(tiny.config(tmp_path, checkpoint_every=100, eval_every=100, skip_limit=3))


# The loss's scale in fp16


def test_the_scale_halves_on_an_overflow_and_doubles_after_a_while() -> None:
    scale = LossScale.of("fp16")
    for _ in range(LossScale.GROW_AFTER - 1):
        scale.held()
    assert scale.is_used and scale.scale == 65536 and scale.overflowed() and scale.scale == 32768
    for _ in range(LossScale.GROW_AFTER - 1):
        scale.held()
    assert scale.scale == 32768, "an overflow begins the count anew"
    scale.held()
    assert scale.scale == 65536
    while scale.overflowed():
        pass
    assert scale.scale == 2.0
    for _ in range(LossScale.GROW_AFTER):
        scale.held()
    assert scale.scale == 4.0
    resumed = LossScale.of("fp16")
    resumed.restore({"scale": 8.0, "steps": 5})
    assert resumed.state() == {"scale": 8.0, "steps": 5}
    resumed.restore({"scale": 1.0, "steps": 5000})  # of a run that was in fp32
    assert resumed.state() == {"scale": 8.0, "steps": 5}
    for precision in ("fp32", "bf16"):
        scale = LossScale.of(precision)
        for _ in range(LossScale.GROW_AFTER + 1):
            scale.held()
        assert not scale.is_used and scale.scale == 1.0
