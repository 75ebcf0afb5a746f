"""Lakes with segments in them, for tests of what is committed."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from keystone.config import LakeConfig
from keystone.events import ALERT_LOOP, DIMENSIONS, Alert
from keystone.segments import DataFile, Segment
from keystone.session_records import SESSION_SCHEMA
from keystone.sinks import lake_schema
from keystone.sinks.iceberg.columns import alert_table
from keystone.sinks.iceberg.tables import LakeTables
from tests.lake_batches import APPEND_MS, DAY_MS, row

DAY = APPEND_MS // DAY_MS


def write_parquet(path: Path, table: pa.Table) -> tuple[int, int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, store_schema=False, compression="zstd")
    return table.num_rows, path.stat().st_size


def day_name(day):
    return f"event_date={dt.date(1970, 1, 1) + dt.timedelta(days=day)}"


def alert(number, partition=0):
    dims = dict.fromkeys(DIMENSIONS)
    dims["cdn"] = f"c{number % 3}"
    return Alert(f"{partition}-{number}", ALERT_LOOP, f"d{number}", "s", APPEND_MS, None, 3, 1750, 1050, dims, APPEND_MS, partition)


def session_table(count, first=0):
    def value(field, k):
        if pa.types.is_dictionary(field.type) or pa.types.is_string(field.type):
            return f"{field.name}{k % 5}"
        return float(k) if pa.types.is_floating(field.type) else k

    schema = pa.schema([pa.field(f.name, _plain(f.type), f.nullable) for f in SESSION_SCHEMA])
    return pa.Table.from_pylist([{f.name: value(f, k) for f in schema} for k in range(first, first + count)], schema)


def _plain(kind):
    return pa.string() if pa.types.is_dictionary(kind) else kind


class Owner:
    """Writes segments of one partition, as its session actor would: files in place, nothing committed."""

    def __init__(self, lake: Path, partition=0, *, epoch=1, sequence=0, offset=0):
        self.lake, self.partition, self.epoch, self.sequence, self.offset = Path(lake), partition, epoch, sequence, offset

    def segment(self, events=6, *, sessions=2, alerts=1, days=(0,), lines=2, time_only=False):
        """``events`` rows for each of ``days``, ``lines`` of each record; ``sessions`` and ``alerts`` rows."""
        first = self.offset
        records = 0 if time_only else max(1, events * len(days) // lines)
        self.offset += records
        tail = f"p{self.partition:05d}-{first:020d}-{self.offset:020d}-e{self.epoch:08d}-{self.sequence:06d}.parquet"
        files = []
        if not time_only:
            files += [self._events(tail, first, records, lines, k, days) for k in range(len(days))]
        if sessions:
            files.append(self._file("sessions", f"data/sessions/{tail}", session_table(sessions, first)))
        if alerts:
            files.append(self._file("alerts", f"data/alerts/{tail}", alert_table([alert(1_000 * self.sequence + k, self.partition) for k in range(alerts)])))
        found = Segment(self.partition, self.epoch, first, self.offset, APPEND_MS + first, self.sequence, tuple(f for f in files if f.rows))
        self.sequence += 1
        return found

    def _events(self, tail, first, records, lines, k, days):
        """The records' lines are dealt out to the days in turn."""
        rows = [
            row(offset=first + n, line=line, partition=self.partition, ts=APPEND_MS + days[k] * DAY_MS + n, device_id=f"d{n % 7}", cdn=f"c{n % 3}")
            for n in range(records)
            for line in range(lines)
            if (n * lines + line) % len(days) == k
        ]
        table = pa.Table.from_pylist(rows, lake_schema.SCHEMA.remove_metadata())
        return self._file("events", f"data/events/{day_name(DAY + days[k])}/{tail}", table, DAY + days[k])

    def _file(self, name, path, table, day=None):
        rows, size = write_parquet(self.lake / path, table)
        return DataFile(name, path, rows, size, day)


def opened(lake, **settings) -> LakeTables:
    return LakeTables.open(lake, LakeConfig(**settings))


def places(tables):
    """(partition, offset, line) of every event in the table, sorted, repeats included."""
    found = tables.load("events").scan(selected_fields=("partition", "offset", "line")).to_arrow()
    return sorted(zip(*(found[name].to_pylist() for name in ("partition", "offset", "line")), strict=True))


def count(tables, name):
    return tables.load(name).scan().count()


def expected_places(segments, lines=2):
    return sorted((s.partition, offset, line) for s in segments for offset in range(s.first_offset, s.next_offset) for line in range(lines))


def rows_of(segments, name):
    return sum(f.rows for s in segments for f in s.files if f.table == name)
