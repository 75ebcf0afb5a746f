"""A day that ends while many partitions write little: how many files the real writer, committer and compaction make and leave."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keystone.actors.committer import Committing, Compacting
from keystone.clock import ManualClock
from keystone.config import LakeConfig
from keystone.segments import DataFile, Segment
from keystone.sinks.iceberg.compaction import compact
from keystone.sinks.iceberg.files import listed
from keystone.sinks.iceberg.verify import verify
from keystone.sinks.lake import LakeWriter
from tests.lake_batches import DAY_MS, ToyDictionaries, batch_of, row
from tests.lake_tables import places

PARTITIONS, BUSY = 32, 2
DAY = 20_717
MIDNIGHT_MS = DAY * DAY_MS
SLOW_CLOCK_MS = 90_000  # of some devices: their events after midnight are of the day before
TURNS = 60  # of 10 to 13 s: checkpoints wait for one another, and come late
FILES_MIN = LakeConfig().compact_files_min


class Night:
    """Ten minutes around midnight of one session actor with all partitions, and of its committer."""

    def __init__(self, lake: Path, tables: Any) -> None:
        self.random = random.Random(7)
        self.lake, self.tables = lake, tables
        self.clock = ManualClock(MIDNIGHT_MS - TURNS * 5_750)
        self.writer = LakeWriter(lake, LakeConfig(), is_table=True)
        self.dictionaries = ToyDictionaries()
        self.offsets, self.sequences, self.written = Counter[int](), Counter[int](), Counter[tuple[int, int]]()
        self.most = 0
        self.committing = Committing(SimpleNamespace(current=lambda _: 1, check=lambda *_: None), tables, 1, self.clock)  # type: ignore[arg-type]
        self.compacting = Compacting()
        for partition in range(PARTITIONS):
            self.writer.own(partition, 1, 0)

    def turn(self) -> None:
        """What comes until the next checkpoint, second by second, then the checkpoint of each partition and a commit."""
        filled, firsts = set(), self.offsets.copy()
        for _ in range(self.random.randint(10, 13)):
            for partition in range(PARTITIONS):
                rows = self.rows(partition)
                filled |= {(partition, r["ts"] // DAY_MS) for r in rows}
                if rows:
                    self.writer.append(batch_of(rows, self.dictionaries), self.dictionaries)
            self.writer.end_step(self.clock.now_ms())
            self.clock.advance(1_000)
        cuts = [self.writer.cut(partition) for partition in range(PARTITIONS)]
        assert all(cut.wait(30) for cut in cuts)
        files = [(partition, file.day) for partition, cut in enumerate(cuts) for file in cut.files]
        assert sorted(files) == sorted(filled), "one of each partition and day that had rows, none of others"
        self.written.update(files)
        self.committing.turn([self.header(partition, firsts[partition], cut.files) for partition, cut in enumerate(cuts)])
        self.compacting.turn(self.tables)
        self.most = max(self.most, len(list(listed(self.tables.load("events"), self.tables.place))))

    def rows(self, partition: int) -> list[dict[str, Any]]:
        is_busy = partition < BUSY
        if not is_busy and self.random.random() > 1 / 60:
            return []
        now_ms, found = self.clock.now_ms(), []
        for _ in range(5 if is_busy else 1):
            ts = now_ms - (SLOW_CLOCK_MS if self.random.random() < 0.2 else 0)
            found.append(row(offset=self.offsets[partition], partition=partition, ts=ts, append_ts=now_ms))
            self.offsets[partition] += 1
        return found

    def header(self, partition: int, first: int, files: Any) -> Any:
        named = tuple(DataFile("events", f.path.relative_to(self.lake).as_posix(), f.rows, f.bytes, f.day) for f in files)
        segment = Segment(partition, 1, first, self.offsets[partition], self.clock.now_ms(), self.sequences[partition], named)
        self.sequences[partition] += 1
        return SimpleNamespace(partition=partition, epoch=1, segments=(segment,))

    def of_each(self) -> Counter[tuple[int, int]]:
        """How many files the table has of a partition and day."""
        found = listed(self.tables.load("events"), self.tables.place)
        return Counter((file.partitions[0], file.event_date) for file in found)  # type: ignore[index,misc]


@pytest.mark.slow
def test_midnight_and_idle_partitions_make_no_flood_of_files(lake: Path, tables: Any) -> None:
    """Of 62 partitions and days 473 files are written; without the joining as many were left."""
    night = Night(lake, tables)
    for _ in range(TURNS):
        night.turn()
    night.writer.close()
    left = night.of_each()
    assert len(left) > 1.5 * PARTITIONS, "most have both days"
    assert {day for _, day in left} == {DAY - 1, DAY}
    assert set(left) == set(night.written)
    # Between two looks, every ten commits, each day of a partition that is busy has ten more files; nobody's grow with time.
    assert max(left.values()) <= FILES_MIN
    assert night.most <= len(left) * FILES_MIN
    assert sum(left.values()) < sum(night.written.values()) / 3
    assert night.compacting.files == sum(night.written.values()) - sum(left.values())
    compact(tables)
    assert max(night.of_each().values()) < FILES_MIN
    assert all(not verdict.faults for verdict in verify(tables))
    assert places(tables) == [(partition, offset, 0) for partition in range(PARTITIONS) for offset in range(night.offsets[partition])]


def test_a_late_checkpoint_ends_one_file_whatever_its_age(tmp_path: Path) -> None:
    """Two files of each partition otherwise: one that was old enough, and what came until the checkpoint."""
    writer, dictionaries = LakeWriter(tmp_path, LakeConfig(file_age_max_ms=10_000), is_table=True), ToyDictionaries()
    writer.own(0, 1, 0)
    for second in range(15):
        writer.append(batch_of([row(offset=second)], dictionaries), dictionaries)
        writer.end_step(1_000 * second)
    cut = writer.cut(0)
    assert cut.wait(30)
    assert [file.rows for file in cut.files] == [15]
    writer.close()
