"""Proof that the lake holds what it says, read from its files again, and, as far as the log goes back, what it should.

For each partition: the (offset, line) of its events are distinct and lie between the chain's ends, there are as many as the
chain says, and every snapshot that is still there added the rows it says it added. With a log: they are exactly the lines
that the decoder accepts. Files are taken in windows between offsets that no file spans, so memory follows a
window (a segment, or a compacted file of each day it has), never the lake.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from keystone.sinks.iceberg.chain import ADDED_KEY, CHAIN_KEY, Link, Span, chain_of, spans_of
from keystone.sinks.iceberg.columns import ALERTS, EVENTS, SESSIONS
from keystone.sinks.iceberg.tables import LakeTables

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from keystone.sinks.iceberg.files import Listed

FAULTS_MAX: Final = 20  # told of one partition; more of the same help nobody

Places = npt.NDArray[np.int64]  # (rows, 2): offset and line, in order


class LogAnswers(Protocol):
    """What the log says again (``keystone.run.lake_log``)."""

    def start_offset(self, partition: int) -> int:
        """The lowest offset still there."""

    def accepted(self, partition: int, first_offset: int, next_offset: int) -> Places:
        """Offset and line of every event that is accepted in [first_offset, next_offset), in order."""


@dataclass(slots=True)
class Verdict:
    """Of one partition, or (None) of the tables as a whole. ``compared_from``: the first offset compared with the log."""

    partition: int | None
    first_offset: int = 0
    next_offset: int = 0
    rows: int = 0
    files: int = 0
    compared_from: int | None = None
    faults: list[str] = field(default_factory=list)

    def blame(self, text: str) -> None:
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(text)


def verify(tables: LakeTables, log: LogAnswers | None = None, on_file: Callable[[Listed], None] | None = None) -> Iterator[Verdict]:
    """A verdict for each partition, in order, then one for the tables as a whole."""
    from keystone.sinks.iceberg.files import listed

    table = tables.load(EVENTS)
    chain = tables._head(table).chain  # noqa: SLF001 - of the very table whose files are listed
    files: dict[int | None, list[Listed]] = defaultdict(list)
    for file in listed(table, tables.place):
        single = file.partitions is not None and file.offsets is not None and file.partitions[0] == file.partitions[1]
        files[file.partitions[0] if single and file.partitions is not None else None].append(file)
    for partition in sorted({*chain, *(p for p in files if p is not None)}):
        yield _Reading(tables, partition, chain.get(partition), log, on_file).verdict(files.get(partition, []))
    yield _whole(tables, table, files[None], [file for group in files.values() for file in group])


@dataclass(slots=True)
class _Reading:
    tables: LakeTables
    partition: int
    link: Link | None
    log: LogAnswers | None
    on_file: Callable[[Listed], None] | None

    def verdict(self, files: Sequence[Listed]) -> Verdict:
        found = Verdict(self.partition, files=len(files))
        if self.link is None:
            found.blame(f"{len(files)} files, and the chain knows nothing of this partition")
            return found
        from keystone.sinks.iceberg.files import log_number

        found.first_offset, found.next_offset = self.link.first_offset, self.link.next_offset
        place = found.first_offset
        if self.log is not None:
            place = found.compared_from = min(max(place, self.log.start_offset(self.partition)), found.next_offset)
        earlier = [file for file in files if log_number(file.path) != self.link.log_number]  # their offsets mean other records
        for window, _ in windows(earlier, 0):
            self._read(window, found)
        for window, end in windows([file for file in files if file not in earlier], found.next_offset):
            rows = self._read(window, found)
            self._check_places(rows, found)
            if self.log is not None and end > place:
                self._compare(rows[rows[:, 0] >= place], place, min(end, found.next_offset), found)
                place = end
        if self.log is not None and place < found.next_offset:
            self._compare(np.zeros((0, 2), np.int64), place, found.next_offset, found)
        if found.rows != self.link.rows:
            found.blame(f"{found.rows} rows in its files, and {self.link.rows} were committed")
        return found

    def _read(self, window: Sequence[Listed], found: Verdict) -> Places:
        parts = []
        for file in window:
            filesystem, path = self.tables.filesystem(file.file.file_path)
            try:
                with filesystem.open_input_file(path) as stream:
                    table = pq.read_table(stream, columns=["partition", "offset", "line"], partitioning=None)
            except OSError as error:
                found.blame(f"{file.path} cannot be read: {error!s:.200}")
                continue
            if table.num_rows != file.rows:
                found.blame(f"{file.path} has {table.num_rows} rows, its manifest says {file.rows}")
            if table.num_rows and (table["partition"].to_numpy() != self.partition).any():
                found.blame(f"{file.path} holds rows of other partitions")
            parts.append(np.stack([table["offset"].to_numpy(), table["line"].to_numpy().astype(np.int64)], axis=1))
            if self.on_file is not None:
                self.on_file(file)
        rows = np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)
        found.rows += len(rows)
        return rows[np.lexsort((rows[:, 1], rows[:, 0]))]

    def _check_places(self, rows: Places, found: Verdict) -> None:
        if not len(rows):
            return
        twice = rows[1:][(rows[1:] == rows[:-1]).all(axis=1)]
        if len(twice):
            found.blame(f"{len(twice)} rows are there more than once, the first at offset {twice[0, 0]}, line {twice[0, 1]}")
        outside = rows[(rows[:, 0] < found.first_offset) | (rows[:, 0] >= found.next_offset)]
        if len(outside):
            found.blame(f"{len(outside)} rows lie outside of the committed offsets, the first at offset {outside[0, 0]}")

    def _compare(self, rows: Places, first: int, end: int, found: Verdict) -> None:
        """With what the log's records give again between two offsets."""
        if self.log is None:
            return
        wanted = self.log.accepted(self.partition, first, end)
        if np.array_equal(rows, wanted):
            return
        here, there = {tuple(row) for row in rows.tolist()}, {tuple(row) for row in wanted.tolist()}
        for what, places in (("are in the log, accepted, and not in the lake", there - here), ("are in the lake and not among the log's", here - there)):
            if places:
                offset, line = min(places)
                found.blame(f"{len(places)} events {what}, the first at offset {offset}, line {line}")


def windows(files: Sequence[Listed], next_offset: int) -> Iterator[tuple[list[Listed], int]]:
    """Files of one partition in groups that no file's offsets overlap, in order, each with the offset where the next begins. Pure."""
    spans = sorted(((file.offsets or (0, 0)), file.path, file) for file in files)
    window: list[Listed] = []
    highest = -1
    for (low, high), _, file in spans:
        if window and low > highest:
            yield window, low
            window = []
        window.append(file)
        highest = max(highest, high)
    if window:
        yield window, max(next_offset, highest + 1)


def _whole(tables: LakeTables, events: Table, unplaced: Sequence[Listed], files: Sequence[Listed]) -> Verdict:
    """What concerns no single partition of events."""
    from keystone.sinks.iceberg.files import listed

    found = Verdict(None, files=len(files))
    for file in unplaced:
        found.blame(f"{file.path} does not say which partition and offsets it holds: another program wrote it")
    by_table = {EVENTS: (events, list(files))}
    for name in (SESSIONS, ALERTS):
        table = tables.load(name)
        by_table[name] = table, list(listed(table, tables.place))
    for name, (table, members) in by_table.items():
        twice = [path for path, count in Counter(file.path for file in members).items() if count > 1]
        for path in twice:
            found.blame(f"{path} is in table {name} more than once")
        found.rows += sum(file.rows for file in members)
        if name != EVENTS:
            rows, said = sum(file.rows for file in members), sum(link.rows for link in tables._head(table).chain.values())  # noqa: SLF001
            if rows != said:
                found.blame(f"table {name} has {rows} rows, and {said} were committed")
        for fault in added_faults(table):
            found.blame(f"table {name}: {fault}")
    for fault in link_faults(events):
        found.blame(fault)
    repeated = [alert_id for alert_id, count in _alert_ids(tables, by_table[ALERTS][1]).items() if count > 1]
    if repeated:
        found.blame(f"{len(repeated)} alerts are there more than once, such as {min(repeated)}")
    return found


def _alert_ids(tables: LakeTables, files: Sequence[Listed]) -> Counter[str]:
    """All of them: alerts are few, some in a thousand sessions."""
    found: Counter[str] = Counter()
    for file in files:
        filesystem, path = tables.filesystem(file.file.file_path)
        with filesystem.open_input_file(path) as stream:
            found.update(pq.read_table(stream, columns=["alert_id"])["alert_id"].to_pylist())
    return found


def added_faults(table: Table) -> Iterator[str]:
    """Snapshots, of those still there, that did not add the rows or files they say, or that added a file another one added too."""
    from pyiceberg.manifest import ManifestEntryStatus

    owner: dict[str, int] = {}
    for snapshot in table.metadata.snapshots:
        said = snapshot.summary.additional_properties if snapshot.summary is not None else {}
        if ADDED_KEY not in said or CHAIN_KEY not in said:
            continue
        rows = 0
        for manifest in snapshot.manifests(table.io):
            if manifest.added_snapshot_id != snapshot.snapshot_id:
                continue
            for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
                if entry.status == ManifestEntryStatus.ADDED and entry.snapshot_id == snapshot.snapshot_id:
                    path = entry.data_file.file_path
                    if owner.setdefault(path, snapshot.snapshot_id) != snapshot.snapshot_id:
                        yield f"{path} was added by two snapshots"
                    rows += entry.data_file.record_count
        expected = sum(span.rows for span in _spans(said[ADDED_KEY]))
        if rows != expected:
            yield f"snapshot {snapshot.snapshot_id} added {rows} rows, and says {expected}"


def link_faults(events: Table) -> Iterator[str]:
    """Snapshots of events, of those still there, that do not begin where the one before ended, or do not end where they say."""
    from pyiceberg.table.snapshots import ancestors_of

    history = [s.summary.additional_properties for s in ancestors_of(events.current_snapshot(), events.metadata) if s.summary is not None]
    told = [said for said in history if CHAIN_KEY in said][::-1]
    before: Mapping[int, Link] | None = None  # of the oldest, nothing is known
    for said in told:
        after = chain_of(said[CHAIN_KEY])
        spans = spans_of(said[ADDED_KEY]) if ADDED_KEY in said else {}
        for partition in after if before is not None else ():
            was, span = (before or {}).get(partition), spans.get(partition)
            begins = (was.next_offset, was.next_sequence) if was is not None else (span.first_offset, 0) if span is not None else None
            ends = (after[partition].next_offset, after[partition].next_sequence)
            if begins != ((span.first_offset, span.first_sequence) if span is not None else ends) or (span and (span.next_offset, span.next_sequence) != ends):
                yield f"partition {partition}: one snapshot ends at {begins}, the next one spans {span} and ends at {ends} (offset, sequence)"
        before = after


def _spans(text: str) -> list[Span]:
    return list(spans_of(text).values())
