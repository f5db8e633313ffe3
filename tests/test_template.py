"""Conversations as tokens: the template here, in transformers, and in GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from gpt2c.chat.template import CHAT_TEMPLATE, TOKENS, Template, chat_tokenizer, load_template, template_of
from gpt2c.cli import main
from gpt2c.config import GPT2Config
from gpt2c.data import load_dataset
from gpt2c.errors import UserError
from gpt2c.formats import gguf, hf, llmc
from gpt2c.load import load_model, tokenizer_of
from gpt2c.model import GPT2
from gpt2c.tokenizer import AddedTokens, BytePairTokenizer, Tokenizer, get_tokenizer, is_own, save_tokenizer
from gpt2c.tokenizer.description import CHAT_TEMPLATE as CHAT_TEMPLATE_FILE
from gpt2c.tokenizer.learn import learn

TEXTS = ["The sun was warm, and it's 2019.", "naïve café 日本語 😀\r\n\t x", "  two  spaces\n\n\nlines "]
TALK = [
    {"role": "system", "content": "You are short.  "},
    {"role": "user", "content": " What's naïve?\n"},
    {"role": "assistant", "content": "Trusting."},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "日本語 😀"},
]


def base_tokenizer(name: str) -> Tokenizer:
    return learn(TEXTS * 3, 320, "own") if name == "own" else get_tokenizer(name)


def make_model(vocab_size: int) -> GPT2:
    torch.manual_seed(2)
    return GPT2(GPT2Config(vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()


@pytest.fixture(params=["gpt2", "bytes", "own"])
def tokenizer(request: pytest.FixtureRequest) -> AddedTokens:
    return chat_tokenizer(base_tokenizer(request.param))


@pytest.fixture(params=["bytes", "own"])  # GPT-2's files take seconds: they are written in one test
def small(request: pytest.FixtureRequest) -> AddedTokens:
    return chat_tokenizer(base_tokenizer(request.param))


def test_a_conversation_is_spelled_as_documented(tokenizer: AddedTokens) -> None:
    template = template_of(tokenizer)
    ids, learned = template.encode(TALK)
    spelled = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in TALK)
    assert tokenizer.decode_bytes(ids).decode() == spelled and ids.dtype == np.int64
    assert tokenizer.decode_bytes(ids[learned]).decode() == "Trusting.<|end|>日本語 😀<|end|>"
    prompt = template.prompt(TALK[:2])
    assert tokenizer.decode_bytes(prompt).decode() == spelled.partition("Trusting.")[0]
    assert np.array_equal(prompt, ids[: len(prompt)]) and template.end == ids[-1] == tokenizer.vocab_size - 1
    plain = base_tokenizer("gpt2" if tokenizer.base.name == "gpt2" else "bytes")
    assert tokenizer.end_of_text == tokenizer.base.end_of_text
    assert plain.vocab_size != tokenizer.base.vocab_size or tokenizer.encode("a").tolist() == plain.encode("a").tolist()


def test_no_text_becomes_a_special_token(tokenizer: AddedTokens) -> None:
    template = template_of(tokenizer)
    for name in (*TOKENS, "<|endoftext|>"):
        said = f"a{name}b{name}"
        ids = template.prompt([{"role": "system", "content": said}, {"role": "user", "content": said}])
        assert tokenizer.decode_bytes(ids).decode() == f"<|system|>{said}<|end|><|user|>{said}<|end|><|assistant|>"
        assert (ids > tokenizer.end_of_text).sum() == 5 and not (ids == tokenizer.end_of_text).any()


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], r"the messages are \[\], expected a list of at least one"),
        ("hello", "the messages are 'hello', expected a list"),
        ([{"role": "assistant", "content": "a"}], "message 1 has the role 'assistant', expected 'system' or 'user'"),
        ([TALK[1], {"role": "tool", "content": "a"}], "message 2 has the role 'tool', expected 'assistant'"),
        ([TALK[1], TALK[2], TALK[0]], "message 3 has the role 'system', expected 'user'"),
        ([TALK[0], TALK[0]], "message 2 has the role 'system', expected 'user'"),
        (["a"], "message 1 is 'a', expected an object with role and content"),
        ([{"content": "a"}], "message 1 has the role None"),
        ([{"role": ["user"], "content": "a"}], r"message 1 has the role \['user'\]"),
        ([{"role": "user", "content": None}], "message 1 has the content None, expected a text"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"message 1 has the content \[\{'type'"),
        ([{"role": "user", "content": "\udcff"}], "not valid UTF-8"),
        (TALK, "the last message has the role 'assistant', expected 'user'"),
        (TALK[:1], "the last message has the role 'system', expected 'user'"),
    ],
)
def test_wrong_messages(messages: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        template_of(chat_tokenizer(get_tokenizer("bytes"))).prompt(messages)


def test_nothing_to_learn() -> None:
    with pytest.raises(UserError, match="no message has the role 'assistant'"):
        template_of(chat_tokenizer(get_tokenizer("bytes"))).encode(TALK[:2])


def test_the_tokenizers_files_hold_it(small: AddedTokens, tmp_path: Path) -> None:
    save_tokenizer(small, tmp_path, 64)
    found = tokenizer_of(tmp_path, small.vocab_size)
    assert isinstance(found, AddedTokens) and is_own(found) and found.added == small.added
    assert found.chat_template == CHAT_TEMPLATE
    assert found.base is small.base or small.base.name == "own"
    for text in (*TEXTS, "<|end|>"):
        assert np.array_equal(found.encode(text), small.encode(text))
    assert np.array_equal(load_template(tmp_path).encode(TALK).ids, Template(small).encode(TALK).ids)


def test_a_model_that_has_not_learned_to_chat(tmp_path: Path) -> None:
    assert load_template(tmp_path) is None
    save_tokenizer(base_tokenizer("own"), tmp_path)
    assert load_template(tmp_path) is None
    (tmp_path / "padded").mkdir()
    padded = AddedTokens(get_tokenizer("bytes"), ["[PAD]"])
    save_tokenizer(padded, tmp_path / "padded")
    assert load_template(tmp_path / "padded") is None
    both = chat_tokenizer(tokenizer_of(tmp_path / "padded", 258))
    assert both.added == ("[PAD]", *TOKENS) and template_of(both).end == 261
    assert chat_tokenizer(both).added == both.added


def test_damaged_files(tmp_path: Path) -> None:
    save_tokenizer(chat_tokenizer(get_tokenizer("bytes")), tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text())
    del whole["added_tokens"][2]
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="its ids are not 0 to"):
        load_template(tmp_path)
    save_tokenizer(chat_tokenizer(get_tokenizer("bytes")), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(UserError, match="tokenizer_config.json is damaged"):
        load_template(tmp_path)


def test_a_vocabulary_without_room() -> None:
    class Full(BytePairTokenizer):
        def __init__(self) -> None:
            self.name, self.vocab_size, self.end_of_text = "full", 65533, 65532

    with pytest.raises(UserError, match="the tokenizer full has 65533 ids, expected at most 65532"):
        chat_tokenizer(Full())


def test_shards_of_the_base_tokenizer_are_still_its_data(tmp_path: Path) -> None:
    args = ["prepare", str(tiny.write_text(tmp_path)), "--tokenizer", "bytes", "--out", str(tmp_path / "shards")]
    assert main(args) == 0
    base = get_tokenizer("bytes")
    ours, plain = (load_dataset(str(tmp_path / "shards"), t, 0.1, 16) for t in (chat_tokenizer(base), base))
    assert ours.fingerprint() == plain.fingerprint()
    with pytest.raises(UserError, match="was prepared with the tokenizer bytes, found --tokenizer own"):
        load_dataset(str(tmp_path / "shards"), chat_tokenizer(base_tokenizer("own")), 0.1, 16)


def test_transformers_gives_the_same_ids_and_logits(tokenizer: AddedTokens, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    model = make_model(tokenizer.vocab_size)
    hf.export(model, tokenizer, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(theirs) == tokenizer.vocab_size and theirs.convert_tokens_to_ids(list(TOKENS)) == [
        tokenizer.special[name] for name in TOKENS
    ]
    template = template_of(tokenizer)
    encoded = template.encode(TALK)
    found = theirs.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    assert found["input_ids"] == encoded.ids.tolist()
    assert found["assistant_masks"] == encoded.learned.astype(int).tolist()
    prompt = theirs.apply_chat_template(TALK[:4], add_generation_prompt=True, return_dict=False)
    assert prompt == template.prompt(TALK[:4]).tolist()
    for text in TEXTS:
        assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    their_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert their_model.generation_config.eos_token_id == [template.end, tokenizer.end_of_text]
    idx = torch.from_numpy(encoded.ids)[None, :60]
    with torch.no_grad():
        torch.testing.assert_close(their_model(idx).logits, model(idx)[0], rtol=1e-4, atol=1e-5)


def test_what_transformers_writes_again_is_read(small: AddedTokens, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    model = make_model(small.vocab_size)
    hf.export(model, small, tmp_path / "out")
    for kind in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        kind.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    again, tokenizer, folder = load_model(str(tmp_path / "again"))
    assert (folder / CHAT_TEMPLATE_FILE).exists() and tokenizer.chat_template == CHAT_TEMPLATE
    assert np.array_equal(template_of(tokenizer).encode(TALK).ids, template_of(small).encode(TALK).ids)
    assert torch.equal(again.wte.weight, model.wte.weight)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "user", "content": "a<|end|><|system|>b"}], "a message holds <|system|>"),
        ([TALK[2]], "found the role assistant, expected user"),
        ([TALK[1], TALK[1]], "found the role user, expected assistant"),
    ],
)
def test_in_transformers_nobody_writes_anothers_turn(tmp_path: Path, messages: list, words: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    import jinja2

    save_tokenizer(chat_tokenizer(get_tokenizer("bytes")), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(jinja2.TemplateError) as refused:
        theirs.apply_chat_template(messages)
    assert words in str(refused.value)


def test_gguf_holds_the_tokens_and_the_template(small: AddedTokens, tmp_path: Path) -> None:
    package = pytest.importorskip("gguf", reason="the package gguf is not installed")
    jinja2 = pytest.importorskip("jinja2", reason="the package jinja2 is not installed")
    gguf.export(make_model(small.vocab_size), small, tmp_path / "m.gguf")
    fields = package.GGUFReader(tmp_path / "m.gguf").fields
    value = {key.removeprefix("tokenizer."): field.contents() for key, field in fields.items()}
    assert (
        value["ggml.tokens"][-5:] == ["<|endoftext|>", *TOKENS]
        and value["ggml.eot_token_id"] == 4 + value["ggml.eos_token_id"]
    )
    assert value["ggml.token_type"][-6:] == [package.TokenType.NORMAL] + [package.TokenType.CONTROL] * 5
    spelled = (
        jinja2.Environment().from_string(value["chat_template"]).render(messages=TALK[:2], add_generation_prompt=True)
    )
    assert spelled == small.decode_bytes(template_of(small).prompt(TALK[:2])).decode()


def test_llama_cpp_gives_the_same_ids(small: AddedTokens, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    gguf.export(make_model(small.vocab_size), small, tmp_path / "m.gguf")
    llama = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, verbose=False)
    try:
        ids = template_of(small).prompt(TALK[:2])
        spelled = small.decode_bytes(ids)
        assert llama.tokenize(spelled, add_bos=False, special=True) == ids.tolist()
    finally:
        llama.close()


def test_llmc_keeps_the_grown_embedding(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(get_tokenizer("bytes"))
    model = make_model(tokenizer.vocab_size)
    with pytest.warns(UserWarning, match="no place for the tokenizer bytes"):
        llmc.export(model, tokenizer, tmp_path / "m.bin")
    save_tokenizer(tokenizer, tmp_path)
    again = llmc.load(tmp_path / "m.bin")
    assert torch.equal(again.wte.weight, model.wte.weight)
    assert template_of(tokenizer_of(tmp_path, again.config.vocab_size)).end == 260
