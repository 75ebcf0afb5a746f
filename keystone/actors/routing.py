"""Rows of a session actor on their way to sinks: gathered over a turn, filtered and projected by their routes, offered.

Each sink has what it did not take yet in a list of its own, so one that is full holds up reading (``has_room``), but no other sink's rows.
A checkpoint is held back until every sink has what was given before it acknowledged, refused, dropped and counted, or on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keystone.errors import SinkBusy
from keystone.letter_batch import LetterBatch
from keystone.routes_sources import ALERTS, DEAD_LETTERS, EVENTS, SESSIONS, alerts_frame, dead_letters_frame, events_frame, sessions_frame
from keystone.session_records import SessionRecords
from keystone.sinks.base import Rows, Sink
from keystone.sinks.documents import AlertRows, SessionRows
from keystone.sinks.opening import Refusals, SinksSpec, open_sinks, routes_of
from keystone.sinks.routed_rows import FrameRows, Projected

if TYPE_CHECKING:
    from keystone.config import Config
    from keystone.decode import Dictionaries
    from keystone.events import Alert, EventBatch
    from keystone.pipeline import StepResult
    from keystone.routes import Route, Routes, Target
    from keystone.sinks.file_rows import BytesOut

GATHER_S: Final = 0.25  # sessions and events that become a table at once: a table costs 1-3 ms however small it is
GATHER_ROWS: Final = 4_096  # ... or so many
STEP_SOURCES: Final = (ALERTS, SESSIONS, EVENTS, DEAD_LETTERS)  # what a step gives; cohorts come from all partitions together


@dataclass(slots=True)
class _Way:
    """To one sink: its routes by source, and what it has not taken yet."""

    sink: Sink
    routes: dict[str, list[Route]] = field(default_factory=dict)
    waiting: list[Rows] = field(default_factory=list)

    def push(self) -> bool:
        """Offer what waits; False where the sink is full."""
        if self.waiting:
            try:
                self.sink.offer(self.waiting)
            except SinkBusy:
                return False
            self.waiting = []
        return True


class Routing:
    """One thread calls it, but ``status``. ``routes``: those whose targets are in ``sinks`` are followed, no others."""

    def __init__(self, routes: Routes, sinks: Mapping[Target, Sink], *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._ways = {target: _Way(sink) for target, sink in sinks.items()}
        for source in STEP_SOURCES:
            for route in routes.of(source):
                if route.sink in self._ways:
                    self._ways[route.sink].routes.setdefault(source, []).append(route)
        self._wanted = {source for way in self._ways.values() for source in way.routes}
        self._now_s = now_s
        self._alerts: list[Alert] = []
        self._letters = LetterBatch()
        self._closed: SessionRecords | None = None
        self._events: list[pl.DataFrame] = []
        self._gathered_s = now_s()
        self._log_time_ms = 0
        self._cpu_s = 0.0
        self._marks: dict[int, dict[Target, int] | None] = {}  # by number; None: something given before is still with us
        self._marked = self._kept = 0
        self.offered: dict[str, int] = {}  # rows, by route

    # --- what a step gives --------------------------------------------------------------------------------------------
    @property
    def takes_events(self) -> bool:
        return EVENTS in self._wanted

    def take(self, result: StepResult, log_time_ms: int) -> None:
        """Alerts, dead letters and closed sessions of a step."""
        self._log_time_ms = max(self._log_time_ms, log_time_ms)
        if ALERTS in self._wanted:
            self._alerts += result.alerts
        if DEAD_LETTERS in self._wanted:
            self._letters += result.dead_letters
        if SESSIONS in self._wanted:
            for closed in result.sessions:
                self._gather(closed)

    def take_events(self, batch: EventBatch, dictionaries: Dictionaries) -> None:
        """A batch, which is copied."""
        self._events.append(events_frame(batch, dictionaries))

    def _gather(self, closed: SessionRecords) -> None:
        if self._closed is not None and (closed.dictionaries is not self._closed.dictionaries or self._closed.rows >= GATHER_ROWS):
            self._send_sessions()
        if self._closed is None:
            self._closed = SessionRecords(closed.dictionaries)
        self._closed.extend(closed)

    # --- on to the sinks ----------------------------------------------------------------------------------------------
    def end_turn(self) -> None:
        """Alerts go on at once, what costs by the table when enough of it is there."""
        began_s = time.thread_time()
        self._send_alerts()
        now_s = self._now_s()
        if now_s - self._gathered_s >= GATHER_S or sum(frame.height for frame in self._events) >= GATHER_ROWS:
            self._send_gathered()
            self._gathered_s = now_s
        self._push()
        self._cpu_s += time.thread_time() - began_s

    def _send_alerts(self) -> None:
        if self._alerts:
            alerts, self._alerts = self._alerts, []
            for way, route in self._routes(ALERTS):
                self._give(way, route, _alert_rows(route, alerts))
        if self._letters:
            letters, self._letters = self._letters, LetterBatch()
            frame = dead_letters_frame(letters)
            for way, route in self._routes(DEAD_LETTERS):
                self._give_frame(way, route, frame)

    def _send_gathered(self) -> None:
        self._send_sessions()
        if self._events:
            frame, self._events = pl.concat(self._events), []
            for way, route in self._routes(EVENTS):
                self._give_frame(way, route, frame)

    def _send_sessions(self) -> None:
        if self._closed is None:
            return
        table, self._closed = self._closed.to_arrow(), None
        for way, route in self._routes(SESSIONS):
            if route.is_identity:
                self._give(way, route, SessionRows(table, self._log_time_ms))
                continue
            frame, rows = route.routed(sessions_frame(table))
            kept = SessionRows(table.take(rows), self._log_time_ms)
            self._give(way, route, kept if route.outputs is None else Projected(kept, frame))

    def _give_frame(self, way: _Way, route: Route, frame: pl.DataFrame) -> None:
        told, rows = route.routed(frame)
        self._give(way, route, FrameRows(route.source, frame[rows], told))

    def _give(self, way: _Way, route: Route, rows: Rows) -> None:
        if rows.rows:
            way.waiting.append(rows)
            self.offered[route.name] = self.offered.get(route.name, 0) + rows.rows

    def _routes(self, source: str) -> list[tuple[_Way, Route]]:
        return [(way, route) for way in self._ways.values() for route in way.routes.get(source, ())]

    def _push(self) -> bool:
        pushed = [way.push() for way in self._ways.values()]
        is_all = all(pushed)
        if is_all and not (self._alerts or self._letters or self._closed or self._events):
            for number, marks in self._marks.items():
                if marks is None:
                    self._marks[number] = self._mark_sinks()
        return is_all

    def has_room(self) -> bool:
        """False: nothing new before it is True again."""
        return all(not way.waiting and way.sink.has_room() for way in self._ways.values())

    # --- checkpoints --------------------------------------------------------------------------------------------------
    def mark(self) -> int:
        """Names everything given so far."""
        self._send_alerts()
        self._send_gathered()
        self._marked += 1
        self._marks[self._marked] = None
        self._push()
        return self._marked

    def is_kept(self, mark: int) -> bool:
        """A checkpoint may forget everything before ``mark``."""
        if mark <= self._kept:
            return True
        self._push()
        marks = self._marks[mark]
        if marks is None or not all(self._ways[target].sink.is_kept(at) for target, at in marks.items()):
            return False
        self._kept = mark
        self._marks = {number: one for number, one in self._marks.items() if number > mark}
        return True

    def _mark_sinks(self) -> dict[Target, int]:
        return {target: way.sink.mark() for target, way in self._ways.items()}

    def settle(self, limit_s: float) -> bool:
        """Give on what is held, and wait until it may be forgotten here; False where that takes longer."""
        mark = self.mark()
        until_s = self._now_s() + limit_s
        while not self.is_kept(mark):
            if self._now_s() > until_s:
                return False
            time.sleep(0.01)
        return True

    def close(self, limit_s: float) -> int:
        """End the sinks; how many rows are neither delivered nor on disk."""
        until_s = self._now_s() + limit_s
        left = sum(rows.rows for way in self._ways.values() for rows in way.waiting)
        return left + sum(way.sink.close(max(0.5, until_s - self._now_s())) for way in self._ways.values())

    def status(self) -> dict[str, Any]:
        """By sink, and rows offered by route.

        ``errors``: rows on which a route failed, by route. ``cpu_s``: of filtering, shaping and offering; that of the sinks' threads is theirs.
        """
        errors = {route.name: dict(route.errors) for way in self._ways.values() for routes in way.routes.values() for route in routes if route.errors}
        return {
            "sinks": {str(target): way.sink.status() for target, way in self._ways.items()},
            "routes": dict(self.offered),
            "errors": errors,
            "cpu_s": round(self._cpu_s, 3),
        }


def _alert_rows(route: Route, alerts: Sequence[Alert]) -> Rows:
    if route.is_identity:
        return AlertRows(alerts)
    frame, rows = route.routed(alerts_frame(alerts))
    kept = AlertRows([alerts[row] for row in rows.tolist()])
    return kept if route.outputs is None else Projected(kept, frame)


def open_routing(spec: SinksSpec, config: Config, *, role: str, refusals: Refusals, console: BytesOut | None = None) -> Routing | None:
    """The routes of ``config`` to sinks that this run has beside alerts, dead letters and lake; None where there is none."""
    routes = routes_of(spec, config)
    steps = [route for source in STEP_SOURCES for route in routes.of(source)]
    sinks = open_sinks(steps, spec, config, role=role, refusals=refusals, console=console)
    return Routing(routes, sinks) if sinks else None
