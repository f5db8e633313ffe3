"""How fast `gpt2c serve` is: a client of its API, and one of its page, beside `gpt2c sample`, and many at a time.

    python python/serve_load.py MODEL --seconds 60 --clients 1 2 4 16

Starts the server itself. The sides of the comparison take turns; all count from their first token to their last. The
page gets more of each token: its alternatives.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import torch

from gpt2c.load import load_model
from gpt2c.tokenizer import StreamDecoder

PROMPT = "The"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=100, help="of a text, at most")
    parser.add_argument("--rounds", type=int, default=5, help="of the comparison with gpt2c sample")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 16])
    parser.add_argument("--seconds", type=float, default=20, help="for each number of clients")
    args = parser.parse_args()
    command = [sys.executable, "-m", "gpt2c", "serve", args.model, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            name, address = line.split(": http://")[0], line.split("http://")[1].split()[0]
            beside_sample(args.model, address, name, args.tokens, args.rounds)
            for count in args.clients:
                load(address, name, args.tokens, count, args.seconds)
        finally:
            server.terminate()


def events(address: str, path: str, body: dict) -> Iterator[dict]:
    """Server-sent events as they come. Raises RuntimeError for a refusal or a failure."""
    connection = http.client.HTTPConnection(address, timeout=120)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {response.read().decode()}")
    for line in response:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            yield event
    connection.close()


def ask(address: str, name: str, tokens: int, seed: int) -> tuple[int, float]:
    """Tokens of one text that the API streams, and the seconds from its first event to its last."""
    body = {"model": name, "prompt": PROMPT, "max_tokens": tokens, "seed": seed, "stream": True}
    first, usage = 0.0, None
    for event in events(address, "/v1/completions", {**body, "stream_options": {"include_usage": True}}):
        first, usage = first or time.perf_counter(), event["usage"] or usage
    return usage["completion_tokens"], time.perf_counter() - first


def ask_page(address: str, tokens: int, seed: int) -> tuple[int, float]:
    """The same as the page asks for it."""
    first, count = 0.0, 0
    for event in events(address, "/api/write", {"text": PROMPT, "length": tokens, "seed": seed}):
        if written := event.get("tokens"):
            first, count = first or time.perf_counter(), count + len(written)
    return count, time.perf_counter() - first


def beside_sample(model_name: str, address: str, name: str, tokens: int, rounds: int) -> None:
    """The same texts by both: the same seeds."""
    model, tokenizer, _ = load_model(model_name)
    ids = torch.tensor([tokenizer.encode(PROMPT).tolist()])

    def sample(seed: int) -> tuple[int, float]:
        decoder, first, count = StreamDecoder(tokenizer), 0.0, 0
        for token in map(int, model.stream(ids, tokens, 1.0, seed=seed)):
            first, count = first or time.perf_counter(), count + 1
            if token == tokenizer.end_of_text:
                break
            print(decoder.feed(token), end="", file=sys.stderr, flush=True)
        return count, time.perf_counter() - first

    sides: dict[str, Callable[[int], tuple[int, float]]] = {
        "gpt2c sample": sample,
        "a client": lambda seed: ask(address, name, tokens, seed),
        "the page": lambda seed: ask_page(address, tokens, seed),
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for seed in range(rounds + 1):
        for side, write in sides.items():
            count, seconds = write(seed)
            if seed:  # the first warms up
                rates[side].append((count - 1) / seconds)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    for side, values in rates.items():
        print(f"{side}: {medians[side]:,.1f} tok/s, {min(values):,.1f} to {max(values):,.1f}")
    for side in ("a client", "the page"):
        print(f"{side} gets {medians[side] / medians['gpt2c sample']:.1%} of gpt2c sample's rate")


def load(address: str, name: str, tokens: int, count: int, seconds: float) -> None:
    """So many clients, each asking for one text after the other."""
    end, texts, errors, lock = time.monotonic() + seconds, [], [], threading.Lock()

    def client(number: int) -> None:
        seed = 1000 * number
        while time.monotonic() < end:
            seed += 1
            try:
                written, _ = ask(address, name, tokens, seed)
                with lock:
                    texts.append(written)
            except Exception as error:
                with lock:
                    errors.append(error)

    start = time.perf_counter()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    print(
        f"{count} clients, {took:.0f} s: {len(texts)} texts, {sum(texts) / took:,.1f} tok/s, {len(errors)} errors",
        *errors[:1],
    )


if __name__ == "__main__":
    main()
