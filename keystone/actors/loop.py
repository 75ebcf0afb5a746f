r"""What every actor of ours is: a loop in a thread of its own, asked about its health from outside.

Ray calls only ask and order; each returns at once, so that no call waits behind another, and none is on the way of
an event. An actor's life::

    new -> building -> ready -> running -> finished
                \________\________\____-> failed          (error says why, in one line)
"""

from __future__ import annotations

import faulthandler
import gc
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from keystone import logs
from keystone.config import LogsConfig
from keystone.errors import Fenced, KeystoneError, LogUnreachable, SinkBusy, StoreUnavailable, UsageError
from keystone.logs_lines import error_text

COLLECT_EVERY_S = 5.0  # cyclic garbage is collected by hand, when idle: a collection inside a batch would stall it
COLLECT_LATEST_S = 60.0  # ... or after this long without idling
BUILD_AGAIN_S = 1.0  # between two tries to build
BUILD_PATIENCE_S = 600.0  # of one whose places were looked at before: longer than any outage that heals by itself
THREADS_MAX = 1  # of pyarrow's pool: parallelism is the number of actors

NEW, BUILDING, READY, RUNNING, FINISHED, FAILED = "new", "building", "ready", "running", "finished", "failed"
OVER = (FINISHED, FAILED)

T = TypeVar("T")

log = logs.get(__name__)


class NotBuilt(KeystoneError):
    """There is nothing to finish: the actor was told to before it was built."""


class LoopActor(ABC):
    """Subclasses build, take turns, and close; this class runs them and keeps them from taking others down.

    ``name`` is what people read in messages; ``work_dir`` gets ``<name>.log``, ``<name>.error`` (a traceback) and ``<name>.crash``
    (a fatal signal's). All public methods return at once and may be called from any thread.
    """

    def __init__(self, name: str, work_dir: str, logs_config: LogsConfig | None = None) -> None:
        self.name = name
        self._logs = logs_config or LogsConfig()
        self._work_dir = Path(work_dir)
        self._incarnation = uuid.uuid4().hex
        self._process = psutil.Process()
        self._node = _node()
        self._has_own_logs = False
        self._state = NEW
        self._error: str | None = None
        self._is_fenced = False  # it ended because another owns what it owned
        self._result: Any = None
        self._turns = 0
        self._loop_cpu_s = 0.0  # of the loop's own thread, since it runs
        self._finish_asked = threading.Event()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    # --- asked from outside ---------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Build and run, in the background."""
        if self._state == NEW:
            self._state = BUILDING
            self._thread.start()

    def finish(self) -> None:
        """Handle what is there, close everything, then be ``finished``; ask ``status`` until it is."""
        self._finish_asked.set()

    def status(self, drains: bool = True) -> dict[str, Any]:  # noqa: FBT001, FBT002 - a Ray call
        """Cheap counters: state, error, pid, cpu_s, rss_bytes, incarnation, turns, and those of the subclass.

        ``drains``: what is told once only, such as warnings, is told to this caller.
        """
        return {
            "name": self.name,
            "state": self._state,
            "error": self._error,
            "is_fenced": self._is_fenced,
            "pid": os.getpid(),
            "node": self._node,
            "incarnation": self._incarnation,
            "turns": self._turns,
            "cpu_s": time.process_time(),
            "rss_bytes": self._process.memory_info().rss,
            **(self._told_once() if drains else {}),
            **self._counters(),
        }

    def _told_once(self) -> dict[str, Any]:
        """What one caller of ``status`` is told, and no other."""
        return {"warnings": self._recent()}

    def _recent(self) -> list[str]:
        """Warnings and errors since the last answer, short, the oldest left out where there are many."""
        current = logs.Logging.current
        return current.recent.drain()[1] if self._has_own_logs and current is not None else []

    def result(self) -> Any:
        """What ``_close`` returned; None before the actor is ``finished``."""
        return self._result

    # --- for subclasses -------------------------------------------------------------------------------------------
    @abstractmethod
    def _build(self) -> None:
        """Open and allocate everything; after it the actor is ready."""

    @abstractmethod
    def _turn(self) -> float:
        """Do one bounded piece of work; return how long to sleep before the next, s (0: go on at once)."""

    @abstractmethod
    def _is_over(self) -> bool:
        """True when there is nothing left to do: asked after every turn that wants to sleep."""

    @abstractmethod
    def _close(self) -> Any:
        """Release everything and return the result (picklable)."""

    @abstractmethod
    def _counters(self) -> dict[str, Any]:
        """More for ``status``; called from another thread than the loop's, at any time."""

    def _wait_for_start(self) -> None:  # noqa: B027 - most actors start when they are ready
        """Called when ready; returns when the loop shall start."""

    def _note_fenced(self, error: Fenced) -> None:  # noqa: B027 - most have nowhere to
        """Another owns what it owned, and it ends now: the last chance to leave word of it. Must not raise."""

    def _patiently(self, build: Callable[[], T], patience_s: float) -> T:
        """What ``build`` returns, tried again while servers or stores do not answer: who began when they did may be started anew when they do not.

        Raises its last error after ``patience_s``, and ``NotBuilt`` when the actor is to finish before that.
        """
        until_s = time.monotonic() + patience_s
        while True:
            try:
                return build()
            except (UsageError, LogUnreachable, StoreUnavailable, SinkBusy) as error:
                if time.monotonic() > until_s:
                    raise
                log.warning("cannot be built now: trying again", reason=str(error))
                if self._finish_asked.wait(BUILD_AGAIN_S):
                    raise NotBuilt from error

    # --- the thread -------------------------------------------------------------------------------------------------
    def _live(self) -> None:
        try:
            _bound_threads()
            self._work_dir.mkdir(parents=True, exist_ok=True)  # on another node it is not there yet
            self._open_logs()
            with (self._work_dir / f"{self.name}.crash").open("w") as crash:
                faulthandler.enable(crash)
                self._build()
                self._state = READY
                self._wait_for_start()
                self._loop()
                self._result = self._close()
                faulthandler.disable()
            self._state = FINISHED
            self._close_logs()
        except NotBuilt:
            self._close_logs()
            self._state = FINISHED
        except BaseException as error:  # noqa: BLE001 - whatever ends the loop must be told, not lost with the thread
            self._error = f"{self.name}: {error_text(error)}".replace("\n", " ")
            if isinstance(error, Fenced):
                self._is_fenced = True
                self._note_fenced(error)
            self._close_logs()
            (self._work_dir / f"{self.name}.error").write_text(traceback.format_exc())
            self._state = FAILED  # last: who sees it may read the rest

    def _open_logs(self) -> None:
        """A file of our own, where this process is an actor's; in a program that runs the actor in a thread, the program's."""
        if logs.Logging.current is None:
            logs.configure(self._logs, path=self._work_dir / f"{self.name}.log", role=self.name)
            self._has_own_logs = True

    def _close_logs(self) -> None:
        if self._has_own_logs and logs.Logging.current is not None:
            logs.Logging.current.close()

    def _loop(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            self._take_turns()
        finally:  # where an actor is a thread, its process goes on
            gc.enable()
            gc.unfreeze()

    def _take_turns(self) -> None:
        self._state = RUNNING
        collected, began_s = time.monotonic(), time.thread_time()
        while True:
            pause_s = self._turn()
            self._turns += 1
            self._loop_cpu_s = time.thread_time() - began_s
            if pause_s > 0 and self._is_over():
                return
            since_s = time.monotonic() - collected
            if since_s > (COLLECT_EVERY_S if pause_s > 0 else COLLECT_LATEST_S):
                gc.collect()
                collected = time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)


def _node() -> str:
    """Ray's id of the node, where Ray runs this; else the machine's name."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().get_node_id()) if ray is not None and ray.is_initialized() else socket.gethostname()


def _bound_threads() -> None:
    import pyarrow as pa

    pa.set_cpu_count(THREADS_MAX)
    pa.set_io_thread_count(THREADS_MAX)
