"""A real browser for the tests of pages: Chromium, spoken to by its debugging protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_WAIT_S = 60.0


def program() -> str | None:
    """Where the browser is; None where there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@dataclass
class Seen:
    """What a browser saw of a page.

    Attributes:
        requests: Addresses asked for, but the page's own and what is in it.
        complaints: What the console says of errors and warnings.
        width, inner: Of what is on the page, and of the window, pixels.
    """

    width: int
    inner: int
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    text: str = ""


class Browser:
    """A running Chromium without a window, with one page."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process, self._to, self._back = process, to, back
        self._number, self._rest = 0, b""
        self._events: list[dict[str, Any]] = []
        self._session = ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        found = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def look(
        self,
        page: Path,
        width: int,
        height: int,
        *,
        dark: bool = False,
        picture: Path | None = None,
    ) -> Seen:
        """Open a page in a window of this size, and say what is seen."""
        self._events.clear()
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._call("Page.navigate", url=page.as_uri())
        self._until("Page.loadEventFired")
        size = "document.documentElement.scrollWidth"
        seen = Seen(int(self.value(size)), int(self.value("window.innerWidth")))
        seen.text = str(self.value("document.body.innerText"))
        if picture is not None:
            shot = self._call("Page.captureScreenshot", captureBeyondViewport=True)
            picture.write_bytes(base64.b64decode(shot["data"]))
        for event in self._events:
            asked = event["params"].get("request", {}).get("url", page.as_uri())
            if event["method"] == "Network.requestWillBeSent" and asked != page.as_uri():
                seen.requests += [] if asked.startswith("data:") else [asked]
            if event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                seen.complaints.append(json.dumps(event["params"]))
            if event["method"] == "Log.entryAdded":
                seen.complaints.append(event["params"]["entry"]["text"])
        return seen

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is on the page that is open."""
        return self._call("Runtime.evaluate", expression=expression)["result"].get("value")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._events.append(answer)

    def _until(self, method: str) -> None:
        while not any(event["method"] == method for event in self._events):
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + _WAIT_S
        while b"\0" not in self._rest:
            assert time.monotonic() < end, "the browser does not answer"
            read = os.read(self._back, 2**20)
            assert read, "the browser has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with nothing in it; ends with the block.

    Args:
        profile: Folder for its files.
    """
    found = program()
    assert found is not None
    theirs, to = os.pipe()
    back, answers = os.pipe()

    def as_three_and_four() -> None:  # what the browser expects
        above = os.dup2(theirs, 100), os.dup2(answers, 101)
        os.dup2(above[0], 3)
        os.dup2(above[1], 4)

    arguments: Sequence[str] = [
        *(found, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
        *("--hide-scrollbars", "--no-first-run", "--disable-background-networking"),
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=as_three_and_four,
        pass_fds=(3, 4),
    )
    os.close(theirs)
    os.close(answers)
    try:
        yield Browser(process, to, back)
    finally:
        process.kill()
        process.wait()
        os.close(to)
        os.close(back)
