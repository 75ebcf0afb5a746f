"""What each sink takes of routes, as ``keystone.routes`` wants to know it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from keystone.errors import UsageError
from keystone.log.url import KAFKA_SCHEME, KafkaUrl, parse_log_url
from keystone.routes import ACTIONS, CONSOLE, ELASTIC, FILE, KAFKA, LAKE, NONE, SinkRule
from keystone.routes_check import NUMBER, TEXT, WHOLE
from keystone.routes_sources import ALERTS, COHORTS, DEAD_LETTERS, EVENTS, SESSIONS
from keystone.sinks.elastic_schema import FIELDS

_KINDS: Final = {"keyword": frozenset({TEXT}), "long": frozenset({WHOLE}), "date": frozenset({WHOLE}), "double": frozenset({WHOLE, NUMBER})}
#: What the sink itself puts into each document: its time and, of a cohort, which it is.
ADDED: Final = ("@timestamp", "cohort")
#: What to do where a run lacks a sink.
MISSING: Final = {
    ELASTIC: "add --elastic URL, or leave the route out",
    LAKE: "add --lake DIR or run.lake, or leave the route out",
    ACTIONS: "name a place with --actions instead of none, or leave the route out",
    DEAD_LETTERS: "add --dead-letters URL|DIR, or leave the route out",
}
_NOTHING: Final[frozenset[str]] = frozenset()


def sink_rules(available: Collection[str], *, log: str | None = None) -> dict[str, SinkRule]:
    """The rule of each kind of sink. ``available``: those of ELASTIC, LAKE, ACTIONS and DEAD_LETTERS that the run has.

    ``log``: the one that the run reads, which no route may feed.
    """
    alerts, letters = frozenset({ALERTS}), frozenset({DEAD_LETTERS})
    dashboards, tables = frozenset({ALERTS, SESSIONS, COHORTS}), frozenset({EVENTS, ALERTS, SESSIONS})
    missing = {kind: "" if kind in available else advice for kind, advice in MISSING.items()}
    fields = {kind: {name: _KINDS[mapping["type"]] for name, mapping in FIELDS[kind].items() if name not in ADDED} for kind in (ALERTS, SESSIONS, COHORTS)}
    return {
        ELASTIC: SinkRule(sources=dashboards, fields=fields, missing=missing[ELASTIC], is_single=True),
        LAKE: SinkRule(tables, _NOTHING, _NOTHING, why="it holds every accepted row, whole, and is checked for that", missing=missing[LAKE], is_single=True),
        ACTIONS: SinkRule(alerts, alerts, _NOTHING, why="its receivers need the whole alert", missing=missing[ACTIONS], is_single=True),
        DEAD_LETTERS: SinkRule(letters, _NOTHING, _NOTHING, why="what is replayed from there must be whole", missing=missing[DEAD_LETTERS], is_single=True),
        CONSOLE: SinkRule(),
        NONE: SinkRule(),
        FILE: SinkRule(look_at=_path),
        KAFKA: SinkRule(look_at=lambda place: _topic(place, log)),
    }


def sinks_of_run(*, log: str | None, lake: str | None, elastic: str | None, actions: str | None, dead_letters: str | None) -> frozenset[str]:
    """Which of the sinks that a run may lack there are, by its options: what they are left out for is chosen by the log and the lake, as ``run`` does."""
    has_letters = dead_letters != NONE if dead_letters is not None else lake is not None or (log or "").startswith(KAFKA_SCHEME)
    there = {ELASTIC: elastic is not None, LAKE: lake is not None, ACTIONS: actions != NONE, DEAD_LETTERS: has_letters}
    return frozenset(kind for kind, is_there in there.items() if is_there)


def _path(text: str) -> str:
    if not text.strip() or text.endswith("/") or Path(text).is_dir():
        raise UsageError(f"file:{text}: names no file: write it as file:PATH, such as file:/var/tmp/vip.ndjson")
    return str(Path(text).absolute())


def _topic(text: str, log: str | None) -> str:
    if not text.removeprefix(KAFKA_SCHEME).partition("/")[2]:
        raise UsageError(f"{text}: names no topic: write it as kafka://HOST[:PORT]/TOPIC")
    url = parse_log_url(text)
    assert isinstance(url, KafkaUrl)  # noqa: S101 - by its scheme
    read = parse_log_url(log) if log is not None else None
    if isinstance(read, KafkaUrl) and read.topic == url.topic and set(read.servers) & set(url.servers):
        raise UsageError(f"{text}: is the log that the run reads, and would read its own rows: name another topic")
    return str(url)
