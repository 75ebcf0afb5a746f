"""A lake in a bucket against one in a directory: what an upload costs an event, how long a commit takes, what joining small files costs a row.

    python benchmarks/lake_s3.py [--json benchmarks/results/lake_s3.json]

A server of the tests on this machine (versitygw where there is one, else moto): wall times are such a server's, CPU is this process's alone,
all threads. The files are our writer's, of the simulator's events, 10,000 rows each. *Upload*: all events in one file, as the program does it and by
pyarrow's file system; the best of 5. *Commit*: one file each, history expired every 10 as in a run; the median and the dearest of the last 20, with our IO for
metadata and with pyarrow's. *Joining*: all those files into one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["POLARS_MAX_THREADS"] = "1"

import pyarrow as pa

from benchmarks.lake_write import batches, in_frames
from benchmarks.measure import cpu_seconds, report
from keystone.config import LakeConfig
from keystone.decode import Decoder
from keystone.segments import DataFile, Segment
from keystone.sim.write import sample
from keystone.sinks.iceberg import bucket_io, places
from keystone.sinks.iceberg.compaction import compact
from keystone.sinks.iceberg.files import parse_name
from keystone.sinks.iceberg.tables import LakeTables
from keystone.sinks.iceberg.upkeep import expire
from keystone.sinks.lake import LakeWriter
from keystone.store import open_bucket
from tests.s3_server import S3Server, gateway

EVENTS = 400_000
FILE_ROWS = 10_000
LAST = 20
PYARROW = "pyiceberg.io.pyarrow.PyArrowFileIO"


def written(folder: Path, lines: list[bytes], rows: int) -> list[DataFile]:
    """The events in files of so many rows, in order."""
    decoder = Decoder(seed=1)
    writer = LakeWriter(folder, LakeConfig(file_rows_max=rows, row_group_rows=min(rows, 131_072)), is_table=True)
    for decoded in batches(decoder, in_frames(lines)):
        writer.append(decoded.batch, decoder.dictionaries)
        writer.end_step(0)
    cut = writer.cut(3)
    cut.wait(60)
    files = [DataFile("events", file.path.relative_to(folder).as_posix(), file.rows, file.bytes, file.day) for file in cut.files]
    writer.close()
    return files


def segments_of(files: list[DataFile]) -> list[Segment]:
    found = []
    for number, file in enumerate(files):
        named = parse_name(file.path)
        assert named is not None
        begin = found[-1].next_offset if found else 0
        found.append(Segment(3, 1, begin, named[2] + 1, 0, number, (file,)))
    return found


def by_program(url: str, path: Path) -> None:
    open_bucket(url).put_file("ours.parquet", path)


def by_pyarrow(url: str, path: Path) -> None:
    from pyarrow.fs import S3FileSystem

    there = S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL_S3"], region="us-east-1")
    with there.open_output_stream(url.removeprefix("s3://") + "/rival.parquet") as out, path.open("rb") as whole:
        while part := whole.read(1 << 20):
            out.write(part)


def uploaded(what: str, way: Callable[[str, Path], None], url: str, path: Path, rows: int) -> dict[str, Any]:
    size, began_s = path.stat().st_size, time.perf_counter()
    way(url, path)
    wall_s = time.perf_counter() - began_s
    cpu_s = cpu_seconds(lambda: way(url, path))
    return {"what": f"upload, {what}", "CPU us a row": cpu_s / rows * 1e6, "MB/s": size / wall_s / 1e6, "B a row": size / rows}


def put(folder: Path, files: list[DataFile], url: str) -> None:
    for file in files:
        bucket_io.upload(folder / file.path, f"{url}/{file.path}")


def commits(what: str, lake: str, segments: list[Segment]) -> dict[str, Any]:
    tables = LakeTables.open(lake, LakeConfig())
    times, cpu = [], []
    for number, segment in enumerate(segments, 1):
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        done = tables.commit([segment], 1)
        times.append(time.perf_counter() - began_s)
        cpu.append(time.process_time() - began_cpu_s)
        assert done.segments == 1
        if number % 10 == 0:
            expire(tables)
    tables.close()
    last = {"median ms": statistics.median(times[-LAST:]) * 1_000, "dearest ms": max(times[-LAST:]) * 1_000, "CPU ms": statistics.mean(cpu[-LAST:]) * 1_000}
    return {"what": f"commit, {what}", **last}


def joining(what: str, lake: str) -> dict[str, Any]:
    tables = LakeTables.open(lake, LakeConfig())
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    done = compact(tables)
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    assert (done.files_after, done.rows) == (1, EVENTS), done
    tables.close()
    return {"what": f"joining, {what}", "CPU us a row": cpu_s / done.rows * 1e6, "median ms": wall_s * 1_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    given = parser.parse_args()
    pa.set_cpu_count(1)
    lines = sample(EVENTS, seed=1).splitlines()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_DATA_HOME"] = str(folder / "home")
        (whole,) = written(folder / "whole", lines, EVENTS)
        path = folder / "whole" / whole.path
        files = written(folder / "lake", lines, FILE_ROWS)
        segments = segments_of(files)
        commits("warm", str(folder / "lake"), segments[:1])
        rows.append(commits("directory", str(folder / "lake"), segments[1:]))
        with S3Server("versitygw" if gateway() else "moto") as server:
            os.environ |= server.env()
            url = f"s3://{server.make_bucket('bench')}"
            rows.append(uploaded("as the program does it", by_program, url, path, whole.rows))
            put(folder / "lake", files, f"{url}/lake")
            rows.append(commits(f"bucket of {server.kind}", f"{url}/lake", segments))
            rows += [joining("directory", str(folder / "lake")), joining(f"bucket of {server.kind}", f"{url}/lake")]
        with S3Server("moto") as other:  # versitygw refuses how pyarrow ends an upload
            os.environ |= other.env()
            url = f"s3://{other.make_bucket('other')}"
            for what, way, implementation in (("ours", by_program, places.BUCKET_IO), ("pyarrow", by_pyarrow, PYARROW)):
                rows.append(uploaded(f"to moto, {what}", way, url, path, whole.rows))
                put(folder / "lake", files, f"{url}/{what}")
                places.BUCKET_IO = implementation
                rows.append(commits(f"bucket of moto, metadata by {what}", f"{url}/{what}", segments))
    report("lake_s3", rows, given.json, events=EVENTS, file_rows=FILE_ROWS)


if __name__ == "__main__":
    main()
