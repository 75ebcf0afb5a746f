"""Names of what is counted, the sums that must hold (SPEC 5), and a histogram of latencies."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keystone.errors import LedgerError
from keystone.events import I64
from keystone.kernels import histogram as kernels

F64 = npt.NDArray[np.float64]

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where every event went. Ledgers of partitions, steps and actors add up.

    ``sent`` is the generator's count and ``lake_rows`` the lake's: both come from elsewhere, so that the sums can fail.
    ``empty_records`` are log records without an event; they are in no sum. ``late`` events are among the applied.
    """

    sent: int = 0
    received: int = 0
    accepted: int = 0
    applied: int = 0
    duplicates: int = 0
    late: int = 0
    dead_lettered: int = 0
    lake_rows: int = 0
    empty_records: int = 0

    def __add__(self, other: Ledger) -> Ledger:
        if not isinstance(other, Ledger):
            return NotImplemented
        return Ledger(*(getattr(self, name) + getattr(other, name) for name in _LEDGER_NAMES))

    def failures(self, *, has_lake: bool = False, is_complete: bool = False) -> list[str]:
        """Each sum that does not hold, as one line.

        ``has_lake``: every accepted row is in the lake by now; ``is_complete``: everything sent was received by now.
        """
        sums = [
            ("received", self.received, "accepted + dead_lettered", self.accepted + self.dead_lettered),
            ("accepted", self.accepted, "applied + duplicates", self.applied + self.duplicates),
        ]
        if has_lake:
            sums.append(("lake_rows", self.lake_rows, "accepted", self.accepted))
        if is_complete:
            sums.append(("received", self.received, "sent", self.sent))
        lines = [f"{name} = {left:,} is not {what} = {right:,} ({left - right:+,})" for name, left, what, right in sums if left != right]
        return lines + [f"{name} = {count:,} is negative" for name, count in self.as_dict().items() if count < 0]

    def check(self, *, has_lake: bool = False, is_complete: bool = False) -> None:
        """Raise ``LedgerError`` with every sum that does not hold."""
        failures = self.failures(has_lake=has_lake, is_complete=is_complete)
        if failures:
            raise LedgerError("the ledger does not balance: " + "; ".join(failures))

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


_LEDGER_NAMES: Final = tuple(field.name for field in fields(Ledger))


class LatencyHistogram:
    """Counts of latencies in ms, 128 buckets an octave (after HdrHistogram): percentiles within 0.4%, from 1 us on.

    33 kB + 20 kB whatever is added. ``min``, ``max``, ``count`` and ``negatives`` are exact. A negative value is counted
    apart, and takes part in percentiles as 0. Two histograms merge by adding.
    """

    __slots__ = ("_counts", "_extremes", "_tallies")

    def __init__(self) -> None:
        self._counts: I64 = np.zeros(kernels.BUCKETS, np.int64)
        self._tallies: I64 = np.zeros(2, np.int64)
        self._extremes: F64 = np.array([math.inf, -math.inf])

    def add(self, values_ms: npt.ArrayLike) -> None:
        """Count an array (any shape; int64 and float64 are not copied) or one number; ``ValueError`` on NaN and infinities."""
        values = np.asarray(values_ms)
        dtype = np.float64 if values.dtype.kind == "f" else np.int64
        values = np.ascontiguousarray(values, dtype).reshape(-1).view()
        values.flags.writeable = False  # one kernel for arrays of every owner
        before = int(self._tallies[kernels.UNUSABLE])
        kernels.count_values(values, self._counts, self._tallies, self._extremes)
        unusable = int(self._tallies[kernels.UNUSABLE]) - before
        if unusable:
            raise ValueError(f"{unusable} of {values.size} latencies are not finite; the others were counted")

    def merge(self, other: LatencyHistogram) -> None:
        """Count everything that ``other`` counted."""
        self._counts += other._counts
        self._tallies += other._tallies
        self._extremes[kernels.LEAST] = min(self._extremes[kernels.LEAST], other._extremes[kernels.LEAST])
        self._extremes[kernels.MOST] = max(self._extremes[kernels.MOST], other._extremes[kernels.MOST])

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        total = LatencyHistogram()
        total.merge(self)
        total.merge(other)
        return total

    @property
    def count(self) -> int:
        """Of all values, negative ones included."""
        return int(self._counts.sum())

    @property
    def negatives(self) -> int:
        return int(self._tallies[kernels.NEGATIVES])

    @property
    def max_ms(self) -> float | None:
        """The largest value, exact; None where nothing was added."""
        return float(self._extremes[kernels.MOST]) if self.count else None

    @property
    def min_ms(self) -> float | None:
        """The smallest value, exact; None where nothing was added."""
        return float(self._extremes[kernels.LEAST]) if self.count else None

    def quantile(self, share: float) -> float | None:
        """The value, within 0.4%, that at least ``share`` (0 to 1) of all values do not exceed; None where there is none.

        Nearest rank: always near a value that was added, never between two of them.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a share of {share} is not between 0 and 1")
        least, most = self.min_ms, self.max_ms
        if least is None or most is None:
            return None
        rank = max(1, math.ceil(share * self.count - 1e-9))
        if rank >= self.count:
            return most
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(max(_MIDDLES[bucket], least, 0.0), most)

    def percentile(self, percent: float) -> float | None:
        """``quantile`` of ``percent / 100``."""
        return self.quantile(percent / 100)

    def share_within(self, limit_ms: float) -> float | None:
        """The share of values in the buckets up to the one of ``limit_ms``; None where there is none."""
        if not self.count:
            return None
        bucket = int(np.searchsorted(_EDGES, limit_ms, side="right"))
        return float(self._counts[: bucket + 1].sum() / self.count)

    def summary(self) -> dict[str, float | int | None]:
        """p50 p90 p99 p999 max (ms, to the microsecond), count, negatives."""
        figures: dict[str, float | int | None] = {name: _rounded(self.quantile(share)) for name, share in QUANTILES.items()}
        return {**figures, "max": _rounded(self.max_ms), "count": self.count, "negatives": self.negatives}

    def __getstate__(self) -> dict[str, Any]:
        return {"counts": self._counts, "tallies": self._tallies, "extremes": self._extremes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies: what comes out of an object store may be read-only."""
        self._counts = np.array(state["counts"], np.int64)
        self._tallies = np.array(state["tallies"], np.int64)
        self._extremes = np.array(state["extremes"], np.float64)


def _rounded(value_ms: float | None) -> float | None:
    return None if value_ms is None else round(value_ms, 3)


def _edges() -> F64:
    """Lower edges of all buckets but the first, ascending: (BUCKETS - 1,)."""
    keys = np.arange(kernels.BUCKETS - 1, dtype=np.int64) + kernels.FIRST_KEY
    return (keys << kernels.SHIFT).view(np.float64)


_EDGES: Final = _edges()
_MIDDLES: Final[list[float]] = [0.0, *((_EDGES[:-1] + _EDGES[1:]) / 2).tolist(), float(_EDGES[-1])]
