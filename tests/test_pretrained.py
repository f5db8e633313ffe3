"""Hugging Face's GPT-2 format, with transformers itself as the peer and random weights; nothing is downloaded."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt2c import pretrained
from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.model import GPT2

SMALL = GPT2Config(vocab_size=97, n_positions=24, n_embd=32, n_layer=2, n_head=4)
# All four sizes' widths and head counts; gpt2 whole with its vocabulary, the larger ones with fewer layers and tokens.
SIZES = {
    "gpt2": GPT2Config.preset("gpt2"),
    "gpt2-medium": GPT2Config.preset("gpt2-medium", n_layer=2, vocab_size=503, n_positions=64),
    "gpt2-large": GPT2Config.preset("gpt2-large", n_layer=2, vocab_size=503, n_positions=64),
    "gpt2-xl": GPT2Config.preset("gpt2-xl", n_layer=2, vocab_size=503, n_positions=64),
}


def randomise(model: torch.nn.Module) -> None:
    """Moves every parameter off the value it would share with a forgotten one (zero biases, unit gains)."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)


def make_ours(config: GPT2Config = SMALL) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(config)
    randomise(model)
    return model.eval()


def make_theirs(config: GPT2Config = SMALL) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(1)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    randomise(theirs)
    return theirs.eval()


def make_prompt(config: GPT2Config, tokens: int = 12) -> Tensor:
    return torch.randint(0, config.vocab_size, (2, tokens), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def assert_same_model(ours: GPT2, theirs: transformers.GPT2LMHeadModel) -> None:
    idx = make_prompt(ours.config)
    torch.testing.assert_close(ours(idx)[0], theirs(idx).logits, rtol=0, atol=1e-4)
    continued = theirs.generate(
        idx, attention_mask=torch.ones_like(idx), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(ours.generate(idx, 8, temperature=0), continued)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small model as transformers saves it."""
    make_theirs().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change) -> None:
    """Replaces the folder's weights by what `change` makes of them."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def reconfigure(folder: Path, **changes) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **changes}))


def refused(folder: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        GPT2.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("size", SIZES)
def test_transformers_reads_ours_and_we_read_theirs(size, tmp_path):
    theirs = make_theirs(SIZES[size])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GPT2.from_pretrained(tmp_path / "theirs")
    assert not ours.training
    assert ours.config == replace(SIZES[size], dropout=0.1)  # transformers' default
    assert_same_model(ours, theirs)
    del theirs
    ours.save_pretrained(tmp_path / "ours")
    again, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert_same_model(ours, again.eval())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_exact(dtype, tmp_path):
    config = replace(SMALL, dropout=0.25, layer_norm_epsilon=1e-6)
    ours = make_ours(config).to(dtype)
    ours.save_pretrained(tmp_path / "new" / "folder")
    again = GPT2.from_pretrained(str(tmp_path / "new" / "folder"))
    assert again.config == config
    for (name, a), (other, b) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and a.dtype == b.dtype == dtype and torch.equal(a, b) and b.requires_grad, name
    again.save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "new" / "folder" / file).read_bytes()


def test_loading_draws_nothing_from_torchs_generator(folder):
    state = torch.get_rng_state()
    GPT2.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_loaded_weights_do_not_depend_on_the_file(folder):
    ours = GPT2.from_pretrained(folder)
    before = ours.wte.weight.clone()
    with open(folder / "model.safetensors", "rb+") as file:
        file.write(b"\0" * (folder / "model.safetensors").stat().st_size)
    assert torch.equal(ours.wte.weight, before)


class TestVariants:
    """Files that other programs and older versions write."""

    def test_shards(self, folder):
        theirs = make_theirs()
        shutil.rmtree(folder)
        theirs.save_pretrained(folder, max_shard_size="60KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1 and not (folder / "model.safetensors").exists()
        assert_same_model(GPT2.from_pretrained(folder), theirs)

    def test_names_without_prefix_mask_buffers_and_tied_head(self, folder):
        def change(tensors):
            plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
            masks = {"h.0.attn.bias": torch.ones(1, 1, 24, 24), "h.1.attn.masked_bias": torch.tensor(-1e4)}
            return {**plain, **masks, "lm_head.weight": plain["wte.weight"].clone()}

        rewrite(folder, change)
        assert_same_model(GPT2.from_pretrained(folder), make_theirs())

    def test_half_precision_becomes_fp32(self, folder):
        rewrite(folder, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
        ours = GPT2.from_pretrained(folder)
        expected = make_theirs().transformer.wte.weight.half().float()
        assert ours.wte.weight.dtype == torch.float32 and torch.equal(ours.wte.weight[:97], expected)

    def test_dropouts_that_differ_are_told(self, folder):
        reconfigure(folder, attn_pdrop=0.0, resid_pdrop=0.2)
        with pytest.warns(UserWarning, match="embd_pdrop 0.1, attn_pdrop 0.0, resid_pdrop 0.2, of which the last"):
            assert GPT2.from_pretrained(folder).config.dropout == 0.2


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "llama"}, "has model_type 'llama', expected 'gpt2'"),
            ({"activation_function": "relu"}, "has activation_function 'relu', expected 'gelu_new'"),
            ({"scale_attn_by_inverse_layer_idx": True}, "has scale_attn_by_inverse_layer_idx True, expected False"),
            ({"tie_word_embeddings": False}, "has tie_word_embeddings False, expected True"),
            ({"n_inner": 50}, "has n_inner 50, expected 4 * n_embd = 128"),
            ({"n_head": 5}, "config.json: n_embd is 32, expected a multiple of n_head (5)"),
            ({"n_layer": "two"}, "config.json: n_layer is 'two', expected an integer"),
            ({"n_layer": 3}, "lacks the tensor h.2.ln_1.weight, which its config.json asks for"),
            ({"n_layer": 10**12}, "lacks the tensor h.2.ln_1.weight"),
            ({"n_layer": 1}, "holds the tensor h.1.attn.c_attn.bias, which a GPT-2 of its config.json does not have"),
            ({"n_embd": 64}, "wte.weight has shape (97, 32), expected (97, 64) as its config.json says"),
            ({"n_positions": 10**15}, "wpe.weight has shape (24, 32), expected (1000000000000000, 32)"),
        ],
    )
    def test_config(self, changes, message, folder):
        reconfigure(folder, **changes)
        assert message in refused(folder)

    @pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '"gpt2"', "\x00\x01"])
    def test_config_that_is_none(self, text, folder):
        (folder / "config.json").write_text(text)
        assert re.search("config.json (as JSON|names no model_type)", refused(folder))

    def test_missing_files(self, folder, tmp_path):
        (folder / "config.json").rename(tmp_path / "config.json")
        assert "holds no config.json" in refused(folder)
        (tmp_path / "config.json").rename(folder / "config.json")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "neither model.safetensors nor model.safetensors.index.json (its pytorch_model.bin" in refused(folder)

    @pytest.mark.parametrize("keep", [0, 5, 300, -1])
    def test_truncated_file(self, keep, folder):
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:keep])
        assert "model.safetensors is not a whole safetensors file" in refused(folder)

    def test_foreign_file(self, folder):
        (folder / "model.safetensors").write_bytes(b"not a tensor in sight" * 100)
        assert "model.safetensors is not a whole safetensors file" in refused(folder)

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("ln_f.weight", None, "lacks the tensor ln_f.weight"),
            ("h.1.mlp.c_fc.weight", torch.zeros(128, 32), "c_fc.weight has shape (128, 32), expected (32, 128)"),
            ("h.0.ln_1.bias", torch.zeros(32, dtype=torch.int32), "h.0.ln_1.bias has dtype I32, expected a floating"),
            ("score.weight", torch.zeros(2, 32), "holds the tensor score.weight, which"),
        ],
    )
    def test_tensors(self, name, tensor, message, folder):
        def change(tensors):
            tensors.pop(f"transformer.{name}", None)
            return tensors if tensor is None else {**tensors, f"transformer.{name}": tensor}

        rewrite(folder, change)
        assert message in refused(folder)

    def test_tensor_stored_under_both_names(self, folder):
        rewrite(folder, lambda tensors: {**tensors, "wpe.weight": torch.zeros(24, 32)})
        assert "holds the tensor wpe.weight twice" in refused(folder)

    def test_untied_head(self, folder):
        rewrite(folder, lambda tensors: {**tensors, "lm_head.weight": torch.zeros(97, 32)})
        assert "lm_head.weight that differs from wte.weight" in refused(folder)

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ("{", "is not an index of safetensors shards"),
            ('{"weight_map": [1]}', "is not an index of safetensors shards"),
            (
                '{"weight_map": {"wte.weight": "model-1.safetensors"}}',
                "names the shard model-1.safetensors, which is not",
            ),
            (
                '{"weight_map": {"wte.weight": "../other/model.safetensors"}}',
                "names the shard model.safetensors, which",
            ),
        ],
    )
    def test_index(self, index, message, folder):
        shutil.copytree(folder, folder.parent / "other")
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(index)
        assert message in refused(folder)


class TestHub:
    def test_downloaded_folder_is_loaded(self, folder, monkeypatch):
        asked = []

        def snapshot_download(name, allow_patterns):
            asked.append((name, allow_patterns))
            return str(folder)

        monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
        assert_same_model(GPT2.from_pretrained("someone/some-gpt2"), make_theirs())
        assert asked[0][0] == "someone/some-gpt2" and not any("bin" in pattern for pattern in asked[0][1])

    def test_offline(self, monkeypatch):
        def snapshot_download(name, allow_patterns):
            raise RuntimeError("no route to host.\nTry again\nlater")

        monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
        expected = "gpt2 is not a folder, and taking it from the Hugging Face hub failed: no route to host"
        assert refused("gpt2") == expected

    def test_package_absent(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        assert refused("gpt2").endswith("needs the package huggingface_hub")

    @pytest.mark.parametrize("name", ["./gpt2", "/no/such/folder", "a/b/c", "..", ""])
    def test_paths_are_never_asked_for(self, name, monkeypatch, tmp_path):
        def snapshot_download(name, allow_patterns):
            raise AssertionError("asked the hub")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
        assert "does not exist" in refused(name) or "holds no config.json" in refused(name)

    def test_a_file_is_no_folder(self, folder):
        assert "model.safetensors is a file of weights: give the folder" in refused(folder / "model.safetensors")


class TestSaving:
    def test_files_and_their_mode(self, tmp_path):
        make_ours().save_pretrained(tmp_path / "model")
        (tmp_path / "plain").touch()
        assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
        for path in (tmp_path / "model").iterdir():
            assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
        stored = load_file(tmp_path / "model" / "model.safetensors")
        assert stored["transformer.wte.weight"].shape == (97, 32)

    @pytest.mark.parametrize("moment", ["writing", "flushing", "renaming"])
    def test_a_failed_save_leaves_the_old_files(self, moment, folder, monkeypatch):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}

        def full_disk(*args, **kwargs):
            if moment == "writing":
                Path(args[1]).write_bytes(b"half")
            raise OSError(28, "No space left on device")

        target = {"writing": (pretrained, "save_file"), "flushing": (pretrained.os, "fsync")}
        monkeypatch.setattr(*target.get(moment, (pretrained.os, "replace")), full_disk)
        with pytest.raises(UserError) as caught:
            make_ours().save_pretrained(folder)
        assert str(caught.value) == f"cannot save the model in {folder}: No space left on device"
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "taken").write_text("mine")
        for target in (tmp_path / "taken", tmp_path / "taken" / "below"):
            with pytest.raises(UserError, match="cannot save the model in"):
                make_ours().save_pretrained(target)
        assert (tmp_path / "taken").read_text() == "mine"
