"""A browser without a window, for pages that are tested or photographed: Debian's chromium over the DevTools protocol.

Commands and answers are JSON, each ended by a NUL, on two pipes (--remote-debugging-pipe): no port, no driver, and all
ends with this process. A page is waited for by what becomes true in it, never by time. (Playwright does this and much
more, for 120 MB of its own browser's driver and Node; what is needed here is this file.)
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 60.0
UNTIL = """
new Promise((resolve, reject) => {
    const look = () => {
        let found;
        try { found = %s; } catch { }
        if (found) { watcher.disconnect(); resolve(found); }
    };
    const watcher = new MutationObserver(look);
    watcher.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
    setTimeout(() => { watcher.disconnect(); reject(new Error("it did not become true")); }, %d);
    look();
})
"""
"""Looks each time when something changes in the page."""


class PageError(Exception):
    """The browser, or a script in its page, says that something went wrong."""


class Chromium:
    """The browser; pages are opened with `page`."""

    def __init__(self, command: str = "chromium") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="memcluster-chromium-", ignore_cleanup_errors=True)
        asked, self._asks = os.pipe()
        self._answers, answered = os.pipe()
        # Above 4, so that one is not overwritten by the other's place.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (asked, answered)]

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [
                command, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
                f"--user-data-dir={self._folder.name}", "--remote-debugging-pipe", "about:blank",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=(3, 4), preexec_fn=place,  # noqa: PLW1509 - the protocol's pipes are 3 and 4
        )  # fmt: skip
        for end in (asked, answered, *ends):
            os.close(end)
        self._number = 0
        self._data = b""
        self.heard: Callable[[dict[str, Any]], None] = lambda _: None

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Raises PageError."""
        self._number += 1
        head: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            head["sessionId"] = session
        os.write(self._asks, json.dumps(head).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            said = self.receive(deadline)
            if said.get("id") == self._number:
                if "error" in said:
                    raise PageError(f"{method}: {said['error']['message']}")
                found: dict[str, Any] = said["result"]
                return found
            self.heard(said)

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next message. Raises PageError."""
        while b"\0" not in self._data:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(self._answers, 1 << 20) if ready else b""
            if not more:
                raise PageError("the browser is silent" if not ready else "the browser is gone")
            self._data += more
        message, _, self._data = self._data.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def page(self, size: tuple[int, int] = (1400, 800), scale: float = 1) -> Page:
        return Page(self, size, scale)

    def close(self) -> None:
        try:
            self.ask("Browser.close")
            self._process.wait(10)
        except (PageError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._asks)
        os.close(self._answers)
        self._folder.cleanup()

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Page:
    """A tab."""

    def __init__(self, browser: Chromium, size: tuple[int, int], scale: float) -> None:
        self._browser = browser
        context = browser.ask("Target.createBrowserContext")["browserContextId"]
        target = browser.ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._target = target
        self._session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._loaded = False
        self.errors: list[str] = []
        """What scripts have thrown, and what the page's own policy has forbidden."""
        browser.heard = self._heard
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.resize(size, scale)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.ask(method, self._session, **parameters)

    def resize(self, size: tuple[int, int], scale: float = 1) -> None:
        words = {"width": size[0], "height": size[1], "deviceScaleFactor": scale, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **words)

    def emulate(self, media: str = "", **features: str) -> None:
        """`media` may be print; features are as in `prefers_color_scheme="dark"`."""
        found = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.ask("Emulation.setEmulatedMedia", media=media, features=found)

    def open(self, address: str) -> None:
        """Returns when the page is loaded."""
        self._loaded = False
        answer = self.ask("Page.navigate", url=address)
        if "errorText" in answer:
            raise PageError(f"{address}: {answer['errorText']}")
        deadline = time.monotonic() + PATIENCE
        while not self._loaded:
            self._heard(self._browser.receive(deadline))

    def run(self, script: str) -> Any:
        """What an expression gives; a promise is waited for."""
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def until(self, condition: str, seconds: float = 30) -> Any:
        """Wait until an expression is true in the page; returns its value."""
        try:
            return self.run(UNTIL % (condition, seconds * 1000))
        except PageError as error:
            shown = self.run("document.body.innerText")
            raise PageError(f"{condition}: {error}\n{shown}") from None

    def click(self, selector: str) -> None:
        """As a mouse does: at the middle of what is there, and on whatever lies above it."""
        box = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{box}.scrollIntoView({{ block: 'nearest' }})")
        place = self.run(f"(() => {{ const {{ x, y, width, height }} = {box}.getBoundingClientRect();"
                         "return { x: x + width / 2, y: y + height / 2 }; })()")  # fmt: skip
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def press(self, key: str) -> None:
        """A key of the keyboard, such as Tab, Enter or a."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowDown": 40, "ArrowUp": 38}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = codes.get(key, ord(key[0].upper()))
        words = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **words, **({"text": text} if text else {}))
        self.ask("Input.dispatchKeyEvent", type="keyUp", **words)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._browser.ask("Target.closeTarget", targetId=self._target)

    def _heard(self, said: dict[str, Any]) -> None:
        if said.get("sessionId") != self._session:
            return
        match said["method"]:
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                details = said["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description") or details["text"])
            case "Log.entryAdded" if said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])
