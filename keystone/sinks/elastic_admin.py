"""What people and runs do to the indices beside writing: install templates, delete old days, look whether all is well."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from keystone.errors import KeystoneError, SinkBusy, UsageError
from keystone.sinks.elastic_http import Nodes, Reply, trouble_of
from keystone.sinks.elastic_schema import INDEXED_KINDS, VERSION, day_of, pattern, template, template_name

ADMIN_TIMEOUT_MS: Final = 60_000  # making or deleting an index waits for the cluster's state
NOT_FOUND: Final = 404
HURTS: Final = "HURTS"
NOTE: Final = "note "


class ElasticRefused(KeystoneError):
    """The server did not do what was asked, and says why."""


@dataclass(frozen=True, slots=True)
class Index:
    name: str
    day: dt.date
    documents: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Installed:
    """A template that is there; digest "" for somebody else's."""

    version: int
    digest: str

    def is_newer(self) -> bool:
        return bool(self.digest) and self.version > VERSION


def setup(nodes: Nodes) -> Iterator[str]:
    """Install the templates, and bring the indices that are there up to them. One line for each; again, it changes nothing.

    Each index tells by which template it was made, so what an earlier setup did not finish is done by the next. ``UsageError`` where
    a newer Keystone's templates are there.
    """
    for kind in INDEXED_KINDS:
        there, wanted = _installed(nodes, kind), template(kind)
        if there is not None and there.is_newer():
            raise UsageError(f"{template_name(kind)} is there in version {there.version}, of a newer Keystone (this one's is {VERSION}): run its setup")
        if there is not None and there.digest == wanted["_meta"]["digest"]:
            yield f"{template_name(kind)}: is there already, version {VERSION}"
        else:
            _asked(nodes, "PUT", f"/_index_template/{template_name(kind)}", wanted)
            yield f"{template_name(kind)}: {'installed' if there is None else 'updated'}, version {VERSION}, for {pattern(kind)}"
        yield from _bring_up(nodes, kind, wanted)


def _bring_up(nodes: Nodes, kind: str, wanted: dict[str, Any]) -> Iterator[str]:
    """Indices whose mappings are not the template's."""
    ours = [index.name for index in indices_of(nodes, kind)]
    mappings = _asked(nodes, "GET", f"/{pattern(kind)}/_mapping?ignore_unavailable=true") if ours else {}
    for name in ours:
        meta = mappings.get(name, {}).get("mappings", {}).get("_meta", {})
        if meta.get("digest") == wanted["_meta"]["digest"]:
            continue
        try:
            _asked(nodes, "PUT", f"/{name}/_mapping", wanted["template"]["mappings"])
            _asked(nodes, "PUT", f"/{name}/_settings", {"index": {"refresh_interval": wanted["template"]["settings"]["refresh_interval"]}})
        except ElasticRefused as error:
            yield f"{name}: stays as it is: {error}"
        else:
            yield f"{name}: brought up to its template"


def unready(nodes: Nodes) -> list[str]:
    """What is missing before anything may be written; ``SinkBusy`` where that cannot be found out. A newer Keystone's templates take ours too."""
    problems = []
    for kind in INDEXED_KINDS:
        there = _installed(nodes, kind)
        if there is None:
            problems.append(f"the template {template_name(kind)} is not installed")
        elif there.digest != template(kind)["_meta"]["digest"] and not there.is_newer():
            problems.append(f"the template {template_name(kind)} is {'an older version' if there.digest else 'somebody else'}'s")
    return problems


def retain(nodes: Nodes, days: int, today: dt.date) -> Iterator[str]:
    """Delete the indices of days more than ``days`` before ``today`` (UTC), each by its full name. One line for each."""
    first = today - dt.timedelta(days=days)
    for kind in INDEXED_KINDS:
        for index in indices_of(nodes, kind):
            if index.day < first:
                reply = nodes.request("DELETE", f"/{index.name}", timeout_ms=ADMIN_TIMEOUT_MS)
                if reply.status != NOT_FOUND:  # else another run was faster
                    _checked(reply)
                yield f"{index.name}: deleted, {index.documents:,} documents"


def indices_of(nodes: Nodes, kind: str) -> list[Index]:
    """Our indices of that kind, by day. Others that the pattern fits are left alone."""
    path = f"/_cat/indices/{pattern(kind)}?format=json&bytes=b&h=index,docs.count,store.size&expand_wildcards=open"
    found = [
        Index(row["index"], day, int(row["docs.count"] or 0), int(row["store.size"] or 0))
        for row in _asked(nodes, "GET", path)
        if (day := day_of(row["index"])) is not None
    ]
    return sorted(found, key=lambda index: index.day)


def check(nodes: Nodes) -> Iterator[tuple[str, str]]:
    """``HURTS`` or ``note `` and a line, for each thing that a run would want to know."""
    try:
        health = _asked(nodes, "GET", "/_cluster/health")
    except (SinkBusy, ElasticRefused) as error:
        yield HURTS, str(error)
        return
    status = health["status"]
    yield HURTS if status == "red" else NOTE, f"cluster {health['cluster_name']}: {status}, {health['number_of_nodes']} nodes"
    for problem in unready(nodes):
        yield HURTS, f"{problem}: run keystone elastic setup"
    for kind in INDEXED_KINDS:
        indices = indices_of(nodes, kind)
        if indices:
            documents, size = sum(index.documents for index in indices), sum(index.size_bytes for index in indices)
            yield NOTE, f"{pattern(kind)}: {len(indices)} days from {indices[0].day}, {documents:,} documents, {size:,} bytes"
        for index in indices:
            if index.day > dt.datetime.now(dt.UTC).date() + dt.timedelta(days=3):
                yield HURTS, f"{index.name}: lies in the future: the clocks of brokers, or of this machine, are wrong"


def _installed(nodes: Nodes, kind: str) -> Installed | None:
    reply = nodes.request("GET", f"/_index_template/{template_name(kind)}", timeout_ms=ADMIN_TIMEOUT_MS)
    if reply.status == NOT_FOUND:
        return None
    (found,) = _checked(reply)["index_templates"]
    there = found["index_template"]
    return Installed(int(there.get("version") or 0), str(there.get("_meta", {}).get("digest", "")))


def _asked(nodes: Nodes, method: str, path: str, body: Any = None) -> Any:
    return _checked(nodes.request(method, path, b"" if body is None else orjson.dumps(body), timeout_ms=ADMIN_TIMEOUT_MS))


def _checked(reply: Reply) -> Any:
    """The answer; ``SinkBusy`` where it may be another later, ``ElasticRefused`` where it will not."""
    if reply.status in {400, NOT_FOUND, 405, 409}:
        raise ElasticRefused(f"the search server refuses this (status {reply.status}): {reply.reason()}")
    if reply.status >= 300:
        raise trouble_of(reply)
    return reply.json()
