"""The simulated lake: what owners write, and the three tables of a catalog that knows compare-and-set. Rules of committing are the real ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from keystone.actors.durable import SideFiles
from keystone.config import LakeConfig
from keystone.decode import Dictionaries
from keystone.errors import SinkBusy
from keystone.events import EventBatch
from keystone.segments import DataFile, Segment
from keystone.sinks.iceberg import chain as rules
from keystone.sinks.iceberg.producers import ChainMoved, Head
from keystone.sinks.iceberg.tables import ORDER, LakeTables
from keystone.sinks.lake import table_file_name
from keystone.sinks.lake_thread import Cut, WrittenFile
from tests.simulation.storage import SimDisk, SimFile, day_of
from tests.simulation.strands import Strand
from tests.simulation.world import Process, Violation, World

ROOT = Path("/lake")
NAMES = ("offset", "line", "append_ts_ms", "ts", "duplicate", "late")


def rows_of(batch: EventBatch) -> list[tuple[Any, ...]]:
    """(partition, offset, line, append_ts, ts, duplicate, late) of each event."""
    columns = [getattr(batch, name)[: batch.rows].tolist() for name in NAMES]
    return [(batch.partition, *row) for row in zip(*columns, strict=True)]


class SimLakeWriter:
    """What an owner gives its events to. Files are put into place by a strand of their own."""

    def __init__(self, process: Process, disk: SimDisk) -> None:
        self._process, self._disk = process, disk
        self._epochs: dict[int, int] = {}
        self._open: dict[int, list[tuple[Any, ...]]] = {}
        self._uncut: dict[int, list[WrittenFile]] = {}
        self._names = 0
        self._work: deque[Callable[[], None]] = deque()
        self._strand: Strand = process.spawn("lake", self._live)

    def own(self, partition: int, epoch: int, log_number: int) -> None:
        self._epochs[partition] = epoch
        self._open.pop(partition, None)
        self._uncut.pop(partition, None)

    def append(self, batch: EventBatch, dictionaries: Dictionaries) -> None:
        self._open.setdefault(batch.partition, []).extend(rows_of(batch))

    def end_step(self, now_ms: int) -> None:
        for partition in list(self._open):
            if self._process.world.chance(0.05):
                self._close(partition)

    def has_room(self) -> bool:
        return True

    def cut(self, partition: int) -> Cut:
        self._close(partition)
        cut = Cut()
        self._put(lambda: cut.complete(self._uncut.pop(partition, [])))
        return cut

    def _close(self, partition: int) -> None:
        rows = self._open.pop(partition, [])
        if rows:
            self._names += 1
            name = table_file_name(partition, rows[0][1], rows[-1][1], self._epochs[partition], self._names)
            self._put(lambda: self._place(partition, f"data/events/{name}", rows))

    def _place(self, partition: int, path: str, rows: list[tuple[Any, ...]]) -> None:
        self._disk.place(path, SimFile("events", rows))
        self._uncut.setdefault(partition, []).append(WrittenFile(ROOT / path, day_of(0), len(rows), 1))

    def _put(self, work: Callable[[], None]) -> None:
        self._work.append(work)
        self._process.world.wake(self._strand)

    def _live(self) -> None:
        while True:
            while self._work:
                self._work.popleft()()
            self._process.world.park()


class SimSideFiles(SideFiles):
    def __init__(self, disk: SimDisk) -> None:
        super().__init__(ROOT)
        self._disk = disk

    def write(self, table: str, segment: Segment, rows: Sequence[pa.Table]) -> DataFile:
        path = self.path(table, segment).relative_to(ROOT).as_posix()
        written = [row for part in rows for row in part.to_pylist()]
        self._disk.place(path, SimFile(table, written))
        return DataFile(table, path, len(written), 1, None)


@dataclass
class SimTable:
    """``files``: all that are in it, in the order of commits. ``head``: of its last snapshot."""

    name: str
    head: Head = field(default_factory=Head)
    files: list[str] = field(default_factory=list)
    rows: int = 0


@dataclass
class SimCatalog:
    """The tables, and the one step in which each changes: compare and set."""

    world: World
    disk: SimDisk
    tables: dict[str, SimTable] = field(default_factory=lambda: {name: SimTable(name) for name in ORDER})

    def rows(self, name: str) -> list[Any]:
        return [row for path in self.tables[name].files for row in self.disk.files[path].rows]

    def add(self, name: str, paths: list[str], planned_on: Head, head: Head) -> None:
        table = self.tables[name]
        if table.head != planned_on:
            raise ChainMoved("the chain has moved since this commit was planned")
        doubled = set(paths) & set(table.files)
        if doubled:
            raise Violation(f"{min(doubled)} is committed to {name} twice")
        table.head = head
        table.files += paths
        table.rows += sum(len(self.disk.files[path].rows) for path in paths)


class SimTables(LakeTables):
    """The real order, plans and repetitions over a simulated catalog."""

    def __init__(self, catalog: SimCatalog) -> None:
        self.config = LakeConfig(expire_every_commits=1 << 30, sweep_interval_ms=1 << 40)
        self._sim = catalog
        self._world = catalog.world

    def load(self, name: str) -> Any:
        self._world.point(f"load {name}")
        if self._world.chance(self._world.rates.unavailable):
            raise SinkBusy(f"table {name} cannot be read")
        table = self._sim.tables[name]
        return SimTable(name, table.head)

    @staticmethod
    def _head(table: Any) -> Head:
        return cast("SimTable", table).head

    def _describe(self, name: str, table: Any, plan: rules.Plan, described: dict[str, Any]) -> dict[int, str]:
        faults: dict[int, str] = {}
        for segment in plan.take:
            for file in segment.files:
                found = self._sim.disk.files.get(file.path)
                if file.table != name or not file.rows:
                    continue
                if found is None or not found.is_whole or len(found.rows) != file.rows:
                    faults.setdefault(segment.partition, f"{file.path} is not what was written")
                described[file.path] = file.path
        return faults

    def _append(self, table: Any, files: list[Any], head: Head, plan: rules.Plan, epoch: int) -> None:
        self._world.point(f"staged {table.name}: {len(files)} files")
        if self._world.chance(self._world.rates.unavailable):
            raise OSError("the catalog does not answer")
        text = rules.to_text(plan.chain)
        self._sim.add(table.name, files, head, Head(rules.chain_of(text), epoch, text))
        self._world.point(f"committed {table.name}: {text}")
        if self._world.chance(self._world.rates.lost_answer):
            self._world.count("lost answer", f"commit of {table.name}")
            raise OSError("the answer was lost")

    def _wait(self, wait_s: float) -> None:
        self._world.sleep(int(wait_s * 1_000))
