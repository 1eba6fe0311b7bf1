"""A headless Chromium over its own pipe: JSON messages ended by NUL, on file descriptors 3 and 4 of the browser.

Methods and events are those of the Chrome DevTools Protocol (chromedevtools.github.io/devtools-protocol).
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chromium-headless-shell")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
)  # fmt: skip
PATIENCE = 60.0
_READS, _WRITES = 3, 4
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}
_WRONG = {"error", "warning", "assert"}


def find_chromium() -> str | None:
    """The browser's path; None where none is installed."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Chromium:
    """One browser process; `close` ends it and removes its profile."""

    def __init__(self, program: str) -> None:
        self._numbers = itertools.count(1)
        self._buffer = b""
        self.events: deque[dict[str, Any]] = deque()
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        commands, self._commands = _high_pipe()
        self._answers, answers = _high_pipe()

        def place() -> None:
            os.dup2(commands, _READS)
            os.dup2(answers, _WRITES)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            close_fds=False, preexec_fn=place, start_new_session=True,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """What the browser answers; events that come before it are kept. RuntimeError where it refuses."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (found := self._message()).get("id") != number:
            self.events.append(found)
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']}")
        result: dict[str, Any] = found["result"]
        return result

    def wait_for(self, method: str, session: str) -> None:
        """Take messages until that event of that session comes; all are kept."""
        seen = 0
        while True:
            while seen < len(self.events):
                event = self.events[seen]
                if event.get("method") == method and event.get("sessionId") == session:
                    return
                seen += 1
            self.events.append(self._message())

    def open(self) -> Page:
        """An empty page of its own."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, target, session)

    def close(self) -> None:
        """End the browser with all its processes."""
        os.close(self._commands)
        os.close(self._answers)
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(end - time.monotonic(), 0))
            read = os.read(self._answers, 1 << 20) if ready else b""
            if not read:
                raise RuntimeError(f"chromium {'ended' if ready else f'said nothing for {PATIENCE:.0f} s'}")
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found


class Page:
    """A tab: what it shows, what goes wrong in it, what it asks a network for."""

    def __init__(self, browser: Chromium, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A method of the protocol, of this page."""
        return self._browser.call(method, self._session, **params)

    def goto(self, path: Path) -> None:
        """Load a file, and wait until it is there."""
        self._browser.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self._browser.wait_for("Page.loadEventFired", self._session)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript; RuntimeError with what it threw."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        """The window's size in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def emulate(self, media: str = "screen", scheme: str = "light") -> None:
        """Screen or print, light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def press(self, key: str) -> None:
        """A key, down and up."""
        code, text = _KEYS[key]
        about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, element: str) -> None:
        """The mouse's button over the middle of what an expression finds."""
        place = self.evaluate(
            f"(() => {{ const found = {element}; found.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            " const box = found.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    @property
    def requests(self) -> list[str]:
        """Every address that was asked for since the page was loaded."""
        return [params["request"]["url"] for method, params in self._events() if method == "Network.requestWillBeSent"]

    @property
    def complaints(self) -> list[str]:
        """Exceptions nobody caught, errors and warnings of the console, and of the browser itself."""
        found = []
        for method, params in self._events():
            is_wrong = (
                method == "Runtime.exceptionThrown"
                or (method == "Runtime.consoleAPICalled" and params["type"] in _WRONG)
                or (method == "Log.entryAdded" and params["entry"]["level"] in _WRONG)
            )
            if is_wrong:
                found.append(json.dumps(params)[:500])
        return found

    def close(self) -> None:
        """Close the tab."""
        self._browser.call("Target.closeTarget", targetId=self._target)

    def _events(self) -> list[tuple[str, dict[str, Any]]]:
        self.call("Runtime.evaluate", expression="0")  # what was on its way is here now
        return [(e["method"], e["params"]) for e in self._browser.events if e.get("sessionId") == self._session]


def _high_pipe() -> tuple[int, int]:
    """A pipe whose descriptors are none of those that the browser's are put at."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 16) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]
