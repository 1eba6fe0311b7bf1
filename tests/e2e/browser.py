"""A real headless Chromium, spoken to over a pair of pipes in its DevTools protocol: no driver, no port, no network."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = f"no browser: none of {', '.join(NAMES)} is on the PATH (Debian: apt-get install chromium)"
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--no-default-browser-check", "--remote-debugging-pipe",
)  # fmt: skip
_PATIENCE = 60.0


def find_browser() -> str | None:
    """Where it is installed."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class BrowserError(RuntimeError):
    """The browser refused a command, ended, or said nothing in time."""


class Browser:
    """A running browser with one tab. Its events are kept until `events` asks for them."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer, self._last, self._session = b"", 0, ""
        self._events: list[dict[str, Any]] = []
        self._untouched: Path | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._last:
                if "error" in found:
                    raise BrowserError(f"{method}: {found['error']['message']}")
                result: dict[str, Any] = found["result"]
                return result
            self._events.append(found)

    def events(self, method: str) -> list[dict[str, Any]]:
        """What the browser has told by itself since the last page was opened."""
        return [event["params"] for event in self._events if event.get("method") == method]

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file afresh, at a fragment of it where one is given, and wait until it is whole."""
        if fragment:  # or nothing would be loaded where the page is open
            self._navigate("about:blank")
        self._navigate(f"{path.as_uri()}#{fragment}" if fragment else path.as_uri())
        self._untouched = path

    def show(self, path: Path) -> None:
        """Open a file, unless it is open and neither keyboard nor mouse was used since."""
        if self._untouched != path:
            self.open(path)

    def _navigate(self, url: str) -> None:
        self._events.clear()
        found = self.send("Page.navigate", url=url)
        if found.get("errorText"):
            raise BrowserError(f"{url}: {found['errorText']}")
        while not self.events("Page.loadEventFired"):
            self._events.append(self._receive())

    def do(self, script: str) -> Any:
        """The value of an expression of the page's. BrowserError where it throws."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(found["exceptionDetails"].get("exception", {}).get("description", script))
        return found["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, down and up, as from a keyboard."""
        self._untouched = None
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            letters = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **letters)

    def click(self, selector: str) -> None:
        """The left button of a mouse in the middle of an element, scrolled into view first."""
        self._untouched = None
        corner = f"document.querySelector({json.dumps(selector)})"
        x, y = self.do(
            f"(() => {{const e = {corner}; e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Letters into what has the focus."""
        self._untouched = None
        self.send("Input.insertText", text=text)

    def size(self, width: int, height: int = 900) -> None:
        """The window's room for a page, in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def media(self, kind: str = "screen", scheme: str = "light") -> None:
        """Screen or print, light or dark."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.send("Emulation.setEmulatedMedia", media=kind, features=features)

    def script(self, on: bool) -> None:
        """Let pages run scripts, or not."""
        self._untouched = None
        self.send("Emulation.setScriptExecutionDisabled", value=not on)

    def picture(self, path: Path) -> None:
        """The whole page as a PNG file."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._answers, 1 << 16) if ready else b""
            if not part:
                raise BrowserError("the browser ended" if ready else f"the browser said nothing for {_PATIENCE:.0f} s")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def started(program: str) -> Iterator[Browser]:
    """A browser with an empty profile, ended and cleaned up afterwards."""
    read_commands, commands = os.pipe()
    answers, write_answers = os.pipe()

    def as_three_and_four() -> None:  # where the browser looks for its pipes
        # copies well above: one that is 3 already would be left as it is, closed when the browser starts
        copies = [fcntl.fcntl(end, fcntl.F_DUPFD, 16) for end in (read_commands, write_answers)]
        os.dup2(copies[0], 3)
        os.dup2(copies[1], 4)
        for copy in copies:
            os.close(copy)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=as_three_and_four, close_fds=False,
        )  # fmt: skip
        os.close(read_commands)
        os.close(write_answers)
        try:
            yield Browser(commands, answers)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            os.close(commands)
            os.close(answers)
