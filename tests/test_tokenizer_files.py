"""Tokenizers and models as other programs write them: what files say is followed, as transformers does, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, ByteLevelBPETokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from gpt2c.cli import main
from gpt2c.errors import UserError
from gpt2c.formats import gguf as our_gguf
from gpt2c.load import load_model, tokenizer_of
from gpt2c.serve.engine import Engine
from gpt2c.serve.service import Service
from gpt2c.tokenizer import decode, get_tokenizer, prompt_ids, save_tokenizer

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

LEARNED = ["hello there, the cat and the hat and the other cat said hello"] * 5
TEXT = "Hi <startofstring> the cat<bot>: né  日本\n"
ROWS = 300
NOTES = "default::UserWarning"


def learn(vocab_size: int = ROWS, special: tuple[str, ...] = ()) -> ByteLevelBPETokenizer:
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(LEARNED, vocab_size=vocab_size, special_tokens=list(special), show_progress=False)
    return learner


def save_model(folder: Path, rows: int, **ids: Any) -> Any:
    """A model of random weights, large enough that its text varies."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=rows, n_layer=1, n_head=1, n_embd=16, n_positions=32, **ids)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.transformer.wte.weight.data.mul_(20)
    model.save_pretrained(folder)
    return model


@pytest.fixture
def dialog(tmp_path: Path) -> Any:
    """GPT-2 as fine-tuning scripts leave it: ordinary and special tokens added, padding, an end of its own."""
    learn(special=("<|endoftext|>",)).save_model(str(tmp_path))
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    theirs.add_tokens(["<startofstring>", AddedToken("<bot>:", rstrip=True)])
    theirs.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<|im_end|>"]})
    theirs.save_pretrained(tmp_path)
    end = theirs.convert_tokens_to_ids("<|im_end|>")
    save_model(tmp_path, len(theirs), eos_token_id=[end, 5], bos_token_id=0, pad_token_id=theirs.pad_token_id)
    return theirs


def test_vocab_and_merges_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """257 ids are not the bytes where the folder says otherwise."""
    learn(257).save_model(str(tmp_path))
    save_model(tmp_path, 257)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"257 rows of the embedding for the 258 ids .*<\|endoftext\|>"):
        model, ours, _ = load_model(str(tmp_path))
    for text in (TEXT, "Hi"):
        assert ours.encode(text).tolist() == theirs(text).input_ids and decode(ours, ours.encode(text)) == text
    assert ours.encode("Hi").tolist() == [39, 72] and model.config.vocab_size == 257
    assert ours.end_of_text == theirs.eos_token_id == 257
    assert main(["sample", str(tmp_path), "--prompt", "", "--max-new-tokens", "4"]) == 2
    assert "holds '<|endoftext|>', the id 257, but the model knows the ids 0 to 256" in capsys.readouterr().err
    assert main(["import", str(tmp_path), str(tmp_path / "out")]) == 0
    assert "the vocabulary is extended by 1 row, the mean of the others" in capsys.readouterr().err
    model, again, _ = load_model(str(tmp_path / "out"))
    assert model.config.vocab_size == 258 and again.encode("Hi").tolist() == [39, 72]


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_half_of_the_files(tmp_path: Path, missing: str) -> None:
    learn(257).save_model(str(tmp_path))
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"has no {missing}: expected tokenizer.json, or both"):
        get_tokenizer(str(tmp_path))


def test_files_as_openai_named_them(tmp_path: Path) -> None:
    learn(257).save_model(str(tmp_path))
    (tmp_path / "vocab.json").rename(tmp_path / "encoder.json")
    (tmp_path / "merges.txt").rename(tmp_path / "vocab.bpe")
    assert get_tokenizer(str(tmp_path)).encode("Hi").tolist() == [39, 72]
    (tmp_path / "encoder.json").unlink()
    with pytest.raises(
        UserError, match="has no encoder.json: expected tokenizer.json, or both encoder.json and vocab.b"
    ):
        get_tokenizer(str(tmp_path))


@pytest.mark.parametrize("rows", [257, 50257])
@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        *((name, "", f"file that is not read by this name, {name}") for name in (
            "vocab.txt", "my-vocab.json", "Vocab.json", "spiece.model", "tokenizer.model", "gpt2.tiktoken",
            "added_tokens.json",
        )),
        *((name, '{"tokenizer_class": "BertTokenizerFast"}', f"{name} says that the tokenizer is a BertTokenizerFast")
          for name in ("tokenizer_config.json", "config.json")),
    ],
)  # fmt: skip
def test_no_guess_where_a_file_says_otherwise(tmp_path: Path, name: str, text: str, found: str, rows: int) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=found):
        tokenizer_of(tmp_path, rows)


@pytest.mark.parametrize("rows", [257, 50257])
def test_the_class_of_a_tokenizer_without_files(tmp_path: Path, rows: int) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2TokenizerFast"}')
    if rows == 257:
        with pytest.raises(
            UserError, match="says that the tokenizer is a GPT2TokenizerFast, of which there are no files"
        ):
            tokenizer_of(tmp_path, rows)
    else:
        with pytest.warns(UserWarning, match="the tokenizer gpt2 is assumed"):
            assert tokenizer_of(tmp_path, rows).name == "gpt2"


@pytest.mark.filterwarnings(NOTES)
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("where", ["added_tokens.json", "added_tokens_decoder"])
def test_added_tokens_beside_tokenizer_json(tmp_path: Path, where: str, kind: str) -> None:
    learner = learn(special=("<|endoftext|>",))
    learner.save(str(tmp_path / "tokenizer.json"))
    rows = learner.get_vocab_size()
    config: dict[str, Any] = {"tokenizer_class": kind, "additional_special_tokens": ["<|im_end|>"]}
    if where == "added_tokens.json":
        (tmp_path / where).write_text(json.dumps({"<|im_end|>": rows + 1, "<bot>:": rows}))
    else:
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
        config[where] = {
            str(rows + 1): {"content": "<|im_end|>", **flags, "normalized": False, "special": True},
            str(rows): {"content": "<bot>:", **flags, "normalized": True, "special": False},
        }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    save_model(tmp_path, rows + 2)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model, ours, _ = load_model(str(tmp_path))
    assert model.config.vocab_size == ours.vocab_size == len(theirs) == rows + 2
    for text in (TEXT, "a<bot>:b<|im_end|>"):
        assert theirs(text).input_ids == prompt_ids(ours, text, special=True).tolist()
    assert "<bot>:" not in ours.special and ours.special["<|im_end|>"] == rows + 1


def test_named_chat_templates(tmp_path: Path) -> None:
    learn(special=("<|endoftext|>",)).save(str(tmp_path / "tokenizer.json"))
    named = [{"name": "default", "template": "{{ messages }}"}, {"name": "rag", "template": ""}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").write_text("")
    with pytest.warns(UserWarning, match="has other chat templates, which stay unused: rag, tools"):
        assert get_tokenizer(str(tmp_path)).chat_template == "{{ messages }}"


def test_nothing_says_which(tmp_path: Path) -> None:
    save_model(tmp_path, 320)
    with pytest.warns(UserWarning) as notes:
        model, ours, _ = load_model(str(tmp_path))
    told = " ".join(str(note.message) for note in notes)
    assert "the tokenizer bytes is assumed" in told and "what is beyond, 63 rows, is taken for padding and cut" in told
    assert ours.name == "bytes" and model.config.vocab_size == 257


@pytest.mark.parametrize("source", ["files", "imported", "exported"])
def test_added_tokens_and_ends(dialog: Any, tmp_path: Path, source: str, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path if source == "files" else tmp_path / "out"
    if source != "files":
        assert main(["import" if source == "imported" else "export", str(tmp_path), str(folder)]) == 0
    _, ours, _ = load_model(str(folder))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    end = dialog.convert_tokens_to_ids("<|im_end|>")
    assert ours.ends == (end, 5) and ours.end_of_text == dialog.eos_token_id == 0
    for tokenizer in (dialog, theirs):
        assert tokenizer(TEXT).input_ids == ours.encode(TEXT).tolist() == prompt_ids(ours, TEXT).tolist()
        assert tokenizer("<|im_end|>a").input_ids == prompt_ids(ours, "<|im_end|>a", special=True).tolist()
        assert (tokenizer.pad_token, tokenizer.eos_token_id, tokenizer.bos_token_id) == ("[PAD]", 0, 0)
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        assert added["<bot>:"].rstrip and not added["<bot>:"].special and added["<|im_end|>"].special
    assert end not in ours.encode("<|im_end|>") and decode(ours, ours.encode("<|im_end|>")) == "<|im_end|>"
    settings = [json.loads((folder / name).read_text()) for name in ("config.json", "generation_config.json")]
    assert settings[1]["eos_token_id"] == [end, 5] and settings[0]["pad_token_id"] == dialog.pad_token_id


@pytest.mark.filterwarnings(NOTES)
def test_a_text_ends_at_the_models_own_end(dialog: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Which the model says at once: in `sample` and in the API as in transformers."""
    end = dialog.convert_tokens_to_ids("<|im_end|>")
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = dialog("the cat", return_tensors="pt").input_ids
    first = int(model(ids).logits[0, -1].argmax())
    for name, ends in (("generation_config.json", [end, first]), ("config.json", 7)):
        path = tmp_path / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert len(model.generate(ids, max_new_tokens=8, do_sample=False)[0]) == ids.shape[1] + 1
    args = ["sample", str(tmp_path), "--prompt", "the cat", "--temperature", "0", "--max-new-tokens", "8"]
    assert main(args) == 0
    assert capsys.readouterr().out == "the cat\n"
    ours, tokenizer, _ = load_model(str(tmp_path))
    assert Service("m", ours, tokenizer, None, Engine(ours)).ended([3, first]) == "stop"


def test_special_names_in_a_prompt(dialog: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = ["sample", str(tmp_path), "--prompt", "hello<|endoftext|>", "--max-new-tokens", "1"]
    assert main(args) == 0
    assert "<|endoftext|> in the prompt is text; --special makes it the token" in capsys.readouterr().err
    assert main([*args, "--special"]) == 0
    assert "--special" not in capsys.readouterr().err
    assert get_tokenizer("bytes").encode_special("a<|endoftext|>b").tolist() == [97, 256, 98]


def build(change: Callable[[Library], None]) -> Library:
    """A byte-level BPE with <s> and </s>, changed."""
    learner = learn(special=("<s>", "</s>"))
    library = Library.from_str(learner.to_str())
    change(library)
    return library


def template(library: Library) -> None:
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])


def roberta(library: Library) -> None:
    library.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)


def normalizer(library: Library) -> None:
    library.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])


def prefix_space(library: Library) -> None:
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def digits(library: Library) -> None:
    library.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    ])  # fmt: skip


def truncation(library: Library) -> None:
    library.enable_truncation(2)
    library.enable_padding(length=20)


def save_library(library: Library, folder: Path, **config: Any) -> Any:
    library.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    save_model(folder, library.get_vocab_size(), eos_token_id=1, bos_token_id=0)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.filterwarnings(NOTES)
@pytest.mark.parametrize("change", [template, roberta, normalizer, prefix_space, digits, truncation])
def test_every_part_of_a_file_is_followed(tmp_path: Path, change: Callable[[Library], None]) -> None:
    theirs = save_library(build(change), tmp_path)
    _, ours, _ = load_model(str(tmp_path))
    assert main(["import", str(tmp_path), str(tmp_path / "out")]) == 0
    _, again, _ = load_model(str(tmp_path / "out"))
    for text in ("Hello THE cat 123", " a", "née", ""):
        expected = theirs(text).input_ids or [theirs.bos_token_id]
        assert prompt_ids(ours, text).tolist() == prompt_ids(again, text).tolist() == expected
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False).input_ids
    assert (ours.start, ours.end_of_text, ours.ends) == (0, 1, (1,))
    kept, written = (json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("", "out"))
    assert {**kept, "added_tokens": 0} == {**written, "added_tokens": 0}


def test_cutting_and_padding_are_told(tmp_path: Path) -> None:
    save_library(build(truncation), tmp_path)
    with pytest.warns(UserWarning, match="the truncation and padding of .* stay unused: texts are encoded whole"):
        get_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["model"].update(dropout=0.1), "its model has dropout 0.1"),
        (lambda d: d["model"].update(byte_fallback=True), "its model has byte_fallback True"),
        (lambda d: d["model"].update(continuing_subword_prefix="##"), "continuing_subword_prefix '##'"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix '</w>'"),
        (lambda d: d.update(decoder=None), "its decoder is missing"),
        (lambda d: d.update(decoder=json.loads(decoders.Metaspace().__getstate__())), "its decoder is Metaspace"),
        (
            lambda d: d.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
            "its model is WordLevel",
        ),
        (lambda d: d.update(colour="red"), "it has the unknown part colour"),
        (lambda d: d["added_tokens"][0].update(id=7), "its ids are not 0 to"),
        (lambda d: d.update(pre_tokenizer={"type": "Nothing"}), "the package tokenizers cannot read it"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, change: Callable[[Any], None], words: str) -> None:
    description = json.loads(build(template).to_str())
    change(description)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=words) as refused:
        get_tokenizer(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_rules_of_tokenizer_config(tmp_path: Path) -> None:
    """add_prefix_space and add_bos_token of GPT-2's own files."""
    learn(special=("<|endoftext|>",)).save_model(str(tmp_path))
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    save_model(tmp_path, ROWS)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = get_tokenizer(str(tmp_path))
    assert prompt_ids(ours, "the cat").tolist() == theirs("the cat").input_ids
    assert ours.begin == (0,) and ours.separator.tolist() == [0]


@pytest.mark.filterwarnings(NOTES)
@pytest.mark.parametrize("rows", [-1, 20])
def test_rows_and_ids_that_differ_in_every_command(tmp_path: Path, rows: int, capsys: pytest.CaptureFixture) -> None:
    """A token without a row, and padding."""
    folder = tmp_path / "model"
    folder.mkdir()
    library = build(template)
    ids = library.get_vocab_size()
    save_library(library, folder)
    theirs = save_model(folder, ids + rows, eos_token_id=1, bos_token_id=0)
    text = tmp_path / "text.txt"
    text.write_text("the cat and the hat " * 40)
    note = "is taken for padding and cut off" if rows > 0 else "the model knows none of the last "
    for args in (
        ["sample", str(folder), "--prompt", "the cat", "--max-new-tokens", "3"],
        ["eval", str(folder), "--data", str(text), "--context", "8", "--val-tokens", "16"],
        ["import", str(folder), str(tmp_path / "imported")],
        ["export", str(folder), str(tmp_path / "hf")],
        ["export", str(folder), str(tmp_path / "m.onnx")],
        ["export", str(folder), str(tmp_path / "m.bin")],
        ["export", str(folder), str(tmp_path / "m.gguf")],
        ["train", "--init", str(folder), "--data", str(text), "--out", str(tmp_path / "run"), "--steps", "1",
         "--warmup-steps", "0", "--context", "8", "--batch-size", "1", "--sample-tokens", "2", "--eval-tokens", "8"],
    ):  # fmt: skip
        assert main(args) == 0, capsys.readouterr().err
        assert note in capsys.readouterr().err, args
    for made in (tmp_path / "imported", tmp_path / "hf", tmp_path / "run"):
        model, tokenizer, _ = load_model(str(made))
        assert model.config.vocab_size == tokenizer.vocab_size == ids
    kept = min(ids, ids + rows)
    prompt = torch.tensor([prompt_ids(tokenizer, "the cat").tolist()])
    ours = load_model(str(tmp_path / "hf"))[0]
    with torch.no_grad():
        torch.testing.assert_close(ours(prompt)[0][..., :kept], theirs(prompt).logits[..., :kept], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings(NOTES)
def test_gguf_keeps_kinds_and_roles(dialog: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model, tokenizer, _ = load_model(str(tmp_path))
    with pytest.raises(UserError, match=r"a flag of the added token \['<bot>:'\], which GGUF cannot hold"):
        our_gguf.export(model, tokenizer, tmp_path / "m.gguf")
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"rstrip": true', '"rstrip": false'))
    model, tokenizer, _ = load_model(str(tmp_path))
    our_gguf.export(model, tokenizer, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    value = {key: field.contents() for key, field in fields.items()}
    types = dict(zip(value["tokenizer.ggml.tokens"], value["tokenizer.ggml.token_type"], strict=True))
    kinds = gguf.TokenType
    expected = {"<|endoftext|>": kinds.CONTROL, "<startofstring>": kinds.USER_DEFINED, "<bot>:": kinds.USER_DEFINED}
    expected |= {"[PAD]": kinds.CONTROL, "<|im_end|>": kinds.CONTROL, "a": kinds.NORMAL}
    assert {name: types[name] for name in expected} == expected
    assert value["tokenizer.ggml.padding_token_id"] == dialog.pad_token_id
    assert value["tokenizer.ggml.eos_token_id"] == dialog.convert_tokens_to_ids("<|im_end|>")
    assert value["tokenizer.ggml.bos_token_id"] == 0 and value["tokenizer.ggml.eot_token_id"] == 5


def test_flags_of_gpt2s_own_end_are_kept(tmp_path: Path) -> None:
    """Without the library: <|endoftext|> is `normalized` in GPT-2's own tokenizer.json, and often the padding."""
    save_tokenizer(get_tokenizer("bytes"), tmp_path)
    path, config = tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"normalized": false', '"normalized": true'))
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token": "<|endoftext|>"}))
    save_tokenizer(get_tokenizer(str(tmp_path)), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer.json").read_text())["added_tokens"][0]["normalized"]
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["pad_token"] == "<|endoftext|>"


def test_a_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_library(build(template), tmp_path)
    plain = tmp_path / "plain"
    save_tokenizer(get_tokenizer("bytes"), plain)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    assert np.array_equal(get_tokenizer(str(plain)).encode("a"), [97])
    with pytest.raises(UserError, match=r'pip install "gpt2c\[tokenizers\]"'):
        get_tokenizer(str(tmp_path))


def test_unigram_and_others_are_refused(tmp_path: Path) -> None:
    Library(models.Unigram([("a", 0.0)])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="is not a tokenizer that can be followed"):
        get_tokenizer(str(tmp_path))
