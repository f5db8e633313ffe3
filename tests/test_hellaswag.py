"""HellaSwag: the scores of shared contexts are those of each ending alone; other files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.evaluation import hellaswag
from gpt2c.evaluation.hellaswag import encode, evaluate_hellaswag, groups, read_items, score
from gpt2c.model import GPT2
from gpt2c.tokenizer import Tokenizer, get_tokenizer

WORDS = "A man is sitting on a roof and starts pulling up tiles before he falls into the snow below .".split()


def write_items(folder: Path, count: int = 23) -> Path:
    """Items as the original file has them, of different lengths, some with equal ones."""
    path = folder / "hellaswag_val.jsonl"
    rows = []
    for i in range(count):
        context = " ".join(WORDS[: 3 + i % 5]) + f" {i % 3}"
        endings = [" ".join(WORDS[(i + j) % 7 : (i + j) % 7 + 2 + (i * j) % 6]) + str(i) for j in range(4)]
        rows.append({"ind": i, "activity_label": "Roofing", "ctx": context, "label": i % 4, "endings": endings})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_model(tokenizer: Tokenizer, n_positions: int = 96) -> GPT2:
    torch.manual_seed(1)
    model = GPT2(GPT2Config(tokenizer.vocab_size, n_positions=n_positions, n_embd=32, n_layer=2, n_head=2)).eval()
    model.wte.weight.data.mul_(20)  # so that endings differ
    return model


@torch.no_grad()
def naive(model: GPT2, item: hellaswag.Encoded) -> tuple[list[float], list[float]]:
    """Each ending after the whole context, alone: sums and means."""
    sums = []
    for ending in item.endings:
        ids = torch.tensor([[*item.context.tolist(), *ending.tolist()]])
        logits = model(ids[:, :-1])[0].double()
        losses = F.cross_entropy(logits[0], ids[0, 1:], reduction="none")
        sums.append(-float(losses[-len(ending) :].sum()))
    return sums, [total / len(ending) for total, ending in zip(sums, item.endings, strict=True)]


@pytest.mark.parametrize(("name", "n_positions"), [("bytes", 96), ("gpt2", 64), ("bytes", 24), ("bytes", 5)])
def test_shared_contexts_score_as_each_ending_alone(tmp_path: Path, name: str, n_positions: int) -> None:
    tokenizer = get_tokenizer(name)
    model = make_model(tokenizer, n_positions)
    items = [encode(item, tokenizer, n_positions) for item in read_items(str(write_items(tmp_path)))]
    right = right_norm = 0
    for item in items:
        sums, means = (torch.tensor(found) for found in naive(model, item))
        right += int(sums.argmax()) == item.label
        right_norm += int(means.argmax()) == item.label
    for group in groups(items):
        sums, means = score(model, group)
        expected = [naive(model, item) for item in group]
        torch.testing.assert_close(sums, torch.tensor([s for s, _ in expected]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(means, torch.tensor([m for _, m in expected]), rtol=1e-4, atol=1e-4)
    found = evaluate_hellaswag(model, tokenizer, str(tmp_path / "hellaswag_val.jsonl"))
    assert (found.right, found.right_norm, found.items) == (right, right_norm, 23)
    assert found.acc == right / 23 and found.acc_norm == right_norm / 23


def test_items_with_contexts_of_one_length_go_together(tmp_path: Path) -> None:
    tokenizer = get_tokenizer("bytes")
    items = [encode(item, tokenizer, 96) for item in read_items(str(write_items(tmp_path, 60)))]
    found = list(groups(items))
    assert sum(map(len, found)) == 60 and max(map(len, found)) > 4
    assert all(len({len(item.context) for item in group}) == 1 for group in found)


def test_the_processes_shares_sum_to_the_whole(tmp_path: Path) -> None:
    tokenizer = get_tokenizer("bytes")
    model, path = make_model(tokenizer), str(write_items(tmp_path))
    whole = evaluate_hellaswag(model, tokenizer, path, 20)
    parts = [evaluate_hellaswag(model, tokenizer, path, 20, rank, 3) for rank in range(3)]
    for field in ("right", "right_norm", "items"):
        assert sum(getattr(part, field) for part in parts) == getattr(whole, field)
    assert whole.items == 20


def test_it_works_under_autocast(tmp_path: Path) -> None:
    tokenizer = get_tokenizer("bytes")
    model = make_model(tokenizer)
    items = [encode(item, tokenizer, 96) for item in read_items(str(write_items(tmp_path)))]
    group = next(groups(items))
    exact, _ = score(model, group)
    with torch.autocast("cpu", torch.bfloat16):
        near, _ = score(model, group)
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.5)


def test_an_evident_ending_is_found(tmp_path: Path) -> None:
    """A model that likes one byte best: the ending made of it is right, by the mean and not by the sum of more."""
    tokenizer = get_tokenizer("bytes")
    model = make_model(tokenizer)
    path = tmp_path / "items.jsonl"
    model.ln_f.weight.data.zero_()
    model.ln_f.bias.data.copy_(model.wte.weight.data[ord("e")])
    row = {"ctx": "abc", "endings": ["xyz", "eeeeeee", "q", "rstu"], "label": 1}
    path.write_text(json.dumps(row))
    found = evaluate_hellaswag(model, tokenizer, str(path))
    assert found.right_norm == 1


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '"text"', "{}", '{"ctx": "a", "endings": ["b", "c", "d"], "label": 1}']
    + ['{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 4}', '{"ctx": 1, "endings": ["b", "c", "d", "e"]}']
    + ['{"ctx": "", "endings": ["b", "c", "d", "e"], "label": 0}'],
)
def test_damaged_items_are_refused_with_their_line(tmp_path: Path, line: str) -> None:
    path = write_items(tmp_path, 2)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match="hellaswag_val.jsonl, line 3 is not an item of HellaSwag"):
        read_items(str(path))
    assert len(read_items(str(path), 2)) == 2, "what is not asked for is not read"


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the HellaSwag items .*no.jsonl: No such file"):
        read_items(str(tmp_path / "no.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="is empty: expected HellaSwag's JSON lines"):
        read_items(str(tmp_path / "empty.jsonl"))


def test_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file's address: kept, once it is known to be whole."""
    monkeypatch.setattr(hellaswag, "CACHE", tmp_path / "cache" / "hellaswag_val.jsonl")
    monkeypatch.setattr(hellaswag, "ADDRESS", (tmp_path / "no.jsonl").as_uri())
    with pytest.raises(UserError, match="cannot download HellaSwag from .* give its path with --hellaswag"):
        read_items("download")
    monkeypatch.setattr(hellaswag, "ADDRESS", write_items(tmp_path, 5).as_uri())
    with pytest.raises(UserError, match="has 5 lines, expected HellaSwag's 10,042 items"):
        read_items("download")
    monkeypatch.setattr(hellaswag, "ITEMS", 5)
    assert len(read_items("download")) == 5
    (tmp_path / "hellaswag_val.jsonl").unlink()
    assert len(read_items("download")) == 5
