"""ONNX: the model as a graph of standard operators, for onnxruntime and others.

    idx (batch, time) int64, time at most the context  ->  logits (batch, time, vocab) fp32

The graph is built here, layer by layer, in operators of opset 17, with both axes free; weights are fp32 and lie in the
file, which cannot be larger than 2 GB. Its metadata are context, vocab_size and
end_of_text, decimal numbers, of the last one or several with commas between.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpt2c.errors import UserError
from gpt2c.files import replacing, writing
from gpt2c.finite import require_fit
from gpt2c.model import GPT2
from gpt2c.tokenizer import Tokenizer

OPSET = 17
LARGEST = 2**31 - 2**20  # bytes that a file can hold


class Graph:
    """Nodes and constants as they are added; each value has a name."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.constants = onnx, [], []

    def constant(self, value: Any, dtype: str = "float32") -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, "int64")

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names


def export(model: GPT2, tokenizer: Tokenizer, path: Path) -> None:
    """Write the file. UserError if it cannot be written, for a model of more than 2 GB or with a weight that is not
    finite, or without the package."""
    try:
        import onnx
    except ImportError as error:
        raise UserError('ONNX needs the package onnx: pip install "gpt2c[onnx]"') from error
    size = 4 * sum(p.numel() for p in model.parameters())
    if size > LARGEST:
        raise UserError(f"the model has {size / 1e9:.1f} GB of weights, expected at most 2 GB, ONNX's limit of a file")
    for name, parameter in model.named_parameters():
        require_fit(name, parameter)
    proto = _model(onnx, model, tokenizer)
    with writing(path), replacing(path) as temporary:
        onnx.save(proto, str(temporary))


def _model(onnx: Any, model: GPT2, tokenizer: Tokenizer) -> Any:
    helper, c = onnx.helper, model.config
    graph = Graph(onnx)
    weights = {name: p.detach().float().numpy() for name, p in model.named_parameters()}
    weights["wte.weight"] = weights["wte.weight"][: c.vocab_size]
    logits = _forward(graph, weights, model)
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    idx = helper.make_tensor_value_info("idx", onnx.TensorProto.INT64, ["batch", "time"])
    out = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", "time", c.vocab_size])
    body = helper.make_graph(graph.nodes, "gpt2", [idx], [out], graph.constants)
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="gpt2c")
    facts = {"context": c.n_positions, "vocab_size": c.vocab_size, "end_of_text": ",".join(map(str, tokenizer.ends))}
    helper.set_model_props(proto, {name: str(value) for name, value in facts.items()})
    onnx.checker.check_model(proto)
    return proto


def _forward(g: Graph, weights: dict[str, np.ndarray], model: GPT2) -> str:
    wte = g.constant(weights["wte.weight"])
    time = g.add("Gather", g.add("Shape", "idx"), g.constant(1, "int64"))
    positions = g.add("Range", g.constant(0, "int64"), time, g.constant(1, "int64"))
    x = g.add("Add", g.add("Gather", wte, "idx"), g.add("Gather", g.constant(weights["wpe.weight"]), positions))
    # A score of a later key is lowered by so much that nothing of it is left.
    later = g.add("Greater", g.add("Unsqueeze", positions, g.ints(0)), g.add("Unsqueeze", positions, g.ints(1)))
    mask = g.add("Where", later, g.constant(-1e30), g.constant(0.0))
    for i in range(model.config.n_layer):
        layer = {name.removeprefix(f"h.{i}."): w for name, w in weights.items() if name.startswith(f"h.{i}.")}
        x = g.add("Add", x, _attention(g, layer, _norm(g, layer, "ln_1", x, model), mask, model))
        x = g.add("Add", x, _mlp(g, layer, _norm(g, layer, "ln_2", x, model)))
    y = _norm(g, weights, "ln_f", x, model)
    return g.add("MatMul", y, g.add("Transpose", wte, perm=[1, 0]))


def _norm(g: Graph, weights: dict[str, np.ndarray], name: str, x: str, model: GPT2) -> str:
    weight, bias = (g.constant(weights[f"{name}.{kind}"]) for kind in ("weight", "bias"))
    return g.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=model.config.layer_norm_epsilon)


def _linear(g: Graph, weights: dict[str, np.ndarray], name: str, x: str) -> str:
    product = g.add("MatMul", x, g.constant(weights[f"{name}.weight"]))
    return g.add("Add", product, g.constant(weights[f"{name}.bias"]))


def _attention(g: Graph, weights: dict[str, np.ndarray], y: str, mask: str, model: GPT2) -> str:
    H, D = model.config.n_head, model.config.head_dim
    parts = g.add("Split", _linear(g, weights, "attn.c_attn", y), outputs=3, axis=2)
    heads = [g.add("Reshape", part, g.ints(0, 0, H, D)) for part in parts]  # 0: as it is
    q, v = (g.add("Transpose", heads[i], perm=[0, 2, 1, 3]) for i in (0, 2))
    k = g.add("Transpose", heads[1], perm=[0, 2, 3, 1])
    scores = g.add("Add", g.add("Mul", g.add("MatMul", q, k), g.constant(D**-0.5)), mask)
    o = g.add("MatMul", g.add("Softmax", scores, axis=-1), v)
    rows = g.add("Reshape", g.add("Transpose", o, perm=[0, 2, 1, 3]), g.ints(0, 0, H * D))
    return _linear(g, weights, "attn.c_proj", rows)


def _mlp(g: Graph, weights: dict[str, np.ndarray], y: str) -> str:
    """With GPT-2's gelu, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    x = _linear(g, weights, "mlp.c_fc", y)
    cube = g.add("Mul", g.add("Mul", x, x), x)
    inner = g.add("Add", x, g.add("Mul", cube, g.constant(0.044715)))
    tanh = g.add("Tanh", g.add("Mul", inner, g.constant(np.sqrt(2 / np.pi))))
    half = g.add("Mul", x, g.constant(0.5))
    return _linear(g, weights, "mlp.c_proj", g.add("Mul", half, g.add("Add", tanh, g.constant(1.0))))
