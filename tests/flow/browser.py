"""A headless Chromium, driven by its DevTools protocol over a pipe: no driver, no port, no package.

Knows no page of ours. Next: test_pages.py.
"""

import base64
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_S = 20.0

# Chromium reads commands from descriptor 3 and writes to 4, whatever numbers the pipes have here.
_LAUNCH = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(text), fcntl.F_DUPFD, 10) for text in sys.argv[1:3]]
for pipe, number in zip(pipes, (3, 4)):
    os.dup2(pipe, number)
os.execvp(sys.argv[3], sys.argv[3:])
"""
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-extensions", "--disable-sync", "--no-first-run", "--hide-scrollbars",
    "--force-color-profile=srgb", "--no-proxy-server",
)  # fmt: skip
_KEYS = {"Enter": ("\r", 13), "Escape": ("", 27), "ArrowRight": ("", 39), "ArrowDown": ("", 40)}


def find_browser() -> str | None:
    """Return the program's path, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def running_browser(program: str, profile: Path) -> Iterator["Browser"]:
    """Start a browser with an empty profile; stop it at the end."""
    to_read, commands = os.pipe()
    answers, to_write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, str(to_read), str(to_write), program, *_FLAGS,
         f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        browser = Browser(commands, answers)
        try:
            yield browser
        finally:
            browser.close()
            try:
                process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


class Browser:
    """Sends commands and sorts what comes back: answers to their callers, events to their pages."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._number = 0
        self._waiting: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        answer: queue.Queue[dict[str, Any]] = queue.Queue()
        self._waiting[self._number] = answer
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        found = answer.get(timeout=TIMEOUT_S)
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']['message']}")
        result: dict[str, Any] = found["result"]
        return result

    def open(
        self, url: str, *, width: int = 1280, height: int = 800, scheme: str = "light"
    ) -> "Page":
        """Open a page in a profile of its own, in a window of this size, on a light or dark system.

        A window narrower than a tablet is a phone's.
        """
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        self._pages[attached["sessionId"]] = page
        page.prepare(width, height, scheme)
        page.go(url)
        return page

    def close(self) -> None:
        """Ask it to end."""
        self.call("Browser.close")
        os.close(self._commands)
        self._reader.join(TIMEOUT_S)
        os.close(self._answers)

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._answers, 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for each in messages:
                self._sort(json.loads(each))

    def _sort(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._waiting.pop(message["id"]).put(message)
        elif message.get("sessionId") in self._pages:
            self._pages[message["sessionId"]].take(message["method"], message["params"])


class Page:
    """One page: what it asked for and complained of, and hands to use it with."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.urls: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self._browser = browser
        self._session = session

    def prepare(self, width: int, height: int, scheme: str) -> None:
        """Watch it, and give it its window."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 700,
        )  # fmt: skip
        self.set_scheme(scheme)

    def set_scheme(self, scheme: str) -> None:
        """Make the system light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=features)

    def go(self, url: str) -> None:
        """Load an address, and wait for its scripts."""
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, script: str) -> Any:
        """Run JavaScript and return its value."""
        found = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, script: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Return the value of an expression as soon as it is true."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            value = self.evaluate(script)
            if value:
                return value
            time.sleep(0.02)
        shown = self.evaluate("document.body.innerText")
        raise TimeoutError(f"never true: {script}\ncomplaints: {self.complaints}\n{shown}")

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a mouse does."""
        place = self.wait(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " if (!e || e.disabled || !e.checkVisibility()) return null;"
            " e.scrollIntoView({block: 'center'});"
            " const r = [...e.getClientRects()].sort((a, b) => b.width - a.width)[0];"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent",
                type=kind, x=place[0], y=place[1], button="left", clickCount=1,
            )  # fmt: skip

    def write(self, selector: str, text: str) -> None:
        """Click into a field and write."""
        self.click(selector)
        self._call("Input.insertText", text=text)

    def press(self, key: str, *, has_control: bool = False) -> None:
        """Press a key of `_KEYS`, with Control or without."""
        text, code = _KEYS[key]
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        event["modifiers"] = 2 if has_control else 0
        self._call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self._call("Input.dispatchKeyEvent", type="keyUp", **event)

    def text(self, selector: str) -> str:
        """Return an element's text, or nothing where it is missing."""
        found = self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return str(found)

    def screenshot(self, path: Path, *, is_whole: bool = False) -> None:
        """Write a picture of the window, or of the whole page."""
        found = self._call("Page.captureScreenshot", captureBeyondViewport=is_whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def take(self, method: str, event: dict[str, Any]) -> None:
        """Record an event."""
        if method == "Network.requestWillBeSent":
            request = event["request"]
            self.urls.append(request["url"])
            if "postData" in request:
                self.bodies.append(json.loads(request["postData"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.complaints.append(json.dumps(event["entry"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)
