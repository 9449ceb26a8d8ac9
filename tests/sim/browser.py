"""Headless Chromium with the network off: open a page, run scripts in it, move a real mouse over it.

Chromium speaks its DevTools protocol over two pipes (file descriptors 3 and 4): JSON messages, each ended by a NUL byte.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip

_READY_S = 60.0
"""A page that is not drawn by then will never be (CI machines are slow)."""

TOOLS = """
const frames = async () => { for (let i = 0; i < 6; i++) await new Promise((r) => setTimeout(r, 60)); };
const copied = (canvas) => { // pixels; reading them from the canvas itself would make it slow and Chromium warn
  const scratch = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  const context = scratch.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
};
"""
"""What scripts of tests may call."""


class Page:
    """The one page of a browser."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._rest = b""
        self._ids = itertools.count(1)
        self._session: dict[str, str] = {}
        self._events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {
            "sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        }
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one DevTools command."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self._events.append(answer)
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._back, 1 << 20)
            assert part, "the browser is gone"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, path: Path, *, width: int = 1440) -> float:
        """Open a file and wait until its charts are drawn; seconds that took."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False
        )
        begin = time.monotonic()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while self.script("return document.documentElement?.dataset.ready") != "yes":
            assert time.monotonic() < begin + _READY_S, f"never ready; console: {self.console}"
            time.sleep(0.02)
        return time.monotonic() - begin

    def script(self, body: str) -> Any:
        """What the body of an async function returns in the page; it may call `TOOLS`."""
        text = f"(async () => {{ {TOOLS} {body} }})()"
        out = self.call("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in out, out["exceptionDetails"]
        return out["result"].get("value")

    def drag(self, selector: str, begin: float, end: float) -> None:
        """Press in an element at a share `begin` of its width, move to `end`, let go."""
        box = self.script(
            f"const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "await frames(); const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
        )
        at = [
            {"x": box[0] + share * box[2], "y": box[1] + 0.4 * box[3]}
            for share in (begin, (begin + end) / 2, end)
        ]
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **at[0])
        self.call("Input.dispatchMouseEvent", type="mousePressed", button="left", clickCount=1, **at[0])
        for point in at[1:]:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", button="left", **point)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, **at[2])
        self.script("await frames()")

    @property
    def console(self) -> list[dict[str, Any]]:
        """Messages, errors and uncaught exceptions so far."""
        loud = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self._events if event.get("method") in loud]


@contextmanager
def browser() -> Iterator[Page]:
    """A browser with one page, closed at the end."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # a shell gives the pipes the numbers 3 and 4 that Chromium reads and writes
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-'
        arguments = ["bash", "-c", command, "bash", str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(arguments, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            page = Page(ours_out, ours_in)
            yield page
            page.call("Browser.close")
        finally:
            os.close(ours_out)
            os.close(ours_in)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
