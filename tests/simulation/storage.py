"""What outlives every process: the store of checkpoints, the log, and the disk of the lake. Whoever touches them may be stopped there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from crc32c import crc32c

from keystone.checkpoint import Checkpoints, key_of
from keystone.errors import StoreUnavailable
from keystone.log.memory import MemoryLog, MemoryReader
from keystone.store import Buffer
from tests.reference import LogRecord
from tests.simulation.world import START_MS, Violation, World

_SECRET = b"5eed" * 8


class SimStore:
    """Read-after-write, as every store is. ``is_torn``: the mutation in which writing is not atomic."""

    def __init__(self, world: World, *, is_torn: bool = False) -> None:
        self.objects: dict[str, bytes] = {"seed": b"keystone seed %b %08x\n" % (_SECRET, crc32c(_SECRET))}
        self.claims: dict[str, list[int]] = {}  # key -> when each epoch was claimed
        self._ends: dict[str, int] = {}
        self._world, self._is_torn = world, is_torn

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        self._before(f"put {name}")
        self._write(name, b"".join(parts))
        self._after(f"put {name}")

    def put_new(self, name: str, parts: Sequence[Buffer]) -> bool:
        self._before(f"put new {name}")
        if name in self.objects:
            return False
        self._write(name, b"".join(parts))
        if name.startswith("epochs/"):
            self.claims.setdefault(name.split("/")[1], []).append(self._world.now_ms)
        self._after(f"put new {name}")
        return True

    def get(self, name: str) -> memoryview:
        self._before(f"get {name}")
        return memoryview(self.objects[name])

    def get_range(self, name: str, start: int, size: int) -> memoryview:
        self._before(f"get {name} from {start}")
        return memoryview(self.objects[name])[start : start + size]

    def names(self, prefix: str) -> list[str]:
        self._before(f"list {prefix}")
        return sorted(name for name in self.objects if name.startswith(prefix))

    def delete(self, names: Iterable[str]) -> None:
        names = list(names)
        if names:
            self._before(f"delete {', '.join(names)}")
        for name in names:
            self.objects.pop(name, None)

    # --- for the simulation: without faults -----------------------------------------------------------------------------
    def epoch(self, key: str) -> int:
        """As it really is."""
        return max((int(name.rpartition("/")[2]) for name in self.objects if name.startswith(f"epochs/{key}/")), default=0)

    def newest_end(self, partition: int) -> int:
        """The offset behind all that the newest checkpoint of a partition holds."""
        names = [name for name in self.objects if name.startswith(f"checkpoints/{key_of(partition)}/")]
        if not names:
            return 0
        newest = max(names)
        if newest not in self._ends:
            header = self.still().header(partition)
            self._ends[newest] = header.next_offset if header is not None else 0
        return self._ends[newest]

    def still(self) -> Checkpoints:
        """The checkpoints, for who only looks on."""
        return Checkpoints(_Still(self))  # type: ignore[arg-type]

    def _write(self, name: str, content: bytes) -> None:
        if self._is_torn:
            self.objects[name] = content[: len(content) * self._world.rng.randrange(100) // 100]
            self._world.point(f"half of {name}")
        self.objects[name] = content

    def _before(self, what: str) -> None:
        self._world.point(what)
        if self._world.chance(self._world.rates.unavailable):
            self._world.count("unavailable", what)
            raise StoreUnavailable(f"{what}: not now")

    def _after(self, what: str) -> None:
        self._world.point(f"done: {what}")
        if self._world.chance(self._world.rates.lost_answer):
            self._world.count("lost answer", what)
            raise StoreUnavailable(f"{what}: no answer")


class _Still:
    def __init__(self, store: SimStore) -> None:
        self._objects = store.objects

    def get(self, name: str) -> memoryview:
        return memoryview(self._objects[name])

    def get_range(self, name: str, start: int, size: int) -> memoryview:
        return memoryview(self._objects[name])[start : start + size]

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self._objects if name.startswith(prefix))


class SimLog(MemoryLog):
    """Forgets at once what was consumed, so that a commit that says too much is found out. ``journal``: all that was ever appended."""

    def __init__(self, world: World, store: SimStore, partitions: int) -> None:
        super().__init__(partitions=partitions, clock=world.clock)
        self.journal: dict[int, list[LogRecord]] = {partition: [] for partition in range(partitions)}
        self.partitions_seen = partitions  # by those who ask how many there are
        self._world, self._store = world, store
        self._writers = [self.writer(partition) for partition in range(partitions)]

    @property
    def log_id(self) -> str:
        return "the log"

    def partitions_now(self) -> int:
        return self.partitions_seen

    def append(self, partition: int, value: bytes) -> None:
        appended = self._writers[partition].append(value)
        self.journal[partition].append(LogRecord(value, appended.offset, appended.append_ts_ms))

    def reader(self, partition: int) -> SimReader:
        return SimReader(self._world, self._store, partition, self._partition(partition))

    def end_offset(self, partition: int) -> int:
        return len(self.journal[partition])


class SimReader(MemoryReader):
    def __init__(self, world: World, store: SimStore, partition: int, kept: Any) -> None:
        super().__init__(partition, kept)
        self._world, self._store = world, store

    def poll(self, *, bytes_max: int, wait_ms: int) -> Any:
        self._world.point(f"poll p{self.partition} from {self.position()}")
        return super().poll(bytes_max=self._world.rng.choice((1, 200, bytes_max)), wait_ms=0)

    def commit(self, offset: int) -> None:
        self._world.point(f"forget p{self.partition} below {offset}")
        end = self._store.newest_end(self.partition)
        if offset > end:
            raise Violation(f"partition {self.partition}: the log is told to forget below {offset}, and the newest checkpoint ends at {end}")
        super().commit(offset)
        self._kept.make_room(self._kept.retained_bytes + 1, 0)


@dataclass
class SimFile:
    """``rows``: whatever the table's rows are here. ``is_whole`` False: only while, or where, it was not written at once."""

    table: str
    rows: list[Any]
    is_whole: bool = True


@dataclass
class SimDisk:
    """Files of the lake by path. Put into place whole; with ``is_torn``, the mutation, first without what comes last."""

    world: World
    is_torn: bool = False
    files: dict[str, SimFile] = field(default_factory=dict)

    def place(self, path: str, file: SimFile) -> None:
        self.world.point(f"place {path}")
        if path in self.files:
            raise Violation(f"{path} is written twice")
        if self.is_torn:
            self.files[path] = SimFile(file.table, file.rows[: self.world.rng.randrange(len(file.rows) + 1)], is_whole=False)
            self.world.point(f"half of {path}")
        self.files[path] = file
        self.world.point(f"placed {path}")


def day_of(now_ms: int) -> int:
    return (now_ms or START_MS) // 86_400_000
