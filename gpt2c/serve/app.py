"""The web application, and the server that it runs in."""

from __future__ import annotations

import errno
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from gpt2c.errors import UserError, reason
from gpt2c.serve import openai, pages
from gpt2c.serve.engine import Engine
from gpt2c.serve.errors import add_handlers
from gpt2c.serve.guard import Guard
from gpt2c.serve.service import Service

HOST = "127.0.0.1"
MOST_BYTES = 2**20  # of a request's body


def create_app(service: Service, most_bytes: int = MOST_BYTES) -> FastAPI:
    """The application; its engine is started and stopped by whoever runs it."""
    # FastAPI's own pages of documentation would load scripts from elsewhere.
    app = FastAPI(title="gpt2c", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(openai.router(service))
    app.include_router(pages.router(service))
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

    def __init__(self, app: FastAPI, engine: Engine) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._engine.interrupt()
        super().handle_exit(sig, frame)
