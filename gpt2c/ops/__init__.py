"""The operations GPT-2 is made of: one file each, with reference, checks, operator and gradient."""

from gpt2c.ops import _flops  # noqa: F401
from gpt2c.ops.adamw import adamw_, adamw_reference
from gpt2c.ops.attention import attention, attention_reference
from gpt2c.ops.block import Weights as BlockWeights
from gpt2c.ops.block import block, block_reference, cached_block
from gpt2c.ops.cross_entropy import cross_entropy, cross_entropy_reference
from gpt2c.ops.embedding import embedding, embedding_reference, tied_embedding
from gpt2c.ops.gelu import bias_gelu, bias_gelu_reference, gelu, gelu_reference
from gpt2c.ops.grad_norm import grad_norm, grad_norm_reference
from gpt2c.ops.layernorm import (
    layernorm,
    layernorm_reference,
    residual_layernorm,
    residual_layernorm_reference,
)
from gpt2c.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from gpt2c.ops.matmul import matmul, matmul_reference

__all__ = [
    "BlockWeights",
    "adamw_",
    "adamw_reference",
    "attention",
    "attention_reference",
    "bias_gelu",
    "bias_gelu_reference",
    "block",
    "block_reference",
    "cached_block",
    "cross_entropy",
    "cross_entropy_reference",
    "embedding",
    "embedding_reference",
    "gelu",
    "gelu_reference",
    "grad_norm",
    "grad_norm_reference",
    "layernorm",
    "layernorm_reference",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "matmul",
    "matmul_reference",
    "residual_layernorm",
    "residual_layernorm_reference",
    "tied_embedding",
]
