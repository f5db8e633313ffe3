"""How far a kernel's result may lie from the float64 reference, and why.

A result passes if |got - expected| <= rel * |expected| + abs * max|expected| (see checks.assert_close).
"""

from __future__ import annotations

import torch

# op: {dtype: (rel, abs)}. fp32 has 6e-8 of rounding per operation, bf16 4e-3 (half an ulp: 2^-8) on each stored result,
# fp16 5e-4 (2^-11): where that is all, fp16's are an eighth of bf16's. Below 6e-5 fp16 has steps of 6e-8, which abs
# covers if the largest result is not that small, too; above 65504 it has infinity, as the reference does not.
TOLERANCES = {
    # Sums of up to 1023 terms of a row, in 8 or so partial sums: about 10 roundings deep; and their square root.
    # In bf16 the fused form stores h = x + residual rounded, which moves xhat by up to 2^-8 |h|, about 1e-2 at 3 sigma.
    "layernorm": {torch.float32: (1e-6, 3e-6), torch.bfloat16: (8e-3, 1.6e-2), torch.float16: (1e-3, 2e-3)},
    # exp and erfcx are good to 3e-7; slopes cancel near their minimum, which abs covers.
    "gelu": {torch.float32: (3e-6, 1e-6), torch.bfloat16: (8e-3, 2e-3), torch.float16: (1e-3, 2.5e-4)},
    # Dot products of D <= 256 terms make scores with 1e-6 relative error, which exp turns into a relative error of the
    # probabilities; then sums over up to Tk keys.
    "attention": {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1.6e-2, 8e-3), torch.float16: (2e-3, 1e-3)},
    # Loss and gradient of softmax; exp's error only, since sums are carried in fp64.
    "cross_entropy": {torch.float32: (2e-6, 1e-6), torch.bfloat16: (8e-3, 1e-3), torch.float16: (1e-3, 1.25e-4)},
    # As above, behind and before matrix products of C and V terms, whose bf16 results are rounded to bf16.
    "linear_cross_entropy": {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2), torch.float16: (2e-3, 2e-3)},
    # Dot products of up to 1023 terms; abs covers the ones that cancel.
    "matmul": {torch.float32: (1e-6, 3e-6), torch.bfloat16: (4e-3, 4e-3), torch.float16: (5e-4, 5e-4)},
    # All of a layer's ops one after another, in the backward twice over; in 16 bits each stores a rounded result.
    "block": {torch.float32: (1e-5, 1e-5), torch.bfloat16: (3e-2, 3e-2), torch.float16: (4e-3, 4e-3)},
    # A whole model: products of up to 4 C terms, four times a layer, over a residual stream. The reference has the
    # weights as they were rounded.
    "decode": {torch.float32: (1e-5, 1e-5)},
    # One addition; the backward adds up to T rows of one token, with fp32 sums.
    "embedding": {torch.float32: (1e-6, 1e-6), torch.bfloat16: (4e-3, 1e-3), torch.float16: (5e-4, 1.25e-4)},
    # A dozen roundings; the root and the quotient amplify nothing.
    "adamw": {torch.float32: (1e-6, 1e-6), torch.bfloat16: (4e-3, 1e-6), torch.float16: (5e-4, 1e-6)},
    # Squares are summed 1024 at a time in fp32, then in fp64.
    "grad_norm": {torch.float32: (1e-6, 0.0), torch.bfloat16: (1e-6, 0.0), torch.float16: (1e-6, 0.0)},
}
