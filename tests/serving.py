"""A small model behind a real server on a free port, for the tests of the API and of the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpt2c.chat.template import chat_tokenizer, template_of
from gpt2c.config import GPT2Config
from gpt2c.model import GPT2
from gpt2c.serve.app import Server, Site, gpt2_site, listen
from gpt2c.serve.engine import Engine
from gpt2c.serve.service import Service
from gpt2c.tokenizer import Tokenizer, get_tokenizer

NAME = "tiny"


def make_model(vocab_size: int, context: int = 256) -> GPT2:
    """Two layers of width 32 with weights large enough that the greedy text varies."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=vocab_size, n_positions=context, n_embd=32, n_layer=2, n_head=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        model.wte.weight[vocab_size:] = 0
    return model


def make_service(context: int = 256, chat: bool = True, **engine: Any) -> Service:
    """Bytes; with the tokens of a conversation, which it has not learned, if `chat`. The engine is not started."""
    tokenizer: Tokenizer = get_tokenizer("bytes")
    if chat:
        tokenizer = chat_tokenizer(tokenizer)
    model = make_model(tokenizer.vocab_size, context)
    return Service(NAME, model, tokenizer, template_of(tokenizer), Engine(model, **engine))


@contextmanager
def serving(service: Service, started: bool = True, **app: Any) -> Iterator[str]:
    """The address of a running server. started: whether its engine is, too."""
    if started:
        service.engine.start()
    with running(gpt2_site(service), service.engine.stop, **app) as url:
        yield url


@contextmanager
def running(site: Site, stop: Callable[[], None] = lambda: None, **app: Any) -> Iterator[str]:
    """The address of a running server, before whose end `stop` is called."""
    with listen(0) as listener:
        server = Server(site, **app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop()
            server.should_exit = True
            thread.join()


def wait_until(condition: Callable[[], bool]) -> None:
    """For at most a minute: other work may hold the machine."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen within a minute"
        time.sleep(0.005)
