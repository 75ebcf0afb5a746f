"""The cohorts of all partitions, added up beside a run: fetched from session actors, merged in a thread, told to sinks.

It is stateless: begun anew, it fetches what the desks of the session actors still have, and what it then tells again under a lower
revision changes nothing at the receivers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import polars as pl

from keystone.actors.cohort_desk import Fetched, partials_of
from keystone.actors.supervisor import Arguments
from keystone.config import CohortsConfig
from keystone.errors import CheckpointDamaged
from keystone.logs import get
from keystone.qoe import CohortPartial
from keystone.qoe_merge import CohortMerge

TELL_EVERY_S: Final = 1.0  # rows are of 1 s at least
WAITING_MAX: Final = 1_000  # answers not merged yet: nobody is asked while there are so many

OnRows = Callable[[pl.DataFrame], None]

log = get(__name__)


class Asking(Protocol):
    """What knows the session actors (``supervisor.Supervisor``)."""

    def collect(self, pending: dict[str, Any]) -> list[tuple[str, Any]]: ...

    def ask(self, kind: str, method: str, pending: dict[str, Any], arguments: Arguments | None = None) -> None: ...

    def ask_all(self, kind: str, method: str, seconds: float, arguments: Arguments | None = None) -> list[tuple[str, Any]]: ...


class CohortMerging:
    """``on_rows`` gets new and corrected rows (``qoe_merge.CohortMerge.emit``), from one thread. Any other may ``ask`` and ``close``."""

    def __init__(self, config: CohortsConfig, partitions: Iterable[int], on_rows: OnRows) -> None:
        self._merge = CohortMerge(config, partitions)
        self._on_rows = on_rows
        self._cursors: dict[str, tuple[str, int]] = {}
        self._pending: dict[str, Any] = {}
        self._waiting: list[Fetched] = []
        self._changed = threading.Condition()
        self._is_ending = False
        self._cpu_s = 0.0
        self._thread = threading.Thread(target=self._run, name="cohorts", daemon=True)
        self._thread.start()

    def ask(self, supervisor: Asking) -> None:
        """Take what session actors answered, and ask them again; waits for nobody."""
        with self._changed:
            if len(self._waiting) > WAITING_MAX:
                return
        self._hear(supervisor.collect(self._pending))
        # Only now: an answer says what to ask for next, and what is asked for twice is merged twice.
        supervisor.ask("session", "cohorts", self._pending, self._arguments())

    def ask_last(self, supervisor: Asking, limit_s: float) -> None:
        """Fetch what is left; waits so long."""
        self._hear(supervisor.collect(self._pending))
        self._hear(supervisor.ask_all("session", "cohorts", limit_s, self._arguments()))

    def take(self, name: str, fetched: Fetched) -> None:
        """What the actor ``name`` answered."""
        self._cursors[name] = fetched.cursor
        with self._changed:
            self._waiting.append(fetched)

    def close(self, limit_s: float) -> bool:
        """Merge and tell everything that was fetched, complete or not; False where that takes longer."""
        with self._changed:
            self._is_ending = True
            self._changed.notify()
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def status(self) -> dict[str, Any]:
        """Counters, and what is held."""
        counters = self._merge.counters
        return {
            "rows": counters.rows, "corrections": counters.corrections, "late_rows": counters.late_rows, "forced": counters.forced,
            "windows_held": self._merge.windows, "rows_held": self._merge.rows_held, "cpu_s": round(self._cpu_s, 3),
        }  # fmt: skip

    def _hear(self, answers: list[tuple[str, Fetched | None]]) -> None:
        for name, fetched in answers:
            if fetched is not None:
                self.take(name, fetched)

    def _arguments(self) -> Arguments:
        return {name: (cursor,) for name, cursor in self._cursors.items()}

    def _run(self) -> None:
        is_ending = False
        while not is_ending:
            with self._changed:
                self._changed.wait_for(lambda: self._is_ending, TELL_EVERY_S)
                is_ending, waiting, self._waiting = self._is_ending, self._waiting, []
            try:
                self._tell(waiting, is_last=is_ending)
            except Exception:  # a defect with one answer must not end the rows of all
                log.exception("cohorts could not be added up")
            self._cpu_s = time.thread_time()

    def _tell(self, waiting: list[Fetched], *, is_last: bool) -> None:
        partials: list[CohortPartial] = []
        passed: dict[int, int] = {}
        for fetched in waiting:
            try:
                partials += partials_of(fetched)
            except CheckpointDamaged as error:
                log.warning("a session actor's cohorts cannot be read", reason=str(error))
                continue
            passed |= {partition: max(until_ms, passed.get(partition, 0)) for partition, until_ms in fetched.passed_ms.items()}
        self._merge.take(partials, passed)
        rows = self._merge.finish() if is_last else self._merge.emit()
        if rows.height:
            self._on_rows(rows)
