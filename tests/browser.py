"""A headless Chromium of the machine, spoken to over a pipe: no package, no port, no network.

``Browser`` opens a file and tells what its console said, what it asked the network for, and what an expression gives in it.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-extensions", "--disable-quic", "--hide-scrollbars", "--remote-debugging-pipe",
    "--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
PATIENCE_S = 120  # of anything that is waited for, on a machine that does much else


def found() -> str | None:
    """The browser's program, if this machine has one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def mark_browser(items: list[pytest.Item]) -> None:
    """Whoever asks for the fixture ``browser`` is marked so, and slow: a browser takes seconds to start."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def browser():
    """One for a file of tests, without any network; each page starts anew.

    CI installs it where it may (.ci/run). Elsewhere, without one, pages stay unopened, and the end of the test run says so.
    """
    program = found()
    if program is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(NAMES)}; apt-get install chromium")
    with Browser(program) as opened:
        yield opened


class Browser:
    """One window.

    Of the page that was opened last, ``errors``: what the console called an error or warning, and exceptions nobody caught; ``requests``: every
    address but the file itself.
    """

    def __init__(self, program: str) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._buffer, self._number, self._address = b"", 0, ""
        self._home = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        child_reads, self._write = os.pipe()
        self._read, child_writes = os.pipe()
        # The browser's end of the pipes is 3 and 4; a shell puts them there, so that no thread of ours forks with a function to run.
        line = f'exec "$0" "$@" 3<&{child_reads} 4>&{child_writes}'
        command = ["bash", "-c", line, program, *FLAGS, f"--user-data-dir={self._home.name}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(child_reads, child_writes), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(child_reads)
        os.close(child_writes)
        self._session = None
        [page] = [t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._home.cleanup()

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file and wait until it is loaded."""
        self._address = path.absolute().as_uri()
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.errors.clear()  # here, when all that the page before said has been read
        self.requests.clear()
        self.ask("Page.navigate", url=self._address)
        self.wait("document.readyState === 'complete'")

    def wait(self, expression: str):
        """What it gives, once that is true; after ``PATIENCE_S`` without, an assertion fails."""
        until = time.monotonic() + PATIENCE_S
        while not (value := self.value(expression)):
            assert time.monotonic() < until, f"never true: {expression}; console: {self.errors}"
            time.sleep(0.1)
        return value

    def value(self, expression: str):
        """What an expression gives in the page, as JSON."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, target: Path, top: int = 0, height: int = 8_000) -> None:
        """A part of the page as a PNG, for a person to look at."""
        clip = {"x": 0, "y": top, "width": self.value("innerWidth"), "height": height, "scale": 1}
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        target.write_bytes(base64.b64decode(shot["data"]))

    def ask(self, method: str, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **({"sessionId": self._session} if self._session else {})}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _next(self):
        until = time.monotonic() + PATIENCE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            more = os.read(self._read, 1 << 16)
            assert more, "the browser has ended"
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event, told) -> None:
        if event == "Runtime.consoleAPICalled" and told["type"] in {"error", "warning", "assert"}:
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in told["args"]))
        elif event == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"].get("exception", {}).get("description") or told["exceptionDetails"]["text"])
        elif event == "Log.entryAdded" and told["entry"]["level"] in {"error", "warning"}:
            self.errors.append(told["entry"]["text"])
        elif event == "Network.requestWillBeSent" and told["request"]["url"] != self._address and not told["request"]["url"].startswith("data:"):
            self.requests.append(told["request"]["url"])
