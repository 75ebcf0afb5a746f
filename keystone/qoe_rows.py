"""Rows of cohorts as tables: partial sums added up, over partitions and over time, with what is told of them.

Two tables travel together. *Rows*: ``window_start_ms``, one column a dimension (null: not told apart), SUMS, ``concurrent_plays``. *Bins*:
``window_start_ms``, the dimensions, ``bin``, ``count``: the sketch of startup times. Sums saturate at int64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import polars as pl

from keystone.events import I64
from keystone.kernels.cohorts import BIN_SHIFT
from keystone.qoe import COLUMNS, CONCURRENT, QUANTILES, SUMS, WINDOWS_MS, CohortPartial, bin_values
from keystone.qoe_bins import added_up, nearest_ranks

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


def rows_of(partials: Sequence[CohortPartial], dimensions: Sequence[str], *, with_source: bool = False) -> pl.DataFrame:
    """Rows of partials, as they are: what is told of a cohort twice adds up. ``with_source``: with a column ``source``, the partial's place.

    All at once: a column costs 20 us, however few rows it has.
    """
    if not partials:
        return pl.DataFrame(schema=row_schema(dimensions) | ({SOURCE: pl.Int32()} if with_source else {}))
    keys, firsts = _keys_of(partials, dimensions)
    sums = np.concatenate([partial.sums for partial in partials]).T
    places = np.concatenate([partial.cohorts + first for partial, first in zip(partials, firsts, strict=True)])
    rows = pl.DataFrame(
        {START: np.concatenate([partial.window_start_ms for partial in partials])}
        | {name: series.gather(places) for name, series in keys.items()}
        | {name: np.ascontiguousarray(column) for name, column in zip((*SUMS, CONCURRENT), sums, strict=True)}
    )
    lengths = [partial.rows for partial in partials]
    if not all(partial.has_log_time for partial in partials):
        known = pl.Series(np.repeat([partial.has_log_time for partial in partials], lengths))
        rows = rows.with_columns(pl.when(known).then(pl.col(CONCURRENT)).alias(CONCURRENT))
    return rows.with_columns(pl.Series(SOURCE, np.repeat(np.arange(len(partials), dtype=np.int32), lengths))) if with_source else rows


def bins_of(partials: Sequence[CohortPartial], dimensions: Sequence[str]) -> pl.DataFrame:
    """Bins of partials, as they are: what is told of a cohort twice adds up."""
    if not partials:
        return pl.DataFrame(schema=bin_schema(dimensions))
    keys, firsts = _keys_of(partials, dimensions)
    starts, cohorts, numbers, counts = (np.ascontiguousarray(column) for column in np.concatenate([partial.bins for partial in partials]).T)
    places = cohorts + np.repeat(firsts, [partial.bins.shape[0] for partial in partials])
    return pl.DataFrame({START: starts} | {name: series.gather(places) for name, series in keys.items()} | {"bin": numbers, "count": counts})


def tables_of(partials: Iterable[CohortPartial], dimensions: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """``rows_of`` and ``bins_of``."""
    given = list(partials)
    return rows_of(given, dimensions), bins_of(given, dimensions)


def _keys_of(given: Sequence[CohortPartial], dimensions: Sequence[str]) -> tuple[dict[str, pl.Series], I64]:
    """The keys of all partials one after the other, a series a dimension; where those of each begin."""
    firsts = np.cumsum([0, *(len(partial.keys) for partial in given[:-1])], dtype=np.int64)
    return {name: pl.Series(name, _values(given, name), pl.String) for name in dimensions}, firsts


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
    return told_with(rows, _quantiles(bins, dimensions, window_ms), dimensions, window_ms)


def told_with(rows: pl.DataFrame, quantiles: pl.DataFrame, dimensions: Sequence[str], window_ms: int) -> pl.DataFrame:
    """``told`` where the quantiles are known (``quantile_table``)."""
    sums = rows
    if window_ms != WINDOWS_MS[0]:
        start = (pl.col(START) // window_ms * window_ms).alias(START)
        sums = rows.with_columns(start).group_by(START, *dimensions).agg(*(_total(name) for name in SUMS), pl.col(CONCURRENT).max())
    found = sums.join(quantiles, on=[START, *dimensions], how="left", nulls_equal=True)
    return found.with_columns(pl.lit(window_ms, pl.Int64).alias(SIZE)).select(list(told_schema(dimensions)))


def quantile_table(groups: pl.DataFrame, keys: I64, counts: I64) -> pl.DataFrame:
    """``groups`` (window starts, dimensions) with QUANTILES: each row's are those of its number in ``keys`` (``qoe_bins``), each of which it has."""
    _, found = nearest_ranks(keys, counts, tuple(QUANTILES.values()))
    return groups.with_columns(pl.Series(name, bin_values(bins), pl.Int64) for name, bins in zip(QUANTILES, found, strict=True))


def with_ratios(rows: pl.DataFrame) -> pl.DataFrame:
    """The same with RATIOS."""
    return rows.with_columns(pl.when(below > 0).then(above / below).alias(name) for name, (above, below) in RATIOS.items())


def _total(name: str) -> pl.Expr:
    # 128 bits hold the sum of 2^64 rows; Int64 would wrap around.
    return pl.col(name).cast(pl.Int128).sum().clip(_SUM_MIN, _SUM_MAX).cast(pl.Int64)


def _if_any(total: pl.Expr) -> pl.Expr:
    return pl.when(pl.col(CONCURRENT).count() > 0).then(total).alias(CONCURRENT)


def _quantiles(bins: pl.DataFrame, dimensions: Sequence[str], window_ms: int) -> pl.DataFrame:
    start = (pl.col(START) // window_ms * window_ms).alias(START)
    groups = bins.with_columns(start).group_by(START, *dimensions).agg("bin", "count")
    numbers = np.repeat(np.arange(groups.height, dtype=np.int64), groups["bin"].list.len().to_numpy())
    keys = numbers << BIN_SHIFT | groups["bin"].explode(empty_as_null=False).to_numpy()
    return quantile_table(groups.drop("bin", "count"), *added_up([(keys, groups["count"].explode(empty_as_null=False).to_numpy())]))
