"""An index beside its lake. What differs at first is looked at again until it is settled: documents are searchable, and commits made, a little later."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from keystone.audit.engine import Audit
from keystone.audit.index_routes import IndexRoutes
from keystone.audit.index_side import IndexSide
from keystone.audit.lake_side import IDENTITY, IDS, LakeSide
from keystone.audit.places import MINUTE_MS, Cell, Difference
from keystone.sinks.base import ALERTS, SESSIONS

LOOK_EVERY_S: Final = 2.0
ALWAYS_MS: Final = 253_402_300_800_000  # the year 10000: what a date of a search server still takes
WHERE: Final[Mapping[str, str]] = {ALERTS: "index alerts", SESSIONS: "index sessions"}


@dataclass(slots=True)
class IndexCheck:
    """``wait_s``: how long what differs is looked at again. ``settle_ms``: before a lake's end, within which a row may still be on its way into it."""

    lake: LakeSide
    index: IndexSide
    wait_s: float
    settle_ms: int
    from_ms: int | None = None
    until_ms: int | None = None
    routes: IndexRoutes = field(default_factory=IndexRoutes)
    sleep: Callable[[float], None] = time.sleep

    def into(self, found: Audit) -> None:
        """Alerts and sessions, each a kind of documents."""
        for kind, rows in ((ALERTS, self.lake.alerts), (SESSIONS, self.lake.sessions)):
            self._kind(found, kind, lambda rows=rows: rows(self.routes))  # type: ignore[misc]

    def _kind(self, found: Audit, kind: str, rows: Callable[[], pl.DataFrame]) -> None:
        whole = rows()
        first_day = self.index.first_day(kind)
        if first_day is None and kind == SESSIONS:
            found.notes.append("the index has no sessions: not compared")
            return
        expected, told_twice = self._within(whole).unique("id", keep="first", maintain_order=True), self._within(whole)
        if twice := told_twice.height - expected.height:
            why = "keystone lake verify tells which"
            found.differences.append(Difference(-1, None, f"lake {kind}", expected.height, told_twice.height, doubled=twice, first=why))
        documents = self.index.documents(kind, *self._moments()) if first_day is not None else self.index.those(kind, [])
        expected = self._sent(found, kind, expected, documents)
        if first_day is not None:
            gone = self._gone(kind, expected, documents, first_day)
            if gone.height:
                found.notes.append(f"{gone.height:,} {kind} are older than the first index there is: not compared")
                expected = expected.join(gone, on="id", how="anti")
        documents = self._without_others(found, kind, whole, documents)
        missing, extra = self._settled(kind, whole, expected, documents, rows)
        flying = self._in_flight(found, kind, extra)
        found.in_flight_documents += int(flying.sum())
        _Telling(found, kind).tell(expected.select(list(IDS)), documents, missing.select(list(IDS)), extra.filter(~flying))

    def _sent(self, found: Audit, kind: str, rows: pl.DataFrame, documents: pl.DataFrame) -> pl.DataFrame:
        """Without what a route holds back. Such a row may have a document all the same: another route was declared when it was sent."""
        held = rows.filter(~pl.col("is_sent"))
        if held.height:
            there = held.join(documents, on="id", how="semi").height
            also = f"; {there:,} of them are in the index, sent before this route was declared" if there else ""
            found.notes.append(f"route {self.routes.name(kind)} holds back {held.height:,} of {rows.height:,} {kind}: not expected in the index{also}")
            found.held_back[kind] = held.height
            if kind == ALERTS:
                for key, count in _counts(held).items():
                    found.cells.cells.setdefault(key, Cell()).held_back = count
        return rows.filter("is_sent")

    def _without_others(self, found: Audit, kind: str, whole: pl.DataFrame, documents: pl.DataFrame) -> pl.DataFrame:
        """Without those of sessions that the lake knows nothing of: an index may hold what other logs gave. What may be in flight stays."""
        extra = documents.join(whole, on="id", how="anti")
        extra = extra.filter(~self._in_flight(found, kind, extra)).unique("id")
        if not extra.height:
            return documents
        told = self.index.identities(kind, extra["id"].to_list())
        others = told.join(self.lake.known(told), on=IDENTITY, how="anti")
        if others.height:
            found.notes.append(f"{others['id'].n_unique():,} {kind} in the index are of sessions that this lake has no row of: of other logs, not compared")
        return documents.join(others, on="id", how="anti")

    def _gone(self, kind: str, expected: pl.DataFrame, documents: pl.DataFrame, first_day: int) -> pl.DataFrame:
        """Rows that retention may have taken from the index. One with a clock that is far back is in the index of its log time's day: there it is found."""
        old = expected.filter(pl.col("day") < first_day).join(documents, on="id", how="anti")
        return old.join(self.index.those(kind, old["id"].to_list()), on="id", how="anti") if old.height else old

    def _moments(self) -> tuple[int, int]:
        return self.from_ms or 0, self.until_ms if self.until_ms is not None else ALWAYS_MS

    def _within(self, frame: pl.DataFrame) -> pl.DataFrame:
        first, behind = self._moments()
        return frame.filter(pl.col("at_ms") >= first, pl.col("at_ms") < behind)

    def _settled(
        self, kind: str, whole: pl.DataFrame, expected: pl.DataFrame, documents: pl.DataFrame, rows: Callable[[], pl.DataFrame]
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows without a document, and documents without a row, after looking again for a while."""
        missing = expected.join(documents, on="id", how="anti")
        extra = documents.join(whole, on="id", how="anti")
        until = time.monotonic() + self.wait_s
        while missing.height or extra.height:
            there = self.index.those(kind, missing["id"].to_list())
            missing = missing.join(there, on="id", how="anti")
            if extra.height:
                extra = extra.join(rows(), on="id", how="anti")
                extra = extra.join(self.index.those(kind, extra["id"].to_list()), on="id", how="semi")
            if time.monotonic() >= until or not (missing.height or extra.height):
                break
            self.sleep(min(LOOK_EVERY_S, max(0.0, until - time.monotonic())))
        return missing, extra

    def _in_flight(self, found: Audit, kind: str, extra: pl.DataFrame) -> pl.Series:
        """True for documents whose row the lake need not have yet: these are none that are too many."""
        behind = {p.partition: p for p in found.partitions if not p.is_caught_up}
        if not behind or not extra.height or kind == SESSIONS:  # a session's does not tell its partition, nor when it was closed
            return pl.repeat(bool(behind), extra.height, dtype=pl.Boolean, eager=True)
        limits = {p: self.lake.chain[p].log_time_ms - self.settle_ms if p in self.lake.chain else 0 for p in behind}
        limits[-1] = min(limits.values())  # where a route's ``select`` leaves the partition out, it may be any of these
        limit = pl.col("partition").replace_strict(limits, default=ALWAYS_MS, return_dtype=pl.Int64)
        return extra.select(pl.col("at_ms") >= limit).to_series()


@dataclass(slots=True)
class _Telling:
    found: Audit
    kind: str

    def tell(self, expected: pl.DataFrame, documents: pl.DataFrame, missing: pl.DataFrame, extra: pl.DataFrame) -> None:
        """Counts into the cells, and a difference for each minute and partition that has one."""
        doubled = documents.filter(~pl.col("id").is_first_distinct())
        self.found.indexed[self.kind] = expected.height, expected.height - missing.height
        here, there = _counts(expected), _counts(expected.join(missing, on="id", how="anti"))
        if self.kind == ALERTS:
            for name, counts in (("alerts", here), ("indexed", there)):
                for key, count in counts.items():
                    setattr(self.found.cells.cells.setdefault(key, Cell()), name, count)
        if doubled.height and self.kind == SESSIONS:  # its day is log time's where its clock is broken, and a replay may choose the next one
            self.found.notes.append(f"{doubled.height:,} sessions have more than one document, such as {doubled['id'][0]}: in the indices of two days")
            doubled = doubled.clear()
        away, more, twice = (_counts(part) for part in (missing, extra, doubled))
        firsts = pl.concat([missing, extra, doubled])
        for key in sorted({*away, *more, *twice}):
            some = firsts.filter(pl.col("partition") == key[0], pl.col("at_ms") // MINUTE_MS == key[1])
            first, wanted = str(some.sort("at_ms", "id")["id"][0]), here.get(key, 0)
            n, m, k = away.get(key, 0), more.get(key, 0), twice.get(key, 0)
            difference = Difference(*key, WHERE[self.kind], wanted, wanted - n + m + k, missing=n, extra=m, doubled=k, first=first)
            self.found.differences.append(difference)


def _counts(frame: pl.DataFrame) -> dict[tuple[int, int], int]:
    """Rows by partition and minute."""
    grouped = frame.group_by("partition", minute=pl.col("at_ms") // MINUTE_MS).len()
    return {(partition, minute): count for partition, minute, count in grouped.iter_rows()}
