"""Cohorts of a bench: merged beside the run, as a run's are, and written to a table in its output."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import polars as pl

from keystone.qoe_merge import REVISION
from keystone.qoe_rows import START

COHORTS_FILE: Final = "cohorts.parquet"
HELD_ROWS_MAX: Final = 1 << 21  # of all windows, x ~250 B = 500 MB: an hour of 110 cohorts; then rows of the oldest windows are left out
TOLD: Final = ("events", "alerts", "stalls", "attempts", "plays")


class CohortTable:
    """Rows as they are told; of one that is told again the newest counts. One thread takes; ``write`` comes after."""

    def __init__(self) -> None:
        self._tables: list[pl.DataFrame] = []
        self._rows = 0
        self.left_out = 0

    def take(self, rows: pl.DataFrame) -> None:
        self._tables.append(rows)
        self._rows += rows.height
        while self._rows > HELD_ROWS_MAX and len(self._tables) > 1:
            oldest = self._tables.pop(0).height
            self._rows -= oldest
            self.left_out += oldest

    def write(self, out: Path) -> dict[str, Any]:
        """``cohorts.parquet`` in ``out``; sums over all sessions, for a report."""
        if not self._tables:
            return {}
        table = newest(pl.concat(self._tables))
        table.write_parquet(out / COHORTS_FILE)
        every = table.filter(pl.col("window_ms") == table["window_ms"].min(), *(pl.col(name).is_null() for name in dimensions_of(table)))
        return {
            "rows": table.height,
            "left_out": self.left_out,
            **{name: int(every[name].sum()) for name in ("events", "alerts", "stalls", "attempts", "plays")},
        }


def dimensions_of(table: pl.DataFrame) -> list[str]:
    """Columns that name a cohort."""
    return [name for name, dtype in table.schema.items() if dtype == pl.String]


def newest(rows: pl.DataFrame) -> pl.DataFrame:
    """Of each window and cohort the row of the highest revision, by time."""
    by = [START, "window_ms", *dimensions_of(rows)]
    return rows.sort(REVISION, maintain_order=True).unique(by, keep="last", maintain_order=True).sort(by)
