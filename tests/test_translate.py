"""python/translate.py: its pairs, its batches, a short training, the folder it writes, and its command line."""

from __future__ import annotations

import datetime
import itertools
import json
import sys
from pathlib import Path

import pytest
import remote
import torch

from gpt2c.errors import UserError
from gpt2c.translator import BEGIN, END, Translator, split

sys.path.insert(0, str(remote.ROOT / "python"))
import translate  # noqa: E402
import translate_pairs  # noqa: E402
from translate_picture import alignment_picture  # noqa: E402

SMALL = {"n_embd": 32, "n_head": 2, "n_encoder": 1, "n_decoder": 1}


def small() -> Translator:
    torch.manual_seed(0)
    return Translator.new(translate_pairs.WORDS, **SMALL)


@pytest.mark.parametrize(
    ("n", "words", "alignment"),
    [
        (0, "zero", [0]),
        (7, "seven", [0]),
        (12, "twelve", [0, 0]),
        (90, "ninety", [0, None]),
        (342_007, "three hundred forty two thousand seven", [0, 2, 3, None, None, 5]),
        (10_015, "ten thousand fifteen", [0, 0, None, 2, 2]),
        (999_999, "nine hundred ninety nine thousand nine hundred ninety nine", [0, 2, 3, 5, 7, 8]),
    ],
)
def test_numbers(n: int, words: str, alignment: list[int | None]) -> None:
    assert translate_pairs.number(n) == (words.split(), str(n), alignment)


@pytest.mark.parametrize(
    ("form", "text", "alignment"),
    [
        (0, "5 march 1984", [2, 3, 4, 5, None, None, 1, None, None, 0]),
        (1, "march 5, 1984", [3, 4, 5, 6, None, None, 0, None, None, 1]),
        (2, "05/03/1984", [6, 7, 8, 9, None, 3, 4, None, 0, 1]),
        (3, "the fifth of march 1984", [4, 5, 6, 7, None, None, 3, None, None, 1]),
    ],
)
def test_dates(form: int, text: str, alignment: list[int | None]) -> None:
    assert translate_pairs.date(datetime.date(1984, 3, 5), form) == (split(text), "1984-03-05", alignment)


def test_every_day_of_a_year_has_its_ordinal() -> None:
    for ordinal in range(datetime.date(2024, 1, 1).toordinal(), datetime.date(2025, 1, 1).toordinal()):
        day = datetime.date.fromordinal(ordinal)
        source, _, alignment = translate_pairs.date(day, 3)
        words = " ".join(source[1 : source.index("of")])
        assert words.endswith(("st", "nd", "rd", "th")) and set(source) <= set(translate_pairs.WORDS)
        assert [source[at] for at in alignment[5:7] if at is not None][-1] == translate_pairs.MONTHS[day.month - 1]
    assert translate_pairs.date(datetime.date(2024, 1, 30), 3).source[1] == "thirtieth"
    assert translate_pairs.date(datetime.date(2024, 1, 31), 3).source[1:3] == ["thirty", "first"]


def test_held_out_targets_are_never_trained_on() -> None:
    trained = {pair.target for pair in itertools.islice(translate_pairs.pairs(1, held_out=False), 20_000)}
    held_out = [pair.target for pair in itertools.islice(translate_pairs.pairs(0, held_out=True), 2_000)]
    assert trained.isdisjoint(held_out) and len(set(held_out)) > 1_500


def test_batches_have_sources_of_one_length_and_targets_padded_at_their_end() -> None:
    translator = small()
    words = translator.vocabulary
    for source, target, labels in itertools.islice(translate.make_batches(translator, 0), 12):
        assert source.shape[0] == target.shape[0] == translate.BATCH and target.shape == labels.shape
        assert (target[:, 0] == translator.ids[BEGIN]).all()
        for row, expected in zip(target.tolist(), labels.tolist(), strict=True):
            length = expected.index(translator.ids[END]) + 1
            assert row[1:length] == expected[: length - 1] and set(expected[length:]) <= {translate.IGNORED}
            assert translator.words(row[1:]) == translator.words(expected)
        assert all(words[i] not in (BEGIN, END) for i in source.flatten().tolist())


def test_a_short_training_translates_and_looks_at_the_right_words() -> None:
    """350 steps of the 1500: a third of the held-out pairs right, each a whole number or date, where none was at first;
    and cross-attention looks at the word that a character comes from far more often than by chance, one in six."""
    torch.set_num_threads(1)
    settings = translate.Args(steps=350, lr=3e-3).settings()
    translator = translate.train(settings)
    wrong, total = translate.mistakes(translator, 100)
    assert total == 100 and len(wrong) < 70 and all(said != pair.target for pair, said in wrong)
    right, characters = translate.aligned(translator, 50)
    assert right > 0.4 * characters, f"{right} of {characters}"


def test_train_save_translate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command: a run of three steps, its folder, and what the folder gives back."""
    torch.set_num_threads(1)
    monkeypatch.setattr(translate, "HELD_OUT_PAIRS", 30)
    out = tmp_path / "model"
    assert translate.main(["--steps", "3", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "step 3/3" in told and "of 30 targets right" in told
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "alignment.png"}
    assert (out / "alignment.png").read_bytes().startswith(b"\x89PNG")
    texts = ["forty two", "5 march 1984", "MARCH 5, 1984"]
    assert translate.main([*texts, "--out", str(out)]) == 0
    loaded = Translator.load(out)
    assert capsys.readouterr().out.splitlines() == loaded.translate(texts)
    # One at a time, as in batches of equal lengths.
    assert [loaded.translate([text])[0] for text in texts] == loaded.translate(texts)
    attention = loaded.attention("forty two")
    assert attention.source == ["forty", "two"]
    assert attention.weights.shape == (2, 2, len(attention.target), 2)
    assert torch.allclose(attention.alignment().sum(-1), torch.ones(len(attention.target)))
    assert translate.main(["--steps", "3", "--out", str(out)]) == 2
    assert "holds a model already" in capsys.readouterr().err


def test_cross_attention_while_translating_is_that_of_the_whole_target() -> None:
    translator = small()
    source, target, weights = translator.attention("twenty one")
    assert len(target) == weights.shape[2] and len(source) == weights.shape[3] == 2
    begin = translator.ids[BEGIN]
    given = torch.tensor([[begin, *(translator.ids[token] for token in target[:-1])]])
    again = translator.model.attention_maps(torch.tensor([translator.encode("twenty one")]), given).cross[:, 0]
    assert torch.equal(again, weights)
    assert alignment_picture([translator.attention("twenty one")] * 2).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["forty two"], "cannot read the translator's settings"),
        (["--steps", "0"], "--steps is 0, expected at least 1"),
        (["--lr", "-1"], "--lr is -1.0, expected a finite number above 0"),
        (["--stpes", "3"], "perhaps you meant --steps"),
    ],
)
def test_mistakes_on_the_command_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert translate.main([*args, "--out", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_texts_that_cannot_be_translated() -> None:
    translator = small()
    with pytest.raises(UserError, match="'million', which the model has never seen; it knows"):
        translator.translate(["two million"])
    with pytest.raises(UserError, match="has 0 tokens, expected 1 to 32"):
        translator.encode("  ")
    with pytest.raises(UserError, match="has 33 tokens"):
        translator.encode("one " * 33)


def test_folders_that_hold_no_translator(tmp_path: Path) -> None:
    small().save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for change in ({"n_head": 5}, {"vocabulary": ["a"]}, {"width": 3}):
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match="does not describe an encoder-decoder"):
            Translator.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"n_decoder": 2}))
    with pytest.raises(UserError, match="does not hold the model of its config.json"):
        Translator.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="cannot read the translator's weights"):
        Translator.load(tmp_path)
