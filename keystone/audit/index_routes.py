"""What the routes of keystone.toml send to the index: rows that they hold back are not expected there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Self

import numpy as np
import polars as pl

from keystone.config import Config
from keystone.routes import ELASTIC, Route, compile_routes
from keystone.sinks.route_sinks import MISSING, sink_rules

SLICE_ROWS: Final = 16_384  # looked at together, as many as session actors give routes at once


class IndexRoutes:
    """Of each kind the route to the index, where it does not send every row whole."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self._routes = {route.source: route for route in routes if route.sink.kind == ELASTIC and not route.is_identity}

    @classmethod
    def of(cls, config: Config, *, log: str, origin: str) -> Self:
        """As a run with this configuration and an index has them. ``UsageError`` for a mistake in any of them, as the run says it."""
        rules = sink_rules(frozenset(MISSING), log=log)
        return cls(compile_routes(config.routes, rules, dimensions=config.cohorts.dimensions, origin=origin).active)

    def name(self, kind: str) -> str:
        """Of the route of ``kind``, which there is if it holds back anything."""
        return self._routes[kind].name

    def columns(self, kind: str) -> tuple[str, ...]:
        """What ``sent`` looks at."""
        route = self._routes.get(kind)
        parts = (route.condition, route.shape) if route is not None else ()
        return tuple(dict.fromkeys(name for part in parts if part is not None for name in part.names))

    def sent(self, kind: str, rows: pl.DataFrame) -> pl.Series:
        """True for each row that goes to the index; a row on which the route fails does not. ``rows``: of the lake, with ``columns(kind)`` at least."""
        sent = np.ones(rows.height, np.bool_)
        if kind in self._routes and rows.height:
            route = self._routes[kind]
            types = {name: route.schema_in[name] for name in self.columns(kind)}
            frame, sent[:] = rows.select(list(types)).cast(types), False  # type: ignore[arg-type]
            for first in range(0, frame.height, SLICE_ROWS):
                sent[first + route.routed(frame.slice(first, SLICE_ROWS)).rows] = True
        return pl.Series("is_sent", sent, pl.Boolean)
