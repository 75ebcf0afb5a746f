"""Cohort rows of a run: merged where the run is watched, and sent by the routes that take them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keystone.actors.cohort_merging import CohortMerging, OnRows
from keystone.actors.console_tap import ConsoleTap
from keystone.errors import SinkBusy
from keystone.logs import get
from keystone.routes_sources import COHORTS, cohorts_frame
from keystone.sinks.base import Rows
from keystone.sinks.documents import CohortRows
from keystone.sinks.opening import Refusals, SinksSpec, open_sinks, routes_of
from keystone.sinks.routed_rows import Projected

if TYPE_CHECKING:
    from keystone.actors.supervisor import Supervisor
    from keystone.config import Config
    from keystone.routes import Route

ROLE: Final = "cohorts"
ASK_EVERY_S: Final = 0.5
LAST_FETCH_S: Final = 5.0
MERGE_S: Final = 10.0
CLOSE_S: Final = 5.0

log = get(__name__)


class CohortSinks:
    """``tick`` it a few times a second, ``close`` it once when the session actors are over and still answer.

    ``also``: gets all rows, whatever routes say, in a thread of ours.
    """

    def __init__(self, config: Config, sinks: SinksSpec, partitions: Iterable[int], also: OnRows | None = None) -> None:
        role = f"{ROLE}-{os.getpid()}"
        self._refusals = Refusals(Path(sinks.refused), role)
        self._dimensions = config.cohorts.dimensions
        routes = routes_of(sinks, config).of(COHORTS)
        self.console = ConsoleTap()
        self._sinks = open_sinks(routes, sinks, config, role=role, refusals=self._refusals, console=self.console)
        self._routes = [route for route in routes if route.sink in self._sinks]
        self._asked_s = 0.0
        self._also = also
        self.offered: dict[str, int] = {}
        self._merging = CohortMerging(config.cohorts, partitions, self._send)  # last: its thread sends

    def tick(self, supervisor: Supervisor) -> None:
        """Waits for nobody."""
        now_s = time.monotonic()
        if now_s - self._asked_s >= ASK_EVERY_S:
            self._asked_s = now_s
            self._merging.ask(supervisor)

    def close(self, supervisor: Supervisor) -> int:
        """Fetch and send what is left; how many rows are neither delivered nor on disk."""
        self._merging.ask_last(supervisor, LAST_FETCH_S)
        if not self._merging.close(MERGE_S):
            log.warning("cohorts are not added up in time: the last rows are not told")
        left = sum(sink.close(CLOSE_S) for sink in self._sinks.values())
        self._refusals.close()
        return left

    def status(self) -> dict[str, Any]:
        return {
            **self._merging.status(), "routes": dict(self.offered), "refused": self._refusals.count,
            "sinks": {str(target): sink.status() for target, sink in self._sinks.items()},
        }  # fmt: skip

    def _send(self, rows: pl.DataFrame) -> None:
        if self._also is not None:
            self._also(rows)
        for route in self._routes:
            if route.is_identity:
                self._offer(route, CohortRows(rows.to_arrow()))
                continue
            told, places = route.routed(cohorts_frame(rows, self._dimensions))
            whole = CohortRows(rows[places].to_arrow())
            self._offer(route, whole if route.outputs is None else Projected(whole, told))

    def _offer(self, route: Route, rows: Rows) -> None:
        if not rows.rows:
            return
        try:
            self._sinks[route.sink].offer([rows])
        except SinkBusy as error:  # cohorts are never waited for
            log.warning("rows of cohorts are dropped", sink=str(route.sink), rows=rows.rows, reason=str(error))
            return
        self.offered[route.name] = self.offered.get(route.name, 0) + rows.rows


def wants_cohorts(config: Config, sinks: SinksSpec) -> bool:
    """Some route leads from cohorts to a sink of this run."""
    return config.cohorts.enabled and bool(routes_of(sinks, config).of(COHORTS))
