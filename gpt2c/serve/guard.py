"""Who may ask, and how much. As ASGI middleware: a request is refused before any of the app sees it.

A browser lets any web page send requests to this machine. It says which page in Origin, and a name that the page's
owner has let point to this machine (DNS rebinding) is in Host: only this machine's own names, and pages of this server,
pass.
"""

from __future__ import annotations

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2c.serve.errors import error_body
from gpt2c.serve.parse import problem

OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
# What the page itself may do: nothing but talk to this server, and be in no other page's frame.
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Refuses foreign hosts and pages (403), bodies that are not JSON (415, 400) or too large (413); adds HEADERS."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = _with_headers(send)
        headers = Headers(scope=scope)
        refusal = foreign(headers)
        if refusal:
            await _refuse(403, refusal, scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the same without its body, which the server leaves out
            scope = {**scope, "method": "GET"}
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        # A form, which a page may send without asking first, cannot have this type.
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            await _refuse(415, "expected Content-Type: application/json", scope, receive, send)
            return
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            message = f"Content-Encoding: {encoding} is not supported, send the body as it is"
            await _refuse(415, message, scope, receive, send)
            return
        body = await self._read(headers, receive)
        if body is None:
            message = f"the body has more than {self.most_bytes} bytes, which is the most"
            await _refuse(413, message, scope, receive, send)
            return
        unreadable = problem(body)
        if unreadable:
            await _refuse(400, unreadable, scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None, without reading the rest, if it is too large."""
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self.most_bytes:
            return None
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.most_bytes:
                return None
        return body


def foreign(headers: Headers) -> str:
    """Why a request with these headers is refused, or nothing."""
    host = headers.get("host", "")
    name = host[: host.rfind(":")] if host.rpartition(":")[2].isdecimal() else host
    if name.lower() not in OWN_NAMES:
        return f"the host {host!r} is not this machine: expected one of {', '.join(OWN_NAMES)}"
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        return f"the page {origin!r} is not this server's"
    own = headers.get("sec-fetch-site", "none") in ("same-origin", "none")
    if not own and headers.get("sec-fetch-mode") != "navigate":  # a link from elsewhere is followed
        return "another site's page may not use this server"
    return ""


def _with_headers(send: Send) -> Send:
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sending


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body that has been read, then what comes after it: that the client has gone."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return messages.pop() if messages else await receive()

    return receiving


async def _refuse(status: int, message: str, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(error_body(message), status)(scope, receive, send)
