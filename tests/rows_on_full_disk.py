"""A sink of files whose disk fills up and has room again, as a process of its own: what it saw, as one JSON object.

``python -m tests.rows_on_full_disk mount|limit DIRECTORY``. ``mount``: DIRECTORY is a small file system, which is really filled. ``limit``: the
kernel lets no file of this process grow beyond a size (RLIMIT_FSIZE): it writes the part that fits, then refuses, as a full disk does.
"""

from __future__ import annotations

import os
import resource
import sys
from collections import Counter
from pathlib import Path

import orjson

from keystone.config import SinksConfig
from keystone.sinks.file_rows import FileRows
from keystone.sinks.memory import MemoryRows
from keystone.sinks.shell import BufferedSink
from tests.sink_rows import NumberedRows, until

CONFIG = SinksConfig(batch_items_max=50, linger_ms=10, retry_first_ms=5, retry_max_ms=50, mark_wait_ms=50, queue_items_max=2_000)
KINDS = ("alerts", "cohorts")
ALERTS_BEFORE, ALERTS_DURING = 50, 1_000
COHORTS_DURING = 3_000  # more than the queue holds
HALF_A_LINE_BYTES = 20
LIMIT_S = 30.0


class Mounted:
    """A file system that is filled by a file beside."""

    def __init__(self, directory: Path) -> None:
        self._ballast = directory / "ballast"

    def fill(self, _: Path) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4_096))
            except OSError:
                return

    def make_room(self) -> None:
        self._ballast.unlink()


class Limited:
    """Room for half a line behind a file's end."""

    def fill(self, path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + HALF_A_LINE_BYTES, resource.RLIM_INFINITY))

    def make_room(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def is_whole(path: Path) -> bool:
    """What a reader finds is lines, each whole."""
    lines = path.read_bytes().split(b"\n")
    return lines.pop() == b"" and [int(orjson.loads(line)["id"]) for line in lines] == list(range(len(lines)))


def lives(kind: str, directory: Path) -> dict[str, object]:
    disk = Mounted(directory) if kind == "mount" else Limited()
    path = directory / "rows" / "alerts-a.ndjson"
    sink = BufferedSink("files", FileRows(directory / "rows", "a", KINDS), CONFIG, lambda _: None, directory / "outbox", kinds=KINDS)
    neighbour = BufferedSink("neighbour", MemoryRows(), CONFIG, lambda _: None, kinds=KINDS)
    sink.offer([NumberedRows("alerts", 0, ALERTS_BEFORE)])
    is_whole_before = sink.flush(LIMIT_S)
    disk.fill(path)
    during = [NumberedRows("alerts", ALERTS_BEFORE, ALERTS_DURING), NumberedRows("cohorts", 0, COHORTS_DURING)]
    for one in (sink, neighbour):
        one.offer(during)
    mark = sink.mark()
    until(lambda: sink.status()["trouble"] != "" and sink.status()["spill_errors"] > 0 and sink.status()["circuit_opened"] > 0)
    seen = {
        "is_whole_before": is_whole_before,
        "is_neighbour_served": neighbour.flush(LIMIT_S),
        "has_room": sink.has_room(),
        "is_kept": sink.is_kept(mark),
        "trouble": sink.status()["trouble"],
    }
    until(lambda: is_whole(path))  # but for the moment of a try
    disk.make_room()
    seen["is_caught_up"] = sink.flush(LIMIT_S)
    seen["status"] = sink.status()
    seen["left"] = sink.close(LIMIT_S) + neighbour.close(LIMIT_S)
    for one in KINDS:
        lines = (directory / "rows" / f"{one}-a.ndjson").read_bytes().split(b"\n")
        assert lines.pop() == b"", "the last line is whole"
        counts = Counter(int(orjson.loads(line)["id"]) for line in lines)
        seen[one] = {"ids": sorted(counts), "repeats": sum(counts.values()) - len(counts)}
    return seen


if __name__ == "__main__":
    os.write(1, orjson.dumps(lives(sys.argv[1], Path(sys.argv[2]))))
