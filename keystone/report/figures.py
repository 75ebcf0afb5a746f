"""The tables behind every chart of the latency report. Pure: runs in, small polars tables out; nothing is drawn here.

Percentiles are the bench's: nearest rank, each a value that was measured. Times are seconds from the schedule's start, durations ms.
Tables stay small whatever the run's length (a window or bin a row, ``WINDOWS_MAX`` windows), because they are written into the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl

from keystone.bench.latency import QUANTILES, STAGES, quantiles
from keystone.report.runs import Run

#: A stage as a person reads it, in the order of an alert's life; the last two are sums of those above.
STAGE_NAMES: Final = {
    "send": "send · device to log",
    "decode": "decode · log to columns",
    "alert": "alert · columns to decision",
    "write": "write · decision to sink",
    "detect": "detect · log to sink",
    "end_to_end": "end to end",
}
PARTS: Final = ("send", "decode", "alert", "write")  # they add up to end to end
WINDOWS_S: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0)
WINDOWS_MAX: Final = 120  # of one line: 10 pixels apart on a wide page
HEAT_WINDOWS_MAX: Final = 40  # of one row of a heat map: cells a finger wide
HEAT_VALUES_MAX: Final = 20  # rows; the rest would be unreadable, and devices choose the values
BINS_PER_DECADE: Final = 16
LEAST_MS: Final = 0.1  # where logarithmic axes begin; what is less stands there
TAIL_POINTS: Final = 240


def window_of(seconds: float, windows_max: int = WINDOWS_MAX) -> float:
    """The shortest of ``WINDOWS_S`` of which no more than ``windows_max`` cover ``seconds``; the longest where none does."""
    return next((window for window in WINDOWS_S if seconds / window <= windows_max), WINDOWS_S[-1])


def nearest_rank(column: str, share: float) -> pl.Expr:
    """The smallest value that at least ``share`` of all values do not exceed; null of none."""
    kept = pl.col(column).drop_nulls()
    rank = ((kept.len() * share).ceil().cast(pl.Int64) - 1).clip(0)
    return kept.sort().get(rank, null_on_oob=True)


def percentiles(runs: Sequence[Run]) -> pl.DataFrame:
    """``run stage name`` and p50 p90 p99 p999 max count negatives, a row for each run and stage."""
    rows = []
    for run in runs:
        for stage, name in STAGE_NAMES.items():
            found = quantiles(run.alerts[stage].drop_nulls().to_numpy())
            rows.append({"run": run.name, "stage": stage, "name": name, **{key: getattr(found, key) for key in (*QUANTILES, "max", "count", "negatives")}})
    numbers = dict.fromkeys((*QUANTILES, "max"), pl.Float64)
    return pl.DataFrame(rows, schema={"run": pl.String, "stage": pl.String, "name": pl.String, **numbers, "count": pl.Int64, "negatives": pl.Int64})


def histogram(runs: Sequence[Run], stage: str = "end_to_end") -> pl.DataFrame:
    """``run low_ms high_ms alerts share``: bins of equal width on a logarithmic axis; ``share`` of the run's alerts."""
    frames = []
    for run in runs:
        values = np.maximum(run.alerts[stage].drop_nulls().to_numpy(), LEAST_MS)
        bins, counts = np.unique(np.floor(np.log10(values) * BINS_PER_DECADE).astype(np.int64), return_counts=True)
        low, high = 10.0 ** (bins / BINS_PER_DECADE), 10.0 ** ((bins + 1) / BINS_PER_DECADE)
        frames.append(
            pl.DataFrame({"low_ms": low, "high_ms": high, "alerts": counts, "share": counts / max(1, values.size)}).select(
                pl.lit(run.name).alias("run"), pl.all()
            )
        )
    return pl.concat(frames)


def tail(runs: Sequence[Run], stage: str = "end_to_end") -> pl.DataFrame:
    """``run share nines ms``: the distribution, its tail stretched: ``nines`` = -log10(1 - share), so 1 is 90 %, 2 is 99 %, 3 is 99.9 %.

    The last point is the highest value, at the share that one value more would leave.
    """
    frames = [_tail(run.name, np.sort(run.alerts[stage].drop_nulls().to_numpy())) for run in runs]
    return pl.concat(frames)


def _tail(name: str, ordered: np.ndarray) -> pl.DataFrame:
    schema = {"run": pl.String, "share": pl.Float64, "nines": pl.Float64, "ms": pl.Float64}
    if ordered.size == 0:
        return pl.DataFrame(schema=schema)
    nines = np.linspace(0.0, np.log10(ordered.size), TAIL_POINTS)
    shares = np.append(1.0 - 10.0**-nines, ordered.size / (ordered.size + 1))
    ranks = np.clip(np.ceil(shares * ordered.size).astype(np.int64) - 1, 0, ordered.size - 1)
    ranks[-1] = ordered.size - 1
    return pl.DataFrame(
        {"run": [name] * shares.size, "share": shares, "nines": np.append(nines, np.log10(ordered.size + 1)), "ms": ordered[ranks]}, schema=schema
    )


def over_time(run: Run, stage: str = "end_to_end", window_s: float | None = None) -> pl.DataFrame:
    """``at_s p50 p90 p99 max alerts`` of each window, by when what caused an alert was due. A window without alerts has no row."""
    window_s = window_s or window_of(run.span_s)
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return (
        _windowed(run.alerts, window_s)
        .drop_nulls(stage)
        .group_by("at_s")
        .agg(*(nearest_rank(stage, share).alias(name) for name, share in shares.items()), pl.len().cast(pl.Int64).alias("alerts"))
        .sort("at_s")
    )


def parts_over_time(run: Run, window_s: float | None = None) -> pl.DataFrame:
    """``at_s part name ms``: the mean of each of ``PARTS``; means, because they add up to the mean end to end, as percentiles do not."""
    window_s = window_s or window_of(run.span_s)
    means = _windowed(run.alerts, window_s).drop_nulls(list(PARTS)).group_by("at_s").agg(pl.col(*PARTS).mean()).sort("at_s")
    long = means.unpivot(index="at_s", on=list(PARTS), variable_name="part", value_name="ms")
    return long.with_columns(pl.col("part").replace_strict(STAGE_NAMES, return_dtype=pl.String).alias("name"))


def _windowed(alerts: pl.DataFrame, window_s: float) -> pl.DataFrame:
    return alerts.drop_nulls("at_s").with_columns((pl.col("at_s") / window_s).floor() * window_s)


def by_partition(run: Run) -> pl.DataFrame:
    """``partition alerts share fair p50 p99 max``: every partition of the log, those without alerts too. ``fair``: what each would have if all had the same."""
    every = pl.DataFrame({"partition": np.arange(run.partitions, dtype=np.int32)})
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    found = run.alerts.group_by("partition").agg(
        pl.len().cast(pl.Int64).alias("alerts"), *(nearest_rank("end_to_end", share).alias(name) for name, share in shares.items())
    )
    return (
        every.join(found, on="partition", how="left", maintain_order="left")
        .with_columns(pl.col("alerts").fill_null(0))
        .with_columns((pl.col("alerts") / max(1, run.alerts.height)).alias("share"), pl.lit(1 / run.partitions).alias("fair"))
        .select("partition", "alerts", "share", "fair", *shares)
    )


def by_dimension(run: Run, dimension: str = "region", window_s: float | None = None) -> pl.DataFrame:
    """``value at_s p99 alerts``: the most frequent ``HEAT_VALUES_MAX`` values of a dimension, over time."""
    window_s = window_s or window_of(run.span_s, HEAT_WINDOWS_MAX)
    timed = run.alerts.drop_nulls("end_to_end").rename({dimension: "value"})
    shown = timed.group_by("value").len().sort(["len", "value"], descending=[True, False]).head(HEAT_VALUES_MAX)["value"]
    return (
        _windowed(timed.filter(pl.col("value").is_in(shown.implode())), window_s)
        .group_by("value", "at_s")
        .agg(nearest_rank("end_to_end", 0.99).alias("p99"), pl.len().cast(pl.Int64).alias("alerts"))
        .sort("value", "at_s")
    )


def send_delay(run: Run) -> pl.DataFrame:
    """``of p50 p90 p99 p999 max count``: how late the generator was, of all events (as the report has it) and of those that raised an alert."""
    own = quantiles(run.alerts["send"].drop_nulls().to_numpy())
    report = run.report.get("send_delay_ms", {})
    keys = (*QUANTILES, "max", "count")
    rows = [{"of": "all events", **{key: report.get(key) for key in keys}}, {"of": "events that raised an alert", **{key: getattr(own, key) for key in keys}}]
    return pl.DataFrame(rows, schema={"of": pl.String, **dict.fromkeys((*QUANTILES, "max"), pl.Float64), "count": pl.Int64})


def faults(run: Run) -> pl.DataFrame:
    """``number what at_s from_s to_s process partitions slowest_ms lag_back_ms label``, a row for each fault that was carried out."""
    rows = [
        {
            "number": number,
            "what": fault["kind"],
            "at_s": float(fault["at_s"]),
            "from_s": float(fault["window_s"][0]),
            "to_s": float(fault["window_s"][1]),
            "process": fault["process"],
            "partitions": len(fault["partitions"]),
            "slowest_ms": max(fault["recovery_ms"], default=None),
            "lag_back_ms": fault["lag_back_ms"],
            "label": f"{number}  {fault['kind']}  {fault['at_s']:.1f} s",
        }
        for number, fault in enumerate(run.faults, 1)
    ]
    numbers = dict.fromkeys(("at_s", "from_s", "to_s"), pl.Float64)
    schema = {
        "number": pl.Int64, "what": pl.String, **numbers, "process": pl.String, "partitions": pl.Int64,
        "slowest_ms": pl.Float64, "lag_back_ms": pl.Float64, "label": pl.String,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def recoveries(run: Run) -> pl.DataFrame:
    """``number label ms``: of each fault, how long each partition (or, of what raises no alerts, the process) took to be back."""
    labels = faults(run)["label"]
    rows = [(number, labels[number - 1], float(ms)) for number, fault in enumerate(run.faults, 1) for ms in fault["recovery_ms"]]
    return pl.DataFrame(rows, schema={"number": pl.Int64, "label": pl.String, "ms": pl.Float64}, orient="row")


def comparison(before: Run, after: Run) -> pl.DataFrame:
    """``stage name percentile before after change`` in ms; ``change``: after / before - 1, null where before is not above 0."""
    keys = [*QUANTILES, "max"]
    long = [percentiles([run]).unpivot(index=["stage", "name"], on=keys, variable_name="percentile", value_name="ms") for run in (before, after)]
    both = long[0].rename({"ms": "before"}).join(long[1].rename({"ms": "after"}).drop("name"), on=["stage", "percentile"], maintain_order="left")
    return both.with_columns(pl.when(pl.col("before") > 0).then(pl.col("after") / pl.col("before") - 1).alias("change"))


assert set(STAGE_NAMES) == set(STAGES)  # noqa: S101 - a stage that the bench gains must get its words here
