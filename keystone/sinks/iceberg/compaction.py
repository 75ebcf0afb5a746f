"""Small files into large ones, while others append.

Files of one partition of the log and, of events, one day are joined in the order of their offsets, so that a file stays what
it was: a range of one partition's offsets, named by it, its rows in order. They are read and written a row group at a time.
The new files replace the old ones in one snapshot, which says of the chain what its parent said (``producers``).
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from keystone import logs
from keystone.errors import LakeDamaged
from keystone.events import DICTIONARY_COLUMNS
from keystone.sinks.iceberg.columns import EVENT_DATE, EVENTS
from keystone.sinks.iceberg.places import UNFINISHED, home_of
from keystone.sinks.iceberg.tables import ORDER, LakeTables

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

    from keystone.sinks.iceberg.files import Listed

LARGER: Final = 2  # times the newest files together, that an older one may be to be joined with them: a row is rewritten 5 times at most
ALWAYS_BYTES: Final = 64 << 10  # a file up to this is joined with the newest ones whatever they are: 2,000 rows
SMALL: Final = 0.75  # of the target size: a file above it is not worth reading again
ROW_GROUP_ROWS: Final = 131_072  # read and written at once: ~40 MB of Arrow
ZSTD_LEVEL: Final = 1
_STATISTICS: Final = ["ts", "offset", "partition", "start_ts", "end_ts", "event_ts"]
_WORDS: Final = {*DICTIONARY_COLUMNS, "end_reason", "outcome", "kind", "action"}
_DELTAS: Final = {pa.int64(): "DELTA_BINARY_PACKED", pa.int32(): "DELTA_BINARY_PACKED", pa.string(): "DELTA_LENGTH_BYTE_ARRAY"}

_LOG: Final = logs.get(__name__)


@dataclass(slots=True)
class Group:
    """Files of one partition and day, in order, that become one."""

    partition: int
    event_date: int | None
    first_offset: int
    last_offset: int
    log_number: int = 0
    files: list[Listed] = field(default_factory=list)

    @property
    def key(self) -> tuple[int | None, int, int]:
        return self.event_date, self.partition, self.log_number

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


@dataclass(slots=True)
class Compacted:
    """What a compaction did. ``lost``: groups that somebody else changed meanwhile; they are for the next time."""

    groups: int = 0
    files_before: int = 0
    files_after: int = 0
    rows: int = 0
    bytes: int = 0
    lost: int = 0


def compact(tables: LakeTables, *, day: int | None = None, on_group: Callable[[Group], None] | None = None) -> Compacted:
    """Join what is worth it, of all days or of ``day`` (since the epoch), in all tables. One snapshot a group."""
    done = Compacted()
    for name in ORDER:
        for group in groups(_listed(tables, name), tables.config.target_file_bytes, tables.config.compact_files_min):
            if day is None or group.event_date == day:
                _compact_group(tables, name, group, done)
                if on_group is not None:
                    on_group(group)
    return done


def compact_ripe(tables: LakeTables, budget_s: float) -> Compacted:
    """Join what a stream has left behind, for about that long: one snapshot a table, so that history is not driven out by it.

    A group that is begun is ended: up to ``lake.target_file_bytes`` more, 2-4 s.
    """
    done, until_s = Compacted(), time.monotonic() + budget_s
    for name in ORDER:
        found = ripe(groups(_listed(tables, name), tables.config.target_file_bytes, 1), tables.config.compact_files_min)
        if not found:
            continue
        table = tables.load(name)
        joined: list[tuple[Group, DataFile]] = []
        for group in sorted(found, key=lambda group: -len(group.files)):
            if time.monotonic() > until_s:
                break
            try:
                joined.append((group, _rewritten(tables, table, name, group)))
            except FileNotFoundError:
                done.lost += 1
        _replace(tables, table, name, joined, done)
    return done


def ripe(given: Iterable[Group], files_min: int) -> list[Group]:
    """Of groups in order (``groups``), what is worth joining now, while more keeps coming. Pure.

    A group that another one follows is full. In the last one of a partition and day, the newest files are joined, and an older file only
    where it is at most twice what they are together (or tiny): so a row is rewritten a few times on its way into a large file, not every time.
    """
    every = list(given)
    found: list[Group] = []
    for group, follower in zip_longest(every, every[1:]):
        is_full = follower is not None and follower.key == group.key
        begin, newest_bytes = (0 if is_full else len(group.files)), 0
        while begin and (not newest_bytes or group.files[begin - 1].bytes <= max(LARGER * newest_bytes, ALWAYS_BYTES)):
            begin -= 1
            newest_bytes += group.files[begin].bytes
        if len(group.files) - begin >= files_min:
            found.append(_part(group, begin))
    return found


def _part(group: Group, begin: int) -> Group:
    """The files from ``begin`` on."""
    from keystone.sinks.iceberg.files import parse_name

    files = group.files[begin:]
    named = parse_name(files[0].path)
    first = named[1] if named is not None else group.first_offset
    return Group(group.partition, group.event_date, first, group.last_offset, group.log_number, files)


def groups(files: Iterable[Listed], target_bytes: int, files_min: int) -> list[Group]:
    """What to join: the small files of each partition and day, in order, cut where they reach the target. Pure.

    Fewer than ``files_min`` are not worth a rewrite; files that are not named by partition and offsets are left alone.
    """
    from keystone.sinks.iceberg.files import log_number, parse_name

    small: dict[tuple[int | None, int, int], list[tuple[int, int, str, Listed]]] = defaultdict(list)
    for file in files:
        named = parse_name(file.path)
        if named is not None and file.bytes < SMALL * target_bytes:
            partition, first, last = named
            small[file.event_date, partition, log_number(file.path)].append((first, last, file.path, file))
    found: list[Group] = []
    for (event_date, partition, number), members in sorted(small.items(), key=lambda item: (item[0][0] or 0, *item[0][1:])):
        found += _cut(event_date, partition, number, sorted(members, key=lambda m: m[:3]), target_bytes)
    return [group for group in found if len(group.files) >= files_min]


def _cut(event_date: int | None, partition: int, log_number: int, members: list[tuple[int, int, str, Listed]], target_bytes: int) -> Iterator[Group]:
    group: Group | None = None
    for first, last, _, file in members:
        if group is None or group.bytes + file.bytes > target_bytes:
            if group is not None:
                yield group
            group = Group(partition, event_date, first, last, log_number)
        group.files.append(file)
        group.last_offset = last
    if group is not None:
        yield group


def _listed(tables: LakeTables, name: str) -> list[Listed]:
    from keystone.sinks.iceberg.files import listed

    return list(listed(tables.load(name), tables.place))


def _compact_group(tables: LakeTables, name: str, group: Group, done: Compacted) -> None:
    table = tables.load(name)
    try:
        new = _rewritten(tables, table, name, group)
    except FileNotFoundError:  # somebody else replaced the files, long ago
        done.lost += 1
        return
    _replace(tables, table, name, [(group, new)], done)


def _replace(tables: LakeTables, table: Table, name: str, joined: list[tuple[Group, DataFile]], done: Compacted) -> None:
    """One snapshot with the new files in place of the old ones."""
    from keystone.sinks.iceberg import producers
    from keystone.sinks.iceberg.files import listed

    if not joined:
        return
    try:
        producers.replace(table, [file.file for group, _ in joined for file in group.files], [new for _, new in joined])
    except LakeDamaged:
        raise
    except Exception as error:  # noqa: BLE001 - lost, refused or half done: the table tells
        _LOG.warning("a compaction was not answered by done: looking whether it is in", table=name, reason=str(error))
        if not any(file.file.file_path == joined[0][1].file_path for file in listed(tables.load(name), tables.place)):
            done.lost += len(joined)  # the new files are in no snapshot, and will be swept
            return
    for group, new in joined:
        done.groups += 1
        done.files_before += len(group.files)
        done.files_after += 1
        done.rows += group.rows
        done.bytes += new.file_size_in_bytes


def _rewritten(tables: LakeTables, table: Table, name: str, group: Group) -> DataFile:
    """One new file with the rows of all, complete and in place, in no snapshot yet."""
    from keystone.sinks.iceberg.bucket_io import upload
    from keystone.sinks.iceberg.durable import sync
    from keystone.sinks.iceberg.files import data_file, date_of, log_number

    schema = _file_schema(table)
    log = f"l{number}-" if (number := log_number(group.files[0].path)) else ""
    stem = f"p{group.partition:05d}-{group.first_offset:020d}-{group.last_offset:020d}-{log}c{uuid.uuid4().hex[:12]}.parquet"
    folder = (f"{EVENT_DATE.name}={date_of(group.event_date)}",) if name == EVENTS else ()
    url = tables.place.url("data", name, *folder, stem)
    # Whoever reads the folder without the tables must not meet a file that is half there; a bucket takes files that are whole, in parts.
    written = home_of(tables.place, tables.config) / UNFINISHED / stem
    written.parent.mkdir(parents=True, exist_ok=True)
    try:
        rows = 0
        with closing(_writer(written, schema)) as writer:
            for batch in _in_order(name, _batches(tables, group, schema)):
                writer.write_batch(batch, row_group_size=ROW_GROUP_ROWS)
                rows += batch.num_rows
        if rows != group.rows:
            raise LakeDamaged(f"table {name}: {len(group.files)} files of partition {group.partition} hold {rows} rows, and {group.rows} were committed")
        footer, size = pq.read_metadata(written), written.stat().st_size
        if tables.place.directory is None:
            upload(written, url)
        else:
            target = Path(url.removeprefix("file://"))
            target.parent.mkdir(parents=True, exist_ok=True)
            written.rename(target)
            sync((url,))
    finally:
        if tables.place.directory is None:
            written.unlink(missing_ok=True)
    bounds = {"partition": (group.partition, group.partition)} if name == EVENTS else {}
    return data_file(table, url, size, footer, event_date=group.event_date, bounds=bounds)


def _file_schema(table: Table) -> pa.Schema:
    """The table's columns, those that this version does not know included, without the one that no file holds."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    found = schema_to_pyarrow(table.schema(), include_field_ids=False)
    plain = [pa.field(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type, f.nullable) for f in found]
    return pa.schema([f for f in plain if f.name != EVENT_DATE.name])


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    words = [f.name for f in schema if f.name in _WORDS]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        store_schema=False,  # with it, readers of files by others and by us would see different types
        write_statistics=[name for name in _STATISTICS if name in schema.names],
        use_dictionary=words,
        column_encoding={f.name: _DELTAS[f.type] for f in schema if f.type in _DELTAS and f.name not in words},
    )


def _batches(tables: LakeTables, group: Group, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of all files with the table's columns; what an older file lacks is null."""
    for file in group.files:
        filesystem, path = tables.filesystem(file.file.file_path)
        with filesystem.open_input_file(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=ROW_GROUP_ROWS):
                unknown = set(batch.schema.names) - set(schema.names)
                if unknown:
                    raise LakeDamaged(f"{file.path} has columns that its table lacks: {', '.join(sorted(unknown))}")
                columns = [batch[f.name] if f.name in batch.schema.names else pa.nulls(batch.num_rows, f.type) for f in schema]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _in_order(name: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches. Raises ``LakeDamaged`` where events do not rise by offset and line: one would be there twice, or be misplaced."""
    last = (-1, -1)
    for batch in batches:
        if name == EVENTS and batch.num_rows:
            offsets, lines = batch["offset"].to_numpy(), batch["line"].to_numpy()
            rises = (np.diff(offsets) > 0) | ((np.diff(offsets) == 0) & (np.diff(lines) > 0))
            if not rises.all() or (int(offsets[0]), int(lines[0])) <= last:
                raise LakeDamaged(f"events of partition {batch['partition'][0]} do not rise by offset and line near offset {int(offsets[0])}")
            last = int(offsets[-1]), int(lines[-1])
        yield batch
