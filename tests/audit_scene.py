"""A log, a lake, dead letters and an index that agree, for tests of ``keystone audit``; each test changes one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from keystone.clock import ManualClock
from keystone.events import Alert
from keystone.log.embedded import EmbeddedLog
from keystone.segments import DataFile, Segment
from keystone.sinks import lake_schema
from keystone.sinks.documents import AlertRows, SessionRows
from keystone.sinks.elastic_schema import index_of
from keystone.sinks.iceberg.columns import alert_table
from keystone.sinks.iceberg.tables import LakeTables
from tests.lake_batches import APPEND_MS, row
from tests.lake_tables import DAY, day_name, session_table, write_parquet
from tests.letters import letter, told, write

Change = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
GOOD = b'{"event":"Heartbeat","ts":%d,"device_id":"d","session_id":"s"}' % APPEND_MS
STEP_MS = 15_000  # between two records: four a minute
RECORDS = 12
EVENTS = lake_schema.SCHEMA.remove_metadata()
#: As differences tell them, from the first record on.
MINUTES = [f"{np.datetime64((APPEND_MS // 60_000 + k) * 60, 's')}"[11:16] + "Z" for k in range(5)]
NAMES = ("partition", "where", "expected", "found", "missing", "extra", "doubled", "first")


def told_of(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Each difference, its minute as HH:MMZ first."""
    return [(one["minute"][11:], *(one[name] for name in NAMES)) for one in found["differences"]]


class Scene:
    """Records of two events, some with a dead line between, in two partitions; a lake and letters that hold them."""

    def __init__(self, folder: Path, lake: Path, tables: LakeTables) -> None:
        self.folder, self.lake, self.tables = folder, lake, tables
        self.clock = ManualClock(APPEND_MS)
        self.log = EmbeddedLog.create(folder / "log", partitions=2, segment_bytes=1 << 16, retention_bytes=1 << 18, clock=self.clock)
        self.letters = folder / "lake-dead-letters"
        self._writers = [self.log.writer(p) for p in range(2)]
        self.times: dict[int, list[int]] = {0: [], 1: []}
        self.sequence = {0: 0, 1: 0}
        self.committed = {0: 0, 1: 0}

    @property
    def words(self) -> list[str]:
        return ["audit", "--log", f"embedded:{self.folder / 'log'}", "--lake", str(self.lake), "--dead-letters", str(self.letters)]

    def append(self, records: int = RECORDS, blank: int = 0) -> None:
        """``blank``: lines that are no events, but take room."""
        for _ in range(records):
            for partition in range(2):
                offset = len(self.times[partition])
                value = GOOD + b"\n" + (b"broken\n" if offset % 4 == 1 else b"\n") + GOOD + b"\n" * blank
                self.times[partition].append(self._writers[partition].append(value).append_ts_ms)
            self.clock.advance(STEP_MS)

    def commit(self, partition: int = 0, *, alerts: tuple[Alert, ...] = (), change: Change = lambda rows: rows) -> Segment:
        """Everything not committed yet, with its letters."""
        first, end = self.committed[partition], len(self.times[partition])
        rows = [
            row(offset=offset, line=line, partition=partition, ts=APPEND_MS, append_ts=self.times[partition][offset], device_id="d", session_id="s")
            for offset in range(first, end)
            for line in (0, 2)
        ]
        tail = f"p{partition:05d}-{first:020d}-{end:020d}-e00000001-{self.sequence[partition]:06d}.parquet"
        files = [self._file("events", f"data/events/{day_name(DAY)}/{tail}", pa.Table.from_pylist(change(rows), EVENTS), DAY)]
        files += [self._file("sessions", f"data/sessions/{tail}", session_table(3, first))]
        if alerts:
            files += [self._file("alerts", f"data/alerts/{tail}", alert_table(alerts))]
        segment = Segment(partition, 1, first, end, self.times[partition][-1], self.sequence[partition], tuple(files))
        assert self.tables.commit([segment], 1).segments == 1
        write(
            self.letters,
            [letter(o, b"broken", "invalid_json", partition=partition, line=1) for o in range(first, end) if o % 4 == 1],
            epoch=self.sequence[partition] + 1,
        )
        self.sequence[partition] += 1
        self.committed[partition] = end
        return segment

    def _file(self, table: str, path: str, rows: pa.Table, day: int | None = None) -> DataFile:
        count, size = write_parquet(self.lake / path, rows)
        return DataFile(table, path, count, size, day)

    def audit(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
        status, out, err = told(capsys, *self.words, "--json", *words)
        assert err == ""
        return status, json.loads(out)

    def close(self) -> None:
        self.log.close()


def whole(scene: Scene) -> Scene:
    scene.append()
    for partition in range(2):
        scene.commit(partition)
    return scene


class FakeIndex:
    """Answers what the audit asks a search server, from documents in memory: (index, id, body)."""

    def __init__(self) -> None:
        self.documents: list[tuple[str, str, dict[str, Any]]] = []
        self.requests: list[str] = []
        self.page = 3
        self.on_search: Callable[[], None] = lambda: None

    def put(self, rows: AlertRows | SessionRows) -> None:
        for document in rows.documents(0, rows.rows):
            self.documents.append((index_of(document.kind, document.day), document.id, json.loads(document.body)))

    def answer(self, method: str, path: str, body: Any) -> Any:
        self.requests.append(f"{method} {path.partition('?')[0]}")
        kind = "alerts" if "alerts" in path else "sessions"
        mine = [one for one in self.documents if one[0].startswith(f"keystone-{kind}-")]
        if path.startswith("/_cat"):
            return [{"index": name, "docs.count": "1", "store.size": "1"} for name in sorted({one[0] for one in mine})]
        self.on_search()
        query = body["query"]
        if "ids" in query:
            mine = [one for one in mine if one[1] in query["ids"]["values"]]
        else:
            limits = query["range"]["@timestamp"]
            mine = [one for one in mine if limits["gte"] <= one[2]["@timestamp"] < limits["lt"]]
        names = [next(iter(one)) for one in body["sort"]]
        hits = [
            {
                "_index": index,
                "_id": id_,
                "sort": [index if name == "_index" else source[name] for name in names],
                "fields": {name: [source[name]] for name in body.get("docvalue_fields", ()) if name in source},
            }
            for index, id_, source in mine
        ]
        hits = sorted((hit for hit in hits if "search_after" not in body or hit["sort"] > body["search_after"]), key=lambda hit: hit["sort"])
        return {"hits": {"hits": hits[: body["size"]]}, "_shards": {"failed": 0}, "timed_out": False}


@contextmanager
def served(index: FakeIndex) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            text = json.dumps(index.answer(self.command, self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET  # noqa: N815 - as the standard library names them

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
