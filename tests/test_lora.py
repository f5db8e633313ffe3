"""Learning less than all weights: frozen layers and LoRA, against plain PyTorch and the library peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from gpt2c import checkpoint, lora
from gpt2c.bench.twin import Twin
from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.load import load_model
from gpt2c.model import GPT2
from gpt2c.train import train

SIZES = GPT2Config(vocab_size=257, n_positions=32, n_embd=32, n_layer=3, n_head=2)
IDX = torch.arange(2 * 17).view(2, 17)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def adapted(rank: int = 4, alpha: float = 8.0, frozen: int = 0) -> GPT2:
    """A model with adapters that are not zero."""
    model = GPT2(SIZES)
    lora.freeze(model, frozen)
    lora.add_lora(model, rank, alpha)
    for module in lora.adapters(model).values():
        module.lora_b.data.normal_(std=0.1)
    return model


def test_the_gradients_of_a_and_b_are_autograds() -> None:
    model = adapted()
    twin = Twin.of(lora.merged(model)).double()
    loss = model(IDX[:, :-1], IDX[:, 1:])[1]
    loss.backward()
    twin(IDX[:, :-1], IDX[:, 1:])[1].backward()
    for name, module in lora.adapters(model).items():
        a, b = (p.detach().double().requires_grad_() for p in (module.lora_a, module.lora_b))
        # dW of the merged weight, through W = W0 + 2 A B.
        (2.0 * a @ b).backward(twin.get_parameter(f"{name}.weight").grad)
        for ours, exact in ((module.lora_a.grad, a.grad), (module.lora_b.grad, b.grad)):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-6 * float(exact.abs().max()) + 1e-8)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 3 * 4 * 2 and all(".lora_" in name for name in learning)
    assert all(p.grad is None for name, p in model.named_parameters() if name not in learning)


def test_adapters_begin_without_an_effect_and_merge_into_an_ordinary_model() -> None:
    torch.manual_seed(0)
    plain, model = GPT2(SIZES), GPT2(SIZES)
    model.load_state_dict(plain.state_dict())
    lora.add_lora(model, 4, 8.0)
    assert torch.equal(model(IDX)[0], plain(IDX)[0])
    for module in lora.adapters(model).values():
        module.lora_b.data.normal_(std=0.1)
    merged = lora.merged(model)
    assert not lora.adapters(merged) and lora.merged(plain) is plain
    assert torch.equal(merged(IDX)[0], model(IDX)[0]) and not torch.equal(merged(IDX)[0], plain(IDX)[0])


def test_a_step_changes_the_adapters_alone() -> None:
    model = adapted(frozen=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(IDX[:, :-1], IDX[:, 1:])[1].backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".lora_" in name} and not any("h.0." in name for name in changed)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_frozen_layers_stay_and_the_others_learn_as_ever(layers: int) -> None:
    whole, part = GPT2(SIZES), GPT2(SIZES)
    part.load_state_dict(whole.state_dict())
    lora.freeze(part, layers)
    for model in (whole, part):
        model(IDX[:, :-1], IDX[:, 1:])[1].backward()
    for name, p in part.named_parameters():
        frozen = name.startswith(("wte", "wpe", *(f"h.{i}." for i in range(layers))))
        assert (p.grad is None) is frozen, name
        assert frozen or torch.equal(p.grad, whole.get_parameter(name).grad), name


def test_more_layers_than_there_are() -> None:
    with pytest.raises(UserError, match="--freeze-layers is 4, expected at most 3, the model's layers"):
        lora.freeze(GPT2(SIZES), 4)


# The library peft


@pytest.fixture
def base(tmp_path: Path) -> Path:
    GPT2(SIZES).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frozen", [0, 1])
def test_peft_reads_our_adapters(base: Path, tmp_path: Path, frozen: int) -> None:
    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    transformers = pytest.importorskip("transformers")
    model = load_model(str(base))[0]
    lora.freeze(model, frozen)
    lora.add_lora(model, 4, 8.0)
    for module in lora.adapters(model).values():
        module.lora_b.data.normal_(std=0.1)
    lora.save_adapter(model, tmp_path / "adapter", str(base))
    theirs = peft.PeftModel.from_pretrained(
        transformers.GPT2LMHeadModel.from_pretrained(base), tmp_path / "adapter"
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDX).logits, model(IDX)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_we_read_pefts_adapters(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    transformers = pytest.importorskip("transformers")
    settings = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=lora.TARGETS, fan_in_fan_out=True, init_lora_weights=False
    )
    theirs = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained(base), settings).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    model = load_model(str(base))[0]
    lora.load_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(model(IDX)[0], theirs(IDX).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_modules": ["c_attn"]}, r"has adapters for \['c_attn'\], expected"),
        ({"use_dora": True}, "has use_dora True, expected False"),
        ({"bias": "all"}, "has bias 'all', expected 'none'"),
        ({"r": 5}, r"lora_A.weight is \(4, 32\), expected \(5, 32\)"),
        ({"r": "x"}, "is not an adapter's configuration"),
    ],
)
def test_other_adapters_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    lora.save_adapter(adapted(), tmp_path, "base")
    config = json.loads((tmp_path / lora.CONFIG).read_text())
    (tmp_path / lora.CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=words):
        lora.load_adapter(GPT2(SIZES), tmp_path)


def test_adapters_of_more_than_the_four_matrices_are_refused(tmp_path: Path) -> None:
    lora.save_adapter(adapted(), tmp_path, "base")
    tensors = load_file(tmp_path / lora.WEIGHTS)
    save_file({**tensors, "base_model.model.lm_head.lora_A.weight": torch.ones(2, 2)}, tmp_path / lora.WEIGHTS)
    with pytest.raises(UserError, match="holds base_model.model.lm_head.lora_A.weight, which is no adapter"):
        lora.load_adapter(GPT2(SIZES), tmp_path)


# Runs


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to start from, of two layers."""
    torch.set_num_threads(1)
    return train(tiny.config(tmp_path_factory.mktemp("start"), n_layer=2, steps=20, lr=1e-2)).run.folder


@pytest.mark.parametrize("changes", [{}, {"freeze_layers": 1}, {"lora_rank": 4}, {"lora_rank": 2, "freeze_layers": 1}])
def test_a_run_from_a_model_learns_stops_and_resumes(start: Path, tmp_path: Path, changes: dict[str, int]) -> None:
    settings = {"init": str(start), "n_layer": 9, "lr": 1e-2, "steps": 12, "context": 8, "keep": 9, **changes}
    whole = train(tiny.config(tmp_path, **settings))
    losses = [row["val_loss"] for row in tiny.metrics(whole.run.folder) if "val_loss" in row]
    assert losses[-1] < losses[0] < 5.0
    model = load_model(str(whole.checkpoint))[0]
    first = load_model(str(start))[0]
    assert model.config == first.config
    same = [name for name, p in model.named_parameters() if torch.equal(p, first.get_parameter(name))]
    assert any(name.startswith("h.0.") for name in same) is bool(changes)
    assert not any(name.startswith("h.1.mlp.c_fc.w") for name in same)
    assert (whole.checkpoint / "adapter").exists() is ("lora_rank" in changes)
    # Resumed from the fourth step, it ends with the same bytes.
    parts = tiny.stopped_after(whole.run.folder, 4, tmp_path / "parts")
    resumed = train(tiny.config(tmp_path, out=parts, **settings), resume=True)
    assert tiny.state(resumed.checkpoint) == tiny.state(whole.checkpoint)


def test_lora_resumes_on_the_model_it_began_with_only(start: Path, tmp_path: Path) -> None:
    settings = {"lora_rank": 4, "steps": 4}
    train(tiny.config(tmp_path, init=str(start), **settings))
    other = checkpoint.list_all(start)[0]
    with pytest.raises(UserError, match="was trained from another model than .*: give that one with --init"):
        train(tiny.config(tmp_path, init=str(other), lora_rank=4, steps=6), resume=True)
    shutil.copytree(start, tmp_path / "moved")
    assert train(tiny.config(tmp_path, init=str(tmp_path / "moved"), lora_rank=4, steps=6), resume=True).step == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_rank": 4}, "--lora-rank needs a model to start from: give it with --init"),
        ({"init": "./nowhere"}, "the folder ./nowhere does not exist"),
        ({"freeze_layers": 2}, "--freeze-layers is 2, expected at most 1"),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train(tiny.config(tmp_path, **changes))


def test_a_context_longer_than_the_models(start: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--context is 17, expected at most 16, the positions of"):
        train(tiny.config(tmp_path, init=str(start), context=17))
