"""Writing the lake: ours against pyarrow and Polars, the same rows of the same columns in the same run, one core.

    python benchmarks/lake_write.py [FILE.ndjson] [--json benchmarks/results/lake_write.json]

Without FILE, events of the simulator, as a partition of eight sees them at 1M events/s from 5M devices, in frames of 200.
Ours starts at the decoder's batches; what decoding costs is measured and taken off. The rivals start at an Arrow table with the strings of low cardinality
dictionary-coded already: what it costs to make that table from batches is not counted, which favours them. CPU time of
the process, all threads, the best of 5 turns; row groups of 131,072 rows, zstd level 1.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["POLARS_MAX_THREADS"] = "1"

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import cpu_seconds, report
from keystone.config import LakeConfig
from keystone.decode import Decoded, Decoder
from keystone.events import DICTIONARY_COLUMNS, Records
from keystone.sinks.lake import LakeWriter
from keystone.sinks.lake_schema import COLUMNS

EVENTS = 400_000
FRAME = 200
ROW_GROUP = 131_072


def batches(decoder: Decoder, records: Records) -> Iterator[Decoded]:
    for decoded in decoder.decode(records):
        decoded.batch.duplicate[:], decoded.batch.late[:] = 0, 0
        yield decoded


def in_frames(lines: list[bytes]) -> Records:
    frames: list[bytes | None] = [b"\n".join(lines[first : first + FRAME]) for first in range(0, len(lines), FRAME)]
    first_ts = int(next(batches(Decoder(seed=1), Records.of(frames[:1]))).batch.ts.min())
    return Records.of(frames, partition=3, append_ts_ms=[first_ts + 100 + i * 3 for i in range(len(frames))])


def ours(folder: Path, decoder: Decoder, records: Records) -> tuple[int, int]:
    """(rows, bytes) of the lake."""
    with tempfile.TemporaryDirectory(dir=folder) as lake:
        writer = LakeWriter(lake, LakeConfig(row_group_rows=ROW_GROUP))
        for decoded in batches(decoder, records):
            writer.append(decoded.batch, decoder.dictionaries)
        return writer.close(), writer.bytes


def coded(table: pa.Table) -> pa.Table:
    """The same rows with the dictionary-coded columns as Arrow dictionaries, in one chunk."""
    columns = [table[name].combine_chunks() for name in table.column_names]
    wanted = [column.dictionary_encode() if name in DICTIONARY_COLUMNS else column for name, column in zip(table.column_names, columns, strict=True)]
    return pa.table(dict(zip(table.column_names, wanted, strict=True)))


def tuned(table: pa.Table, path: Path) -> None:
    """pyarrow with the settings we found best for it."""
    integers = [column.name for column in COLUMNS if column.type.startswith("int")]
    texts = ("device_id", "session_id", "user_id", "extra")
    pq.write_table(
        table, path, row_group_size=ROW_GROUP, compression="zstd", compression_level=1, store_schema=False, write_statistics=["ts", "offset"],
        use_dictionary=list(DICTIONARY_COLUMNS),
        column_encoding={**dict.fromkeys(integers, "DELTA_BINARY_PACKED"), **dict.fromkeys(texts, "DELTA_LENGTH_BYTE_ARRAY")},
    )  # fmt: skip


def rivals(table: pa.Table, path: Path) -> dict[str, Callable[[], object]]:
    frame = pl.DataFrame(table)
    plain = {"row_group_size": ROW_GROUP, "compression": "zstd", "compression_level": 1}
    return {
        "polars write_parquet, no statistics": lambda: frame.write_parquet(path, statistics=False, **plain),
        "polars write_parquet": lambda: frame.write_parquet(path, **plain),
        "pyarrow, tuned": lambda: tuned(table, path),
        "pyarrow": lambda: pq.write_table(table, path, **plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--json")
    chosen = parser.parse_args()
    pa.set_cpu_count(1)
    if chosen.file:
        lines = chosen.file.read_bytes().splitlines()[:EVENTS]
    else:
        from keystone.sim.plan import FleetPlan
        from keystone.sim.write import lines as simulated

        plan = FleetPlan(seed=1, eps=125_000, seconds=EVENTS / 125_000, devices=625_000, partitions=1)
        lines = b"".join(text.tobytes() for text in simulated(plan)).splitlines()
    records, decoder = in_frames(lines), Decoder(seed=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, size = ours(folder, decoder, records)
        alone = cpu_seconds(lambda: sum(1 for _ in batches(decoder, records)))
        found = [("keystone", cpu_seconds(lambda: ours(folder, decoder, records)) - alone, size)]
        kept = LakeWriter(folder / "kept", LakeConfig(row_group_rows=ROW_GROUP))
        for decoded in batches(decoder, records):
            kept.append(decoded.batch, decoder.dictionaries)
        kept.close()
        table = coded(pa.concat_tables(pq.ParquetFile(path).read() for path in (folder / "kept").rglob("*.parquet")))
        assert table.num_rows == rows
        path = folder / "rival.parquet"
        for way, work in rivals(table, path).items():
            found.append((way, cpu_seconds(work), path.stat().st_size))
    us = [(way, seconds / rows * 1e6, size / rows) for way, seconds, size in found]
    figures = [{"writer": way, "CPU us a row": cost, "M rows/s": 1 / cost, "B a row": width, "to ours": cost / us[0][1]} for way, cost, width in us]
    report("lake write, 32 columns", figures, chosen.json, events=rows, event_bytes=sum(map(len, lines)) / len(lines), decode_us=alone / rows * 1e6)


if __name__ == "__main__":
    main()
