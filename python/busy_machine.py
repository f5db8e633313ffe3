"""What a busy core costs: a training step and a token of the demo's model, with OpenMP's ways to wait, in turns.

    python python/busy_machine.py [--rounds 5]

Nothing else should run meanwhile. A round takes about a minute and a half.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from contextlib import contextmanager

# gpt2c asks for a short spin where torch is not loaded before it.
WAYS = {
    "gpt2c's": ("", {}),
    "OpenMP's default": ("import torch", {}),
    "OMP_WAIT_POLICY=passive": ("", {"OMP_WAIT_POLICY": "passive"}),
}
STEPS, TOKENS = 40, 60
MEASURE = f"""
import statistics, time
import gpt2c, torch
gpt2c.keep_heap()
torch.manual_seed(0)
model = gpt2c.GPT2(gpt2c.GPT2Config(n_layer=4, n_head=4, n_embd=192, n_positions=128, vocab_size=257))
optimizer = gpt2c.AdamW(model.parameters(), lr=1e-3)
idx = torch.randint(0, 257, (8, 129))
seconds = []
for _ in range({STEPS}):
    start = time.perf_counter()
    model(idx[:, :-1], idx[:, 1:])[1].backward()
    gpt2c.ops.grad_norm([p.grad for p in model.parameters()])
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.perf_counter() - start)
start = time.perf_counter()
model.eval().generate(idx[:1, :8], max_new_tokens={TOKENS}, seed=0)
print(1e3 * statistics.median(seconds), 1e3 * (time.perf_counter() - start) / {TOKENS})
"""


@contextmanager
def busy_core():
    """One process more that never stops computing."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def measure(way: str) -> tuple[float, float]:
    """Milliseconds of a step and of a token."""
    before, settings = WAYS[way]
    environment = {n: v for n, v in os.environ.items() if n not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | settings
    code = f"{before}\n{MEASURE}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    step, token = map(float, done.stdout.split())
    return step, token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for way in WAYS:
            times.setdefault((way, "idle"), []).append(measure(way))
        with busy_core():
            for way in WAYS:
                times.setdefault((way, "one core busy"), []).append(measure(way))
    print(f"{'how threads wait':25} {'machine':14} {'ms a step':>10} {'ms a token':>11}")
    for (way, machine), found in sorted(times.items(), key=lambda item: item[0][1]):
        step, token = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{way:25} {machine:14} {step:10.1f} {token:11.2f}")


if __name__ == "__main__":
    main()
