"""Data files in pyiceberg's terms: looked at before they are committed, and described by their footers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.conversions import from_bytes, to_bytes
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.typedef import Record
from pyiceberg.types import IntegerType, LongType
from pyiceberg.utils.concurrent import ExecutorFactory

from keystone import segments
from keystone.errors import LakeDamaged, SinkBusy
from keystone.sinks.iceberg.columns import EVENTS
from keystone.sinks.iceberg.places import Place

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table

_INTEGERS: Final = (IntegerType, LongType)
_ARROW_NAMES: Final = {"string": "string", "large_string": "string", "int64": "long", "int32": "int", "bool": "boolean", "double": "double"}
#: ``p00003-<first offset>-<last or next offset>-e...``: what this program names the files it writes.
_NAME: Final = re.compile(r"p(\d{5,})-(\d{20})-(\d{20})(?:-l(\d+))?(?:-.*)?\.parquet")


@dataclass(frozen=True, slots=True)
class Listed:
    """A file of the current snapshot. ``partitions`` and ``offsets``: lowest and highest, where they are known."""

    path: str
    event_date: int | None
    partitions: tuple[int, int] | None
    offsets: tuple[int, int] | None
    rows: int
    bytes: int
    file: DataFile


def parse_name(path: str) -> tuple[int, int, int] | None:
    """Partition and both offsets of a file's name; None for a file that is named otherwise."""
    found = _NAME.fullmatch(path.rpartition("/")[2])
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def log_number(path: str) -> int:
    """How often the log had been made anew that a file's rows are of, by its name."""
    found = _NAME.fullmatch(path.rpartition("/")[2])
    return int(found[4] or 0) if found else 0


def described(table: Table, place: Place, given: Iterable[tuple[int, segments.DataFile]]) -> list[DataFile | LakeDamaged]:
    """For each (partition, file) what a manifest says of it; ``LakeDamaged`` in its place where it is not what was written.

    Reads the footers, several at once: a file must be there, whole, and hold the rows it is said to hold. Raises ``SinkBusy``
    where the storage does not answer.
    """
    return list(ExecutorFactory.get_or_create().map(lambda pair: _described(table, place, *pair), given))


def _described(table: Table, place: Place, partition: int, file: segments.DataFile) -> DataFile | LakeDamaged:
    url = place.url(file.path)
    try:
        footer, size = _footer(table.io, url)
    except (OSError, pa.ArrowInvalid) as error:
        if isinstance(error, FileNotFoundError | pa.ArrowInvalid) or "thrift" in str(error):
            return LakeDamaged(f"{file.path} cannot be read: {error!s:.200}")
        raise SinkBusy(f"{file.path} cannot be read now: {error!s:.200}") from error
    if (footer.num_rows, size) != (file.rows, file.bytes):
        return LakeDamaged(f"{file.path} has {footer.num_rows} rows in {size} bytes, and {file.rows} in {file.bytes} were written")
    fault = _column_fault(table.schema(), footer)
    if fault:
        return LakeDamaged(f"{file.path}: {fault}")
    bounds = {"partition": (partition, partition)} if file.table == EVENTS else {}
    return data_file(table, url, size, footer, event_date=file.event_date, bounds=bounds)


def _footer(io: FileIO, url: str) -> tuple[pq.FileMetaData, int]:
    found = io.new_input(url)
    with found.open() as stream:
        return pq.read_metadata(stream), len(found)


def _column_fault(schema: Schema, footer: pq.FileMetaData) -> str:
    """A column that the table lacks would be dropped in silence, and a null where the table has none break its readers."""
    there = {field.name: field for field in footer.schema.to_arrow_schema()}
    columns = {field.name: field for field in schema.fields}
    for name, field in there.items():
        wanted = columns.get(name)
        if wanted is None or str(wanted.field_type) != _ARROW_NAMES.get(str(field.type), "?"):
            kind = wanted.field_type if wanted is not None else "not there"
            return f"its column {name} is {field.type}, the table's is {kind}: a newer version wrote it, or another program"
    for name, wanted in columns.items():
        if wanted.required and (name not in there or there[name].nullable):
            return f"its column {name} is {'optional' if name in there else 'not there'}, the table's is required"
    return ""


def data_file(
    table: Table, url: str, size: int, footer: pq.FileMetaData, *, event_date: int | None, bounds: dict[str, tuple[int, int]] | None = None
) -> DataFile:
    """A manifest's entry. Bounds of integer columns are taken from the footer's statistics, and from ``bounds``."""
    ids = {field.name: (field.field_id, field.field_type) for field in table.schema().fields}
    lows, highs = {}, {}
    for name, (low, high) in {**_statistics(footer), **(bounds or {})}.items():
        number, kind = ids.get(name, (0, None))
        if isinstance(kind, _INTEGERS):
            lows[number], highs[number] = to_bytes(kind, low), to_bytes(kind, high)
    is_dated = bool(table.spec().fields)
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=url,
        file_format=FileFormat.PARQUET,
        partition=Record(event_date) if is_dated else Record(),
        record_count=footer.num_rows,
        file_size_in_bytes=size,
        column_sizes={},
        value_counts=dict.fromkeys(lows, footer.num_rows),
        null_value_counts={},  # unknown, and so no filter on null passes over the file
        nan_value_counts={},
        lower_bounds=lows,
        upper_bounds=highs,
        split_offsets=None,
        sort_order_id=None,
        spec_id=table.metadata.default_spec_id,
        equality_ids=None,
        key_metadata=None,
    )


def _statistics(footer: pq.FileMetaData) -> dict[str, tuple[int, int]]:
    """Lowest and highest value of each integer column that has statistics in all row groups."""
    found: dict[str, list[tuple[int, int] | None]] = {}
    for g in range(footer.num_row_groups):
        group = footer.row_group(g)
        for c in range(footer.num_columns):
            chunk = group.column(c)
            if chunk.physical_type in ("INT32", "INT64"):
                statistics = chunk.statistics
                has = statistics is not None and statistics.has_min_max
                found.setdefault(chunk.path_in_schema, []).append((statistics.min, statistics.max) if has else None)
    return {name: (min(p[0] for p in pairs if p), max(p[1] for p in pairs if p)) for name, pairs in found.items() if all(pairs)}


def listed(table: Table, place: Place) -> Iterator[Listed]:
    """The files of the current snapshot, as its manifests describe them."""
    schema = table.schema()
    for task in table.scan().plan_files():
        file = task.file
        yield Listed(
            place.relative(file.file_path),
            file.partition[0] if len(file.partition) else None,
            _bounds(schema, file, "partition"),
            _bounds(schema, file, "offset"),
            file.record_count,
            file.file_size_in_bytes,
            file,
        )


def _bounds(schema: Schema, file: DataFile, name: str) -> tuple[int, int] | None:
    if name not in schema.column_names:
        return None
    field: Any = schema.find_field(name)
    low, high = (file.lower_bounds or {}).get(field.field_id), (file.upper_bounds or {}).get(field.field_id)
    if low is None or high is None:
        return None
    kind: Any = field.field_type
    return int(from_bytes(kind, low)), int(from_bytes(kind, high))


def date_of(day: int | None) -> str:
    """``2026-09-21``; empty for None."""
    return "" if day is None else str(np.datetime64(day, "D"))
