"""What the lake's tables hold: events by place, window after window; alerts and sessions by their ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from keystone.audit.index_routes import IndexRoutes
from keystone.audit.places import NO_PLACES, Places
from keystone.errors import UsageError
from keystone.sinks.base import BELIEVED_DAYS, DAY_MS
from keystone.sinks.documents import session_document_id
from keystone.sinks.iceberg.chain import Link
from keystone.sinks.iceberg.columns import ALERTS, EVENTS, SESSIONS
from keystone.sinks.iceberg.verify import windows

if TYPE_CHECKING:
    from keystone.config import LakeConfig
    from keystone.sinks.iceberg.files import Listed
    from keystone.sinks.iceberg.tables import LakeTables

#: Of alerts and sessions: what an index names them by, and when; partition -1 where rows do not tell it.
IDS = {"id": pl.String, "partition": pl.Int64, "at_ms": pl.Int64, "day": pl.Int64}
#: What names a session.
IDENTITY = ("device_id", "session_id")


class LakeSide:
    """A lake's tables as they are when it is opened. ``UsageError`` where there is none, or no tables."""

    def __init__(self, lake: str, config: LakeConfig) -> None:
        from keystone.sinks.iceberg.files import listed
        from keystone.sinks.iceberg.tables import LakeTables

        self.tables: LakeTables = LakeTables.open(lake, config, is_made=False)
        self.faults: list[str] = []
        table = self.tables.load(EVENTS)
        self.chain: dict[int, Link] = dict(self.tables._head(table).chain)  # noqa: SLF001 - of the very table whose files are listed
        self._files: dict[int, list[Listed]] = defaultdict(list)
        for file in listed(table, self.tables.place):
            if file.partitions is None or file.offsets is None or file.partitions[0] != file.partitions[1]:
                raise UsageError(f"{file.path} does not say which partition and offsets it holds: keystone lake verify tells more")
            self._files[file.partitions[0]].append(file)

    @property
    def partitions(self) -> set[int]:
        """With files, or in the chain."""
        return {*self.chain, *self._files}

    def rows(self, partition: int) -> int:
        """Of its files, as their manifests say."""
        return sum(file.rows for file in self._files.get(partition, []))

    def windows(self, partition: int, first_offset: int, next_offset: int) -> Iterator[tuple[Places, int]]:
        """Places in the files of this log, in groups that no file spans, each with the offset where the next begins; files of earlier offsets are passed over.

        The last ends at ``next_offset`` or behind it.
        """
        from keystone.sinks.iceberg.files import log_number

        link = self.chain.get(partition)
        number = link.log_number if link is not None else 0
        mine = [file for file in self._files.get(partition, []) if log_number(file.path) == number]
        for window, end in windows(mine, next_offset):
            if end > first_offset:
                yield self._read(window), end

    def has_earlier_logs(self, partition: int) -> bool:
        """Whether some of its rows are of a log that was made anew since: their offsets mean other records."""
        from keystone.sinks.iceberg.files import log_number

        link = self.chain.get(partition)
        return link is not None and any(log_number(file.path) != link.log_number for file in self._files.get(partition, []))

    def _read(self, window: Sequence[Listed]) -> Places:
        parts = [NO_PLACES]
        for file in window:
            filesystem, path = self.tables.filesystem(file.file.file_path)
            try:
                with filesystem.open_input_file(path) as stream:
                    table = pq.read_table(stream, columns=["offset", "line", "append_ts"], partitioning=None)
            except OSError as error:
                self.faults.append(f"{file.path} cannot be read: {error!s:.200}")
                continue
            times = table["append_ts"].fill_null(0).to_numpy()
            parts.append(np.stack([table["offset"].to_numpy(), table["line"].to_numpy().astype(np.int64), times], axis=1))
        return np.concatenate(parts)

    # --- alerts and sessions --------------------------------------------------------------------------------------------------
    def alerts(self, routes: IndexRoutes | None = None) -> pl.DataFrame:
        """IDS of all alerts in the table now, repeats included; ``at_ms`` is the append time; ``is_sent``: ``routes`` give it to the index."""
        found, is_sent = self._routed(ALERTS, ["alert_id", "partition", "append_ts_ms", "event_ts"], routes)
        believed = (pl.col("event_ts") - pl.col("append_ts_ms")).abs() <= BELIEVED_DAYS * DAY_MS
        day = pl.when(believed).then(pl.col("event_ts")).otherwise(pl.col("append_ts_ms")) // DAY_MS
        return found.select(id=pl.col("alert_id"), partition=pl.col("partition").cast(pl.Int64), at_ms=pl.col("append_ts_ms"), day=day, is_sent=is_sent)

    def sessions(self, routes: IndexRoutes | None = None) -> pl.DataFrame:
        """The same of all sessions, as documents are named, each once; ``at_ms`` is the session's end."""
        found, is_sent = self._routed(SESSIONS, ["device_id", "session_id", "start_ts", "end_ts"], routes)
        names = zip(*(found[name].to_list() for name in ("device_id", "session_id", "start_ts")), strict=True)
        ids = pl.Series("id", [session_document_id(*name) for name in names], pl.String)
        at = pl.col("end_ts")
        rows = found.select(ids, partition=pl.lit(-1, pl.Int64), at_ms=at, day=at // DAY_MS, is_sent=is_sent)
        return rows.with_columns(pl.col("is_sent").any().over("id")).unique("id", keep="last", maintain_order=True)

    def known(self, sessions: pl.DataFrame) -> pl.DataFrame:
        """Those of some sessions, by IDENTITY, of which any table has a row now: theirs is the log that the lake is of."""
        left, found = sessions.select(IDENTITY).unique(), [sessions.select(IDENTITY).clear()]
        for name in (SESSIONS, ALERTS, EVENTS):
            for batch in self.tables.load(name).scan(selected_fields=IDENTITY).to_arrow_batch_reader() if left.height else ():
                there = pl.DataFrame(pa.table(batch)).select(pl.col(IDENTITY).cast(pl.String)).unique()
                found.append(left.join(there, on=IDENTITY, how="semi"))
                left = left.join(there, on=IDENTITY, how="anti")
        return pl.concat(found)

    def _routed(self, name: str, columns: list[str], routes: IndexRoutes | None) -> tuple[pl.DataFrame, pl.Series]:
        routes = routes if routes is not None else IndexRoutes()
        wanted = dict.fromkeys((*columns, *routes.columns(name)))
        found = pl.DataFrame(self.tables.load(name).scan(selected_fields=tuple(wanted)).to_arrow()).select(list(wanted))
        return found, routes.sent(name, found)

    def close(self) -> None:
        """May be repeated."""
        self.tables.close()
