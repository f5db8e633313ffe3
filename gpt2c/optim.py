"""AdamW as a torch optimizer, over the kernel of gpt2c/ops/adamw.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from gpt2c.ops._library import as_flag, as_integer, as_number
from gpt2c.ops.adamw import adamw_
from gpt2c.optim_options import check_options, check_saved, check_state


class AdamW(torch.optim.Optimizer):
    """AdamW with the update of torch.optim.AdamW, in one pass over memory for all tensors of a group.

    params: tensors or parameter groups, fp32, bf16 or on CUDA fp16; lr: learning rate; betas: decay of the first and
    second moment; eps: added to the root of the second moment; weight_decay: decoupled, multiplied by lr. These five
    are numbers, or tensors of one element. The state of a parameter is `step` (fp32 tensor), `exp_avg` and `exp_avg_sq`
    (fp32, its shape), as in torch.

    Updates smaller than half the distance between two 16-bit numbers are lost in 16-bit parameters, unless
    master_weights: their state has `master`, the parameter's fp32 value, begun with the parameter at its first step;
    it is what is updated, and the parameter is the master rounded. Or stochastic_rounding (bf16): without more memory,
    parameters are rounded up or down at random so that updates count on average; the random numbers are a function of
    `seed`, the step and the element's position. fp32 parameters need neither and are updated as without.

    Compiled code runs its step as it is, outside of the graph. Raises TypeError for settings of other types, ValueError
    for options that it has not, for a negative lr, eps, weight_decay or seed, for betas outside [0, 1), and for both
    remedies at once.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        rounding = {"master_weights": master_weights, "stochastic_rounding": stochastic_rounding, "seed": seed}
        super().__init__(params, defaults | rounding)

    def add_param_group(self, param_group: dict) -> None:
        settings = {**self.defaults, **param_group}
        check_options(settings)
        numbers = _numbers(settings)
        for name in ("lr", "eps", "weight_decay"):
            if not numbers[name] >= 0:
                raise ValueError(f"AdamW: {name} is {settings[name]}, expected 0 or more")
        if as_integer("AdamW", "seed", settings["seed"]) < 0:
            raise ValueError(f"AdamW: seed is {settings['seed']}, expected 0 or more")
        if not (0 <= numbers["beta1"] < 1 and 0 <= numbers["beta2"] < 1):
            raise ValueError(f"AdamW: betas are {settings['betas']}, expected both in [0, 1)")
        for name in ("master_weights", "stochastic_rounding"):
            as_flag("AdamW", name, settings[name])
        if settings["master_weights"] and settings["stochastic_rounding"]:
            raise ValueError("AdamW: master_weights and stochastic_rounding are both on, expected at most one of them")
        super().add_param_group(param_group)

    @torch._disable_dynamo  # as a whole: compiled, it would be broken at each parameter and made anew at each step
    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None, *, grad_scale: float | Tensor = 1.0) -> Tensor | None:
        """One update of every parameter that has a gradient, which is multiplied by grad_scale in the same pass.

        grad_scale: a number, or one fp32 element on the parameters' device, which nobody waits for; if it is inf or
        nan, parameters and moments stay as they are, but the step counts. Gradients are never changed. Returns what
        closure returns. Raises RuntimeError while a CUDA graph is captured: replays would repeat this step's constants.
        """
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("AdamW: step is called while a CUDA graph is captured, expected it outside of the graph")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        calls = 0
        for group in self.param_groups:
            check_options(group)
            numbers = _numbers(group)
            for (dtype, step), params in self._by_dtype_and_step(group).items():
                states = [self.state[p] for p in params]
                narrow = dtype != torch.float32
                masters = [s["master"] for s in states] if narrow and group["master_weights"] else None
                random = narrow and group["stochastic_rounding"]
                adamw_(
                    params, [p.grad for p in params], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states],
                    step, **numbers, grad_scale=grad_scale, masters=masters,
                    seed=_seed(group["seed"], step, calls, params[0].device) if random else None,
                )  # fmt: skip
                calls += 1
                for state in states:
                    state["step"] += 1
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's; also of torch.optim.AdamW. Raises ValueError, before anything is changed, for options and states
        that are not AdamW's here (maximize, amsgrad, another optimizer's), and if masters are there where
        master_weights, which is loaded too, wants none, or the other way round."""
        saved = state_dict["state"]
        check_saved(state_dict["param_groups"])
        own = [p for group in self.param_groups for p in group["params"]]
        indices = [(i, group) for group in state_dict["param_groups"] for i in group["params"]]
        for p, (i, group) in zip(own, indices, strict=False):  # of other lengths: told by the base class
            check_state(i, saved.get(i, {}), p)
            group = {**self.defaults, **group}
            wanted = _has_master(p, group)
            if i in saved and ("master" in saved[i]) != wanted:
                raise ValueError(
                    f"AdamW: the saved state of parameter {i} has {'no' if wanted else 'a'} master, expected"
                    f" {'one' if wanted else 'none'}: it is {p.dtype}, with master_weights={group['master_weights']}"
                )
        super().load_state_dict(state_dict)
        # The base class casts the state to its parameter's dtype; ours is fp32 whatever that is.
        for p, (i, _) in zip(own, indices, strict=True):
            if "step" in saved.get(i, {}):  # on a GPU each step would wait for it
                self.state[p]["step"] = torch.tensor(float(saved[i]["step"]), dtype=torch.float32, device="cpu")
            for name in {"exp_avg", "exp_avg_sq", "master"} & saved.get(i, {}).keys():
                self.state[p][name] = (
                    saved[i][name].to(p.device, torch.float32).clone(memory_format=torch.contiguous_format)
                )

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # settings that torch's AdamW does not save
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def _by_dtype_and_step(self, group: dict) -> dict[tuple[torch.dtype, int], list[Tensor]]:
        """The group's parameters to update, by what one kernel call can take: their dtype and the number of their
        step."""
        lists: dict[tuple[torch.dtype, int], list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
                state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32, memory_format=torch.contiguous_format)
                state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
                if _has_master(p, group):
                    state["master"] = p.detach().to(torch.float32, memory_format=torch.contiguous_format)
            lists.setdefault((p.dtype, int(state["step"]) + 1), []).append(p)
        return lists


def _numbers(group: dict) -> dict[str, float]:
    """A group's settings as the op takes them. torch's AdamW also has lr and betas as tensors of one element, which its
    schedulers and state dicts bring along; on a GPU, they are waited for."""
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"AdamW: betas are {betas}, expected two numbers")
    numbers = {"lr": group["lr"], "beta1": betas[0], "beta2": betas[1]}
    numbers |= {name: group[name] for name in ("eps", "weight_decay")}
    return {name: as_number("AdamW", name, _item(value)) for name, value in numbers.items()}


def _item(value: object) -> object:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _has_master(p: Tensor, group: dict) -> bool:
    return group["master_weights"] and p.dtype != torch.float32


def _seed(seed: int, step: int, call: int, device: torch.device) -> Tensor:
    """What decides the rounding of a kernel call, one int64 element: its own for each call of each step."""
    (word,) = np.random.Philox(key=seed, counter=[0, step, call, 0]).random_raw(1).view(np.int64)
    return torch.full((1,), int(word), dtype=torch.int64, device=device)
