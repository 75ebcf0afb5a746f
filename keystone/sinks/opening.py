"""From a sink's name in a route to the sink, with its spill, and a place for what its receiver refuses."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from keystone.config import Config
from keystone.errors import SinkError, UsageError
from keystone.events import DeadLetter
from keystone.log.url import KafkaUrl, parse_log_url
from keystone.logs import get
from keystone.routes import ACTIONS, CONSOLE, ELASTIC, FILE, KAFKA, LAKE, Route, Routes, Target, compile_routes
from keystone.routes_sources import DEAD_LETTERS
from keystone.sinks.base import RawSink, Refused, Sink
from keystone.sinks.file_rows import BytesOut, ConsoleRows, FileRows
from keystone.sinks.ndjson import LineFile, dead_letter_line
from keystone.sinks.route_sinks import sink_rules
from keystone.sinks.shell import BufferedSink

if TYPE_CHECKING:
    from keystone.sinks.elastic_http import Nodes

REFUSED_BYTES_MAX: Final = 64 << 20  # of one process's file: ~50,000 alerts; more are only counted
REASON: Final = "refused_by_sink"
NOWHERE: Final = -1  # offset of a dead letter that is no line of the log

log = get(__name__)


@dataclass(frozen=True, slots=True)
class SinksSpec:
    """What the sinks of a run need to know. ``elastic``: URL of a search server, or None. ``outbox``: directory for spill, one in it a process.

    ``refused``: directory for what receivers refuse. ``without``: which of lake, actions and dead_letters the run has not; ``log``: its own;
    ``origin``: where its routes are from, for messages.
    """

    outbox: str
    refused: str
    elastic: str | None = None
    without: tuple[str, ...] = ()
    log: str | None = None
    origin: str = "keystone.toml"


class Refusals:
    """A file of dead letters: documents that a receiver will never take, with its reason. Any thread may call."""

    def __init__(self, directory: Path, role: str, bytes_max: int = REFUSED_BYTES_MAX) -> None:
        self.count = self.not_kept = 0
        self._directory, self._role, self._room = directory, role, bytes_max
        self._file: LineFile | None = None
        self._lock = threading.Lock()

    def take(self, sink: str, refused: Sequence[Refused]) -> None:
        """Written when this returns, or, beyond the limit or on a full disk, counted."""
        lines = [dead_letter_line(_letter(sink, one), per_line=False) for one in refused]
        with self._lock:
            self.count += len(lines)
            kept = [line for line in lines if self._has_room_for(line)]
            try:
                if self._file is None:
                    self._file = LineFile(self._directory / f"refused-{self._role}.ndjson")
                self._file.write_lines(kept)
            except (SinkError, UsageError) as error:
                log.warning("what a sink refused cannot be kept", sink=sink, rows=len(kept), reason=str(error))
                kept = []
            self.not_kept += len(lines) - len(kept)

    def _has_room_for(self, line: bytes) -> bool:
        has_room = self._room >= len(line)
        self._room -= len(line) if has_room else 0
        return has_room

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()


def _letter(sink: str, refused: Refused) -> DeadLetter:
    """Why and what, as one JSON object; it is no line of the log, so it has no place there."""
    why = orjson.dumps({"sink": sink, "kind": refused.kind, "id": refused.id, "why": refused.reason})
    raw = why[:-1] + b',"document":' + (refused.body or b"null") + b"}"
    return DeadLetter(_partition_of(refused.body), NOWHERE, 0, REASON, len(raw), raw)


def _partition_of(body: bytes) -> int:
    try:
        found = orjson.loads(body).get("partition")
    except (ValueError, AttributeError):
        return 0
    return found if isinstance(found, int) else 0


def open_sinks(
    routes: Collection[Route], spec: SinksSpec, config: Config, *, role: str, refusals: Refusals, console: BytesOut | None = None
) -> dict[Target, Sink]:
    """The sinks of rows that ``routes`` lead to, each with its spill. ``UsageError`` for what cannot be used. ``console``: where lines for people go."""
    kinds: dict[Target, set[str]] = {}
    for route in routes:
        kinds.setdefault(route.sink, set()).add(route.source)
    found: dict[Target, Sink] = {}
    try:
        for target, wanted in sorted(kinds.items()):
            raw = _raw(target, sorted(wanted), spec, config, role, console)
            if raw is not None:
                name, spill = str(target), Path(spec.outbox) / _folder(target) / role
                found[target] = BufferedSink(name, raw, config.sinks, partial(refusals.take, name), spill, kinds=sorted(wanted))
    except BaseException:
        for sink in found.values():
            sink.close(0.0)
        raise
    return found


def _folder(target: Target) -> str:
    return target.kind if not target.place else f"{target.kind}-{hashlib.sha256(target.place.encode()).hexdigest()[:12]}"


def _raw(target: Target, kinds: Sequence[str], spec: SinksSpec, config: Config, role: str, console: BytesOut | None) -> RawSink | None:
    if target.kind == ELASTIC and spec.elastic is not None:
        from keystone.sinks.elastic import ElasticRows

        return ElasticRows(nodes_of(spec, config))
    if target.kind == FILE:
        path = Path(target.place)
        return FileRows(path.parent, role, kinds, stem=path.name.removesuffix(".ndjson"), file_bytes_max=config.sinks.file_bytes_max)
    if target.kind == KAFKA:
        from keystone.sinks.topic_rows import TopicRows

        url = parse_log_url(target.place)
        assert isinstance(url, KafkaUrl)  # noqa: S101 - by its scheme
        return TopicRows(url, config.kafka, role=role, key_field="device_id")
    return ConsoleRows(console) if target.kind == CONSOLE else None


def routes_of(spec: SinksSpec, config: Config) -> Routes:
    """The routes of a run, compiled for what it has. ``UsageError`` in one line."""
    rules = sink_rules({LAKE, ACTIONS, DEAD_LETTERS, *([ELASTIC] if spec.elastic is not None else [])} - set(spec.without), log=spec.log)
    return compile_routes(config.routes, rules, dimensions=config.cohorts.dimensions, origin=spec.origin)


def nodes_of(spec: SinksSpec, config: Config) -> Nodes:
    from keystone.sinks.elastic_http import Nodes

    assert spec.elastic is not None  # noqa: S101 - asked before
    return Nodes(spec.elastic, config.elastic)


def look_at_elastic(url: str, config: Config) -> list[str]:
    """Before a run: the URL and login can be used (``UsageError``), and what a person should know: that nobody answers, or no templates are there."""
    from keystone.errors import KeystoneError, SinkBusy
    from keystone.sinks.elastic_admin import unready
    from keystone.sinks.elastic_http import FORBIDDEN_WAIT_MS, Nodes

    with closing(Nodes(url, config.elastic)) as nodes:
        try:
            problems = unready(nodes)
        except SinkBusy as error:
            if error.wait_ms >= FORBIDDEN_WAIT_MS:  # a login, or no search server at all: waiting mends neither
                raise UsageError(f"--elastic {url}: {error}") from error
            return [f"--elastic: {error}: what is for it waits until it answers"]
        except KeystoneError as error:
            raise UsageError(f"--elastic {url}: {error}") from error
    if problems:
        raise UsageError(f"--elastic {url}: {problems[0]}: run keystone elastic setup --elastic {url}")
    return []
