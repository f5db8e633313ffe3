#!/usr/bin/env python3
"""The memory that `gpt2c plan` says beside what training then takes at its peak, for sixteen configurations.

    python python/plan_check.py [--only 124M]

Each is trained for three steps in a process of its own, evaluation, sample and checkpoints included. The constants of
gpt2c/plan/memory.py were fitted to the first nine; the others were held out. Takes about five minutes.
"""

from __future__ import annotations

import argparse

from gpt2c.plan.memory import Place, plan_memory
from gpt2c.plan.trial import empty_process, try_out
from gpt2c.settings import TrainConfig
from gpt2c.tokenizer import get_tokenizer

SIZES = {  # n_layer, n_head, n_embd
    "11M": (6, 6, 192), "20M": (6, 6, 288), "30M": (6, 6, 384), "38M": (12, 8, 512), "51M": (8, 8, 512),
    "86M": (12, 12, 768), "124M": (12, 12, 768), "355M": (24, 16, 1024),
}  # fmt: skip


def row(name: str, batch: int, context: int, **changes: object) -> tuple[str, TrainConfig]:
    n_layer, n_head, n_embd = SIZES[name]
    tokenizer = "bytes" if name in ("38M", "86M") else "gpt2"
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "tokenizer": tokenizer}
    words = [f"{key} {value}" if value is not True else key for key, value in changes.items()]
    config = TrainConfig(batch_size=batch, context=context, **sizes, **changes)
    return " ".join([name, *([tokenizer] * (tokenizer == "bytes")), f"B{batch}xT{context}", *words]), config


FITTED = [
    row("11M", 32, 256),
    row("20M", 8, 512),
    row("124M", 4, 64),
    row("124M", 4, 256),
    row("124M", 4, 256, recompute=True),
    row("20M", 8, 512, recompute=True),
    row("20M", 8, 512, dropout=0.1),
    row("124M", 2, 256, accumulation=2),
    row("86M", 2, 512, accumulation=2, recompute=True),
]
HELD_OUT = [
    row("51M", 4, 256),
    row("30M", 8, 512, dropout=0.1),
    row("124M", 1, 1024),
    row("38M", 4, 1024, recompute=True),
    row("355M", 1, 128),
    row("51M", 2, 256, accumulation=4),
    row("20M", 4, 512, accumulation=2, recompute=True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="configurations whose name begins so")
    only = parser.parse_args().only
    empty = {name: empty_process(TrainConfig(tokenizer=name)) for name in ("bytes", "gpt2")}
    print("| configuration | planned, GB | measured, GB | planned / measured |\n| --- | ---: | ---: | ---: |")
    for title, rows in (("fitted", FITTED), ("held out", HELD_OUT)):
        for name, config in rows:
            if name.startswith(only):
                sizes = config.model_config(get_tokenizer(config.tokenizer).vocab_size)
                planned = plan_memory(config, sizes, Place("cpu", "fp32", empty[config.tokenizer])).total
                measured = try_out(config, 3).peak
                shown = f"{planned / 1e9:.2f} | {measured / 1e9:.2f} | {planned / measured:.2f}"
                print(f"| {name} ({title}) | {shown} |", flush=True)


if __name__ == "__main__":
    main()
