"""What a parameter group and a saved state may hold: AdamW's own, and what changes nothing. All else is refused."""

from __future__ import annotations

from torch import Tensor

from gpt2c.errors import shown

STATE = ("step", "exp_avg", "exp_avg_sq", "master")
NUMBERS = ("lr", "betas", "eps", "weight_decay")
OWN = (*NUMBERS, "master_weights", "stochastic_rounding", "seed")
# Of torch's optimizers: options that AdamW here has not, with the value that changes nothing.
NEUTRAL = {"amsgrad": False, "maximize": False, "capturable": False, "differentiable": False}
WAYS = {"foreach", "fused"}  # how torch computes the same
# What names a group, and what torch's schedulers and averages keep in it.
NOTES = {"params", "name", "param_names", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}


def check_options(group: dict) -> None:
    """Raises ValueError, one sentence, for an option that is not AdamW's here and would change the result."""
    for name, value in group.items():
        if name in OWN or name in WAYS or name in NOTES:
            continue
        if name == "decoupled_weight_decay":  # torch's word for AdamW beside Adam, which are one without decay
            if not value and group.get("weight_decay") != 0:
                raise ValueError("AdamW: decoupled_weight_decay is False, as of torch's Adam, expected True")
        elif name not in NEUTRAL:
            raise ValueError(f"AdamW: a group has {name!r}, which is no setting of it, expected {', '.join(OWN)}")
        elif value not in (NEUTRAL[name], None):
            raise ValueError(f"AdamW: {name} is {shown(value)}, which is not supported, expected {NEUTRAL[name]}")


def check_saved(groups: list[dict]) -> None:
    """The groups of a state dict: check_options, and that none of the numbers is missing."""
    for group in groups:
        check_options(group)
        missing = [name for name in NUMBERS if name not in group]
        if missing:
            raise ValueError(f"AdamW: a saved group lacks {missing[0]}, expected the state of an AdamW")


def check_state(i: int, saved: dict, p: Tensor) -> None:
    """The saved state of parameter number i is one of AdamW's, for a parameter of this shape; or empty."""
    unknown = [name for name in saved if name not in STATE]
    if unknown:
        raise ValueError(f"AdamW: the saved state of parameter {i} has {unknown[0]}, expected {', '.join(STATE)}")
    missing = [name for name in STATE[:3] if saved and name not in saved]
    if missing:
        raise ValueError(f"AdamW: the saved state of parameter {i} lacks {missing[0]}")
    for name, value in saved.items():
        if name == "step":
            step = float(value)
            if not (step >= 0 and step.is_integer()):
                raise ValueError(f"AdamW: the saved step of parameter {i} is {step}, expected a whole number")
        elif not isinstance(value, Tensor) or value.shape != p.shape:
            shape = tuple(getattr(value, "shape", ()))
            raise ValueError(f"AdamW: {name} of parameter {i} has shape {shape}, expected {tuple(p.shape)}")
