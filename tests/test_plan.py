"""`gpt2c plan`: the parts of the memory against closed forms, a real run's peak, hours, disk, and mistakes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
import torch

from gpt2c import cli
from gpt2c.cli import main
from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.flops import GPUS, flops_per_token
from gpt2c.lora import add_lora, freeze
from gpt2c.model import GPT2
from gpt2c.plan import summary
from gpt2c.plan.memory import CUDA_CONTEXT, MOST, SCATTERED, SHARE, Place, disk, largest_batch, learned, plan_memory
from gpt2c.plan.speed import STARTING, _alone, by_data_sheet, hours
from gpt2c.plan.trial import LEAST, SECONDS, SHARE_OF_PEAK, empty_process, size_of_trial, try_out
from gpt2c.settings import TrainConfig, load_recipe
from gpt2c.tokenizer import get_tokenizer
from gpt2c.train import train

RUN = load_recipe("gpt2-124m-fineweb")
SIZES = RUN.model_config(50257)


@pytest.fixture(scope="module")
def empty() -> float:
    """The bytes of a process that trains next to nothing on bytes."""
    return empty_process(TrainConfig())


def planned(config: TrainConfig, device: str = "cuda", precision: str = "bf16", world: int = 1) -> dict[str, float]:
    sizes = config.model_config(get_tokenizer(config.tokenizer).vocab_size)
    memory = plan_memory(config, sizes, Place(device, precision, CUDA_CONTEXT, world))
    return memory.rows() | {"total": memory.total}


def test_parts_are_what_the_sizes_say() -> None:
    parts = planned(dataclasses.replace(RUN, batch_size=4, accumulation=2), "cpu", "fp32")
    rows = 124_439_808 + 47 * 768  # with the vocabulary's padding
    assert parts["weights"] == 4 * rows and parts["moments"] == 8 * rows
    assert parts["gradients"] == pytest.approx(4 * rows + SCATTERED * 4 * rows)
    assert parts["logits"] == 256 * 50304 * 4
    assert parts["activations"] >= 4096 * 12 * 10 * 768 * 4
    assert parts["total"] == pytest.approx(sum(parts.values()) - parts["total"])


@pytest.mark.parametrize(
    ("name", "batch", "precision", "measured"),
    [
        ("124m", 16, "bf16", 5.37e9),
        ("124m", 64, "bf16", 14.90e9),
        ("124m", 16, "fp32", 8.36e9),
        ("355m", 16, "bf16", 13.76e9),
    ],
)
def test_gpu_memory_as_measured_on_an_h200(name: str, batch: int, precision: str, measured: float) -> None:
    """torch.cuda.max_memory_allocated() of training, which the driver's context does not count in."""
    config = dataclasses.replace(load_recipe(f"gpt2-{name}-fineweb"), batch_size=batch, accumulation=1)
    assert planned(config, precision=precision)["total"] - CUDA_CONTEXT == pytest.approx(measured, rel=0.1)


def test_recompute_and_shared_moments_take_less() -> None:
    whole = planned(RUN)
    assert planned(dataclasses.replace(RUN, recompute=True))["activations"] < 0.3 * whole["activations"]
    assert planned(dataclasses.replace(RUN, shard_optimizer=True), world=8)["moments"] == whole["moments"] / 8


@pytest.mark.parametrize("changes", [{}, {"freeze_layers": 2}, {"lora_rank": 4}, {"lora_rank": 2, "freeze_layers": 1}])
def test_what_learns_is_counted(changes: dict[str, int]) -> None:
    sizes = GPT2Config(vocab_size=257, n_positions=32, n_embd=32, n_layer=3, n_head=2)
    model = GPT2(sizes)
    freeze(model, changes.get("freeze_layers", 0))
    if "lora_rank" in changes:
        add_lora(model, changes["lora_rank"], 16.0)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = TrainConfig(n_layer=3, n_embd=32, n_head=2, init="x", **changes)
    assert learned(config, sizes) == (count, 3 - changes.get("freeze_layers", 0))


def test_the_largest_batch_is_the_last_that_fits() -> None:
    def total(batch: int) -> float:
        return planned(dataclasses.replace(RUN, batch_size=batch))["total"]

    place = Place("cuda", "bf16", CUDA_CONTEXT)
    found = [largest_batch(RUN, SIZES, place, room) for room in (1e9, 8e9, 24e9, 80e9)]
    assert found[0] == 0 and found == sorted(found) and found[1] < found[2] < found[3]
    for room, batch in zip((8e9, 24e9, 80e9), found[1:], strict=True):
        assert total(batch) <= SHARE * room < total(batch + 1)


def test_gradients_meet_the_activations_where_they_stay() -> None:
    """On one GPU a single micro-step frees them before it; more micro-steps and several processes keep them."""
    whole = planned(dataclasses.replace(RUN, accumulation=2))["gradients"]
    assert whole == planned(RUN, world=8)["gradients"] == 4 * (124_439_808 + 47 * 768)
    alone = planned(dataclasses.replace(RUN, accumulation=1))
    assert alone["gradients"] == 0 and alone["activations"] > whole
    tiny_step = planned(dataclasses.replace(RUN, accumulation=1, batch_size=1))
    assert tiny_step["gradients"] + tiny_step["activations"] == pytest.approx(whole)


def test_data_are_the_text_and_the_batches_of_four_steps() -> None:
    config = TrainConfig(batch_size=4, context=32, accumulation=2)
    memory = plan_memory(config, config.model_config(257), Place("cpu", "fp32", 0.0, ids=1000))
    assert memory.data == 2 * 1000 + 4 * 16 * 4 * 32 * 2


def test_a_trial_is_short_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2c.plan.trial.product_rate", lambda: 100e9)
    cpu = torch.device("cpu")
    affordable = SECONDS * SHARE_OF_PEAK * 100e9
    assert size_of_trial(RUN, affordable / 1e6, cpu, 10, 1024) == (64, 10)
    assert size_of_trial(RUN, affordable / 1e6, cpu, 10, 3) == (3, 10)
    assert size_of_trial(RUN, affordable / 40, cpu, 10, 1024) == (4, 10)
    assert size_of_trial(RUN, affordable / 5, cpu, 10, 1024) == (1, 5)
    assert size_of_trial(RUN, affordable, cpu, 10, 1024) == (1, LEAST)
    assert size_of_trial(RUN, affordable, cpu, 2, 1024) == (1, 2)
    assert size_of_trial(RUN, affordable, torch.device("cuda"), 10, 48) == (48, 10)


def test_hours_count_steps_and_evaluations() -> None:
    config = TrainConfig(batch_size=2, context=50, accumulation=3, steps=10, eval_every=4, eval_tokens=600)
    assert hours(config, 10.0, None) == pytest.approx((3000 + 3 * 600 / 3) / 10 / 3600)
    assert hours(config, 10.0, 300) == pytest.approx((3000 + 3 * 300 / 3) / 10 / 3600)


def test_operations_of_a_token() -> None:
    assert flops_per_token(SIZES, 1024) == 6 * 124_439_808 + 6 * 12 * 768 * 1024


def test_disk_is_what_a_run_leaves(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = tiny.config(tmp_path, n_embd=64, keep=2)
    last = train(config).checkpoint
    size = sum(path.stat().st_size for path in last.iterdir())
    assert disk(config, config.model_config(257)) == pytest.approx(4 * size, rel=0.1)


def test_a_real_runs_peak_is_within_a_tenth(empty: float) -> None:
    """In a process of its own, as `gpt2c plan` and python/plan_check.py measure it."""
    config = TrainConfig(n_layer=4, n_head=4, n_embd=256, context=256, batch_size=8, eval_tokens=2048, device="cpu")
    memory = plan_memory(config, config.model_config(257), Place("cpu", "fp32", empty))
    trial = try_out(config, 2)
    assert memory.activations > 0.15 * memory.total and memory.total == pytest.approx(trial.peak, rel=0.1)
    assert trial.seconds > 0


def test_the_command_plans_for_a_gpu(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert main(["plan", "rtx3070-8gb", "--gpu", "RTX 3070", "--json", str(path)]) == 0
    out, found = capsys.readouterr().out, json.loads(path.read_text())
    run = load_recipe("rtx3070-8gb")
    evaluated = 40 * 2**20 / 3  # a forward of 2**20 tokens at every 500th of 19,560 steps, and at the last
    rate = 0.35 * GPUS["RTX 3070"].flops_16 / flops_per_token(SIZES, 1024)
    assert found["hours"] == pytest.approx((19_560 * 524_288 + evaluated) / rate / 3600)
    assert 100 < found["hours"] < 200, "about a week"
    assert found["checkpoint"] == pytest.approx(12 * 124_439_808, rel=1e-3) and found["disk"] == 4 * found["checkpoint"]
    assert found["memory"]["peak"] == pytest.approx(planned(run)["total"]) and found["memory"]["peak"] < 8e9
    assert found["largest_batch"] >= run.batch_size
    for words in ("bf16 on RTX 3070", "16 windows of 1,024 tokens in a micro-step: fits", "10,255,073,280", "days"):
        assert words in out


def test_a_small_model_on_a_large_gpu_is_bound_by_python(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Not 29 million tokens a second, which the data sheet's operations would make of the demo."""
    path = tmp_path / "plan.json"
    assert main(["plan", "demo", "--gpu", "H100", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["tokens_per_second"] == pytest.approx(8 * 128 / (5 * STARTING))
    assert "tokens a second: 5 ms of Python for each micro-step of 4 layers" in capsys.readouterr().out
    accumulating = dataclasses.replace(load_recipe("demo"), accumulation=4)
    for processes in (1, 2, 4):
        speed = by_data_sheet(accumulating, accumulating.model_config(257), "H100", "bf16", 0.35, processes)
        assert speed.rate == pytest.approx(processes * found["tokens_per_second"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(29_554_188, "29,600,000"), (32_300.4, "32,300"), (100.4, "100"), (99.96, "100"), (6.184, "6.18"),
     (0.0123, "0.0123"), (1e-5, "under 0.001"), (0.0, "0")],
)  # fmt: skip
def test_estimates_have_three_digits_and_no_exponent(value: float, shown: str) -> None:
    assert summary.short(value) == shown


def test_a_batch_without_a_cap() -> None:
    """The number is the largest that fits, and one at which the search ends is told as such."""
    config = TrainConfig(n_layer=1, n_head=1, n_embd=16, context=16)
    sizes, place = config.model_config(257), Place("cpu", "fp32", 0.0)
    most = largest_batch(config, sizes, place, 4e9)
    assert 1024 < most < MOST
    total = [plan_memory(dataclasses.replace(config, batch_size=n), sizes, place).total for n in (most, most + 1)]
    assert total[0] <= SHARE * 4e9 < total[1]
    assert largest_batch(config, sizes, place, float("inf")) == MOST
    memory = plan_memory(config, sizes, place)
    words = [summary.memory_table(config, memory, memory, 4e9, n).splitlines()[-1] for n in (most, MOST)]
    assert words[0].endswith(f"fits; at most {most:,} windows would") and words[1].endswith("fits; so would 1,048,576")
    unknown = summary.memory_table(config, memory, memory, float("inf"), MOST)
    assert "of unknown" in unknown and unknown.endswith("the system does not tell how much memory it has")


def test_every_setting_is_a_flag(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("dropout = 0.1\nlora_rank = 4\nsteps = 3\ncontext = 64\n")
    config, sizes = cli.parse(["plan", str(recipe)])._settings()
    assert config == load_recipe(str(recipe)) and (sizes.dropout, sizes.n_positions) == (0.1, 64)
    zeros = ["--dropout", "0", "--lora-rank", "0", "--context", "128", "--recompute", "--precision", "bf16"]
    config, sizes = cli.parse(["plan", str(recipe), *zeros])._settings()
    assert (config.dropout, config.lora_rank, config.context, config.steps) == (0.0, 0, 128, 3)
    assert config.recompute and config.precision == "bf16" and sizes.n_positions == 128


def test_what_does_not_fit_is_not_measured(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2c.commands.plan.available_bytes", lambda: 1_000_000)
    monkeypatch.setattr("gpt2c.commands.plan.empty_process", lambda config: 400_000.0)
    assert main(["plan", "demo", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "does not fit; not one window would" in out and "not measured" in out and "hours" not in out


def test_the_command_measures_this_machine(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty: float
) -> None:
    monkeypatch.setattr("gpt2c.commands.plan.empty_process", lambda config: empty)  # four seconds
    config = tiny.config(tmp_path)
    recipe = tmp_path / "mine.toml"
    recipe.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in config.to_dict().items()))
    assert main(["plan", str(recipe), "--trial-steps", "2", "--json", str(tmp_path / "plan.json")]) == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    seconds = (found["tokens"] + 2 * 64 / 3) / found["tokens_per_second"]
    assert found["hours"] == pytest.approx(seconds / 3600)
    out = capsys.readouterr().out
    assert (
        "times the data" in out
        and "seconds, with evaluations" in out
        and "2 steps of 2 x 16 tokens measured here" in out
    )
    assert found["memory"]["data"] > 2 * 20_000, "the text's ids"
    assert not (tmp_path / "run").exists()


def test_the_sizes_of_a_model_to_start_from(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    GPT2(GPT2Config(n_positions=1024, n_embd=32, n_layer=3, n_head=2)).save_pretrained(tmp_path)
    assert main(["plan", "finetune-shakespeare", "--init", str(tmp_path), "--gpu", "T4"]) == 0
    parameters = GPT2Config(n_embd=32, n_layer=3, n_head=2).num_parameters()
    assert f"a GPT-2 of {parameters:,} parameters, fp16 on T4" in capsys.readouterr().out


def test_a_model_to_start_from_is_not_fetched(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "finetune-shakespeare", "--gpu", "L4"]) == 0
    assert "a GPT-2 of 124,439,808 parameters, bf16 on L4" in capsys.readouterr().out
    alone = _alone(load_recipe("finetune-shakespeare"), SIZES)
    assert (alone.init, alone.n_layer, alone.n_head, alone.n_embd, alone.data) == ("", 12, 12, 768, "embedded")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing"], "unknown recipe 'nothing'"),
        (["demo", "--gpu", "RTX 9000"], "--gpu is 'RTX 9000', expected one of T4, L4"),
        (["gpt2-124m-fineweb", "--processes", "3"], "--processes is 3, expected a divisor of the accumulation, 8"),
        (["gpt2-124m-fineweb", "--mfu", "2"], "--mfu is 2.0, expected above 0 and at most 1"),
        (["demo", "--init", "./nowhere"], "nowhere does not exist"),
        (["demo", "--trial-steps", "-1"], "--trial-steps is -1, expected at least 0"),
        (["demo", "--steps", "-1"], "--steps is -1, expected at least 1"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture, args: list[str], words: str) -> None:
    assert main(["plan", *args]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_trial_that_fails_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the measurement of 2 steps failed: cannot read the data .*no.txt"):
        try_out(tiny.config(tmp_path, data=str(tmp_path / "no.txt")), 2)
