"""What tests read of a lake."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl

from keystone.config import LakeConfig
from keystone.sinks.iceberg.tables import LakeTables


def rows_of(lake: Path | str, table: str = "events") -> pl.DataFrame:
    """Every row of the table's newest snapshot, as pyiceberg reads it."""
    with closing(LakeTables.open(lake, LakeConfig(), is_made=False)) as tables:
        return pl.DataFrame(tables.load(table).scan().to_arrow())


def session_rows(lake: Path | str) -> list[dict[str, Any]]:
    return rows_of(lake, "sessions").to_dicts()
