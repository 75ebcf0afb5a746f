"""Routes: which rows of a source, and which of their columns, go to which sink.

``compile_routes`` makes them once, at start, from the configuration and from what the run has: whatever is wrong is one line with its place.
Then ``Routes.of`` says where the rows of a source go, and ``Route.routed`` what of a frame goes there. A route looks at one row at a time, so
how the stream is cut into frames changes nothing. It never raises for what rows hold: a row on which it fails all the same is left out and
counted in ``errors``, and its neighbours are not harmed.

A default route stands for each source and sink that no declared one joins: whoever declares a route to a screen does not lose the lake by it.
Pure: sinks are known here by their rules only (``keystone/sinks/route_sinks.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from keystone.config import CohortsConfig, RouteConfig
from keystone.errors import UsageError
from keystone.routes_check import FAILURES, FLAG, NUMBER, TEXT, WHOLE, Computed, Output, kind_of, plan_of, select_of, where_of
from keystone.routes_sources import ALERTS, COHORTS, DEAD_LETTERS, EVENTS, SESSIONS, SOURCES, Schema, schemas
from keystone.routes_words import SqlError, place_of

ELASTIC: Final = "elastic"
LAKE: Final = "lake"
ACTIONS: Final = "actions"
CONSOLE: Final = "console"
NONE: Final = "none"
FILE: Final = "file"
KAFKA: Final = "kafka"
#: Sinks that are named by a word, and those that are named with a place behind: ``file:PATH``, ``kafka://HOST/TOPIC``.
NAMED_SINKS: Final = (ELASTIC, LAKE, ACTIONS, DEAD_LETTERS, CONSOLE, NONE)
PLACED_SINKS: Final = {FILE: "file:", KAFKA: "kafka://"}
SINKS_TEXT: Final = "elastic, lake, actions, dead_letters, console, none, file:PATH, or kafka://HOST[:PORT]/TOPIC"
TRIES_MAX: Final = 256  # of a frame in which something fails: a few bad rows of 16,384 are found by halves; then what is not known to be good is left out

#: What there is without a word in the configuration: dashboards and lake, actions and dead letters.
DEFAULT_ROUTES: Final = (
    *(RouteConfig.model_validate({"name": f"dashboards-{source}", "from": source, "sink": ELASTIC}) for source in (ALERTS, SESSIONS, COHORTS)),
    *(RouteConfig.model_validate({"name": f"lake-{source}", "from": source, "sink": LAKE}) for source in (EVENTS, ALERTS, SESSIONS)),
    RouteConfig.model_validate({"name": "actions", "from": ALERTS, "sink": ACTIONS}),
    RouteConfig.model_validate({"name": "dead-letters", "from": DEAD_LETTERS, "sink": DEAD_LETTERS}),
)


@dataclass(frozen=True, slots=True)
class SinkRule:
    """What a sink takes, of which sources.

    ``sources``: those it takes at all. ``filters shapes``: of those, the ones that a route may thin out with ``where``, and reshape with
    ``select``; ``why``: what is said of the others. ``fields``: by source, the columns that are known there, and the kinds that each takes.
    ``missing``: not there in this run, and what to do about it. ``is_single``: one route of a source at most. ``look_at``: makes the text
    behind the sink's name what it is called everywhere, or raises ``UsageError``.
    """

    sources: frozenset[str] = frozenset(SOURCES)
    filters: frozenset[str] = frozenset(SOURCES)
    shapes: frozenset[str] = frozenset(SOURCES)
    why: str = ""
    fields: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)
    missing: str = ""
    is_single: bool = False
    look_at: Callable[[str], str] | None = None


class Target(NamedTuple):
    """A sink: its kind, one of NAMED_SINKS and PLACED_SINKS, and the path or URL of those with a place."""

    kind: str
    place: str = ""

    def __str__(self) -> str:
        return f"{FILE}:{self.place}" if self.kind == FILE else self.place or self.kind


class Routed(NamedTuple):
    """What goes to the sink: ``frame`` has the route's columns; its row ``i`` is made of row ``rows[i]`` of what was given."""

    frame: pl.DataFrame
    rows: npt.NDArray[np.int64]


@dataclass(slots=True)
class Route:
    """A compiled route. One thread uses it. ``errors``: rows left out because ``where`` or ``select`` failed on them; ``last_error`` says how."""

    config: RouteConfig
    sink: Target
    schema_in: Schema
    is_default: bool
    condition: Computed | None = None
    outputs: tuple[Output, ...] | None = None
    shape: Computed | None = None  # the expressions of ``outputs``
    errors: dict[str, int] = field(default_factory=dict)
    last_error: str = ""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def source(self) -> str:
        return self.config.source

    @property
    def is_identity(self) -> bool:
        """Every row goes there as it is: nobody has to make a frame."""
        return self.condition is None and self.outputs is None

    @property
    def schema(self) -> Schema:
        """Columns and types of what goes to the sink."""
        return self.schema_in if self.outputs is None else {output.name: output.dtype for output in self.outputs}

    def keep(self, frame: pl.DataFrame) -> pl.Series:
        """True for each row that goes there; never null: where the condition is neither true nor false, the row stays."""
        if self.condition is None:
            return pl.repeat(value=True, n=frame.height, dtype=pl.Boolean, eager=True)
        found, rows = self._careful(frame, self._holds, "where")
        if len(rows) == frame.height:
            return found.to_series()
        kept = np.zeros(frame.height, np.bool_)
        kept[rows] = found.to_series().to_numpy()
        return pl.Series(kept)

    def routed(self, frame: pl.DataFrame) -> Routed:
        """What of ``frame`` (of the source's columns) goes to the sink, in order."""
        kept, rows = frame, np.arange(frame.height)
        if self.condition is not None:
            mask = self.keep(frame)
            kept, rows = frame.filter(mask), np.flatnonzero(mask.to_numpy())
        if self.outputs is not None:
            kept, made = self._careful(kept, self._shaped, "select")
            rows = rows[made]
        return Routed(kept, rows)

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The same without the numbers of the rows."""
        return self.routed(frame).frame

    def plan(self) -> str:
        """What Polars makes of it, in Polars' words."""
        return plan_of(self.schema_in, self.condition, self.outputs)

    def _holds(self, frame: pl.DataFrame) -> pl.DataFrame:
        assert self.condition is not None  # noqa: S101 - by who calls
        return self.condition.of(frame)

    def _shaped(self, frame: pl.DataFrame) -> pl.DataFrame:
        assert self.shape is not None  # noqa: S101 - by who calls
        made = self.shape.of(frame)
        made.columns = list(self.schema)
        return made

    def _careful(self, frame: pl.DataFrame, work: Callable[[pl.DataFrame], pl.DataFrame], part: str) -> tuple[pl.DataFrame, npt.NDArray[np.int64]]:
        """What ``work`` makes of ``frame``, and of which rows: those on which it fails are found by halves, left out and counted."""
        try:
            return work(frame), np.arange(frame.height)
        except FAILURES as error:
            self.last_error = f"{part}: {next(iter(str(error).splitlines()), type(error).__name__)[:200]}"
        tries, waiting, done = 0, [(0, frame.height)], []
        while waiting:
            first, end = waiting.pop()
            tries += 1
            try:
                if tries <= TRIES_MAX:
                    done.append((work(frame.slice(first, end - first)), np.arange(first, end)))
                    continue
            except FAILURES:
                if end - first > 1:
                    middle = (first + end) // 2
                    waiting += [(middle, end), (first, middle)]
                    continue
            self.errors[part] = self.errors.get(part, 0) + end - first
        good = sorted(done, key=lambda piece: int(piece[1][0]))
        return pl.concat([piece for piece, _ in good] or [work(frame.clear())]), np.concatenate([np.zeros(0, np.int64), *(rows for _, rows in good)])


@dataclass(frozen=True, slots=True)
class Routes:
    """Every route of a run. ``inactive``: those that lead to what this run does not have, and why."""

    active: tuple[Route, ...]
    inactive: tuple[tuple[RouteConfig, str], ...] = ()

    def of(self, source: str) -> tuple[Route, ...]:
        """The routes of a source, in the order of the configuration, default ones last."""
        return tuple(route for route in self.active if route.source == source)

    def to(self, kind: str) -> tuple[Route, ...]:
        """The routes to a kind of sink."""
        return tuple(route for route in self.active if route.sink.kind == kind)


def compile_routes(
    routes: Sequence[RouteConfig], sinks: Mapping[str, SinkRule], *, dimensions: Sequence[str] = CohortsConfig().dimensions, origin: str = "keystone.toml"
) -> Routes:
    """The routes of a run, compiled. ``sinks``: the rule of each kind (``sink_rules``); ``dimensions``: ``cohorts.dimensions``.

    Raises ``UsageError``, one line that begins with ``origin``, for the first mistake of any declared route.
    """
    columns = schemas(dimensions)
    compiled: list[Route] = []
    for number, config in enumerate(routes):
        place = f'{origin}: routes[{number}] "{config.name}"'
        try:
            _check_name(config, routes[:number])
            route = _compiled(config, sinks, columns[config.source], is_default=False)
            _check_single(route, compiled, sinks)
        except _Mistake as mistake:
            raise UsageError(f"{place} {mistake}") from None
        compiled.append(route)
    inactive: list[tuple[RouteConfig, str]] = []
    for config in DEFAULT_ROUTES:
        missing = sinks[config.sink].missing
        if any(route.source == config.source and route.sink.kind == config.sink for route in compiled):
            continue
        if missing:
            inactive.append((config, missing))
        else:
            compiled.append(_compiled(config, sinks, columns[config.source], is_default=True))
    return Routes(tuple(compiled), tuple(inactive))


class _Mistake(UsageError):
    """Of a route, without its place: ``where``, ``select`` or ``sink``, and what is wrong."""


def _check_name(config: RouteConfig, before: Iterable[RouteConfig]) -> None:
    for other in before:
        if other.name == config.name:
            raise _Mistake("name: an earlier route has it too: choose another")
    if any(default.name == config.name for default in DEFAULT_ROUTES):
        raise _Mistake("name: a default route has it: choose another; a route of the same source and sink takes its place")


def _compiled(config: RouteConfig, sinks: Mapping[str, SinkRule], schema: Schema, *, is_default: bool) -> Route:
    target = _target(config.sink, sinks)
    rule = sinks[target.kind]
    _check_rule(config, target, rule)
    route = Route(config, target, schema, is_default)
    part = "where"
    try:
        if config.where is not None:
            route.condition = where_of(config.where, schema)
        if config.select is not None:
            part = "select"
            fields = rule.fields.get(config.source)
            star = tuple(name for name in schema if fields is None or name in fields)
            outputs = select_of(config.select, schema, star, (config.source, "self"))
            _check_fields(config, outputs, target, fields)
            route.outputs = tuple(outputs)
            route.shape = Computed.made(schema, [output.expression for output in outputs])
    except SqlError as error:
        raise _Mistake(f"{part}, {error}") from None
    return route


def _target(sink: str, sinks: Mapping[str, SinkRule]) -> Target:
    if sink in NAMED_SINKS:
        return Target(sink)
    for kind, prefix in PLACED_SINKS.items():
        if sink.startswith(prefix):
            place = sink if kind == KAFKA else sink.removeprefix(prefix)
            look_at = sinks[kind].look_at
            try:
                return Target(kind, look_at(place) if look_at is not None else place)
            except UsageError as error:
                raise _Mistake(f"sink: {error}") from None
    shown = re.sub("//[^/]*@", "//...@", sink)  # a password, perhaps
    raise _Mistake(f"sink, column 1: there is no sink {shown[:100]!r}: write {SINKS_TEXT}")


def _check_rule(config: RouteConfig, target: Target, rule: SinkRule) -> None:
    if config.source not in rule.sources:
        takers = ", ".join(source for source in SOURCES if source in rule.sources)
        raise _Mistake(f"sink: {target.kind} takes no {config.source}, only {takers}: choose another sink, or from = one of these")
    if rule.missing:
        raise _Mistake(f"sink: this run has no {target.kind}: {rule.missing}")
    if config.where is not None and config.source not in rule.filters:
        raise _Mistake(f"where: {target.kind} takes {config.source} without where: {rule.why}")
    if config.select is not None and config.source not in rule.shapes:
        raise _Mistake(f"select: {target.kind} takes {config.source} without select: {rule.why}")


def _check_fields(config: RouteConfig, outputs: Iterable[Output], target: Target, fields: Mapping[str, frozenset[str]] | None) -> None:
    for output in outputs if fields is not None else ():
        assert fields is not None and config.select is not None  # noqa: S101, PT018 - by the loop and by who calls
        at, kind = place_of(config.select, output.at), kind_of(output.dtype)
        if output.name not in fields:
            raise _Mistake(f'select, {at}: {target.kind} has no field "{output.name[:60]}" for {config.source}: choose among {", ".join(fields)}')
        if kind not in fields[output.name]:
            wanted = " or ".join(f"a {one}" for one in (TEXT, WHOLE, NUMBER, FLAG) if one in fields[output.name])
            raise _Mistake(f'select, {at}: {target.kind} has {wanted} in the field "{output.name}", and this is a {kind}: CAST it, or name it otherwise')


def _check_single(route: Route, before: Iterable[Route], sinks: Mapping[str, SinkRule]) -> None:
    for other in before:
        if other.sink == route.sink and route.sink.kind == FILE:
            raise _Mistake(f'sink: "{other.name}" writes this file too: name another')
        if other.sink == route.sink and other.source == route.source and sinks[route.sink.kind].is_single:
            raise _Mistake(f'sink: "{other.name}" leads {route.source} to {route.sink.kind} already: make one route of them, its conditions joined by OR')
