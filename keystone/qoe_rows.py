"""Rows of cohorts as tables: partial sums added up, over partitions and over time, with what is told of them.

Two tables travel together. *Rows*: ``window_start_ms``, one column a dimension (null: not told apart), SUMS, ``concurrent_plays``. *Bins*:
``window_start_ms``, the dimensions, ``bin``, ``count``: the sketch of startup times. Sums saturate at int64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import polars as pl

from keystone.qoe import COLUMNS, CONCURRENT, QUANTILES, SUMS, WINDOWS_MS, CohortPartial, bin_values

START: Final = "window_start_ms"
SIZE: Final = "window_ms"
SOURCE: Final = "source"
_SUM_MAX, _SUM_MIN = (1 << 63) - 1, -(1 << 63)

#: What is shown of the sums: ratios of sums, null where nothing is counted below the line.
RATIOS: Final = {
    "rebuffering_ratio": (pl.col("stall_ms"), pl.col("stall_ms") + pl.col("played_ms")),
    "ebvs_ratio": (pl.col("ebvs"), pl.col("attempts")),
    "vsf_ratio": (pl.col("vsf"), pl.col("attempts")),
    "vpf_ratio": (pl.col("vpf"), pl.col("ended") - pl.col("ebvs") - pl.col("vsf")),
}


def row_schema(dimensions: Sequence[str]) -> dict[str, pl.DataType]:
    """Of rows."""
    return {START: pl.Int64(), **dict.fromkeys(dimensions, pl.String()), **dict.fromkeys((*SUMS, CONCURRENT), pl.Int64())}


def bin_schema(dimensions: Sequence[str]) -> dict[str, pl.DataType]:
    """Of bins."""
    return {START: pl.Int64(), **dict.fromkeys(dimensions, pl.String()), "bin": pl.Int64(), "count": pl.Int64()}


def told_schema(dimensions: Sequence[str]) -> dict[str, pl.DataType]:
    """Of what ``told`` returns."""
    return {START: pl.Int64(), SIZE: pl.Int64(), **dict.fromkeys(dimensions, pl.String()), **dict.fromkeys(COLUMNS, pl.Int64())}


def tables_of(partials: Iterable[CohortPartial], dimensions: Sequence[str], *, with_source: bool = False) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows and bins of partials, as they are: what is told of a cohort twice adds up. ``with_source``: with a column ``source``, the partial's place.

    All at once: a column costs 20 us, however few rows it has.
    """
    given = list(partials)
    if not given:
        more: dict[str, pl.DataType] = {SOURCE: pl.Int32()} if with_source else {}
        return pl.DataFrame(schema=row_schema(dimensions) | more), pl.DataFrame(schema=bin_schema(dimensions) | more)
    firsts = np.cumsum([0, *(len(partial.keys) for partial in given)])
    keys = {name: pl.Series(name, _values(given, name), pl.String) for name in dimensions}
    sums = np.concatenate([partial.sums for partial in given]).T
    places = np.concatenate([partial.cohorts + first for partial, first in zip(given, firsts, strict=False)])
    rows = pl.DataFrame(
        {START: np.concatenate([partial.window_start_ms for partial in given])}
        | {name: series.gather(places) for name, series in keys.items()}
        | {name: np.ascontiguousarray(column) for name, column in zip((*SUMS, CONCURRENT), sums, strict=True)}
    )
    if not all(partial.has_log_time for partial in given):
        known = pl.Series(np.repeat([partial.has_log_time for partial in given], [partial.rows for partial in given]))
        rows = rows.with_columns(pl.when(known).then(pl.col(CONCURRENT)).alias(CONCURRENT))
    starts, cohorts, numbers, counts = np.concatenate([partial.bins.reshape(-1, 4) for partial in given]).T
    lengths = [partial.bins.reshape(-1, 4).shape[0] for partial in given]
    bin_places = cohorts + np.repeat(firsts[:-1], lengths)
    named = {name: series.gather(bin_places) for name, series in keys.items()}
    bins = pl.DataFrame({START: np.ascontiguousarray(starts)} | named | {"bin": np.ascontiguousarray(numbers), "count": np.ascontiguousarray(counts)})
    if with_source:
        rows = rows.with_columns(pl.Series(SOURCE, np.repeat(np.arange(len(given), dtype=np.int32), [partial.rows for partial in given])))
        bins = bins.with_columns(pl.Series(SOURCE, np.repeat(np.arange(len(given), dtype=np.int32), lengths)))
    return rows, bins


def _values(given: Sequence[CohortPartial], name: str) -> list[str | None]:
    """Of one dimension, of all keys of all partials; None where a partial does not know it."""
    found: list[str | None] = []
    for partial in given:
        at = partial.dimensions.index(name) if name in partial.dimensions else None
        found += [None] * len(partial.keys) if at is None else [key[at] for key in partial.keys]
    return found


def summed(rows: pl.DataFrame, dimensions: Sequence[str]) -> pl.DataFrame:
    """One row a window and cohort. Who plays in one partition plays in no other: ``concurrent_plays`` add up too."""
    return rows.group_by(START, *dimensions).agg(*(_total(name) for name in SUMS), _if_any(pl.col(CONCURRENT).sum()))


def told(rows: pl.DataFrame, bins: pl.DataFrame, dimensions: Sequence[str], window_ms: int) -> pl.DataFrame:
    """What is told of windows of ``window_ms``: sums, quantiles of the startup time, the most concurrent plays of any second.

    ``rows`` are ``summed`` ones of 1 s. Columns as in ``told_schema``, in no order.
    """
    start = (pl.col(START) // window_ms * window_ms).alias(START)
    sums = rows
    if window_ms != WINDOWS_MS[0]:
        sums = rows.with_columns(start).group_by(START, *dimensions).agg(*(_total(name) for name in SUMS), pl.col(CONCURRENT).max())
    found = sums.join(_quantiles(bins.with_columns(start), dimensions), on=[START, *dimensions], how="left", nulls_equal=True)
    return found.with_columns(pl.lit(window_ms, pl.Int64).alias(SIZE)).select(list(told_schema(dimensions)))


def with_ratios(rows: pl.DataFrame) -> pl.DataFrame:
    """The same with RATIOS."""
    return rows.with_columns(pl.when(below > 0).then(above / below).alias(name) for name, (above, below) in RATIOS.items())


def _total(name: str) -> pl.Expr:
    # 128 bits hold the sum of 2^64 rows; Int64 would wrap around.
    return pl.col(name).cast(pl.Int128).sum().clip(_SUM_MIN, _SUM_MAX).cast(pl.Int64)


def _if_any(total: pl.Expr) -> pl.Expr:
    return pl.when(pl.col(CONCURRENT).count() > 0).then(total).alias(CONCURRENT)


def _quantiles(bins: pl.DataFrame, dimensions: Sequence[str]) -> pl.DataFrame:
    """By nearest rank: the bin that the value of that rank fell into."""
    by = [START, *dimensions]
    counted = bins.group_by(*by, "bin").agg(pl.col("count").sum()).sort("bin")
    reached = counted.with_columns(pl.col("count").cum_sum().over(by).alias("reached"), pl.col("count").sum().over(by).alias("total"))
    ranks = {name: (percent * pl.col("total") + 99) // 100 for name, percent in QUANTILES.items()}
    found = reached.group_by(by).agg(pl.col("bin").filter(pl.col("reached") >= rank).min().alias(name) for name, rank in ranks.items())
    return found.with_columns(pl.Series(name, bin_values(found[name].to_numpy())) for name in QUANTILES)
