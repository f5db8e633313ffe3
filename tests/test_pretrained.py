"""Hugging Face's GPT-2 format, with transformers itself as the peer and random weights; nothing is downloaded."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor

from gpt2c import files, lora, pretrained, stored
from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.hub import FILES
from gpt2c.model import GPT2
from gpt2c.tokenizer import description, model_ids

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
    @pytest.fixture
    def hub(self, tmp_path, monkeypatch):
        """A hub with the model someone/some-gpt2: the folder that it has, the local one, and what it was asked for."""
        remote, local, asked = tmp_path / "remote", tmp_path / "local", []

        def snapshot_download(name, allow_patterns):
            assert name == "someone/some-gpt2"
            asked.append(allow_patterns)
            for path in remote.rglob("*"):
                file = path.relative_to(remote).as_posix()
                if path.is_file() and any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                    (local / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, local / file)
            return str(local)

        monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
        remote.mkdir()
        return remote, local, asked

    @pytest.mark.parametrize("shard", [None, "60KB"])
    def test_what_is_read_on_disk_is_fetched(self, shard, folder, hub):
        remote, local, asked = hub
        if shard:
            shutil.rmtree(folder)
            make_theirs().save_pretrained(folder, max_shard_size=shard)
        weights = {path.name for path in folder.iterdir()}
        others = {
            "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
            "special_tokens_map.json", "chat_template.jinja", "generation_config.json",
        }  # fmt: skip
        shutil.copytree(folder, remote, dirs_exist_ok=True)
        for name in others - weights:
            (remote / name).write_text("{}")
        for name in ("pytorch_model.bin", "tf_model.h5", "onnx/model.safetensors", "README.md", "model.gguf"):
            (remote / name).parent.mkdir(exist_ok=True)
            (remote / name).write_text("large")
        assert_same_model(GPT2.from_pretrained("someone/some-gpt2"), make_theirs())
        assert {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()} == weights | others
        assert len(asked) == (2 if shard else 1)

    def test_shards_of_another_name(self, folder, hub):
        remote, _, _ = hub
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors, remote / "weights-1.safetensors")
        index = {"weight_map": dict.fromkeys(tensors, "weights-1.safetensors")}
        (remote / "model.safetensors.index.json").write_text(json.dumps(index))
        shutil.copy(folder / "config.json", remote)
        assert_same_model(GPT2.from_pretrained("someone/some-gpt2"), make_theirs())

    def test_a_pickle_on_the_hub(self, folder, hub):
        remote, _, _ = hub
        shutil.copy(folder / "config.json", remote)
        (remote / "pytorch_model.bin").write_bytes(b"pickle")
        message = refused("someone/some-gpt2")
        assert message.startswith(
            "the hub's someone/some-gpt2 has neither model.safetensors nor model.safetensors.index"
        )
        assert "kind.from_pretrained('someone/some-gpt2').save_pretrained('converted')" in message

    def test_every_file_that_is_read_of_a_folder_is_in_the_list(self):
        names = [
            getattr(module, name) for module in (pretrained, stored, description, model_ids) for name in dir(module)
        ]
        names = [
            name for name in names if isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)*\.(json|txt|jinja)", name)
        ]
        assert set(names) - {"adapter_config.json"} <= set(FILES) and len(names) > 5

    def test_offline(self, monkeypatch):
        def snapshot_download(name, allow_patterns):
            raise RuntimeError("no route to host.\nTry again\nlater")

        monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
        expected = (
            "gpt2 is no folder here, and no model of that name came from the Hugging Face hub (no route to host): "
        )
        assert refused("gpt2") == expected + "check the path, or the name and the network"

    def test_package_absent(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        assert 'needs the package huggingface_hub: check the path, or pip install "gpt2c[hub]"' in refused("gpt2")

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

        target = {"writing": (files, "save_file"), "flushing": (pretrained.os, "fsync")}
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


class TestNames:
    """What training programs and safetensors make of a model's names."""

    @pytest.mark.parametrize(
        ("prefix", "words"),
        [
            (
                "_orig_mod.transformer.",
                "name _orig_mod.transformer.h.0.attn.c_attn.bias has '_orig_mod', of torch.c",
            ),
            ("module.transformer.", "has 'module', of DistributedDataParallel, which is left out"),
            ("_orig_mod.", "has '_orig_mod', of torch.compile"),
            ("module._orig_mod.transformer.", "has '_orig_mod', of torch.compile"),
            ("model.transformer.", "has 'model', of a module around the model"),
            ("transformer._fsdp_wrapped_module.", "has '_fsdp_wrapped_module', of FSDP"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.*has 'module'")
    def test_wrappers_are_left_out_and_told(self, prefix, words, folder):
        rewrite(folder, lambda old: {name.replace("transformer.", prefix): tensor for name, tensor in old.items()})
        with pytest.warns(UserWarning, match=re.escape(words)):
            ours = GPT2.from_pretrained(folder)
        assert_same_model(ours, make_theirs())

    def test_wrapped_layers(self, folder):
        """As of torch.compile on each layer."""
        rewrite(folder, lambda old: {re.sub(r"(h\.\d+)", r"\1._orig_mod", n): tensor for n, tensor in old.items()})
        with pytest.warns(UserWarning, match=re.escape("the name transformer.h.0._orig_mod.attn.c_attn.bias has")):
            assert_same_model(GPT2.from_pretrained(folder), make_theirs())

    def test_a_prefix_that_is_not_known_is_named(self, folder):
        rewrite(folder, lambda old: {name.replace("transformer.", "my.gpt."): tensor for name, tensor in old.items()})
        assert "lacks the tensor wte.weight, which its config.json asks for; it holds my.gpt.wte.weight" in refused(
            folder
        )

    @pytest.mark.parametrize("wrapper", ["", "_orig_mod."])
    @pytest.mark.filterwarnings("ignore:.*has '_orig_mod'")
    def test_only_the_head_is_stored(self, wrapper, folder):
        def change(tensors):
            tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
            return {f"{wrapper}{name}": tensor for name, tensor in tensors.items()}

        rewrite(folder, change)
        assert_same_model(GPT2.from_pretrained(folder), make_theirs())

    def test_what_save_model_writes(self, folder):
        save_model(make_theirs(), folder / "model.safetensors")
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert "transformer.wte.weight" not in file.keys()
        assert_same_model(GPT2.from_pretrained(folder), make_theirs())

    def test_matrices_that_were_one_in_memory(self, folder):
        """save_model keeps one of them, and its metadata have the other's name."""
        theirs = make_theirs()
        theirs.transformer.h[1].mlp.c_fc.weight = theirs.transformer.h[0].mlp.c_fc.weight
        save_model(theirs, folder / "model.safetensors")
        assert_same_model(GPT2.from_pretrained(folder), theirs)

    def test_a_head_that_is_untied_and_equal(self, folder):
        reconfigure(folder, tie_word_embeddings=False)
        assert "has tie_word_embeddings False, expected True, or an lm_head.weight equal to wte" in refused(folder)
        rewrite(folder, lambda old: {**old, "lm_head.weight": old["transformer.wte.weight"].clone()})
        with pytest.warns(UserWarning, match="the two matrices are equal, and are one from here on"):
            assert_same_model(GPT2.from_pretrained(folder), make_theirs())
        rewrite(folder, lambda old: {**old, "lm_head.weight": old["transformer.wte.weight"] + 1e-6})
        assert "lm_head.weight that differs from wte.weight" in refused(folder)

    def test_pickles_say_how_to_convert_them(self, folder, monkeypatch):
        (folder / "model.safetensors").unlink()
        torch.save(make_theirs().state_dict(), folder / "pytorch_model.bin")
        message = refused(folder)
        command = re.search(r'python -c "(.*)"\)', message)[1]
        exec(command)  # the message's own
        assert_same_model(GPT2.from_pretrained(folder), make_theirs())

    @pytest.mark.parametrize(
        ("name", "raw", "found"),
        [
            ("ckpt.pt", b"PK\x03\x04", "ckpt.pt is a pickle, as torch.save writes it, which is never read"),
            ("model.bin", b"\x80\x02", "model.bin is a pickle"),
            ("tf_model.h5", b"", "tf_model.h5 is another framework's file of weights, which is not read: save the"),
            ("model.gguf", b"GGUF", "model.gguf is a GGUF file"),
            (
                "model.fp16.safetensors",
                b"",
                "model.fp16.safetensors is a file of weights: give the folder that holds it, as",
            ),
        ],
    )
    @pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
    def test_what_else_the_folder_holds_is_named(self, folder, missing, name, raw, found):
        for path in [folder / "model.safetensors", folder / missing]:
            path.unlink(missing_ok=True)
        (folder / name).write_bytes(raw)
        message = refused(folder)
        assert "holds n" in message and f"(its {found}" in message

    def test_adapters_alone(self, folder):
        (folder / "config.json").rename(folder / "adapter_config.json")
        assert "holds adapters (adapter_config.json) without their model: merge them" in refused(folder)


class TestSettings:
    """What a config.json says is followed or refused."""

    @pytest.mark.parametrize(
        "name", ["gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"]
    )
    def test_other_names_of_the_same_activation(self, name, folder):
        theirs = make_theirs()
        for layer in theirs.transformer.h:
            layer.mlp.act = transformers.activations.ACT2FN[name]
        reconfigure(folder, activation_function=name)
        assert_same_model(GPT2.from_pretrained(folder), theirs)

    @pytest.mark.parametrize(
        "changes",
        [
            *({"activation_function": name} for name in ("gelu", "gelu_python", "gelu_10", "quick_gelu", "silu", None)),
            {"scale_attn_weights": False}, {"scale_attn_weights": None}, {"add_cross_attention": True},
            {"n_inner": 64}, {"layer_norm_epsilon": 0}, {"layer_norm_epsilon": None}, {"layer_norm_epsilon": "1e-5"},
            {"resid_pdrop": 1.0, "embd_pdrop": 1.0, "attn_pdrop": 1.0},
            {"hidden_size": 64}, {"num_hidden_layers": 1}, {"max_position_embeddings": 23}, {"num_attention_heads": 2},
        ],
    )  # fmt: skip
    def test_what_changes_the_arithmetic_is_refused(self, changes, folder):
        reconfigure(folder, **changes)
        assert re.search(
            rf"config.json( has|:) .*{next(iter(changes)).replace('resid_pdrop', 'dropout')}", refused(folder)
        )

    def test_upcasting_changes_nothing_in_fp32(self, folder):
        reconfigure(folder, reorder_and_upcast_attn=True)
        assert_same_model(GPT2.from_pretrained(folder), make_theirs())

    @pytest.mark.parametrize("epsilon", [1e-6, 1e-5, 1e-3, 0.1])
    def test_epsilon(self, epsilon, folder, tmp_path):
        """Through every op and the decoder, in and out."""
        reconfigure(folder, layer_norm_epsilon=epsilon)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
        ours = GPT2.from_pretrained(folder)
        assert_same_model(ours, theirs)
        ours.save_pretrained(tmp_path / "ours")
        assert GPT2.from_pretrained(tmp_path / "ours").config.layer_norm_epsilon == epsilon

    def test_transformers_other_names_of_the_sizes(self, folder):
        settings = json.loads((folder / "config.json").read_text())
        names = {"n_positions": "max_position_embeddings", "n_embd": "hidden_size", "n_layer": "num_hidden_layers"}
        settings = {names.get(key, key): value for key, value in settings.items()}
        (folder / "config.json").write_text(json.dumps(settings))
        assert_same_model(GPT2.from_pretrained(folder), make_theirs())

    def test_n_ctx(self, folder, tmp_path):
        """llama.cpp's converter reads it, transformers no longer writes it."""
        GPT2.from_pretrained(folder).save_pretrained(tmp_path / "ours")
        assert json.loads((tmp_path / "ours" / "config.json").read_text())["n_ctx"] == 24
        reconfigure(folder, n_ctx=1024)
        with pytest.warns(UserWarning, match="has n_positions 24 and n_ctx 1024, of which the first is taken"):
            assert GPT2.from_pretrained(folder).config.n_positions == 24


def test_parameters_of_any_layout_are_saved(tmp_path: Path) -> None:
    """Transposed, expanded, parts of one vector, and one layer in two places: each under each of its names."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=3, n_head=2)).eval()
    vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach() + 0.1
    torch.nn.utils.vector_to_parameters(vector, model.parameters())
    layer = model.h[0]
    layer.mlp.c_fc.weight = torch.nn.Parameter(layer.mlp.c_fc.weight.detach().t().contiguous().t())
    layer.ln_1.weight = torch.nn.Parameter(torch.full((1,), 1.5).expand(16))
    model.h[2] = layer
    model.save_pretrained(tmp_path)
    idx = torch.arange(8)[None]
    expected = model(idx)[0]
    assert torch.equal(GPT2.from_pretrained(tmp_path)(idx)[0], expected)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()(idx).logits
    torch.testing.assert_close(theirs, expected, rtol=0, atol=1e-4)


def own_head(model: GPT2) -> None:
    model.value = torch.nn.Linear(32, 1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (
            lambda model: torch.nn.utils.parametrizations.weight_norm(model.h[0].mlp.c_fc),
            "h.0.mlp.c_fc.parametrizations",
        ),
        (lambda model: lora.add_lora(model, 2, 4.0), "h.0.attn.c_attn.base_weight"),
        (own_head, "value.bias"),
        (lambda model: delattr(model.h[1].ln_2, "bias"), "h.1.ln_2.bias"),
    ],
)
def test_tensors_that_the_format_does_not_have_are_not_saved(tmp_path: Path, change, name) -> None:
    model = GPT2(GPT2Config(vocab_size=50, n_positions=8, n_embd=32, n_layer=2, n_head=2))
    change(model)
    with pytest.raises(ValueError, match=f"^save_pretrained: {name}.* is not a tensor of this GPT-2, or is missing"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """As a search over settings gives them."""
    sizes = {"vocab_size": 50, "n_positions": 8, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**{name: np.int64(size) for name, size in sizes.items()}, dropout=np.float32(0.25))
    assert config == GPT2Config(**sizes, dropout=0.25)
    model, idx = GPT2(config).eval(), torch.arange(4)[None]
    model.save_pretrained(tmp_path)
    assert GPT2.from_pretrained(tmp_path).config == config
    found = model.generate(
        idx, np.int64(3), np.float32(0.5), top_k=np.int32(9), top_p=np.float32(0.75), seed=np.int64(1)
    )
    assert torch.equal(found, model.generate(idx, 3, 0.5, top_k=9, top_p=0.75, seed=1))
