"""`gpt2c plan`: the parts of the memory against closed forms, a real run's peak, hours, disk, and mistakes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
import torch

from gpt2c.cli import main
from gpt2c.commands.plan import SHARE, largest_batch
from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.flops import GPUS, flops_per_token
from gpt2c.lora import add_lora, freeze
from gpt2c.model import GPT2
from gpt2c.plan.memory import CUDA_CONTEXT, disk, learned, plan_memory
from gpt2c.plan.trial import empty_process, try_out
from gpt2c.settings import TrainConfig, load_recipe
from gpt2c.tokenizer import get_tokenizer
from gpt2c.train import train

RUN = load_recipe("gpt2-124m-fineweb")
SIZES = RUN.model_config(50257)


def planned(config: TrainConfig, device: str = "cuda", precision: str = "bf16", world: int = 1) -> dict[str, float]:
    sizes = config.model_config(get_tokenizer(config.tokenizer).vocab_size)
    memory = plan_memory(config, sizes, device, precision, CUDA_CONTEXT, world)
    return memory.rows() | {"total": memory.total}


def test_parts_are_what_the_sizes_say() -> None:
    parts = planned(dataclasses.replace(RUN, batch_size=4, accumulation=2), "cpu", "fp32")
    rows = 124_439_808 + 47 * 768  # with the vocabulary's padding
    assert parts["weights"] == parts["gradients"] == 4 * rows and parts["moments"] == 8 * rows
    assert parts["logits"] == 256 * 50304 * 4
    assert parts["activations"] >= 4096 * 12 * 10 * 768 * 4
    assert parts["total"] == pytest.approx(sum(parts.values()) - parts["total"])


@pytest.mark.parametrize(
    ("name", "batch", "recompute", "measured"),
    [
        ("124m", 16, False, 5.25e9),
        ("124m", 64, False, 15.32e9),
        ("124m", 64, True, 4.78e9),
        ("355m", 16, False, 13.22e9),
    ],
)
def test_gpu_memory_as_measured_on_an_h100(name: str, batch: int, recompute: bool, measured: float) -> None:
    """torch.cuda.max_memory_allocated() of bf16 training, which the driver's context does not count in."""
    run = load_recipe(f"gpt2-{name}-fineweb")
    config = dataclasses.replace(run, batch_size=batch, accumulation=1, recompute=recompute)
    assert planned(config)["total"] - CUDA_CONTEXT == pytest.approx(measured, rel=0.1)


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

    found = [largest_batch(RUN, SIZES, "cuda", "bf16", CUDA_CONTEXT, 1, room) for room in (1e9, 8e9, 24e9, 80e9)]
    assert found[0] == 0 and found == sorted(found) and found[1] < found[2] < found[3]
    for room, batch in zip((8e9, 24e9, 80e9), found[1:], strict=True):
        assert total(batch) <= SHARE * room < total(batch + 1)


def test_operations_of_a_token() -> None:
    assert flops_per_token(SIZES, 1024) == 6 * 124_439_808 + 6 * 12 * 768 * 1024


def test_disk_is_what_a_run_leaves(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = tiny.config(tmp_path, n_embd=64, keep=2)
    last = train(config).checkpoint
    size = sum(path.stat().st_size for path in last.iterdir())
    assert disk(config, config.model_config(257)) == pytest.approx(4 * size, rel=0.1)


def test_a_real_runs_peak_is_within_a_tenth(tmp_path: Path) -> None:
    """In a process of its own, as `gpt2c plan` and python/plan_check.py measure it."""
    config = TrainConfig(n_layer=4, n_head=4, n_embd=256, context=256, batch_size=8, out=tmp_path / "run")
    memory = plan_memory(config, config.model_config(257), "cpu", "fp32", empty_process(config))
    trial = try_out(config, 2)
    assert memory.activations > 0.15 * memory.total and memory.total == pytest.approx(trial.peak, rel=0.1)
    assert trial.seconds > 0


def test_the_command_plans_for_a_gpu(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert main(["plan", "rtx3070-8gb", "--gpu", "RTX 3070", "--json", str(path)]) == 0
    out, found = capsys.readouterr().out, json.loads(path.read_text())
    run = load_recipe("rtx3070-8gb")
    hours = found["tokens"] * flops_per_token(SIZES, 1024) / (0.35 * GPUS["RTX 3070"].flops_16) / 3600
    assert found["hours"] == pytest.approx(hours) and 100 < hours < 200, "about a week"
    assert found["memory"]["peak"] == pytest.approx(planned(run)["total"]) and found["memory"]["peak"] < 8e9
    assert found["largest_batch"] >= run.batch_size
    for words in ("bf16 on RTX 3070", "16 windows of 1024 tokens in a micro-step: fits", "10,255,073,280", "days"):
        assert words in out


def test_the_command_measures_this_machine(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    config = tiny.config(tmp_path)
    recipe = tmp_path / "mine.toml"
    recipe.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in config.to_dict().items()))
    assert main(["plan", str(recipe), "--trial-steps", "2", "--json", str(tmp_path / "plan.json")]) == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["hours"] == pytest.approx(found["tokens"] / found["tokens_per_second"] / 3600)
    assert "times the data" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_the_sizes_of_a_model_to_start_from(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    GPT2(GPT2Config(n_positions=1024, n_embd=32, n_layer=3, n_head=2)).save_pretrained(tmp_path)
    assert main(["plan", "finetune-shakespeare", "--init", str(tmp_path), "--gpu", "T4"]) == 0
    parameters = GPT2Config(n_embd=32, n_layer=3, n_head=2).num_parameters()
    assert f"a GPT-2 of {parameters:,} parameters, fp16 on T4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing"], "unknown recipe 'nothing'"),
        (["demo", "--gpu", "RTX 9000"], "--gpu is 'RTX 9000', expected one of T4, L4"),
        (["gpt2-124m-fineweb", "--processes", "3"], "--processes is 3, expected a divisor of the accumulation, 8"),
        (["gpt2-124m-fineweb", "--mfu", "2"], "--mfu is 2.0, expected above 0 and at most 1"),
        (["demo", "--init", "./nowhere"], "nowhere does not exist"),
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
