"""What a checkpoint costs: how long the stream stands still, the work behind it, and going on from it.

    python benchmarks/checkpoint.py [--sessions 100000 1000000] [--directory DIR] [--json FILE]

The table is filled as in session_table.py: every session had four events, 4% of them stalls; 50 values in each dimension. A
checkpoint is: copy the state while the stream stands still (``pause``), take out what is unused (``pack``), and checksum and
write it into a directory (``save``, two looks at the epoch and fsync included). ``read`` is from the store to checked arrays,
``restore`` from these to a table that can go on, its codes translated to other dictionaries. Before the first checkpoint a thread can have the
memory ready (``reserve``); without, the first pause is the one ``into a new room``. Wall times are the best and the worst of
several turns; CPU time is of all threads.
The rival is what comes with the language: numpy's own file of the same arrays, without checksum, and pickle.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from benchmarks.measure import TURNS, report
from benchmarks.session_table import WARM_ROUNDS, batches
from keystone.checkpoint import Checkpoint, Checkpoints, key_of
from keystone.config import DetectionConfig, SessionConfig
from keystone.decode import Dictionaries
from keystone.events import DICTIONARY_COLUMNS, FIRST_DIMENSION
from keystone.mappings import Room
from keystone.metrics import Ledger
from keystone.session_snapshot import Arrays, packed
from keystone.sessions import SessionTable
from keystone.store import open_store

Result = TypeVar("Result")
VALUES = 50  # of each dimension, as in session_table.py
PAUSES = 20


def dictionaries(first: int = 0) -> Dictionaries:
    """Every value of every dimension; ``first`` strangers before them, so that codes differ."""
    made = Dictionaries(seed=1)
    for column in range(FIRST_DIMENSION, len(DICTIONARY_COLUMNS)):
        for number in (*range(-first, 0), *range(VALUES)):
            made.intern(column, f"{DICTIONARY_COLUMNS[column]} {number}".encode())
    return made


def filled(sessions: int) -> SessionTable:
    table = SessionTable(SessionConfig(), DetectionConfig(), dictionaries())
    rng = np.random.default_rng(7)
    for _, batch in batches(sessions, WARM_ROUNDS, "uuid", rng):
        table.apply(batch)
        table.advance(int(batch.append_ts_ms[-1]))
    return table


class Timed:
    """Wall and CPU time of every call."""

    def __init__(self) -> None:
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []

    def __call__(self, work: Callable[..., Result], *arguments: object) -> Result:
        started, used = time.perf_counter(), time.process_time()
        result = work(*arguments)
        self.wall_ms.append((time.perf_counter() - started) * 1e3)
        self.cpu_ms.append((time.process_time() - used) * 1e3)
        return result

    def row(self, step: str, sessions: int, **more: Any) -> dict[str, Any]:
        figures = {"best ms": min(self.wall_ms), "worst ms": max(self.wall_ms), "CPU ms": min(self.cpu_ms)}
        return {"step": step, "sessions": sessions, **{name: round(value, 2) for name, value in figures.items()}, **more}


def measure(sessions: int, directory: str) -> list[dict[str, Any]]:
    table = filled(sessions)
    room = Room()
    reserve, first, pause, pack, save, read, restore = (Timed() for _ in range(7))
    reserve(room.reserve, table.snapshot_bytes)
    first(table.snapshot, Room())
    for _ in range(PAUSES):
        arrays = pause(table.snapshot, room)
    checkpoints = Checkpoints(open_store(directory))
    epoch = checkpoints.claim(key_of(0), "benchmark")
    size = 0
    for turn in range(TURNS):
        dense = pack(packed, arrays)
        checkpoint = Checkpoint(0, epoch, turn, 0, table.log_time_ms, Ledger(), arrays=dense)
        size = save(checkpoints.save, checkpoint)
    for _ in range(TURNS):
        found = read(checkpoints.latest, 0)
        other = SessionTable(SessionConfig(), DetectionConfig(), dictionaries(first=30))
        restore(other.restore, found.arrays)
    assert other.active == table.active
    background = min(pause.cpu_ms) + min(pack.cpu_ms) + min(save.cpu_ms)
    return [
        reserve.row("reserve", sessions),
        first.row("pause, into a new room", sessions),
        pause.row("pause", sessions),
        pack.row("pack", sessions),
        save.row("save", sessions, MB=round(size / 1e6, 1)),
        {"step": "checkpoint: pause + pack + save", "sessions": sessions, "CPU ms": round(background, 2)},
        read.row("read", sessions),
        restore.row("restore", sessions),
        *rivals(dense, sessions, directory),
    ]


def rivals(arrays: Arrays, sessions: int, directory: str) -> list[dict[str, Any]]:
    """Numpy's file and pickle of the arrays that we write."""
    numpy_file, pickled = Timed(), Timed()
    for _ in range(TURNS):
        with tempfile.TemporaryFile(dir=directory) as file:
            numpy_file(partial(np.savez, file, **arrays))
        with tempfile.TemporaryFile(dir=directory) as file:
            pickled(pickle.dump, arrays, file, 5)
    return [numpy_file.row("numpy.savez", sessions), pickled.row("pickle, written", sessions)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--directory", help="where checkpoints are written; the temporary directory without")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        measure(8192, f"{directory}/warm")  # compiles, loads
        rows = [row for sessions in arguments.sessions for row in measure(sessions, f"{directory}/{sessions}")]
    report("checkpoint", rows, arguments.json)


if __name__ == "__main__":
    main()
