"""Memory of the dictionaries follows the sessions that are active, whatever a stream is full of; forgetting changes no result."""

from __future__ import annotations

import json
import random
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from keystone.config import Config
from keystone.decode import Decoder, Dictionaries
from keystone.events import DICTIONARY_COLUMNS, EVENT_NAMES, Records
from keystone.pipeline import PartitionPipeline, StepResult
from keystone.sinks.lake import LakeWriter
from tests.batches import canonical
from tests.dirty import dirty_text
from tests.laws.test_replay_laws import LAKE_COLUMNS
from tests.reference import LogRecord, parse_json, reference_log

TITLE, REGION, EVENT = (DICTIONARY_COLUMNS.index(name) for name in ("title_id", "region", "event"))
START = 1_790_000_000_000
FIXED = 7  # event names and phases


class Run:
    """Partitions that share a decoder, and a lake; ``outcome`` in the reference's form."""

    def __init__(self, directory: Path, partitions: int, **limits: int) -> None:
        self.decoder = Decoder(seed=1, **limits)
        self.directory = directory
        self.lake = LakeWriter(directory, Config().lake)
        self.pipelines = [PartitionPipeline(p, self.decoder, Config(), on_batch=self.lake.append) for p in range(partitions)]
        self.results: list[StepResult] = []
        self.entries_max = 0

    def step(self, partition: int, records: Records, now_ms: int | None = None) -> None:
        self.results.append(self.pipelines[partition].step(records, now_ms))
        self.lake.end_step(0)
        self.entries_max = max(self.entries_max, self.decoder.dictionaries.entries)

    def outcome(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], pl.DataFrame]:
        """Only now are the dimensions of closed sessions looked up."""
        self.lake.close()
        alerts = []
        for result in self.results:
            for alert in result.alerts:
                fields = {name: getattr(alert, name) for name in alert.__dataclass_fields__ if name != "dimensions"}
                alerts.append(fields | alert.dimensions)
        sessions = [row for result in self.results for part in result.sessions for row in part.to_arrow().to_pylist()]
        rows = pl.read_parquet(self.directory / "**/*.parquet", hive_partitioning=False).sort("partition", "offset", "line")
        return alerts, sessions, rows


def rich_line(i: int, sessions: int) -> bytes:
    """Event ``i``: of one of a few sessions, with a title and a region that nobody had before."""
    kind = "Buffer" if i // sessions % 8 else "Start"
    event = {"event": kind, "ts": START + i, "device_id": f"d{i % sessions}", "session_id": "s", "seq": i // sessions}
    return json.dumps(event | {"title_id": f"title {i:07d} with a long name", "region": f"r{i:x}"}, separators=(",", ":")).encode()


@pytest.mark.slow
def test_a_new_title_and_region_in_every_event(tmp_path: Path) -> None:
    """150,000 events of 900 sessions in two partitions, 300,000 strings; results equal those of dictionaries that only grow."""
    events, sessions, limit, per_record = 150_000, 900, 20_000, 500
    small, large = Run(tmp_path / "small", 2, entries_max=limit), Run(tmp_path / "large", 2, entries_max=1 << 30)
    for at in range(0, events, 2 * per_record):
        for partition in (0, 1):
            lines = b"\n".join(rich_line(2 * i + partition, sessions) for i in range(at // 2, at // 2 + per_record))
            for run in (small, large):
                run.step(partition, Records.of([lines], partition=partition, first_offset=at, append_ts_ms=START + at))
    live = [np.concatenate([p.sessions.live_codes(d) for p in small.pipelines]).sum() for d in (0, 1)]
    assert live[0] <= sessions
    assert live[1] <= 2 * sessions  # a session's region now, and the one that its cohort was fixed by (cohorts.values_max of a partition at most)
    assert large.decoder.dictionaries.entries > 2 * events
    assert large.decoder.compactions == 0
    assert small.decoder.compactions > 2 * events // limit // 2
    assert small.entries_max <= limit + 2 * per_record + FIXED
    assert small.decoder.dictionaries.state_bytes < 16 << 20
    for run in (small, large):
        for partition in (0, 1):
            run.step(partition, Records.empty(partition, events), START + events + 10**6)
    (alerts, closed, rows), (expected_alerts, expected_closed, expected_rows) = small.outcome(), large.outcome()
    assert len(expected_alerts) > sessions / 2
    assert canonical(alerts) == canonical(expected_alerts)
    assert len(closed) == sessions
    assert canonical(closed) == canonical(expected_closed)
    assert rows.height == events
    assert rows.equals(expected_rows)
    number = 2 * (rows["offset"] // 2 + rows["line"]) + rows["partition"]
    assert (rows["title_id"] == "title " + number.cast(pl.String).str.zfill(7) + " with a long name").all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_forgetting_at_any_time_changes_nothing(tmp_path: Path, seed: int) -> None:
    """Dirty streams, limits that nearly every batch passes, and compactions between steps besides: as the reference says."""
    rng = random.Random(seed)
    logs: dict[int, list[LogRecord]] = {}
    for partition in (0, 1, 2):
        lines = dirty_text(10 * seed + partition, 500, broken_share=0.02).split(b"\n")
        cuts = sorted({0, len(lines), *(rng.randrange(len(lines)) for _ in range(60))})
        logs[partition] = [LogRecord(b"\n".join(lines[a:b]), k, START + 900 * a) for k, (a, b) in enumerate(pairwise(cuts))]
    run = Run(tmp_path, 3, entries_max=rng.choice([0, 8, 12, 40]))
    order = [p for p, records in logs.items() for _ in records]
    rng.shuffle(order)
    places = dict.fromkeys(logs, 0)
    for partition in order:
        record = logs[partition][places[partition]]
        places[partition] += 1
        run.step(partition, Records.of([record.value], partition=partition, first_offset=record.offset, append_ts_ms=record.append_ts))
        if rng.random() < 0.1:
            run.decoder.compact_dictionaries()
    end = START + 10**7
    for partition in logs:
        run.step(partition, Records.empty(partition, 0), end)
    expected = reference_log({p: list(records) for p, records in logs.items()}, end_log_time=end)
    alerts, sessions, rows = run.outcome()
    assert run.decoder.compactions > 10
    assert canonical(alerts) == canonical(expected.alerts)
    assert canonical(sessions) == canonical(expected.sessions)
    assert rows.select(LAKE_COLUMNS).to_dicts() == [{name: row[name] for name in LAKE_COLUMNS} for row in expected.rows]
    assert [None if text is None else parse_json(text) for text in rows["extra"]] == [row["extra"] for row in expected.rows]


@pytest.mark.slow
def test_codes_above_65535_come_and_go(tmp_path: Path) -> None:
    """Sessions keep the high half of such codes apart; numbered anew they may need none, or one for the first time."""
    run = Run(tmp_path, 2, entries_max=1 << 30)
    sessions, names = 70_000, b'"ts":%d,"device_id":"d%d","session_id":"s"'
    lines = [b'{"event":"Start",' + names % (START, i) + b',"title_id":"t%d","cdn":"c%d"}' % (i, i % 3) for i in range(sessions)]
    run.step(0, Records.of([b"\n".join(lines)], append_ts_ms=START))
    assert run.decoder.dictionaries.size(TITLE) == sessions
    run.decoder.compact_dictionaries()
    assert run.decoder.dictionaries.size(TITLE) == sessions
    # 66,000 sessions end, and the titles of the others come down; then they go up again, before and after those of another partition.
    stops = [b'{"event":"Stop",' + names % (START + 1, i) + b"}" for i in range(66_000)]
    run.step(0, Records.of([b"\n".join(stops)], first_offset=1, append_ts_ms=START + 1))
    run.step(0, Records.empty(0, 2), START + 60_000)
    run.decoder.compact_dictionaries()
    assert run.decoder.dictionaries.size(TITLE) == sessions - 66_000
    run.step(1, Records.of([b"\n".join(lines[:66_000])], partition=1, append_ts_ms=START + 60_000))
    run.decoder.compact_dictionaries()
    assert run.decoder.dictionaries.size(TITLE) == sessions
    for partition in (0, 1):
        run.step(partition, Records.empty(partition, 2), START + 10**7)
    _, closed, rows = run.outcome()
    assert len(closed) == sessions + 66_000
    for row in closed:
        i = int(row["device_id"][1:])
        assert (row["title_id"], row["cdn"]) == (f"t{i}", f"c{i % 3}")
    assert rows.filter(pl.col("event") == "Start").select((pl.col("title_id") == "t" + pl.col("device_id").str.slice(1)).all()).item()


def test_what_compact_keeps() -> None:
    old = Dictionaries(seed=5)
    names = {c: [old.intern(c, f"{c} name {i} {'long ' * (i % 4)}".encode()) for i in range(50)] for c in (EVENT, TITLE, REGION)}
    assert old.intern(EVENT, b"bUFFER") == EVENT_NAMES.index("Buffer")
    live: list[Any] = [None] * len(DICTIONARY_COLUMNS)
    live[TITLE] = np.zeros(41, np.bool_)
    live[TITLE][[3, 40]] = True
    new, mappings = old.compact(live)
    assert [old.text(TITLE, code) for code in (3, 40)] == new.values(TITLE) == new.arrow(TITLE).to_pylist()
    assert mappings[TITLE].tolist() == [{3: 0, 40: 1}.get(code, -1) for code in range(50)]
    assert mappings[REGION].tolist() == [-1] * 50
    assert mappings[EVENT].tolist() == [*range(5), *[-1] * 50]
    assert new.values(EVENT) == list(EVENT_NAMES)
    assert new.values(DICTIONARY_COLUMNS.index("phase")) == ["startup", "seek"]
    assert new.entries == FIXED + 2
    assert new.words.secrets.tolist() == old.words.secrets.tolist()
    assert new.intern(TITLE, old.text(TITLE, 40).encode()) == 1
    assert new.intern(TITLE, b"another") == 2
    assert new.intern(EVENT, b"START") == 0
    assert new.intern(EVENT, b"Ad") == 5
    for i in range(10_000):
        assert new.intern(REGION, b"%d" % i) == i
    assert old.size(TITLE) == len(names[TITLE])
    assert old.text(REGION, names[REGION][-1]).startswith(f"{REGION} name 49")


def test_nobody_keeps_replaced_dictionaries(tmp_path: Path) -> None:
    """Not even the open file of a partition that has gone silent."""
    run = Run(tmp_path, 2)
    for partition in (0, 1):
        run.step(partition, Records.of([rich_line(partition, 10)], partition=partition))
    replaced = weakref.ref(run.decoder.dictionaries)
    run.decoder.compact_dictionaries()
    run.step(0, Records.of([rich_line(10, 10)], first_offset=1))
    run.lake._thread.wait_until_idle()
    assert replaced() is None
    assert run.outcome()[2]["title_id"].to_list() == [f"title {i:07d} with a long name" for i in (0, 10, 1)]


def test_long_values_count_by_their_bytes() -> None:
    run = Decoder(seed=1, text_bytes_max=1 << 20)
    pipeline = PartitionPipeline(0, run, Config())
    for i in range(200):
        line = b'{"event":"Heartbeat","ts":1,"device_id":"d","session_id":"s","reason":"%d%s"}' % (i, b"x" * 50_000)
        pipeline.step(Records.of([line], first_offset=i))
        assert run.dictionaries.text_bytes <= (1 << 20) + 50_100
    assert 8 <= run.compactions <= 12
    assert run.dictionaries.state_bytes < 8 << 20
