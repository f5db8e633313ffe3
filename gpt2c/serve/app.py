"""The web application, and the server that it runs in."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from gpt2c.errors import UserError, reason
from gpt2c.serve import openai, pages, static, translation
from gpt2c.serve.errors import add_handlers
from gpt2c.serve.guard import Guard
from gpt2c.serve.service import Service
from gpt2c.serve.translation import Translations

HOST = "127.0.0.1"
MOST_BYTES = 2**20  # of a request's body


@dataclass(frozen=True)
class Site:
    """What is served under a name: its routes, and what ends the texts that are being written."""

    name: str
    routers: Sequence[APIRouter]
    interrupt: Callable[[], None]


def gpt2_site(service: Service) -> Site:
    """The page and the API of a GPT-2, whose engine is started and stopped by whoever serves it."""
    return Site(service.name, [openai.router(service), pages.router(service)], service.engine.interrupt)


def translator_site(served: Translations) -> Site:
    """The page of an encoder-decoder, whose texts are a few short steps: nothing to interrupt."""
    return Site(served.name, [translation.router(served)], lambda: None)


def create_app(site: Site, most_bytes: int = MOST_BYTES) -> FastAPI:
    # FastAPI's own pages of documentation would load scripts from elsewhere.
    app = FastAPI(title="gpt2c", docs_url=None, redoc_url=None, openapi_url=None)
    for router in (static.router(), *site.routers):
        app.include_router(router)
    paths = [route.path for router in site.routers for route in router.routes if isinstance(route, APIRoute)]
    app.state.paths = ["/", *(path for path in paths if path.startswith("/v1/") and "{" not in path)]
    add_handlers(app)
    app.add_middleware(Guard, most_bytes=most_bytes)
    return app


def listen(port: int) -> socket.socket:
    """A socket on this machine alone; port 0 takes a free one. UserError if it cannot be had."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is in use by another program: give another one with --port") from error
        raise UserError(f"cannot listen on port {port} of {HOST}: {reason(error)}") from error
    return listener


class Server(uvicorn.Server):
    """Ends with its first SIGINT or SIGTERM: texts that are being written end there, and their clients are told."""

    def __init__(self, site: Site, **app: Any) -> None:
        # Clients keep idle connections for some seconds: a server that closes them first loses their next request.
        super().__init__(
            uvicorn.Config(
                create_app(site, **app), log_level="warning", timeout_graceful_shutdown=5, timeout_keep_alive=75
            )
        )
        self._interrupt = site.interrupt

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._interrupt()
        super().handle_exit(sig, frame)
