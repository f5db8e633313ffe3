"""Our class for EleutherAI's lm-eval against its own for Hugging Face models: the same weights, the same numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpt2c.cli import main
from gpt2c.config import GPT2Config
from gpt2c.load import load_model
from gpt2c.model import GPT2
from gpt2c.tokenizer import get_tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="the package lm_eval is not installed")
transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries' own imports

CONTEXT = 24
PAIRS = [("The sun", " is warm"), ("", "Hello there"), ("a b c " * 20, " and then some more"), ("x ", "y z" * 7)]
TEXTS = ["A short text.", "one two three four five " * 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with random weights and GPT-2's vocabulary."""
    torch.manual_seed(3)
    sizes = GPT2Config(n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2)
    model = GPT2(sizes)
    model.wte.weight.data[: sizes.vocab_size].mul_(20)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path):  # noqa: ANN201, a class of lm-eval's
    from gpt2c.evaluation.harness import Gpt2c

    return Gpt2c(str(folder), batch_size=3)


@pytest.fixture(scope="module")
def theirs(folder: Path):  # noqa: ANN201
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    # The vocabulary that ours uses, as transformers' tokenizer; merges follow from the ranks.
    spell, gpt2 = bytes_to_unicode(), get_tokenizer("gpt2")
    tokens = [gpt2.decode_bytes([i]) for i in range(50256)]
    ranks = {token: i for i, token in enumerate(tokens)}
    vocab = {"".join(spell[b] for b in token): i for i, token in enumerate(tokens)} | {"<|endoftext|>": 50256}
    merges = [split for token in tokens if len(token) > 1 if (split := _parents(token, ranks))]
    tokenizer = Tokenizer(models.BPE(vocab, [tuple("".join(spell[b] for b in part) for part in m) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    return HFLM(pretrained=model, tokenizer=fast, batch_size=1, max_length=CONTEXT)


def _parents(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, ...]:
    """The two tokens that a token was merged of: what byte-pair encoding by lower ranks leaves of it."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        pairs = {
            ranks.get(a + b, len(ranks)): i
            for i, (a, b) in reversed(list(enumerate(zip(parts, parts[1:], strict=False))))
        }  # noqa: E501
        i = pairs[min(pairs)]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return tuple(parts)


def requests(kind: str, arguments: list[tuple]) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def test_log_likelihoods_are_those_of_its_own_class(ours: object, theirs: object) -> None:
    found, expected = (lm.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True) for lm in (ours, theirs))
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_rolling_log_likelihoods_are(ours: object, theirs: object) -> None:
    asked = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    found, expected = (lm.loglikelihood_rolling(asked, disable_tqdm=True) for lm in (ours, theirs))
    assert found == pytest.approx(expected, rel=1e-4)


def test_generated_texts_are(ours: object, theirs: object) -> None:
    settings = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    asked = requests("generate_until", [(text, settings) for text in ("The sun is", "one two three " * 9)])
    found, expected = (lm.generate_until(asked, disable_tqdm=True) for lm in (ours, theirs))
    assert found == expected and all(found)


def test_a_stop_string_ends_the_text(ours: object) -> None:
    (whole,) = ours.generate_until(requests("generate_until", [("The sun", {"max_gen_toks": 8})]), disable_tqdm=True)
    stop = whole[len(whole) // 2 :][:2]
    settings = {"max_gen_toks": 8, "until": stop}
    (cut,) = ours.generate_until(requests("generate_until", [("The sun", settings)]), disable_tqdm=True)
    assert cut == whole[: whole.find(stop)]


FITTING = [PAIRS[0], PAIRS[1], PAIRS[3], ("The moon", ""), ("a b", " c d e")]  # in the context that lm-eval leaves


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of `gpt2c serve` with the same model."""
    pytest.importorskip("uvicorn", reason="the package uvicorn is not installed")
    from serving import NAME, serving

    from gpt2c.serve.engine import Engine
    from gpt2c.serve.service import Service

    model, tokenizer, _ = load_model(str(folder))
    with serving(Service(NAME, model, tokenizer, None, Engine(model))) as url:
        yield f"{url}/v1/completions"


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 3}, {"batch_size": 2, "num_concurrent": 2}, {"tokenized_requests": False}], ids=str
)
def test_local_completions_score_against_the_server(
    address: str, ours: object, theirs: object, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    pytest.importorskip("tenacity", reason="the package tenacity is not installed")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: theirs.tokenizer)
    lm = LocalCompletionsAPI(
        model="tiny", base_url=address, tokenizer="here", tokenizer_backend="huggingface", max_length=CONTEXT, **options
    )
    # As text, nothing before a pair is spelled <|endoftext|>, which is ordinary text to the server.
    pairs = FITTING if "tokenized_requests" not in options else [pair for pair in FITTING if pair[0]]
    asked = requests("loglikelihood", pairs)
    found, expected = (one.loglikelihood(asked, disable_tqdm=True) for one in (lm, ours))
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    settings = {"until": ["\n\n", *"abcdef"], "max_gen_toks": 8, "do_sample": False}
    asked = requests("generate_until", [(text, settings) for text in ("The sun is", "one two three", "x")])
    found, expected = (one.generate_until(asked, disable_tqdm=True) for one in (lm, ours))
    assert found == expected and any(found)


def test_the_command_runs_a_task(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of one's own, from local files."""
    from lm_eval.tasks import TaskManager

    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"q": f"Number {i} is", "a": f" {i}", "b": " blue"}) + "\n" for i in range(6))
    )
    (tmp_path / "numbers.yaml").write_text(
        f"task: numbers\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: ['{{a}}', '{{b}}']\n"
        "doc_to_target: 0\nmetric_list: [{metric: acc}]\n"
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    simple_evaluate = lm_eval.simple_evaluate
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(
        lm_eval, "simple_evaluate", lambda *args, **kwargs: simple_evaluate(*args, task_manager=manager, **kwargs)
    )
    assert main(["eval", str(folder), "--tasks", "numbers", "--json", str(tmp_path / "out.json")]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    accuracy = json.loads((tmp_path / "out.json").read_text())["tasks"]["numbers"]["acc"]
    assert line.startswith(f"numbers          acc {accuracy:.4f}") and 0 <= accuracy <= 1
    assert main(["eval", str(folder), "--tasks", "no_such_task"]) == 2
    assert "error: lm-eval cannot evaluate no_such_task" in capsys.readouterr().err
