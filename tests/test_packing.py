"""Conversations as rows: what is read, where it lies, what of it is learned, and in which order."""

from __future__ import annotations

import dataclasses
import gzip
import random
from pathlib import Path

import numpy as np
import pytest
import talks
import torch
from talks import talk

from gpt2c.chat.conversations import read_conversations
from gpt2c.chat.packing import Packed, pack
from gpt2c.chat.template import Encoded, Template, chat_tokenizer, template_of
from gpt2c.config import GPT2Config
from gpt2c.data import IGNORED
from gpt2c.errors import UserError
from gpt2c.evaluate import loss_sums
from gpt2c.model import GPT2
from gpt2c.step import accumulate_gradients, make_optimizer, micro_batches, micro_weights
from gpt2c.tokenizer import get_tokenizer

TALKS = [
    talk("Hi", "Hello.", "Bye", "See you.", system="Be kind."),
    talk("1+1?", "2"),
    talk("a", "bcd"),
    talk("What is it?", "A test.", "Why?"),
    talk("x" * 20, "y" * 9),
]


@pytest.fixture(scope="module")
def template() -> Template:
    return template_of(chat_tokenizer(get_tokenizer("bytes")))


def decoded(template: Template, ids: torch.Tensor) -> str:
    return template.tokenizer.decode_bytes(ids.tolist()).decode()


# Reading


def test_a_file_is_read(template: Template, tmp_path: Path) -> None:
    path = talks.write(tmp_path / "t.jsonl", TALKS)
    path.write_text("\n" + path.read_text() + '{"messages": [{"role": "user", "content": "é", "name": "x"}, '
                    '{"role": "assistant", "content": "日"}], "id": 7}\n', encoding="utf-8")  # fmt: skip
    found = read_conversations(path, template, 100)
    assert len(found.encoded) == 6 and (found.cut, found.skipped) == (0, 0)
    assert decoded(template, found.encoded[5].ids) == "<|user|>é<|end|><|assistant|>日<|end|>"
    assert decoded(template, found.encoded[3].ids).endswith("A test.<|end|>"), "what nobody answers is left out"
    assert found.openings[0] == TALKS[0][:2] and found.openings[5] == talk("é")
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    again = read_conversations(packed, template, 100)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(found.encoded, again.encoded, strict=True))


def test_conversations_longer_than_the_context(template: Template, tmp_path: Path) -> None:
    path = talks.write(tmp_path / "t.jsonl", TALKS)
    found = read_conversations(path, template, 27)
    assert (len(found.encoded), found.cut, found.skipped) == (4, 1, 1)
    assert decoded(template, found.encoded[0].ids) == (
        "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>Hello.<|end|>"
    )
    # A conversation of 28 ids takes 27 columns: the last one is not seen.
    exact = talks.write(tmp_path / "exact.jsonl", [talk("a" * 12, "b" * 12)])
    assert len(read_conversations(exact, template, 27).encoded[0].ids) == 28
    with pytest.raises(
        UserError, match="holds no conversation to learn from; 1 have no whole reply in the context of 26"
    ):
        read_conversations(exact, template, 26)


def empty(*replies: str) -> bytes:
    """A line of questions with these replies."""
    turns = (f'{{"role": "user", "content": "a"}}, {{"role": "assistant", "content": "{reply}"}}' for reply in replies)
    return f'{{"messages": [{", ".join(turns)}]}}'.encode()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"messages": [', r"t.jsonl, line 2 is not JSON: Expecting value: .*; expected a conversation on each line"),
        (
            b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
            "line 2: message 1 cannot be encoded: the text is not",
        ),
        (b"[" * 100_000, r"line 2 is not JSON: "),
        (b'{"messages": "a\xff"}', r"line 2: byte 15 of it is not UTF-8 \(invalid start byte\)"),
        (b"[1]", "line 2 is no conversation: expected an object with a list `messages`"),
        (b"3", "line 2 is no conversation: expected an object with a list `messages`"),
        (b'{"text": "a"}', "line 2 is no conversation: expected an object with a list `messages`"),
        (b'{"messages": []}', r"line 2: the messages are \[\], expected a list of at least one"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "line 2: no message has the role 'assistant'"),
        *(
            (empty(reply), "line 2: message 2, the assistant's, is ")
            for reply in ("", " ", "\\n\\t", "\u3000", "\u200b\ufeff")
        ),
        (empty("fine", ""), "line 2: message 4, the assistant's, is '', expected a text that says something"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}', "content None"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}', "message 2 has the content None"),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}',
            "message 2 has the role None, expected",
        ),
        (b'{"messages": [{"role": "bot", "content": "a"}]}', "line 2: message 1 has the role 'bot', expected 'system'"),
        (b'{"messages": [{"role": "user", "content": 3}]}', "line 2: message 1 has the content 3, expected a text"),
    ],
)
def test_damaged_lines_are_named(template: Template, tmp_path: Path, line: bytes, words: str) -> None:
    path = talks.write(tmp_path / "t.jsonl", TALKS[:1])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UserError, match=words):
        read_conversations(path, template, 100)


def test_empty_and_missing_files(template: Template, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").touch()
    with pytest.raises(UserError, match="t.jsonl holds no conversation to learn from$"):
        read_conversations(tmp_path / "t.jsonl", template, 100)
    with pytest.raises(UserError, match=f"cannot read the data {tmp_path}: it is a folder, expected a file"):
        read_conversations(tmp_path, template, 100)
    with pytest.raises(UserError, match="cannot read the data .*no.jsonl: No such file"):
        read_conversations(tmp_path / "no.jsonl", template, 100)


# Packing


def test_every_conversation_is_packed_once() -> None:
    draw = random.Random(1)
    for columns in (1, 7, 64, 1000):
        lengths = [draw.randint(1, columns) for _ in range(500)]
        rows = pack(lengths, columns)
        assert sorted(i for row in rows for i in row) == list(range(500))
        assert all(sum(lengths[i] for i in row) <= columns for row in rows)
        assert len(rows) <= 11 / 9 * -(-sum(lengths) // columns) + 4 or columns < 64
    assert pack([4, 3, 3, 2, 6], 9) == [[4, 1], [0, 2, 3]]
    assert pack([], 9) == []


def test_the_last_token_takes_no_column() -> None:
    """It is a target alone."""
    encoded = [Encoded(np.arange(n), np.ones(n, bool)) for n in (5, 5, 9)]
    packed = Packed(encoded, 8)
    assert sorted(map(sorted, packed.rows)) == [[0, 1], [2]] and sorted(packed.learned) == [8, 8]


def test_a_row_holds_inputs_targets_and_starts(template: Template, tmp_path: Path) -> None:
    encoded = read_conversations(talks.write(tmp_path / "t.jsonl", TALKS), template, 64).encoded
    packed = Packed(encoded, 64)
    idx, targets, starts = packed.batch(range(len(packed)))
    assert idx.shape == targets.shape == starts.shape == (len(packed), 64) and len(packed) < len(encoded)
    assert all(part.dtype == torch.int64 for part in (idx, targets, starts))
    for r, row in enumerate(packed.rows):
        at = 0
        for i in row:
            ids, learned = torch.from_numpy(encoded[i].ids.astype(np.int64)), torch.from_numpy(encoded[i].learned)
            to = at + len(ids) - 1
            assert torch.equal(idx[r, at:to], ids[:-1]) and (starts[r, at:to] == at).all()
            assert torch.equal(targets[r, at:to], torch.where(learned[1:], ids[1:], IGNORED))
            said = "".join(m["content"] + "<|end|>" for m in TALKS[i] if m["role"] == "assistant")
            assert decoded(template, targets[r, at:to][targets[r, at:to] != IGNORED]) == said
            at = to
        assert (targets[r, at:] == IGNORED).all() and (starts[r, at:] == at).all()
        assert packed.learned[r] == (targets[r] != IGNORED).sum()


def make_model(template: Template) -> GPT2:
    torch.manual_seed(3)
    return GPT2(GPT2Config(template.tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2))


def test_a_packed_step_is_that_of_each_conversation_alone(template: Template, tmp_path: Path) -> None:
    """Loss and gradients of three micro-steps of packed rows, against one forward for each conversation."""
    data = talks.write(tmp_path / "t.jsonl", [*TALKS, talk("q", "r"), talk("q" * 5, "s" * 5)])
    config = talks.config(tmp_path, init=".", data=str(data), context=40, accumulation=3, batch_size=1)
    dataset = config.open_data(template.tokenizer)
    model = make_model(template)
    optimizer = make_optimizer(model, config)
    batches = micro_batches(dataset, 1, config)
    assert len(dataset.train.rows) == 3, "an epoch is a step"
    counts = {int((targets != IGNORED).sum()) for _, targets, _ in batches}
    assert len(counts) == 3, "micro-steps must differ in what is learned"
    loss, norm = accumulate_gradients(model, optimizer, batches, weights=micro_weights(dataset, 1, config))
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}

    optimizer.zero_grad()
    total = sum(int(learned[1:].sum()) for _, learned in dataset.train.encoded)
    alone = torch.zeros(())
    for ids, learned in dataset.train.encoded:
        row = torch.from_numpy(ids.astype(np.int64))[None]
        targets = torch.where(torch.from_numpy(learned)[None, 1:], row[:, 1:], IGNORED)
        part = model(row[:, :-1].contiguous(), targets)[1] * (int(learned[1:].sum()) / total)
        part.backward()
        alone += part.detach()
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-4, atol=1e-6, msg=name)
    # of two processes, each has the mean over its share
    shares = [(micro_batches(dataset, 1, config, r, 3), micro_weights(dataset, 1, config, r, 3)) for r in range(3)]
    losses = [accumulate_gradients(model, optimizer, batch, weights=weights)[0] for batch, weights in shares]
    torch.testing.assert_close(sum(losses) / 3, alone, rtol=1e-5, atol=1e-6)


def test_the_evaluation_counts_what_is_learned(template: Template, tmp_path: Path) -> None:
    config = talks.config(tmp_path, init=".", data=str(talks.write(tmp_path / "t.jsonl", TALKS)), context=64)
    config = dataclasses.replace(config, val_data=config.data)
    dataset = config.open_data(template.tokenizer)
    model = make_model(template).eval()
    total, tokens = loss_sums(model, dataset.val_batches(2, 64, 10**6))
    expected, count = 0.0, 0
    for ids, learned in dataset.val.encoded:
        row = torch.from_numpy(ids.astype(np.int64))[None]
        with torch.no_grad():
            logits = model(row[:, :-1].contiguous())[0][0].double()
        wanted = torch.from_numpy(learned[1:])
        losses = torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none")[wanted]
        expected, count = expected + float(losses.sum()), count + int(wanted.sum())
    assert tokens == count and total == pytest.approx(expected, rel=1e-5)
    parts = [loss_sums(model, dataset.val_batches(1, 64, 10**6, rank, 2)) for rank in (0, 1)]
    assert sum(n for _, n in parts) == count and sum(t for t, _ in parts) == pytest.approx(expected, rel=1e-5)
    assert len(list(dataset.val_batches(1, 64, 1))) == 1


# Order


def test_every_epoch_has_every_row_once_however_it_is_cut(template: Template, tmp_path: Path) -> None:
    config = talks.config(tmp_path, init=".", context=20, batch_size=6)
    dataset = config.open_data(template.tokenizer)
    assert len(dataset.train) == 36, "one in a row"

    def seen(step: int, micro_steps: int) -> list[str]:
        batches = [dataset.train_batch(5, step, i, micro_steps, 12 // micro_steps, 20) for i in range(micro_steps)]
        return [decoded(template, row[5:8]) for idx, _, _ in batches for row in idx]

    epochs = [[text for step in steps for text in seen(step, 1)] for steps in ((1, 2, 3), (4, 5, 6))]
    assert len(set(epochs[0])) == 36 and set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]
    for step in (1, 2, 5):
        assert seen(step, 1) == seen(step, 3) == seen(step, 12)
        whole = dataset.learned(5, step, 0, 1, 12, 20)
        assert sum(dataset.learned(5, step, i, 4, 3, 20) for i in range(4)) == whole == 12 * 4


# The settings' choices


def test_the_last_conversations_are_held_out(template: Template, tmp_path: Path) -> None:
    config = talks.config(tmp_path, init=".", context=30, val_fraction=0.25)
    dataset = config.open_data(template.tokenizer)
    assert (len(dataset.train.encoded), len(dataset.val.encoded)) == (30, 10)
    assert dataset.opening == talks.echoes()[30][:1]
    rows = len(dataset.train)
    assert dataset.summary == f"30 conversations in {rows} rows, 120 tokens of the assistant's, and 10 to validate"
    other = talks.write(
        tmp_path / "val.jsonl", [talk("x" * 5, "y"), talk("x" * 30, "y"), talk("a", "b", "c", "d" * 30)]
    )
    apart = dataclasses.replace(config, val_data=str(other)).open_data(template.tokenizer)
    assert (len(apart.train.encoded), len(apart.val.encoded)) == (40, 2)
    assert apart.summary.endswith(
        f"and 2 to validate; of {other} 1 end after the last reply within the context of 30, 1 without a whole reply "
        "in the context of 30 are skipped"
    )
    assert apart.fingerprint() != dataset.fingerprint() == config.open_data(template.tokenizer).fingerprint()


def test_too_few_conversations(template: Template, tmp_path: Path) -> None:
    config = talks.config(tmp_path, init=".", data=str(talks.write(tmp_path / "one.jsonl", TALKS[:1])), context=64)
    with pytest.raises(UserError, match="one.jsonl holds one conversation, expected at least two"):
        config.open_data(template.tokenizer)
    assert len(dataclasses.replace(config, val_data=config.data).open_data(template.tokenizer).train) == 1
    with pytest.raises(UserError, match="give a file of conversations with --data"):
        dataclasses.replace(config, data="").open_data(template.tokenizer)
