"""Processes of a run that can be killed while it goes on: how they are started, told, heard, and ended.

Orders go down a child's standard input, a JSON object a line; its end means that the parent is gone. What the child has to say lies in a
file that is replaced whole, so that the last word of a killed one is still there. Children have sessions of their own: Ctrl-C is the parent's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, Final

import orjson
import psutil

from keystone.errors import KeystoneError

END_WAIT_S: Final = 5.0  # for processes that were told to end
READ_BYTES: Final = 1 << 16


class Child:
    """``python -m MODULE ORDER``, told and heard. Its output goes to ``NAME.out`` in the work directory."""

    def __init__(self, module: str, name: str, work_dir: Path, order: dict[str, Any]) -> None:
        self.name = name
        self._status_path = status_path(work_dir, name)
        self._output = work_dir / f"{name}.out"
        order_path = work_dir / f"{name}.order"
        order_path.write_bytes(orjson.dumps(order, option=orjson.OPT_NON_STR_KEYS))
        with self._output.open("wb") as output:
            command = [sys.executable, "-m", module, str(order_path)]
            self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)  # noqa: S603 - our own program
        self._process = psutil.Process(self._popen.pid)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def ended(self) -> int | None:
        """Its exit status; None while it lives."""
        return self._popen.poll()

    def status(self) -> dict[str, Any]:
        """Its last word; empty before the first."""
        try:
            found: dict[str, Any] = orjson.loads(self._status_path.read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def tell(self, **order: Any) -> None:
        """What cannot be told any more does not matter: it is dead."""
        if self._popen.stdin is None or self._popen.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(orjson.dumps(order, option=orjson.OPT_APPEND_NEWLINE))
            self._popen.stdin.flush()

    def last_lines(self) -> str:
        """The end of what it wrote, for messages."""
        lines = self._output.read_text(errors="replace").split("\n")
        return " | ".join([line for line in lines if line.strip()][-3:])[-300:]

    def descendants(self) -> list[psutil.Process]:
        """All below it, as far as their parents still live."""
        try:
            return self._process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def end(self, wait_s: float = END_WAIT_S) -> None:
        """Close its ear, and kill it and all below it that live on after ``wait_s``."""
        below = self.descendants()
        if self._popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(wait_s)
        kill(self._process)
        self._popen.wait()
        for process in below:
            kill(process)


def kill(process: psutil.Process) -> bool:
    """SIGKILL, if it is still the process that it was; whether it was."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def status_path(work_dir: Path, name: str) -> Path:
    return work_dir / f"{name}.status"


# --- in the child -----------------------------------------------------------------------------------------------------
class Ear:
    """The child's end: ``order`` is what it was started with; ``hear`` what it was told since."""

    def __init__(self, order_path: str) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self.order: dict[str, Any] = orjson.loads(Path(order_path).read_bytes())
        self.is_orphan = False
        self._input: IO[bytes] = sys.stdin.buffer
        self._begun = b""

    def hear(self, wait_s: float = 0.0) -> list[dict[str, Any]]:
        """Orders that have come, waiting up to ``wait_s`` for the first. Where the parent is gone: none, and ``is_orphan``."""
        orders: list[dict[str, Any]] = []
        while not self.is_orphan and select.select([self._input], [], [], 0.0 if orders else wait_s)[0]:
            found = os.read(self._input.fileno(), READ_BYTES)
            self.is_orphan = not found
            *lines, self._begun = (self._begun + found).split(b"\n")
            orders += [orjson.loads(line) for line in lines]
        return orders


class Mouth:
    """Where the child says how it is."""

    def __init__(self, work_dir: Path, name: str) -> None:
        self._path = status_path(work_dir, name)
        self._beside = self._path.with_suffix(".next")

    def say(self, status: dict[str, Any]) -> None:
        """Whole or not at all."""
        self._beside.write_bytes(orjson.dumps(status, option=orjson.OPT_NON_STR_KEYS))
        self._beside.replace(self._path)


class ChildFailed(KeystoneError):
    """A process of the run ended by itself."""
