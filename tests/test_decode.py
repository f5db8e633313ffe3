"""Decoding's kernel: one token of each row against the whole model in float64, for every type of weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, check_deterministic
from torch import Tensor
from twin import Twin

from gpt2c.config import GPT2Config
from gpt2c.decode import WEIGHTS, Decoder, checksum, pack, weights_of
from gpt2c.evaluate import decoding_loss
from gpt2c.generate import KVCache
from gpt2c.model import GPT2

# V, n_positions, C, L, H. Widths below, between and beyond a vector, a task's columns and its rows of weights.
SIZES = {
    "one": (1, 1, 1, 1, 1),
    "odd": (61, 9, 15, 2, 3),
    "whole vectors": (130, 12, 64, 2, 4),
    "pieces": (67, 6, 200, 1, 5),
    "columns": (33, 3, 264, 1, 4),  # 4 C is beyond 1024
}


def make_model(size: str, eps: float = 1e-5) -> GPT2:
    torch.manual_seed(0)
    V, positions, C, L, H = SIZES[size]
    config = GPT2Config(V, n_positions=positions, n_embd=C, n_layer=L, n_head=H, layer_norm_epsilon=eps)
    model = GPT2(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # biases and layernorms that matter
    return model


def make_ids(model: GPT2, batch: int) -> Tensor:
    return torch.randint(0, model.config.vocab_size, (batch, model.config.n_positions))


@torch.no_grad()
def reference(model: GPT2, idx: Tensor, weights: str) -> Tensor:
    """Logits (B,T,V) in float64 of the model with its matrices as `weights` has them."""
    twin = Twin.of(model).double()
    *matrices, head = weights_of(model, weights).dequantised()
    linears = [m for b in twin.h for m in (b.attn.c_attn, b.attn.c_proj, b.mlp.c_fc, b.mlp.c_proj)]
    for linear, matrix in zip(linears, matrices, strict=True):
        linear.weight.copy_(matrix if weights == "fp32" else matrix.t())
    x = twin.wte(idx) + twin.wpe.weight[: idx.shape[1]]
    for block in twin.h:
        x = block(x)
    return twin.ln_f(x) @ head.t()


def decode_all(model: GPT2, idx: Tensor, weights: str) -> Tensor:
    """Logits (B,T,V), one position after the other."""
    decoder = Decoder(model, [KVCache(model, *idx.shape)], weights)
    return torch.stack([decoder.step(ids).clone() for ids in idx.t()], dim=1)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 9, 17])
@pytest.mark.parametrize("size", SIZES)
def test_against_float64(backend, size, batch, weights):
    model = make_model(size)
    idx = make_ids(model, batch)
    assert_close("decode", "logits", decode_all(model, idx, weights), reference(model, idx, weights), torch.float32)


@pytest.mark.parametrize("score", [-100.0, 100.0])
def test_scores_far_from_zero(backend, score):
    """e^100 is not in fp32, nor are all digits of e^-100: it is differences of scores that count."""
    model = make_model("whole vectors")
    D = model.config.head_dim
    with torch.no_grad():
        for block in model.h:
            q, k, _ = block.attn.c_attn.bias.view(3, -1, D)
            q[:, 0], k[:, 0] = 20.0, score * D**0.5 / 20
    idx = make_ids(model, 3)
    assert_close("decode", "logits", decode_all(model, idx, "fp32"), reference(model, idx, "fp32"), torch.float32)


def test_epsilon_is_the_models(backend):
    model = make_model("odd", eps=1e-2)
    idx = make_ids(model, 3)
    assert_close("decode", "logits", decode_all(model, idx, "fp32"), reference(model, idx, "fp32"), torch.float32)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_on_any_number_of_threads(backend, weights):
    model = make_model("pieces")
    idx = make_ids(model, 3)
    check_deterministic(lambda: [decode_all(model, idx, weights)])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("size", ["odd", "pieces"])
def test_a_row_does_not_depend_on_its_batch(backend, size, weights):
    model = make_model(size)
    idx = make_ids(model, 17)
    together = decode_all(model, idx, weights)
    for rows in (slice(0, 1), slice(16, 17), slice(2, 5), slice(4, 12), slice(3, 16)):
        assert torch.equal(decode_all(model, idx[rows], weights), together[rows])


@torch.no_grad()
def test_goes_on_where_a_prompt_ended():
    model = make_model("whole vectors")
    idx = make_ids(model, 3)
    cache = KVCache(model, *idx.shape)
    model.hidden(idx[:, :7].contiguous(), cache=cache)
    decoder = Decoder(model, [cache])
    steps = torch.stack([decoder.step(ids).clone() for ids in idx[:, 7:].t()], dim=1)
    assert cache.length == idx.shape[1]
    assert_close("decode", "logits", steps, reference(model, idx, "fp32")[:, 7:], torch.float32)


@torch.no_grad()
def test_rows_of_different_lengths(backend):
    """Texts that join at other steps and have caches of other sizes: each gets the logits that it gets alone."""
    model = make_model("whole vectors")
    idx = make_ids(model, 4)
    alone = decode_all(model, idx, "fp32")
    T = idx.shape[1]
    caches = [KVCache(model, 1, T + extra) for extra in (0, 3, 1, 0)]
    for step in range(T + 3):
        joined = [row for row in range(4) if 0 <= step - row < T]  # row r begins at step r
        at = [step - row for row in joined]
        logits = Decoder(model, [caches[row] for row in joined]).step(idx[joined, at])
        assert torch.equal(logits, alone[joined, at])
    assert [cache.length for cache in caches] == [T] * 4


def test_damaged_weights_show():
    model = make_model("odd")
    with torch.no_grad():
        model.h[1].mlp.c_fc.weight[3, 5] = torch.inf
    for weights in WEIGHTS:
        assert not decode_all(model, make_ids(model, 1), weights).isfinite().all()


class TestPacking:
    def test_int8_is_the_nearest_of_255_steps(self):
        matrix = torch.randn(20, 33) * torch.logspace(-6, 6, 20)[:, None]
        matrix[7] = 0
        packed, scale = pack(matrix, torch.int8)
        assert packed.dtype == torch.int8 and int(packed.amin()) >= -127
        assert torch.equal(packed.abs().amax(dim=1).bool(), matrix.any(dim=1))
        error = (packed.double() * scale.double()[:, None] - matrix).abs()
        assert bool((error <= scale.double()[:, None] * 0.5001).all())

    def test_fp32_is_no_copy(self):
        model = make_model("odd")
        assert weights_of(model, "fp32").matrices[0].data_ptr() == model.h[0].attn.c_attn.weight.data_ptr()

    @pytest.mark.parametrize("weights", ["bf16", "int8"])
    def test_a_copy_is_kept_until_a_parameter_changes(self, weights):
        model = make_model("odd")
        idx = make_ids(model, 2)
        first, before = weights_of(model, weights), decode_all(model, idx, weights)
        assert weights_of(model, weights) is first
        with torch.no_grad():
            model.h[1].mlp.c_proj.weight.mul_(2)
        assert weights_of(model, weights) is not first
        assert_close("decode", "logits", decode_all(model, idx, weights), reference(model, idx, weights), torch.float32)
        assert not torch.equal(decode_all(model, idx, weights), before)


def test_a_checksum_tells_every_changed_bit_and_every_place(backend):
    for size in (0, 1, 7, 8, 63, 64, 65, 200):
        data = torch.randint(0, 256, (size,), dtype=torch.uint8)
        sums = {checksum(data), checksum(torch.cat([data, torch.zeros(1, dtype=torch.uint8)]))}
        for i in range(size):
            for bit in range(8):
                changed = data.clone()
                changed[i] ^= 1 << bit
                sums.add(checksum(changed))
        assert len(sums) == 2 + 8 * size
    large = torch.arange(700_001, dtype=torch.int32)  # three tasks
    others = [large.roll(1), large.flip(0), large.clone(), -large, large[:-1].contiguous()]
    others[2][262_144:], others[2][:262_144] = large[: 700_001 - 262_144].clone(), large[:262_144].clone()
    sums = [checksum(x) for x in (large, *others)]
    assert len(set(sums)) == len(sums) and checksum(large.clone()) == sums[0]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decoding_loss_is_the_cross_entropy_of_the_packed_weights(weights):
    model = make_model("odd")
    batches = [(make_ids(model, rows), make_ids(model, rows)) for rows in (3, 2)]
    logits = torch.cat([reference(model, idx, weights).flatten(0, 1) for idx, _ in batches])
    expected = F.cross_entropy(logits, torch.cat([targets.flatten() for _, targets in batches]))
    assert decoding_loss(model, batches, weights) == pytest.approx(float(expected), rel=1e-5)


class TestGenerate:
    @pytest.mark.parametrize("weights", ["bf16", "int8"])
    def test_text_is_that_of_the_packed_weights(self, weights):
        model = make_model("whole vectors")
        found = model.generate(make_ids(model, 3)[:, :1], 11, temperature=0, weights=weights)
        assert torch.equal(found[:, 1:], reference(model, found[:, :-1], weights).argmax(dim=-1))

    @pytest.mark.parametrize("batch", [2, 17])  # more rows than the kernel is made for go through the model
    def test_a_half_precision_model_takes_the_parameters_only(self, batch):
        model = make_model("whole vectors").to(torch.bfloat16)
        assert model.generate(make_ids(model, batch)[:, :3], 4, temperature=0).shape == (batch, 7)
        message = "generate: weights is 'int8' for a model in bfloat16 on cpu, expected one in float32 on cpu"
        with pytest.raises(ValueError, match=message):
            model.generate(make_ids(model, 1), 1, weights="int8")

    def test_unknown_weights(self):
        model = make_model("odd")
        with pytest.raises(ValueError, match="generate: weights is 'int4', expected one of fp32, bf16, int8"):
            model.stream(make_ids(model, 1), 1, weights="int4")


class TestDecoder:
    def test_refuses_another_dtype(self):
        model = make_model("odd").to(torch.bfloat16)
        with pytest.raises(ValueError, match="decode: model is a model in bfloat16 on cpu, expected one in float32"):
            Decoder(model, [KVCache(model, 2, 1)])

    def test_refuses_a_full_cache_and_wrong_ids(self):
        model = make_model("odd")
        decoder = Decoder(model, [KVCache(model, 2, 1)])
        with pytest.raises(IndexError, match="decode: ids holds the token 61, expected 0 <= token < 61"):
            decoder.step(torch.tensor([0, 61]))
        with pytest.raises(ValueError, match=r"decode: ids has shape \(3,\), expected 2 of int64"):
            decoder.step(torch.tensor([0, 1, 2]))
        decoder.step(torch.tensor([0, 60]))
        with pytest.raises(ValueError, match="decode: the cache holds 1 tokens, expected fewer than its 1"):
            decoder.step(torch.tensor([0, 60]))
