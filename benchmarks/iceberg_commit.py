"""Committing to the lake's tables: whether commit 5,000 still costs what commit 50 did, with maintenance on.

    python benchmarks/iceberg_commit.py [--commits 5000] [--json benchmarks/results/iceberg_commit.json]

A commit takes one segment of each of 4 partitions: a file of events and one of sessions each, and a file of alerts of one of
them, so it is a snapshot of three tables. Snapshots expire every 10 commits, as a committer does it; nothing is compacted, so
the number of files grows to the end. The rival is pyiceberg as it comes: ``add_files`` of the same event files to one table, its
defaults, no expiry; it is stopped early, because it goes on growing. Wall time, the median of 20 commits that end at the one
named (of 5 for the first, after a warm-up in a lake of its own), and the dearest of them, which merges manifests; files are hard links to
ready-made ones, whose footers are read as those of any other. fsync included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import report
from keystone.config import LakeConfig
from keystone.segments import DataFile, Segment
from keystone.sinks.iceberg.columns import ALERT_SCHEMA, ALERTS, EVENTS, SESSIONS
from keystone.sinks.iceberg.places import NAMESPACE
from keystone.sinks.iceberg.tables import LakeTables
from keystone.sinks.iceberg.upkeep import expire, sweep
from keystone.sinks.lake_schema import SCHEMA

PARTITIONS = 4
DAY = 20_717
SESSION_COLUMNS = {"int64": pa.int64(), "string": pa.string(), "double": pa.float64()}
STEPS = (1, 50, 500, 5_000)
SPAN = 20


def template(folder: Path, name: str, schema: pa.Schema) -> Path:
    """A file of 100 rows."""
    values = {pa.string(): "x", pa.int64(): 7, pa.int32(): 7, pa.float64(): 7.0, pa.bool_(): True}
    plain = pa.schema([pa.field(f.name, f.type, f.nullable) for f in schema])
    path = folder / f"{name}.parquet"
    pq.write_table(pa.Table.from_pylist([{f.name: values[f.type] for f in plain}] * 100, plain), path, store_schema=False)
    return path


def templates(folder: Path) -> dict[str, Path]:
    from keystone.sinks.iceberg.columns import FILE_COLUMNS

    sessions = pa.schema([pa.field(c.name, SESSION_COLUMNS[c.type], c.is_optional) for c in FILE_COLUMNS[SESSIONS]])
    return {EVENTS: template(folder, EVENTS, SCHEMA), SESSIONS: template(folder, SESSIONS, sessions), ALERTS: template(folder, ALERTS, ALERT_SCHEMA)}


class Stream:
    """Segments without end."""

    def __init__(self, lake: Path, ready: dict[str, Path]) -> None:
        self.lake, self.ready, self.sequence = lake, ready, 0
        for folder in (f"events/event_date={DAY}", "sessions", "alerts"):
            (lake / "data" / folder).mkdir(parents=True, exist_ok=True)

    def next(self) -> list[Segment]:
        found = [self.segment(p) for p in range(PARTITIONS)]
        self.sequence += 1
        return found

    def segment(self, partition: int) -> Segment:
        first = self.sequence * 100
        stem = f"p{partition:05d}-{first:020d}-{first + 99:020d}-e00000001-{self.sequence:06d}.parquet"
        names = [(EVENTS, f"data/events/event_date={DAY}/{stem}"), (SESSIONS, f"data/sessions/{stem}")]
        names += [(ALERTS, f"data/alerts/{stem}")] if self.sequence % PARTITIONS == partition else []
        return Segment(partition, 1, first, first + 100, 0, self.sequence, tuple(self.file(*name) for name in names))

    def file(self, name: str, path: str) -> DataFile:
        os.link(self.ready[name], self.lake / path)
        return DataFile(name, path, 100, self.ready[name].stat().st_size, DAY if name == EVENTS else None)


def ours(folder: Path, ready: dict[str, Path], commits: int) -> list[dict[str, object]]:
    lake = folder / "lake"
    tables, stream = LakeTables.open(lake, LakeConfig()), Stream(lake, ready)
    times, cpu, upkeep, rows = [], [], [], []
    for number in range(1, commits + 1):
        segments = stream.next()
        started, started_cpu = time.perf_counter(), time.process_time()
        done = tables.commit(segments, 1)
        times.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
        assert done.segments == PARTITIONS
        if number % 10 == 0:
            started = time.perf_counter()
            expire(tables)
            upkeep.append(time.perf_counter() - started)
        if number in STEPS:
            rows.append(figures("ours, three tables", number, times, cpu, upkeep) | state(tables))
            print(rows[-1], flush=True)
    started = time.perf_counter()
    waiting = sweep(tables, 0).waiting
    print(f"a sweep over it all: {time.perf_counter() - started:.1f} s, {waiting} files wait")
    tables.close()
    return rows


def figures(what: str, number: int, times: list[float], cpu: list[float], upkeep: list[float]) -> dict[str, object]:
    span = SPAN if number > SPAN else min(number, 5)
    return {
        "what": what,
        "commit": number,
        "median_ms": statistics.median(times[-span:]) * 1_000,
        "dearest_ms": max(times[-span:]) * 1_000,
        "cpu_ms": statistics.mean(cpu[-span:]) * 1_000,
        "expire_ms": statistics.median(upkeep[-5:]) * 1_000 if upkeep else None,
    }


def state(tables: LakeTables) -> dict[str, object]:
    table = tables.load(EVENTS)
    snapshot = table.current_snapshot()
    assert snapshot is not None
    metadata = Path(table.metadata_location.removeprefix("file://"))
    return {
        "snapshots": len(table.snapshots()),
        "manifests": len(snapshot.manifests(table.io)),
        "files": int(snapshot.summary.additional_properties["total-data-files"]),
        "metadata_kb": metadata.stat().st_size / 1_000,
    }


def rival(folder: Path, ready: dict[str, Path], commits: int) -> list[dict[str, object]]:
    from pyiceberg.catalog.sql import SqlCatalog

    lake = folder / "rival"
    stream = Stream(lake, ready)
    catalog = SqlCatalog("rival", uri=f"sqlite:///{folder}/rival.db", warehouse=f"file://{lake}")
    catalog.create_namespace(NAMESPACE)
    table = catalog.create_table((NAMESPACE, EVENTS), SCHEMA)
    times, cpu, rows = [], [], []
    for number in range(1, commits + 1):
        paths = [f"file://{lake}/{s.files[0].path}" for s in stream.next()]
        started, started_cpu = time.perf_counter(), time.process_time()
        table.add_files(paths)
        times.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
        if number in (1, 50, commits):
            rows.append(figures("pyiceberg as it comes, one table", number, times, cpu, []))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--commits", type=int, default=STEPS[-1])
    parser.add_argument("--rival", type=int, default=200, metavar="COMMITS", help="of pyiceberg as it comes; 0: none")
    parser.add_argument("--folder", default=None, help="where to write; about 1 GB of directory entries and metadata")
    parser.add_argument("--json", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        ready = templates(folder)
        warm = folder / "warm"
        tables = LakeTables.open(warm, LakeConfig())
        tables.commit(Stream(warm, ready).next(), 1)
        tables.close()
        rows = ours(folder, ready, given.commits)
        rows += rival(folder, ready, given.rival) if given.rival else []
    by_number = {row["commit"]: row["median_ms"] for row in rows if row["what"] == "ours, three tables"}
    growth = by_number[5_000] / by_number[50] if {50, 5_000} <= set(by_number) else None
    report("iceberg_commit", rows, given.json, growth_50_to_5000=growth)


if __name__ == "__main__":
    main()
