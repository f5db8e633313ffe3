"""Training: the arithmetic of a step, the files of a run, and runs that cannot start or go wrong."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import math
import os
import select
import struct
import sys
import termios
import time
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from gpt2c import checkpoint, finite, growing, progress, run
from gpt2c import train as loop
from gpt2c.curve import loss_curve
from gpt2c.errors import UserError
from gpt2c.evaluate import loss_sums
from gpt2c.files import write_atomically
from gpt2c.optim import AdamW
from gpt2c.settings import TrainConfig
from gpt2c.step import accumulate_gradients, clip_coefficient, dropout_seeds, learning_rate, micro_batches
from gpt2c.train import train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two threads have nothing to share in so small a model, and on a busy machine they wait for each other."""
    torch.set_num_threads(1)


# The arithmetic of a step


def test_the_learning_rate_climbs_and_follows_the_cosine() -> None:
    config = TrainConfig(lr=1.0, min_lr=0.1, warmup_steps=10, steps=110)
    rates = [learning_rate(step, config) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[59] == pytest.approx(0.55) and rates[34] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False))


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (5, 5), (9, 5), (0, 7)])
def test_the_learning_rate_of_short_runs(warmup: int, steps: int) -> None:
    config = TrainConfig(lr=1.0, min_lr=0.1, warmup_steps=warmup, steps=steps)
    assert all(0 < learning_rate(step, config) <= 1 for step in range(1, steps + 1))


def test_weights_decay_and_biases_and_layernorms_do_not(tmp_path: Path) -> None:
    t = tiny.opened(tiny.config(tmp_path, weight_decay=0.3))
    names = {p: name for name, p in t.model.named_parameters()}
    decayed, kept = (
        {names[p] for group in t.optimizer.param_groups if group["weight_decay"] == decay for p in group["params"]}
        for decay in (0.3, 0.0)
    )
    assert decayed | kept == set(names.values()) and not decayed & kept
    assert {"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_proj.weight"} <= decayed
    assert kept == {name for name in names.values() if name.endswith("bias") or ".ln_" in name or "ln_f" in name}


def test_the_optimizers_settings_are_the_runs(tmp_path: Path) -> None:
    """An epsilon of 1e-8, as GPT-3's (Brown et al. 2020, appendix B)."""
    t = tiny.opened(tiny.config(tmp_path, lr=3e-4, beta1=0.85, beta2=0.97))
    for group in t.optimizer.param_groups:
        assert (group["lr"], tuple(group["betas"]), group["eps"]) == (3e-4, (0.85, 0.97), 1e-8)


@pytest.mark.parametrize(("norm", "coefficient"), [(0.25, 1.0), (0.5, 1.0), (1.0, 0.5), (2.0, 0.25), (0.0, 1.0)])
def test_large_gradients_alone_are_scaled(norm: float, coefficient: float) -> None:
    assert clip_coefficient(norm, 0.5) == pytest.approx(coefficient, rel=1e-5)


def test_each_step_and_micro_step_drops_others() -> None:
    config = TrainConfig(dropout=0.1, accumulation=4, seed=3)
    seeds = [seed for step in range(1, 6) for seed in dropout_seeds(config, step)]
    assert len(set(seeds)) == 20 and dropout_seeds(config, 2, rank=1, world=2) == seeds[5:8:2]
    assert dropout_seeds(TrainConfig(dropout=0.1, accumulation=4, seed=4), 1) != seeds[:4]


def test_nothing_is_dropped_in_evaluation(tmp_path: Path) -> None:
    t = tiny.opened(tiny.config(tmp_path, dropout=0.5))
    batches = list(t.dataset.val_batches(4, t.config.context, 200))
    found = loss_sums(t.model, batches)
    t.model.config = dataclasses.replace(t.model.config, dropout=0.0)
    assert found == loss_sums(t.model, batches) and t.model.training


def test_accumulation_gives_the_loss_and_gradient_of_the_large_batch(tmp_path: Path) -> None:
    large = tiny.opened(tiny.config(tmp_path, batch_size=12))
    small = dataclasses.replace(large.config, batch_size=3, accumulation=4)
    loss, norm = accumulate_gradients(large.model, large.optimizer, micro_batches(large.dataset, 5, large.config))
    gradients = {name: p.grad.clone() for name, p in large.model.named_parameters()}
    for _ in range(2):  # a second time: the first must leave nothing in the gradients
        parts = accumulate_gradients(large.model, large.optimizer, micro_batches(large.dataset, 5, small))
    assert [float(part) for part in parts] == pytest.approx([float(loss), float(norm)], rel=1e-6)
    for name, p in large.model.named_parameters():
        # fp32 sums in another order: a few units in the last place of the largest gradient.
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert float(norm) == pytest.approx(
        math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values())), rel=1e-5
    )


def test_the_gradient_is_clipped_in_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = []
    step = AdamW.step

    def spy(self: AdamW, *args: object, grad_scale: float) -> None:
        scales.append(grad_scale)
        step(self, *args, grad_scale=grad_scale)

    monkeypatch.setattr(AdamW, "step", spy)
    train(tiny.config(tmp_path, grad_clip=0.5, log_every=1))
    norms = [row["grad_norm"] for row in tiny.metrics(tmp_path / "run") if "grad_norm" in row]
    assert scales == [min(1.0, 0.5 / (norm + 1e-6)) for norm in norms]
    assert min(scales) < 1


def test_a_compiled_run_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch.compile, without the minutes that its code generation takes."""
    honest, compiled = torch.compile, []

    def traced(model: torch.nn.Module, **settings: object) -> object:
        compiled.append(settings)
        return honest(model, backend="aot_eager", **settings)

    monkeypatch.setattr(torch, "compile", traced)
    states = []
    for name in ("plain", "compiled"):
        (tmp_path / name).mkdir()
        config = tiny.config(tmp_path / name, compile=name == "compiled", accumulation=2, steps=4)
        states.append(tiny.state(train(config).checkpoint))
    assert states[0] == states[1] and len(compiled) == 1


def test_it_learns(tmp_path: Path) -> None:
    train(tiny.config(tmp_path, steps=150, batch_size=8, lr=1e-2, eval_every=150, checkpoint_every=150))
    rows = tiny.metrics(tmp_path / "run")
    assert rows[0]["loss"] == pytest.approx(math.log(257), abs=0.2)
    assert rows[-1]["val_loss"] < 3.2, "unigrams of English have about 3.1 nats, nothing learned is 5.5"


# The files of a run


def test_the_files_of_a_run(tmp_path: Path) -> None:
    result = train(tiny.config(tmp_path))
    folder = tmp_path / "run"
    assert result.step == 8 and result.checkpoint == folder / "checkpoints" / "step_000008"
    assert result.stopped_by is None and result.sample
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "loss.png", "metrics.jsonl", "run.json", "samples.txt",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert all(list(row) == ["step", "loss", "lr", "grad_norm", "tok_per_s", "seconds"] for row in steps)
    assert [(row["step"], list(row)) for row in rows if "loss" not in row] == [
        (4, ["step", "val_loss", "seconds"]), (8, ["step", "val_loss", "seconds"]),
    ]  # fmt: skip
    assert (folder / "samples.txt").read_text().count("--- step ") == 2
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_less_often(tmp_path: Path) -> None:
    train(tiny.config(tmp_path, log_every=3, sample_every=0, eval_every=100, checkpoint_every=100))
    rows = tiny.metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "loss" in row] == [3, 6, 8]
    assert [row["step"] for row in rows if "val_loss" in row] == [8]
    assert (tmp_path / "run" / "samples.txt").read_text().count("--- step ") == 1


def test_0_is_at_the_last_step_only(tmp_path: Path) -> None:
    train(tiny.config(tmp_path, log_every=0, sample_every=0, eval_every=0, checkpoint_every=0))
    assert [row["step"] for row in tiny.metrics(tmp_path / "run")] == [8, 8]
    assert [path.name for path in checkpoint.list_all(tmp_path / "run")] == ["step_000008"]


def test_the_latest_checkpoints_and_the_best_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.5, 2.0])
    monkeypatch.setattr(loop, "loss_sums", lambda *_: (next(losses), 1))
    train(tiny.config(tmp_path, steps=8, eval_every=2, checkpoint_every=3, keep=2))
    kept = {path.name: checkpoint.read_record(path).val_loss for path in checkpoint.list_all(tmp_path / "run")}
    # Saved at 2 and 4 (each the best so far), 3, 6 (every third) and 8 (the last): the best, 4, and two more stay.
    assert kept == {"step_000004": 1.0, "step_000006": 2.5, "step_000008": 2.0}


def test_the_best_so_far_alone_gets_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.5, 2.0, 4.0])
    monkeypatch.setattr(loop, "loss_sums", lambda *_: (next(losses), 1))
    train(tiny.config(tmp_path, steps=10, eval_every=2, checkpoint_every=6, sample_every=0, keep=9))
    found = {path.name: checkpoint.read_record(path).val_loss for path in checkpoint.list_all(tmp_path / "run")}
    # At 6 and 10 a checkpoint is due; at 8 the loss is lower than in the latest one, but not the lowest.
    assert found == {"step_000002": 3.0, "step_000004": 1.0, "step_000006": 2.5, "step_000010": 4.0}


def test_evaluating_sampling_and_saving_do_not_change_the_run(tmp_path: Path) -> None:
    states = []
    for name, every in (("often", 1), ("seldom", 100)):
        (tmp_path / name).mkdir()
        often = {"eval_every": every, "sample_every": every, "checkpoint_every": every, "log_every": every}
        states.append(tiny.state(train(tiny.config(tmp_path / name, dropout=0.2, **often)).checkpoint))
    assert states[0] == states[1]


def test_the_seed_decides(tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        states.append(tiny.state(train(tiny.config(tmp_path / name, dropout=0.2, seed=seed)).checkpoint))
    assert states[0] == states[1] != states[2]


def test_the_curve_of_few_and_many_rows() -> None:
    rows = [{"step": i, "loss": 5 - i / 1000} for i in range(1, 2000)] + [{"step": 2000, "val_loss": 3.0}]
    for some in (rows, rows[:1], rows[-1:]):
        png = loss_curve(some)
        assert png.startswith(b"\x89PNG") and len(png) > 5000


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 5000])
def test_the_curve_has_no_half_of_a_step(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    made: list[Figure] = []
    init = Figure.__init__
    monkeypatch.setattr(Figure, "__init__", lambda self, **how: (init(self, **how), made.append(self))[0])
    loss_curve([{"step": i, "loss": 5.0 - i / steps} for i in range(1, steps + 1)])
    ticks = made[0].axes[0].get_xticks()
    assert len(ticks) and all(tick == round(tick) for tick in ticks)


def test_without_a_terminal_there_are_few_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    clock = iter(float(second) for second in range(10**6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.Progress(0, 5000) as shown:
        for step in range(1, 5001):
            shown.update(step, 1.0, 6e-4, 0.5, 100.0)
    lines = capsys.readouterr().out.splitlines()
    assert 50 <= len(lines) <= 102
    assert lines[0].startswith("step 1/5000") and lines[-1].startswith("step 5000/5000")
    assert "loss 1.000  100 tok/s" in lines[3] and lines[3].endswith(" min left")


@pytest.mark.parametrize("rows_and_columns", [(24, 100), (0, 0)])
def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, rows_and_columns: tuple[int, int]) -> None:
    """A real pseudo-terminal; (0, 0) is one that has no size."""
    main_end, user_end = os.openpty()
    fcntl.ioctl(user_end, termios.TIOCSWINSZ, struct.pack("4H", *rows_and_columns, 0, 0))
    with open(user_end, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.Progress(2, 4) as shown:
            time.sleep(0.15)  # tqdm redraws at most ten times a second
            shown.evaluated(2.5)
            shown.update(3, 1.25, 6e-4, 0.5, 1234.5)
        bar = b""
        while b"3/4" not in bar and select.select([main_end], [], [], 10)[0]:  # a busy system hands it over in pieces
            bar += os.read(main_end, 10_000)
        bar = bar.decode(errors="replace")
    os.close(main_end)
    assert "3/4" in bar and "loss 1.250 lr 6.0e-04 norm 0.50 val 2.500 1,234 tok/s" in bar and "<" in bar


# Refusals


def refusal(config: TrainConfig, resume: bool = False) -> str:
    with pytest.raises(UserError) as error:
        train(config, resume)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny.config(tmp_path_factory.mktemp("finished"))).run.folder


def test_a_folder_in_use_is_refused(finished: Path, tmp_path: Path) -> None:
    before = tiny.files(finished)
    assert "is not empty: add --resume to continue it" in refusal(tiny.config(tmp_path, out=finished))
    assert tiny.files(finished) == before
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    assert "is not empty: it is not a run of gpt2c" in refusal(tiny.config(tmp_path))
    assert list(tiny.files(tmp_path / "run")) == ["thesis.txt"]


def test_nothing_is_made_for_a_run_that_cannot_start(tmp_path: Path) -> None:
    assert "cannot read the data" in refusal(tiny.config(tmp_path, data=str(tmp_path / "no.txt")))
    assert "n_embd is 33, expected a multiple of n_head (2)" in refusal(tiny.config(tmp_path, n_embd=33))
    assert "too short" in refusal(tiny.config(tmp_path, context=5000))
    assert "--lora-rank needs a model to start from" in refusal(tiny.config(tmp_path, lora_rank=4))
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder(tmp_path: Path) -> None:
    message = refusal(tiny.config(tmp_path, out=tmp_path / "text.txt" / "run"))
    assert message.startswith(f"cannot write {tmp_path / 'text.txt' / 'run'}: Not a directory")
    assert refusal(tiny.config(tmp_path, out=tmp_path / "text.txt")).endswith("choose another folder with --out")


@pytest.mark.parametrize("what", ["metrics.jsonl", "samples.txt", "loss.png", "run.json"])
def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Which ends the run only where it cannot go on: that of a log or a picture is a note."""

    def full(path: Path, *args: object, **kwargs: object) -> object:
        if Path(path).name == what:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_atomically(path, *args) if kwargs.pop("whole", False) else open(path, *args, **kwargs)

    monkeypatch.setattr(run, "write_atomically", lambda path, contents: full(path, contents, whole=True))
    monkeypatch.setattr(growing, "open", full, raising=False)
    if what == "run.json":
        assert "No space left on device; make room or choose another folder" in refusal(tiny.config(tmp_path))
    else:
        with pytest.warns(UserWarning, match="No space left on device; training goes on without it") as caught:
            assert train(tiny.config(tmp_path)).step == 8
        assert len(caught) == 1 and str(tmp_path / "run" / what) in str(caught[0].message)
    assert not list((tmp_path / "run").rglob(".*"))


def test_a_file_size_limit_in_the_middle_of_a_run(tmp_path: Path) -> None:
    """The operating system itself refuses to write, in a process of its own: the checkpoint does not fit."""
    config = tiny.config(tmp_path, n_embd=128, steps=4)
    program = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (300_000, 300_000)); "
    program += "import sys; from gpt2c.cli import main; sys.exit(main())"
    process = tiny.start("train", *tiny.flags(config), program=program)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    *notes, told = err.splitlines()
    assert told.startswith("error: cannot ") and "File too large" in told
    assert all(note.startswith("note: ") for note in notes)  # of flags without effect
    assert tiny.files(tmp_path / "run" / "checkpoints") == {}


# Not finite


def test_a_learning_rate_that_blows_up(tmp_path: Path) -> None:
    """A real one: the weights overflow, the run stops, and no checkpoint holds a weight that is not finite."""
    message = refusal(tiny.config(tmp_path, lr=1e30, min_lr=0.0, warmup_steps=0, checkpoint_every=1, eval_every=1))
    assert message.startswith("step ") and "is not finite" in message and "smaller --lr" in message
    for path in checkpoint.list_all(tmp_path / "run"):
        for name in ("model.safetensors", "training.safetensors"):
            assert all(t.isfinite().all() for t in load_file(path / name).values() if t.is_floating_point())


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, weight: str | None = None, gradient: str | None = None) -> None:
    """Put a NaN into a weight or gradient at a step, as a broken kernel or memory would."""
    honest = loop.accumulate_gradients
    steps = iter(range(1, 1000))

    def spoiled(model: torch.nn.Module, *args: object) -> tuple[Tensor, Tensor]:
        now = next(steps) == step
        if weight and now:
            model.get_parameter(weight).data.view(-1)[3] = math.nan
        loss, norm = honest(model, *args)
        if gradient and now:
            model.get_parameter(gradient).grad.view(-1)[3] = math.inf
            norm = torch.tensor(math.inf)
        return loss, norm

    monkeypatch.setattr(loop, "accumulate_gradients", spoiled)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"gradient": "h.0.mlp.c_fc.weight"}, "the gradient of h.0.mlp.c_fc.weight"),
        ({"weight": "h.0.attn.c_proj.bias"}, "the weight h.0.attn.c_proj.bias"),
    ],
)
def test_the_step_the_tensor_and_the_last_good_checkpoint_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: dict[str, str], words: str
) -> None:
    spoil(monkeypatch, 5, **what)
    message = refusal(tiny.config(tmp_path, skip_limit=0))
    last = tmp_path / "run" / "checkpoints" / "step_000004"
    assert message.startswith(f"step 5: {words} is not finite") and f"the last good checkpoint is {last};" in message
    assert checkpoint.latest(tmp_path / "run") == last
    assert [row["step"] for row in tiny.metrics(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4]
    monkeypatch.undo()
    assert train(tiny.config(tmp_path), resume=True).step == 8


def test_no_checkpoint_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 1, gradient="wte.weight")
    assert "there is no checkpoint yet" in refusal(tiny.config(tmp_path, skip_limit=0))


def test_a_weight_spoiled_by_the_update_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, steps = AdamW.step, iter(range(1, 1000))

    def spoiled(self: torch.optim.Optimizer, *args: object, **kwargs: object) -> None:
        honest(self, *args, **kwargs)
        if next(steps) == 5:
            self.param_groups[0]["params"][0].data.view(-1)[0] = math.nan

    monkeypatch.setattr(AdamW, "step", spoiled)
    assert refusal(tiny.config(tmp_path, checkpoint_every=5)).startswith("step 5: the weight wte.weight is not finite")
    assert checkpoint.latest(tmp_path / "run").name == "step_000004"


def test_a_validation_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "loss_sums", lambda *_: (math.nan, 1))
    assert refusal(tiny.config(tmp_path)).startswith("step 4: the validation loss (nan) is not finite")
    assert checkpoint.latest(tmp_path / "run").name == "step_000002"


def test_what_is_named_when_only_the_sum_overflows(tmp_path: Path) -> None:
    t = tiny.opened(tiny.config(tmp_path))
    assert finite.non_finite_of_step(t.model, 1.0, 1.0) is None
    assert finite.non_finite_of_step(t.model, math.inf, 1.0) == "the loss (inf)"
    assert finite.non_finite_of_step(t.model, 1.0, math.inf) == "the norm of all gradients together (inf)"
