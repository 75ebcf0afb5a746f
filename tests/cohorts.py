"""Cohorts as the program gives them out, in the reference's form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import polars as pl

from keystone.qoe import SKETCH_ERROR, WINDOWS_MS, CohortPartial
from keystone.qoe_rows import summed, tables_of, told
from tests.reference_cohorts import DIMENSIONS, SUMS, Rows, rank_value


def told_of(partials: Iterable[CohortPartial], dimensions: tuple[str, ...] = DIMENSIONS) -> pl.DataFrame:
    """Partials of any number of partitions as rows of 1, 10 and 60 s."""
    rows, bins = tables_of(partials, dimensions)
    rows = summed(rows, dimensions)
    return pl.concat([told(rows, bins, dimensions, window_ms) for window_ms in WINDOWS_MS])


def by_key(table: pl.DataFrame, dimensions: tuple[str, ...] = DIMENSIONS) -> dict[tuple[int, int, Any], dict[str, Any]]:
    found = {}
    for row in table.to_dicts():
        key = (row["window_start_ms"], row["window_ms"], tuple(row[name] for name in dimensions))
        assert key not in found, f"two rows of {key}"
        found[key] = row
    return found


def assert_told(table: pl.DataFrame, expected: Rows) -> None:
    """Every row and every sum exactly; quantiles within the error that is stated."""
    found = by_key(table)
    assert found.keys() == expected.keys()
    for key, row in found.items():
        sums = {name: row[name] for name in (*SUMS, "concurrent_plays")}
        assert sums == {name: expected[key][name] for name in sums}, key
        for name, percent in (("startup_ms_p50", 50), ("startup_ms_p95", 95)):
            value = rank_value(expected[key]["startup_values"], percent)
            assert (row[name] is None) == (value is None)
            if value is not None:
                assert abs(row[name] - value) <= value * SKETCH_ERROR, (key, name)
