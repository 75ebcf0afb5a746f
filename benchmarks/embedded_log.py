"""Cost of an event in the embedded log, append and poll together, against library ways of handing bytes to a reader.

    python benchmarks/embedded_log.py [--mib 512] [--json FILE]

Events of 260 bytes, packed so many a record; files lie in memory (/dev/shm) where that has room. CPU time of this
process, both sides in it, the best of 3 turns; the first lap is the log's first way round its ring, when the kernel
clears every page. Everything appended is polled, its checksum verified, and one byte of each value read: nobody gets
away with handing over what was never touched. Rivals: sqlite3 (one table, WAL, no fsync; a row a record), a pipe of
multiprocessing (reader in a thread), and an Arrow IPC stream file (batches of one binary column; read by memory map
when all is written, no checksum, nothing ever freed).
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.measure import cpu_seconds, report
from keystone.log.base import LogReader, LogWriter
from keystone.log.embedded import EmbeddedLog, default_directory

EVENT_BYTES = 260
FRAMES = {"600 events a record": 600, "50 events a record": 50, "1 event a record": 1}
POLL_BYTES = 1 << 20


def through_log(writer: LogWriter, reader: LogReader, value: bytes, events: int, total: int) -> int:
    """Append about 1 MiB, poll it, and so on: as a writer and a reader that keep pace do."""
    reader.seek(reader.end_offset())
    a_turn = max(1, POLL_BYTES // len(value))
    touched = 0
    for done in range(0, total, a_turn):
        for _ in range(min(a_turn, total - done)):
            writer.append(value, events=events)
        while len(records := reader.poll(bytes_max=POLL_BYTES, wait_ms=0)):
            touched += int(records.text[records.starts].sum())
            reader.processed(records.next_offset)
            reader.commit(records.next_offset)
    return touched


def through_sqlite(folder: Path, value: bytes, total: int) -> int:
    path = folder / "log.db"
    path.unlink(missing_ok=True)
    writer, reader = sqlite3.connect(path, isolation_level=None), sqlite3.connect(path)
    writer.execute("pragma journal_mode = wal")
    writer.execute("pragma synchronous = off")
    writer.execute("create table log (offset integer primary key, value blob)")
    a_turn = max(1, POLL_BYTES // len(value))
    touched = 0
    for done in range(0, total, a_turn):
        writer.execute("begin")
        writer.executemany("insert into log (value) values (?)", [(value,)] * min(a_turn, total - done))
        writer.execute("commit")
        touched += sum(row[0][0] for row in reader.execute("select value from log where offset > ?", (done,)))
    writer.close()
    reader.close()
    return touched


def through_pipe(value: bytes, total: int) -> int:
    receiving, sending = multiprocessing.Pipe(duplex=False)
    touched = [0]

    def receive() -> None:
        for _ in range(total):
            touched[0] += receiving.recv_bytes()[0]

    thread = threading.Thread(target=receive)
    thread.start()
    for _ in range(total):
        sending.send_bytes(value)
    thread.join()
    return touched[0]


def through_arrow(folder: Path, value: bytes, total: int) -> int:
    path = folder / "log.arrow"
    schema = pa.schema([("value", pa.binary())])
    a_turn = max(1, POLL_BYTES // len(value))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for done in range(0, total, a_turn):
            stream.write_batch(pa.record_batch([pa.array([value] * min(a_turn, total - done), pa.binary())], schema))
    touched = 0
    with pa.memory_map(str(path)) as file:
        for batch in pa.ipc.open_stream(file):
            offsets = np.frombuffer(batch.column(0).buffers()[1], np.int32)[: batch.num_rows]
            touched += int(np.frombuffer(batch.column(0).buffers()[2], np.uint8)[offsets].sum())
    path.unlink()
    return touched


def measure(folder: Path, events: int, mib: int) -> dict[str, Callable[[], int]]:
    value = (b'{"event":"Heartbeat","padding":"' + b"x" * EVENT_BYTES)[: EVENT_BYTES - 1] + b"\n"
    value *= events
    total = max(1, min(mib << 20, 400_000 * len(value)) // len(value))
    log = EmbeddedLog.create(folder / f"log{events}", partitions=1, segment_bytes=16 << 20, retention_bytes=128 << 20)
    writer, verifying, trusting = log.writer(0), log.reader(0), log.reader(0, verify=False)
    lap = min(total, (120 << 20) // len(value))
    expected = value[0] * total

    def checked(work: Callable[[], int]) -> Callable[[], int]:
        def run() -> int:
            assert work() == expected
            return total * events

        return run

    through_log_first = cpu_seconds(lambda: through_log(writer, verifying, value, events, lap), turns=1) / (lap * events) * 1e6
    print(f"{events} events a record: first lap {through_log_first:.3f} us an event", flush=True)
    return {
        "keystone log": checked(lambda: through_log(writer, verifying, value, events, total)),
        "keystone log, reader does not verify": checked(lambda: through_log(writer, trusting, value, events, total)),
        "arrow ipc stream": checked(lambda: through_arrow(folder, value, total)),
        "multiprocessing pipe": checked(lambda: through_pipe(value, total)),
        "sqlite3": checked(lambda: through_sqlite(folder, value, total)),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--mib", type=int, default=512)
    arguments.add_argument("--json")
    chosen = arguments.parse_args()
    place = default_directory()
    print(place.line)
    folder = Path(tempfile.mkdtemp(dir=place.path.parent))
    rows = []
    try:
        for name, events in FRAMES.items():
            row: dict[str, object] = {"record": name}
            for way, work in measure(folder, events, chosen.mib).items():
                count = work()  # warm, and what a turn does
                row[way] = cpu_seconds(work, turns=3) / count * 1e6
            rows.append(row)
    finally:
        shutil.rmtree(folder)
    report("embedded log: CPU us an event, append and poll", rows, chosen.json)


if __name__ == "__main__":
    main()
