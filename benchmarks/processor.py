"""The whole processor on one core: a file of events through decode, sessions, detection and the Parquet lake.

    python -m benchmarks.processor [FILE.ndjson] [--events 4000000] [--json benchmarks/results/processor.json]

Without FILE, events of the simulator. Everything is measured in this run, on one core, start-up taken off:
u is one-thread ``polars.read_ndjson`` on the same bytes; the rival is polars reading and writing the same Parquet.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ["POLARS_MAX_THREADS"] = "1"

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.measure import cpu_seconds, report
from keystone.config import Config
from keystone.decode import Decoder
from keystone.events import Records
from keystone.kernels import warm
from keystone.log.files import Block, read_ndjson
from keystone.replay.engine import FileReplay, ReplaySpec

SAMPLE_BYTES = 64 << 20  # of the file, for the libraries: polars holds all it reads in memory


def replayed(file: Path, out: Path, *, has_lake: bool) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds, events accepted) of one replay."""
    wall, cpu = time.perf_counter(), time.process_time()
    replay = FileReplay(ReplaySpec((str(file),), str(out), Config(), 1, has_lake))
    while replay.step():
        pass
    totals = replay.close()
    return time.perf_counter() - wall, time.process_time() - cpu, totals.ledger["accepted"]


def decoded(file: Path) -> float:
    """CPU seconds of reading and decoding alone."""
    decoder = Decoder()
    zero = np.zeros(1, np.int64)
    started = time.process_time()
    for block in read_ndjson([file]):
        assert isinstance(block, Block)
        records = Records(0, block.text, zero, zero + (block.size - 1), zero + block.first_line, zero, block.first_line + block.lines)
        for _ in decoder.decode(records, per_line=True):
            pass
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--json")
    args = parser.parse_args()
    warm()
    pa.set_cpu_count(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="keystone-") as folder:
        file = Path(args.file) if args.file else Path(folder) / "events.ndjson"
        if not args.file:
            from keystone.sim.write import file_plan, write_events

            with file.open("wb") as out:
                write_events(out, file_plan(args.events, seed=1))
        measure(file, Path(folder), args.json)


def measure(file: Path, folder: Path, json_file: str | None) -> None:
    with file.open("rb") as source:
        sample = source.read(SAMPLE_BYTES)
    sample = sample[: sample.rindex(b"\n") + 1]
    lines = sample.count(b"\n")
    frame = pl.read_ndjson(sample)
    unit = lines / cpu_seconds(lambda: pl.read_ndjson(sample))
    rival = folder / "rival.parquet"
    write = lines / cpu_seconds(lambda: frame.write_parquet(rival, compression="zstd", compression_level=1, statistics=False))
    both = lines / cpu_seconds(lambda: pl.read_ndjson(sample).write_parquet(rival, compression="zstd", compression_level=1, statistics=False))
    replayed(file, folder / "first", has_lake=True)  # pages, dictionaries and branch history as in a long run
    wall, cpu, events = replayed(file, folder / "out", has_lake=True)
    _, without_lake, _ = replayed(file, folder / "no-lake", has_lake=False)
    decoding = decoded(file)
    files = list((folder / "out" / "lake").rglob("*.parquet"))
    rows = [
        ("decode", events / decoding),
        ("decode + sessions + detection", events / without_lake),
        ("decode to Parquet (CPU)", events / cpu),
        ("decode to Parquet (wall, one core)", events / wall),
        ("polars.read_ndjson", unit),
        ("polars.write_parquet", write),
        ("polars read_ndjson + write_parquet", both),
    ]
    table = [{"what": what, "M events/s": rate / 1e6, "u": rate / unit, "us/event": 1e6 / rate} for what, rate in rows]
    size = sum(path.stat().st_size for path in files)
    report("processor", table, json_file, events=events, bytes_per_event=file.stat().st_size / events, lake_bytes_per_row=size / events, lake_files=len(files))


if __name__ == "__main__":
    main()
