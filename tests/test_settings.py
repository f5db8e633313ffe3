"""Settings: recipes, files of one's own, and values that make no sense."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from gpt2c.chat.settings import SftConfig
from gpt2c.errors import UserError
from gpt2c.settings import TrainConfig, load_recipe, recipe_names
from gpt2c.step import tokens_per_step


def test_every_recipe_loads_and_has_a_model() -> None:
    assert set(recipe_names()) == {
        "demo", "finetune-shakespeare", "gpt2-124m-fineweb", "gpt2-355m-fineweb", "gpt2-774m-fineweb",
        "gpt2-1558m-fineweb", "rtx3070-8gb", "sft", "sft-demo", "shakespeare-bytes",
    }  # fmt: skip
    for name in recipe_names():
        if name.startswith("sft"):
            load_recipe(name, SftConfig)
        else:
            load_recipe(name).model_config(257)
    recipe = load_recipe("shakespeare-bytes")
    assert (recipe.n_layer, recipe.n_head, recipe.n_embd, recipe.context, recipe.batch_size) == (4, 4, 128, 64, 12)
    assert (recipe.lr, recipe.min_lr, recipe.warmup_steps, recipe.beta2, recipe.steps) == (1e-3, 1e-4, 100, 0.99, 2000)


def test_the_124m_run_is_the_fields() -> None:
    run = load_recipe("gpt2-124m-fineweb")
    assert run.model_config(50257).num_parameters() == 124_439_808
    assert tokens_per_step(run) == 524_288 and tokens_per_step(run) * run.steps == pytest.approx(10.26e9, rel=1e-3)
    assert (run.lr, run.min_lr, run.warmup_steps, run.steps, run.weight_decay) == (6e-4, 0.0, 700, 19_560, 0.1)
    assert (run.beta1, run.beta2, run.grad_clip, run.eval_tokens) == (0.9, 0.95, 1.0, 10 * 2**20)
    small = load_recipe("rtx3070-8gb")
    differs = {f.name for f in dataclasses.fields(run) if getattr(run, f.name) != getattr(small, f.name)}
    assert differs == {"out", "batch_size", "accumulation", "eval_every", "eval_tokens", "checkpoint_every"}
    assert tokens_per_step(small) == 524_288


@pytest.mark.parametrize(
    ("name", "parameters", "tokens", "steps", "lr", "min_lr"),
    [
        ("355m", 354.8e6, 524_288, 60_000, 3e-4, 0.0),
        ("774m", 774.0e6, 524_288, 286_102, 2.5e-4, 0.0),
        ("1558m", 1557.6e6, 1_048_576, 32_000, 6e-4, 6e-5),
    ],
)
def test_the_larger_runs_are_llm_cs(
    name: str, parameters: float, tokens: int, steps: int, lr: float, min_lr: float
) -> None:
    """scripts/run_gpt2_350M.sh, run_gpt2_774M.sh and run_gpt2_1558M.sh of llm.c."""
    run = load_recipe(f"gpt2-{name}-fineweb")
    assert run.model_config(50257).num_parameters() == pytest.approx(parameters, rel=1e-3)
    assert run.accumulation % 8 == 0 and tokens_per_step(run) == tokens
    assert (run.steps, run.lr, run.min_lr, run.warmup_steps, run.weight_decay) == (steps, lr, min_lr, 700, 0.1)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('out = "somewhere"\nlr = 1\nsteps = 3\n')
    mine = load_recipe(str(path))
    assert mine == TrainConfig(out=Path("somewhere"), lr=1.0, steps=3) and isinstance(mine.lr, float)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stps = 3", "has the unknown setting 'stps': expected some of data, out"),
        ('steps = "3"', "sets steps to '3', expected an integer"),
        ("steps = 3.5", "sets steps to 3.5, expected an integer"),
        ("steps = true", "sets steps to True, expected an integer"),
        ('lr = "fast"', "sets lr to 'fast', expected a number"),
        ("data = 3", "sets data to 3, expected a string"),
        ('precision = "fp8"', "sets precision to 'fp8', expected one of auto, fp32, bf16, fp16"),
        ("steps = 0", "--steps is 0, expected at least 1"),
        ("steps", "is not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_recipe(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(str(tmp_path / "mine.toml"))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_unknown_recipes_list_the_known() -> None:
    with pytest.raises(UserError, match="unknown recipe 'dem': expected one of demo, finetune-shakespeare, gpt2"):
        load_recipe("dem")
    with pytest.raises(UserError, match="cannot read the recipe no.toml: No such file"):
        load_recipe("no.toml")


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("batch_size", 0), ("accumulation", -1), ("context", 0), ("lr", 0.0), ("lr", math.nan)]
    + [("lr", math.inf), ("min_lr", -1.0), ("min_lr", 1.0), ("warmup_steps", -1), ("weight_decay", -0.1)]
    + [("beta1", 1.0), ("beta2", -0.1), ("grad_clip", 0.0), ("seed", -1), ("seed", 2**63), ("val_fraction", 0.0)]
    + [("val_fraction", 1.0), ("eval_every", -1), ("eval_tokens", 0), ("sample_every", -1), ("sample_tokens", 0)]
    + [("hellaswag_items", 0), ("lora_rank", -1), ("spike_z", -1.0), ("skip_limit", -1), ("freeze_layers", -1)]
    + [("log_every", -1), ("checkpoint_every", -1), ("keep", 0)],
)
def test_values_that_make_no_sense(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^--{name.replace('_', '-')} is {value}, expected "):
        TrainConfig(**{name: value})


def test_a_recipe_is_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbfsteps = 7\n")
    assert load_recipe(str(path)).steps == 7
    path.write_bytes("data = 'café.txt'\n".encode("latin-1"))
    with pytest.raises(UserError, match="mine.toml is not UTF-8 text: byte 11 is wrong"):
        load_recipe(str(path))
