"""AdamW as a torch optimizer, over the kernel of gpt2c/ops/adamw.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gpt2c.ops.adamw import adamw_


class AdamW(torch.optim.Optimizer):
    """AdamW with the update of torch.optim.AdamW, in one pass over memory for all tensors of a group.

    params: tensors or parameter groups, fp32 or bf16; lr: learning rate; betas: decay of the first and second moment;
    eps: added to the root of the second moment; weight_decay: decoupled, multiplied by lr. The state of a parameter
    is `step` (fp32 tensor), `exp_avg` and `exp_avg_sq` (fp32, its shape), as in torch. Raises ValueError for a
    negative lr, eps or weight_decay and for betas outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict) -> None:
        settings = {**self.defaults, **param_group}
        for name in ("lr", "eps", "weight_decay"):
            if not settings[name] >= 0:
                raise ValueError(f"AdamW: {name} is {settings[name]}, expected 0 or more")
        if not all(0 <= beta < 1 for beta in settings["betas"]):
            raise ValueError(f"AdamW: betas are {settings['betas']}, expected both in [0, 1)")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None, *, grad_scale: float = 1.0) -> Tensor | None:
        """One update of every parameter that has a gradient, which is multiplied by grad_scale in the same pass.

        Gradients themselves are left as they are. Returns what closure returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for (_, step), params in self._by_dtype_and_step(group["params"]).items():
                states = [self.state[p] for p in params]
                adamw_(
                    params, [p.grad for p in params], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states],
                    step, group["lr"], *group["betas"], group["eps"], group["weight_decay"], grad_scale,
                )  # fmt: skip
                for state in states:
                    state["step"] += 1
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        # The base class casts moments to their parameter's dtype; ours are fp32 whatever that is.
        saved = state_dict["state"]
        params = (p for group in self.param_groups for p in group["params"])
        indices = (i for group in state_dict["param_groups"] for i in group["params"])
        for p, i in zip(params, indices, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                if i in saved:
                    self.state[p][name] = (
                        saved[i][name].to(p.device, torch.float32).clone(memory_format=torch.contiguous_format)
                    )

    def _by_dtype_and_step(self, params: list[Tensor]) -> dict[tuple[torch.dtype, int], list[Tensor]]:
        """The parameters to update, by what one kernel call can take: their dtype and the number of their step."""
        lists: dict[tuple[torch.dtype, int], list[Tensor]] = {}
        for p in params:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32, memory_format=torch.contiguous_format)
                state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
            lists.setdefault((p.dtype, int(state["step"]) + 1), []).append(p)
        return lists
