"""Learning less than all weights: frozen layers, low-rank updates (LoRA), the last rows of the embedding.

    y = x (W + alpha / r A B) + b        A (in, r), B (r, out)

for the four matrices of every layer, where only A and B learn (Hu et al., "LoRA: Low-Rank Adaptation of Large Language
Models", 2021, section 4.1). A begins as a Linear layer's weights in torch do, B with zeros, as in the library `peft`,
whose files are read and written here.

The sum is made anew in each forward, so that layers and kernels know nothing of it: 48 r C^2 operations for a layer,
nothing beside its products, and 12 C^2 floats until its backward has run (340 MB for 124M parameters, where AdamW's
moments and gradients of all weights would take 1.5 GB). dW is computed as ever; dA and dB are made of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gpt2c.errors import UserError
from gpt2c.files import reading, replacing, save_tensors, write_atomically, writing
from gpt2c.finite import require_fit
from gpt2c.model import GPT2, Embedding, Linear

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TARGETS = ["c_attn", "c_fc", "c_proj"]  # by peft's names: c_proj is that of the attention and that of the MLP
PREFIX = "base_model.model.transformer."
# Settings of peft's LoraConfig that change the arithmetic, with the values that are LoRA as it is here.
REQUIRED = {
    "peft_type": ("LORA",), "bias": ("none",), "use_rslora": (False, None), "use_dora": (False, None),
    "layers_to_transform": (None,), "modules_to_save": (None,), "rank_pattern": ({}, None), "alpha_pattern": ({}, None),
}  # fmt: skip


class Sum(torch.autograd.Function):
    """W + scale A B, of which W is frozen; fp32, also under autocast, which the model's own cast follows."""

    @staticmethod
    def forward(ctx, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.scale = scale
        with torch.autocast(a.device.type, enabled=False):
            return torch.addmm(weight, a, b, alpha=scale)

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[None, Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        with torch.autocast(a.device.type, enabled=False):
            return None, ctx.scale * (d @ b.t()), ctx.scale * (a.t() @ d), None


class LoraLinear(Linear):
    """A Linear whose weight is the sum; takes a Linear's place, and its parameters."""

    def __init__(self, base: Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self.base_weight, self.bias = base.weight, base.bias
        n_in, n_out = base.weight.shape
        drawn = nn.init.kaiming_uniform_(torch.empty(rank, n_in, dtype=torch.float32, device="cpu"), a=math.sqrt(5))
        self.lora_a = nn.Parameter(drawn.t().contiguous().to(base.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(rank, n_out, dtype=torch.float32, device=base.weight.device))
        self.scale = alpha / rank

    @property
    def weight(self) -> Tensor:
        return Sum.apply(self.base_weight, self.lora_a, self.lora_b, self.scale)


class Rows(torch.autograd.Function):
    """A matrix whose rows from `first` to `first + len(rows)` are `rows`, of which alone there is a gradient."""

    @staticmethod
    def forward(ctx, weight: Tensor, rows: Tensor, first: int) -> Tensor:
        ctx.first, ctx.count = first, len(rows)
        # They are written where they belong, without a copy of the matrix. Not a change to what autograd has saved:
        # until an optimizer's step they are the same.
        weight.data[first : first + len(rows)] = rows
        return weight.detach()

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[None, Tensor, None]:
        return None, d[ctx.first : ctx.first + ctx.count].clone(), None


class RowsEmbedding(Embedding):
    """An Embedding of which only the rows from `first` to `last` learn; takes an Embedding's place."""

    def __init__(self, base: Embedding, first: int, last: int) -> None:
        nn.Module.__init__(self)
        self.base_weight = base.weight.requires_grad_(False)
        self.rows = nn.Parameter(base.weight.detach()[first:last].clone())
        self.first = first

    @property
    def weight(self) -> Tensor:
        return Rows.apply(self.base_weight, self.rows, self.first)


def freeze(model: GPT2, layers: int) -> None:
    """Have the first `layers` blocks stay as they are, and the embeddings before them: with wte the head, too, which is
    the same matrix. UserError for more layers than there are."""
    if layers > len(model.h):
        raise UserError(f"--freeze-layers is {layers}, expected at most {len(model.h)}, the model's layers")
    for module in (model.wte, model.wpe, *model.h[:layers]) if layers else ():
        module.requires_grad_(False)


def add_lora(model: GPT2, rank: int, alpha: float) -> None:
    """Put adapters of this rank beside the matrices of every block that is not frozen, and freeze all else."""
    learning = [block for block in model.h if block.mlp.c_fc.weight.requires_grad]
    model.requires_grad_(False)
    for block in learning:
        for part, name in _places(block):
            setattr(part, name, LoraLinear(getattr(part, name), rank, alpha))


def learn_rows(model: GPT2, first: int) -> None:
    """Have the token embedding's rows from `first` on learn, of all its rows: of tokens that are new."""
    model.wte = RowsEmbedding(model.wte, first, model.config.vocab_size)


@torch.no_grad()
def take_rows(model: GPT2, whole: GPT2) -> None:
    """Give the rows that learn, if there are some, the values that they have in the model `whole`."""
    if isinstance(model.wte, RowsEmbedding):
        rows = model.wte.rows
        rows.copy_(whole.wte.weight[model.wte.first : model.wte.first + len(rows)])


def adapters(model: GPT2) -> dict[str, LoraLinear]:
    """The model's adapters by the name of their module, `h.0.attn.c_attn`; none for an ordinary model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


@torch.no_grad()
def merged(model: GPT2) -> GPT2:
    """An ordinary model of the same function, a copy; an ordinary model itself. What saves and decodes needs it."""
    if not adapters(model) and not isinstance(model.wte, RowsEmbedding):
        return model
    with torch.device("meta"):
        plain = GPT2(model.config)
    plain = plain.to_empty(device=model.wte.weight.device).train(model.training)
    for name, parameter in plain.named_parameters():
        parameter.copy_(_value(model, name))
    return plain


def save_adapter(model: GPT2, folder: Path, base: str) -> None:
    """Write the adapters as peft does, for PeftModel.from_pretrained on the model `base`. UserError if that fails."""
    found = adapters(model)
    first = next(iter(found.values()))
    rank = first.lora_b.shape[0]
    tensors = {}
    for name, module in found.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = module.lora_a.detach().t().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = module.lora_b.detach().t().contiguous()
    layers = sorted({int(name.split(".")[1]) for name in found})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": first.scale * rank, "lora_dropout": 0.0, "target_modules": TARGETS,
        "fan_in_fan_out": True, "bias": "none",
        "layers_to_transform": layers if len(layers) < len(model.h) else None,
    }  # fmt: skip
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS) as path:
            save_tensors(tensors, path)
        write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def load_adapter(model: GPT2, folder: Path) -> None:
    """Add the adapters of a folder, ours or peft's, to an ordinary model. UserError if they do not fit it in every
    tensor."""
    with reading("adapter", folder / CONFIG):
        text = (folder / CONFIG).read_bytes()
    with reading("adapter", folder / WEIGHTS):
        tensors = load_file(folder / WEIGHTS)
    rank, alpha, layers = _settings(text, folder / CONFIG)
    frozen = [i for i in range(len(model.h)) if layers is not None and i not in layers]
    for i in frozen:
        model.h[i].requires_grad_(False)
    add_lora(model, rank, alpha)
    for name, module in adapters(model).items():
        for key, parameter in (("lora_A", module.lora_a), ("lora_B", module.lora_b)):
            key = f"{PREFIX}{name}.{key}.weight"
            found = tensors.pop(key, None)
            if found is None or found.t().shape != parameter.shape:
                shape = "none" if found is None else tuple(found.shape)
                raise UserError(f"{folder / WEIGHTS}: {key} is {shape}, expected {tuple(parameter.t().shape)}")
            require_fit(f"{folder}: {key}", found)
            parameter.data.copy_(found.t())
    if tensors:
        raise UserError(f"{folder / WEIGHTS} holds {min(tensors)}, which is no adapter of this model's four matrices")


def _settings(text: bytes, path: Path) -> tuple[int, float, list[int] | None]:
    """Rank, alpha and layers of adapter_config.json."""
    try:
        config = json.loads(text)
        rank, alpha, targets = int(config["r"]), float(config["lora_alpha"]), set(config["target_modules"])
        layers = config.pop("layers_to_transform", None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not an adapter's configuration, as the library peft writes it") from error
    for key, accepted in REQUIRED.items():
        if config.get(key, accepted[0]) not in accepted:
            raise UserError(f"{path} has {key} {config[key]!r}, expected {accepted[0]!r}")
    if targets != set(TARGETS):
        raise UserError(f"{path} has adapters for {sorted(targets)}, expected {TARGETS}")
    return rank, alpha, layers


def _places(block: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    yield from ((block.attn, "c_attn"), (block.attn, "c_proj"), (block.mlp, "c_fc"), (block.mlp, "c_proj"))


def _value(model: GPT2, name: str) -> Tensor:
    """A parameter of the ordinary model by its name."""
    module, _, kind = name.rpartition(".")
    return getattr(model.get_submodule(module), kind)
