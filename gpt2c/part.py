"""Modules that hold parameters and are never called: the arithmetic of a layer is one operation, gpt2c.ops.block.

What would depend on such a module's being called, a hook on it or another module in its place, would silently have no
effect, and is refused.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn


class Holder(nn.Module):
    """A module that reads the parameters of its Parts, so that they can only be replaced by Parts."""

    def __setattr__(self, name: str, value: Any) -> None:
        old = self.__dict__.get("_modules", {}).get(name)
        if isinstance(old, Part) and isinstance(value, nn.Module) and not isinstance(value, Part):
            raise TypeError(
                f"{type(self).__name__}: {name} cannot be a {_kind(value)}, which would never be called: only its"
                f" parameters would be read, as those of a {_kind(old)}; expected one of that class or made of it"
            )
        super().__setattr__(name, value)


class Part(Holder):
    """Holds parameters. Parametrizations of them (`torch.nn.utils.parametrize`) and hooks on them work; what wants to
    be called with the module (hooks on it, `torch.nn.utils.prune`, FSDP of a single layer) raises TypeError."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: a hook on this module would never be called, because it only holds parameters of a"
            " larger operation; hook the parameter or the whole model, or look inside the same model in transformers"
            " (save_pretrained)"
        )

    register_forward_pre_hook = _refuse
    register_forward_hook = _refuse
    register_full_backward_pre_hook = _refuse
    register_full_backward_hook = _refuse
    register_backward_hook = _refuse


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
