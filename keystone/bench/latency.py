"""Alerts against the truth: what was missed, false or doubled, and how long each took. Pure.

An alert is named by (device_id, session_id, kind, event_ts, seq): what the truth can know without running the detector.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

F64 = npt.NDArray[np.float64]

#: What names an alert in the truth and in the alerts.
ALERT_KEY = ("device_id", "session_id", "kind", "event_ts", "seq")
#: The moments of an alert's life, float64 ms of wall time.
MOMENTS = ("intended", "appended", "decoded", "alerted", "visible")
#: The stages between moments, and the two that the promise is about.
STAGES = {
    "send": ("intended", "appended"),
    "decode": ("appended", "decoded"),
    "alert": ("decoded", "alerted"),
    "write": ("alerted", "visible"),
    "detect": ("appended", "visible"),
    "end_to_end": ("intended", "visible"),
}
PROMISE_MS = 3_000.0
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Percentiles in ms, each a value that was measured; None where nothing was. Negatives are counted and kept in."""

    p50: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    max: float | None
    count: int
    negatives: int

    def as_dict(self) -> dict[str, float | int | None]:
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}

    @classmethod
    def none(cls) -> Quantiles:
        return cls(None, None, None, None, None, 0, 0)


def quantiles(values_ms: F64) -> Quantiles:
    """Nearest-rank percentiles: the smallest value that at least that share of all values does not exceed."""
    if values_ms.size == 0:
        return Quantiles.none()
    ordered = np.sort(values_ms)
    ranks = {name: float(ordered[max(0, int(np.ceil(q * ordered.size)) - 1)]) for name, q in QUANTILES.items()}
    return Quantiles(**ranks, max=float(ordered[-1]), count=int(ordered.size), negatives=int((ordered < 0).sum()))


@dataclass(frozen=True, slots=True)
class Score:
    """expected = found + missed; alerted (rows at the sink) = found + false + duplicate."""

    expected: int
    alerted: int
    missed: int
    false: int
    duplicate: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def score(truth: pl.DataFrame, alerts: pl.DataFrame) -> Score:
    """Compare by ``ALERT_KEY`` (a null ``seq`` equals a null ``seq``). A false alert that repeats is false once, doubled after."""
    keys = list(ALERT_KEY)
    expected = truth.group_by(keys).agg(pl.len().alias("expected"))
    alerted = alerts.group_by(keys).agg(pl.len().alias("alerted"))
    both = expected.join(alerted, on=keys, how="full", coalesce=True, nulls_equal=True).select(
        pl.col("expected").fill_null(0).cast(pl.Int64), pl.col("alerted").fill_null(0).cast(pl.Int64)
    )
    want, got = both["expected"].to_numpy(), both["alerted"].to_numpy()
    unknown = want == 0
    surplus = np.maximum(got - want, 0)
    return Score(
        expected=int(want.sum()),
        alerted=int(got.sum()),
        missed=int(np.maximum(want - got, 0).sum()),
        false=int(unknown.sum()),
        duplicate=int(surplus.sum() - unknown.sum()),
    )


def latency_table(truth: pl.DataFrame, alerts: pl.DataFrame) -> pl.DataFrame:
    """One row an alert, in order of visibility: alert_id kind device_id session_id and ``MOMENTS`` (float64 ms).

    ``alerts`` holds ALERT_KEY, alert_id and every moment but ``intended``; that one comes from the truth's
    ``intended_ms`` (wall time), null for an alert the truth does not know.
    """
    intended = truth.group_by(list(ALERT_KEY)).agg(pl.col("intended_ms").min().cast(pl.Float64).alias("intended"))
    return (
        alerts.join(intended, on=list(ALERT_KEY), how="left", nulls_equal=True)
        .select("alert_id", "kind", "device_id", "session_id", *(pl.col(m).cast(pl.Float64) for m in MOMENTS))
        .sort("visible", "alert_id")
    )


def stage(table: pl.DataFrame, name: str) -> F64:
    """The durations of one of ``STAGES``, ms; rows where either moment is unknown are left out."""
    begin, end = STAGES[name]
    return table.select((pl.col(end) - pl.col(begin)).alias("ms")).drop_nulls()["ms"].to_numpy().astype(np.float64)


def within_promise(table: pl.DataFrame, expected: int) -> float:
    """Share of the expected alerts that were visible in time, repeats not counted; 1.0 where none was expected."""
    if expected == 0:
        return 1.0
    known = table.filter(pl.col("intended").is_not_null()).unique("alert_id", keep="first", maintain_order=True)
    in_time = int((known["visible"] - known["intended"] <= PROMISE_MS).sum())
    return min(1.0, in_time / expected)
