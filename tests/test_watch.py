"""What reaches a kernel is what it will use: under torch's default dtypes, devices and modes, and where a model or a
cache is changed between two steps."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gpt2c
from gpt2c import ops
from gpt2c.config import GPT2Config
from gpt2c.decode import WEIGHTS, Decoder, weights_of
from gpt2c.generate import KVCache
from gpt2c.lora import add_lora
from gpt2c.model import GPT2
from gpt2c.seq2seq import Seq2Seq, Seq2SeqConfig
from gpt2c.translator import Translator
from gpt2c.vocabulary import grow

V = 61
CONFIG = GPT2Config(vocab_size=V, n_positions=16, n_embd=32, n_layer=2, n_head=2)
FACTORIES = {"empty", "zeros", "ones", "full", "rand", "randn", "eye", "linspace", "empty_permuted", "scalar_tensor"}
OF_INTEGERS = {"tensor", "arange", "randint", "randperm"}  # what they are given has the dtype
# Modules are made where and as torch's own are: with the default dtype, on the default device. bench measures.
MODULES = {"gpt2c/model.py"}


def make_model(config: GPT2Config = CONFIG) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


IDX = torch.tensor([[1, 2, 3], [4, 5, 60]])


@contextlib.contextmanager
def defaults(dtype: torch.dtype = torch.float32, device: str | None = None) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def parts() -> tuple[list[GPT2], Seq2Seq, Translator]:
    models = [make_model() for _ in range(4)]
    vocabulary = ["<begin>", "<end>", "one", "two"]
    return models, Seq2Seq(Seq2SeqConfig(V, n_embd=32)), Translator(Seq2Seq(Seq2SeqConfig(4)), vocabulary)


def everything(models: list[GPT2], seq2seq: Seq2Seq, translator: Translator) -> list[Tensor]:
    """Of each part of the package that makes tensors of its own, a result."""
    torch.manual_seed(0)
    plain, trained, adapted, half = models
    found = [plain.generate(IDX, 20, temperature=0, weights=weights) for weights in WEIGHTS]
    found += [plain.generate(IDX, 20, seed=1, top_p=0.9), half.bfloat16().generate(IDX, 20, temperature=0)]
    found += [seq2seq.greedy(IDX, 0, 1), seq2seq(IDX, IDX, IDX), *seq2seq.attention_maps(IDX, IDX)]
    assert isinstance(translator.translate(["one two"])[0], str)
    found += [translator.attention("two one").weights]
    grow(plain, V + 5, seed=0)
    add_lora(adapted, 2, 4.0)
    found += [plain.wte.weight, *plain(IDX)]
    for model, options in ((trained, {}), (adapted, {}), (half.train(), {"stochastic_rounding": True})):
        optimizer = gpt2c.AdamW(model.parameters(), **options)
        for _ in range(2):
            model(IDX, IDX)[1].backward()
            norm = ops.grad_norm([p.grad for p in model.parameters() if p.grad is not None])
            optimizer.step(grad_scale=0.5)
        optimizer.load_state_dict(optimizer.state_dict())
        found += [norm, *model.parameters()]
    return [t for t in found if t is not None]


@pytest.mark.filterwarnings("ignore:generate")
@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "meta"), (torch.bfloat16, "cpu")])
def test_defaults_of_torch_change_nothing(dtype: torch.dtype, device: str) -> None:
    expected, again = everything(*parts()), parts()
    with defaults(dtype, device):
        found = everything(*again)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_every_tensor_that_is_made_names_its_device_and_dtype() -> None:
    root = Path(gpt2c.__file__).parent
    made, bad = 0, []
    for path in sorted(root.rglob("*.py")):
        name = f"gpt2c/{path.relative_to(root).as_posix()}"
        if name in MODULES or name.startswith("gpt2c/bench/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if not isinstance(called, ast.Attribute) or ast.unparse(called.value) != "torch":
                continue
            if called.attr in FACTORIES | OF_INTEGERS:
                made += 1
                named = {keyword.arg for keyword in node.keywords}
                if "device" not in named or (called.attr in FACTORIES and "dtype" not in named):
                    bad.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    assert not bad and made > 40


class TestAutocast:
    def test_the_prompt_and_each_token_are_those_of_the_model_without_a_cache(self) -> None:
        model = make_model()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            found = model.generate(IDX, 12, temperature=0)
            assert torch.equal(found[:, 3:], model(found[:, :-1])[0][:, 2:].argmax(-1))

    @pytest.mark.parametrize("weights", ["bf16", "int8"])
    def test_packed_weights_are_decoded_without_it(self, weights: str) -> None:
        model = make_model()
        expected = model.generate(IDX, 12, temperature=0, weights=weights)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.generate(IDX, 12, temperature=0, weights=weights), expected)

    @pytest.mark.parametrize("mode", [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode])
    def test_a_stream_stays_as_it_was_begun(self, mode: Callable) -> None:
        model = make_model()
        expected = model.generate(IDX, 13, temperature=0)[:, 3:]
        steps = model.stream(IDX, 13, temperature=0)
        with mode():
            found = [next(steps)]
        found += [next(steps), next(steps)]
        with mode():
            found += [next(steps)]
        assert torch.equal(torch.stack([*found, *steps], 1), expected)
        with mode():
            inside = model.stream(IDX, 3, temperature=0)
            first = next(inside)
            expected = model.generate(IDX, 3, temperature=0)[:, 3:]
        assert torch.equal(torch.stack([first, *inside], 1), expected)

    def test_a_cache_of_another_dtype_is_refused(self) -> None:
        model = make_model()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            cache = KVCache(model, 2, 8)
            model.hidden(IDX, cache=cache)
            with pytest.raises(ValueError, match=r"decode: the cache has .* of torch.bfloat16 on cpu, expected"):
                Decoder(model, [cache])
        with torch.no_grad(), pytest.raises(ValueError, match="cache: has .* of torch.bfloat16 on cpu, expected room"):
            model.hidden(IDX[:, :1], cache=cache)


def test_a_model_made_in_inference_mode_generates() -> None:
    with torch.inference_mode():
        model = make_model()
        found = [model.generate(IDX, 9, temperature=0, weights=weights) for weights in WEIGHTS]
    for ids, weights in zip(found, WEIGHTS, strict=True):
        assert torch.equal(make_model().generate(IDX, 9, temperature=0, weights=weights), ids)


def test_a_model_without_memory_is_refused() -> None:
    with torch.device("meta"):
        model, idx = GPT2(CONFIG), torch.zeros(1, 2, dtype=torch.int64)
    assert model(idx)[0].shape == (1, 2, V)
    with pytest.raises(ValueError, match="generate: the model is on meta, expected one whose parameters have memory"):
        model.generate(idx, 2)


# Of a model, in the middle of a text: others in the place of parameters and modules, other dtypes, devices, memory.
CHANGES: dict[str, Callable[[GPT2], object]] = {
    "another parameter": lambda model: setattr(model.h[0].attn.c_attn, "weight", nn.Parameter(torch.ones(32, 96))),
    "another module": lambda model: setattr(model, "ln_f", make_model().ln_f),
    "another layer": lambda model: model.h.__setitem__(1, make_model().h[0]),
    "a layer less": lambda model: model.h.__delitem__(1),
    "other data": lambda model: setattr(model.h[1].mlp.c_fc.weight, "data", torch.zeros(3)),
    "half": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "meta": lambda model: model.to("meta"),
    "no memory": lambda model: model.wte.weight.untyped_storage().resize_(0),
    "less memory": lambda model: model.wpe.weight.untyped_storage().resize_(4),
    "a step": lambda model: nn.init.zeros_(model.ln_f.bias),
    "loaded": lambda model: model.load_state_dict(make_model().state_dict()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("weights", "rows"), [("fp32", 2), ("int8", 2), ("fp32", 17)])
def test_a_model_that_changes_in_the_middle_of_a_text_is_refused(change: str, weights: str, rows: int) -> None:
    model = make_model()
    steps = model.stream(IDX[:1].expand(rows, -1), 12, weights=weights)
    for _ in range(3):
        next(steps)
    CHANGES[change](model)
    with pytest.raises(ValueError, match=r"(decode|generate): .* has changed since the text was begun, expected a mod"):
        next(steps)


class TestDecoder:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda cache: setattr(cache.layers[1], "k", torch.zeros(2, 2, 8, 16)), "keys or values have moved"),
            (lambda cache: cache.layers[0].v.untyped_storage().resize_(64), "keys or values have moved"),
            (lambda cache: setattr(cache.layers[1], "length", 2), r"layers hold \[0, 2\] tokens, expected as many"),
            (lambda cache: [setattr(layer, "length", -1) for layer in cache.layers], "holds -1 tokens, expected fewer"),
            (lambda cache: [setattr(layer, "length", 16) for layer in cache.layers], "holds 16 tokens, expected fewer"),
        ],
    )
    def test_a_cache_that_changes_is_refused(self, damage: Callable, message: str) -> None:
        model = make_model()
        cache = KVCache(model, 2, 20)  # more than the model has positions
        decoder = Decoder(model, [cache])
        damage(cache)
        with pytest.raises(ValueError, match="decode: .*" + message):
            decoder.step(torch.tensor([0, 1]))

    def test_caches_of_another_model_are_refused(self) -> None:
        model = make_model()
        for config in (
            GPT2Config(V, 16, 32, 2, 4), GPT2Config(V, 16, 64, 2, 2), GPT2Config(V, 16, 32, 1, 2),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="decode: the cache has"):
                Decoder(model, [KVCache(make_model(config), 2, 8)])
        cache = KVCache(model, 1, 8)
        for caches in ([], [cache, cache]):
            with pytest.raises(ValueError, match=f"decode: caches are {len(caches)}, some of them twice or none"):
                Decoder(model, caches)

    def test_ids_elsewhere_are_refused(self) -> None:
        model = make_model()
        with pytest.raises(ValueError, match="decode: ids is on meta, expected cpu, where the model is"):
            Decoder(model, [KVCache(model, 2, 8)]).step(torch.zeros(2, dtype=torch.int64, device="meta"))

    def test_a_model_of_other_sizes_than_its_config_says_is_refused(self) -> None:
        model = make_model()
        model.h[0].mlp.c_fc.bias = nn.Parameter(torch.zeros(5))
        with pytest.raises(ValueError, match="decode: the model's parameters have other shapes than its config says"):
            Decoder(model, [KVCache(model, 2, 8)])


class TestCache:
    def test_what_does_not_fit_is_refused(self) -> None:
        model = make_model()
        with torch.no_grad():
            cache = KVCache(model, 2, 4)
            model.hidden(IDX, cache=cache)
            with pytest.raises(ValueError, match="cache: holds 3 tokens of 4, expected room for 3 more"):
                model.hidden(IDX, cache=cache)
            with pytest.raises(ValueError, match="cache: has .* expected room for"):
                model.hidden(IDX[:1], cache=KVCache(model, 2, 4))

    def test_a_users_own_cache_of_another_kind_is_refused(self) -> None:
        class Mine:
            length = 0

            def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
                return k.double(), v

        model, cache = make_model(), Mine()
        cache.layers = [Mine(), Mine()]
        with (
            torch.no_grad(),
            pytest.raises(TypeError, match="block: k has dtype torch.float64, expected torch.float32"),
        ):
            model.hidden(IDX, cache=cache)


class TestPackedCopy:
    """It is that of the weights, whatever way they were changed."""

    @pytest.mark.parametrize("weights", WEIGHTS)
    @pytest.mark.parametrize("how", ["data", "one element", "numpy", "sign", "rows", "ema", "swap"])
    def test_after_a_change_that_torch_does_not_count(self, weights: str, how: str) -> None:
        model = make_model()
        model.generate(IDX, 2, weights=weights)
        matrix = model.h[1].mlp.c_proj.weight
        {
            "data": lambda: matrix.data.copy_(torch.randn_like(matrix)),
            "one element": lambda: matrix.data[-1, -1].add_(1),
            "numpy": lambda: matrix.detach().numpy().__imul__(2),
            "sign": lambda: matrix.data.neg_(),
            "rows": lambda: model.wte.weight.data.copy_(model.wte.weight.data.roll(1, 0)),
            "ema": lambda: [p.data.mul_(0.9).add_(torch.randn_like(p), alpha=0.1) for p in model.parameters()],
            "swap": lambda: [setattr(p, "data", torch.randn_like(p)) for p in model.parameters()],
        }[how]()
        fresh = GPT2(CONFIG)
        fresh.load_state_dict(model.state_dict())
        expected = fresh.generate(IDX, 10, temperature=0, weights=weights)
        assert torch.equal(model.generate(IDX, 10, temperature=0, weights=weights), expected)

    def test_it_is_kept_while_the_bytes_are_the_same(self) -> None:
        model = make_model()
        first = weights_of(model, "int8")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1)
        assert weights_of(model, "int8") is first
