"""Headless Chromium: how it is started, and a page in it that a test uses as a reader does (DevTools protocol)."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-quic")  # fmt: skip
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
needs_chromium = pytest.mark.skipif(
    not shutil.which("chromium"), reason="chromium is not installed (Debian: apt install chromium)"
)


class Page:
    """errors: what the browser's console told. requests: the addresses that the page asked for."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = os.fdopen(to, "wb", 0), os.fdopen(back, "rb", 0)
        self._buffer, self._last, self._session = b"", 0, ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = self._back.read(2**16)
            assert part, "chromium has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        kind, params = event.get("method"), event.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif kind == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression, also of a promise."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, f"{script}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until the expression is true, for at most a minute."""
        end = time.monotonic() + 60
        while not self.run(condition):
            assert time.monotonic() < end, f"never true: {condition}; {self.errors}"
            time.sleep(0.02)

    def _middle(self, selector: str) -> tuple[float, float]:
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.run(
            f"(b => [b.x, b.y, b.width, b.height])(document.querySelector({selector!r}).getClientRects()[0])"
        )
        return box[0] + box[2] / 2, box[1] + box[3] / 2

    def hover(self, selector: str) -> None:
        x, y = self._middle(selector)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        x, y = self._middle(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, ctrl: bool = False) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=2 * ctrl)

    def close(self) -> None:
        """Lets the browser end by itself: killed, it leaves a folder behind."""
        self._session = ""
        self.send("Browser.close")
        while self._back.read(2**16):
            pass

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page, or of what the window shows of it."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


def pipe() -> tuple[int, int]:
    """Numbers beyond those that Chromium expects its ends to have."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in low)
    for end in low:
        os.close(end)
    return high


@contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """A Chromium of its own with one page, which it talks about over two pipes."""
    (theirs_in, ours_out), (ours_in, theirs_out) = pipe(), pipe()
    log = os.open(profile.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
    actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4)]
    actions += [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    command = ["chromium", *QUIET, NO_NETWORK, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
    process = os.posix_spawnp("chromium", command, os.environ, file_actions=actions)
    for end in (theirs_in, theirs_out, log):
        os.close(end)
    page = Page(ours_out, ours_in)
    try:
        yield page
    finally:
        with suppress(AssertionError, OSError):  # it may have ended
            page.close()
        page._to.close()
        page._back.close()
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)
