"""GGUF, llama.cpp's format, through the package `gguf` of its makers: the architecture "gpt2" and its tokenizer.

Matrices are (out, in), the head is the embedding (llama.cpp takes it where there is no output.weight). Vectors and the
positions are fp32; matrices fp32, fp16, or q8_0: blocks of 32 numbers of 8 bits with an fp16 scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2c.chat.template import PLAIN_CHAT_TEMPLATE, template_of
from gpt2c.errors import UserError
from gpt2c.files import replacing, writing
from gpt2c.finite import require_fit
from gpt2c.model import GPT2
from gpt2c.tokenizer import END_OF_TEXT, LibraryTokenizer, Tokenizer
from gpt2c.tokenizer.saving import vocabulary

ARCHITECTURE = "gpt2"
DTYPES = ("fp32", "fp16", "q8_0")
Q8_BLOCK = 32
NAMES = {  # ours -> llama.cpp's, of a layer
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def export(model: GPT2, tokenizer: Tokenizer, path: Path, dtype: str = "fp32") -> None:
    """Write the file. Raises UserError if it cannot be written, for a width that q8_0 cannot have, for a weight that is
    not finite or too large for the dtype, or without the package."""
    try:
        import gguf
    except ImportError as error:
        raise UserError('GGUF needs the package gguf: pip install "gpt2c[export]"') from error
    if dtype == "q8_0" and model.config.n_embd % Q8_BLOCK:
        raise UserError(f"the model is {model.config.n_embd} wide, expected a multiple of {Q8_BLOCK} for q8_0")
    for name, parameter in model.named_parameters():
        is_narrow = parameter.ndim == 2 and name != "wpe.weight"
        require_fit(name, parameter, dtype if is_narrow else "fp32")
    with writing(path), replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        _add_settings(writer, gguf, model, dtype)
        _add_tokenizer(writer, gguf, tokenizer)
        for name, tensor in _tensors(model):
            kind = dtype if tensor.ndim == 2 and name != "position_embd.weight" else "fp32"
            array = tensor.detach().float().contiguous().numpy()
            if kind == "q8_0":
                packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
                writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            else:
                writer.add_tensor(name, array.astype("float16" if kind == "fp16" else "float32"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_settings(writer: Any, gguf: Any, model: GPT2, dtype: str) -> None:
    c = model.config
    kinds = {"fp32": gguf.LlamaFileType.ALL_F32, "fp16": gguf.LlamaFileType.MOSTLY_F16}
    writer.add_name("GPT-2")
    writer.add_context_length(c.n_positions)
    writer.add_embedding_length(c.n_embd)
    writer.add_feed_forward_length(4 * c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_head_count(c.n_head)
    writer.add_layer_norm_eps(c.layer_norm_epsilon)
    writer.add_file_type(kinds.get(dtype, gguf.LlamaFileType.MOSTLY_Q8_0))
    if dtype == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tokenizer(writer: Any, gguf: Any, tokenizer: Tokenizer) -> None:
    pieces = vocabulary(tokenizer)
    _check(tokenizer, pieces)
    kinds = gguf.TokenType
    types = [kinds.NORMAL] * tokenizer.vocab_size
    for token in pieces["added_tokens"]:
        types[token["id"]] = kinds.CONTROL if token["special"] else kinds.USER_DEFINED
    names = {id: name for name, id in pieces["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in pieces["added_tokens"]}
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in pieces["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names[id] for id in range(tokenizer.vocab_size)])
    writer.add_token_types(types)
    # llama.cpp refuses a file without merges, as the byte tokenizer's would be. This one never happens: no text is cut
    # into its sides, which are longer than a byte.
    writer.add_token_merges(pairs or [f"{END_OF_TEXT} {END_OF_TEXT}"])
    _add_special(writer, tokenizer)


def _add_special(writer: Any, tokenizer: Tokenizer) -> None:
    ends, roles = tokenizer.ends, tokenizer.facts.roles
    writer.add_bos_token_id(tokenizer.start)
    writer.add_eos_token_id(ends[0])
    writer.add_add_bos_token(bool(tokenizer.begin))
    if tokenizer.finish:
        writer.add_add_eos_token(True)
    for role, add in (("unk_token", writer.add_unk_token_id), ("pad_token", writer.add_pad_token_id)):
        if roles.get(role) in tokenizer.special and roles[role] != END_OF_TEXT:
            add(tokenizer.special[roles[role]])
    if (template := template_of(tokenizer)) is not None:
        writer.add_eot_token_id(template.end)
        writer.add_chat_template(PLAIN_CHAT_TEMPLATE)
    elif len(ends) > 1:
        writer.add_eot_token_id(ends[1])


def _check(tokenizer: Tokenizer, pieces: Mapping[str, Any]) -> None:
    """Raises UserError for a tokenizer that llama.cpp would run otherwise than its files say."""
    cut = pieces["pre_tokenizer"] or {}
    as_gpt2 = cut.get("type") == "ByteLevel" and not cut.get("add_prefix_space") and cut.get("use_regex", True)
    flagged = [
        t["content"] for t in pieces["added_tokens"] if any(t.get(f) for f in ("lstrip", "rstrip", "single_word"))
    ]
    reasons = {
        "another way to cut texts than GPT-2's": not as_gpt2,
        "a normalizer": pieces["normalizer"],
        "ignore_merges": isinstance(tokenizer, LibraryTokenizer) and pieces["model"].get("ignore_merges"),
        "other tokens put before a text than the beginning's": tokenizer.begin not in ((), (tokenizer.start,)),
        "other tokens put after a text than the end's": tokenizer.finish not in ((), tokenizer.ends[:1]),
        f"a flag of the added token {flagged[:1]}": flagged,
        "more than two ids that end a text": len(tokenizer.ends) > 2 and template_of(tokenizer) is None,
    }
    for what, is_there in reasons.items():
        if is_there:
            raise UserError(f"the tokenizer {tokenizer.name} has {what}, which GGUF cannot hold: export to hf")


def _tensors(model: GPT2) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's name and tensor of each parameter."""
    state = model.state_dict()
    yield "token_embd.weight", state["wte.weight"][: model.config.vocab_size]
    yield "position_embd.weight", state["wpe.weight"]
    for i in range(model.config.n_layer):
        for ours, theirs in NAMES.items():
            weight = state[f"h.{i}.{ours}.weight"]
            yield f"blk.{i}.{theirs}.weight", weight.t() if weight.ndim == 2 else weight
            yield f"blk.{i}.{theirs}.bias", state[f"h.{i}.{ours}.bias"]
    yield "output_norm.weight", state["ln_f.weight"]
    yield "output_norm.bias", state["ln_f.bias"]
