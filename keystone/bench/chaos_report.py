"""What faults did to a run: windows, recoveries, and what was so inside and outside of them. Pure.

A *fault window* lasts from the fault until what it hit, or what follows it, is at work and no more than ``NORMAL_S`` worth of events is
behind the schedule, for ``SETTLED_S`` on end; ``WINDOW_MIN_S`` (and the time frozen) at least, ``WINDOW_MAX_S`` at most. Latency, send
delay and lag are judged outside of windows. What is missed, false or doubled, and the ledger, are judged everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl

from keystone.bench.chaos import DRIVER, KILL, SESSION_ACTOR, Fault
from keystone.bench.latency import PROMISE_MS, Quantiles, quantiles, stage
from keystone.bench.verdict import LagSample
from keystone.events import ALERT_OPEN_STALL

NORMAL_S: Final = 0.5  # of events at the run's rate: what a busy machine is behind now and then without any fault
SETTLED_S: Final = 1.0
WINDOW_MIN_S: Final = 2.0  # a death has not shown in the lag before
WINDOW_MAX_S: Final = 30.0  # a driver takes about 12: start of Ray, actors, state, and reading on from the last checkpoint
KILLED_SESSIONS: Final = f"{KILL}:{SESSION_ACTOR}"
ALERTING: Final = (SESSION_ACTOR, DRIVER)  # without these there are no alerts


@dataclass(frozen=True, slots=True)
class Sample:
    """``lag``: events in the log and not handled. ``behind``: due by the schedule and not handled. ``full_ms``: that writers had waited so far."""

    at_s: float
    lag: int
    behind: int
    full_ms: float = 0.0


@dataclass(slots=True)
class Struck:
    """A fault that was carried out. ``wall_ms``: when. ``epochs``: of the owners it hit. ``sign_ms``: when all that it hit was first seen at work again."""

    fault: Fault
    at_s: float
    wall_ms: float
    process: str
    pid: int
    partitions: tuple[int, ...] = ()
    epochs: dict[int, int] = field(default_factory=dict)
    sign_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """``lag_back_s``: after the fault, when nothing was behind any more; 0 where nothing ever was, None where it never came."""

    start_s: float
    end_s: float
    lag_back_s: float | None

    def holds(self, at_s: float) -> bool:
        return self.start_s <= at_s <= self.end_s


@dataclass(frozen=True, slots=True)
class Side:
    """A run inside or outside of all windows."""

    within_3s: float
    end_to_end: Quantiles
    send_delay: Quantiles
    lag_max_events: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "within_3s": self.within_3s,
            "end_to_end_ms": self.end_to_end.as_dict(),
            "send_delay_ms": self.send_delay.as_dict(),
            "lag_max_events": self.lag_max_events,
        }


@dataclass(slots=True)
class Ordeal:
    """Everything about the faults of one run. ``untimed``: events whose sender died before it had told how late they were."""

    spec: str
    struck: list[Struck] = field(default_factory=list)
    not_struck: list[str] = field(default_factory=list)  # and why
    samples: list[Sample] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    recoveries: list[dict[int, float]] = field(default_factory=list)  # of each struck: partition -> ms to its next alert
    inside: Side | None = None
    outside: Side | None = None
    untimed: int = 0
    takeovers: list[dict[str, Any]] = field(default_factory=list)  # of partitions: by whom, how many ms
    stragglers: list[str] = field(default_factory=list)  # processes that outlived their driver and had to be ended
    fenced_writes: int = 0

    def is_inside(self, at_s: float) -> bool:
        return any(window.holds(at_s) for window in self.windows)

    def lag_outside(self) -> list[LagSample]:
        return [LagSample(s.at_s, s.lag) for s in self.samples if not self.is_inside(s.at_s)]

    def full_ms_outside(self) -> float:
        """That writers waited for room in the log, while no fault was to blame."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return sum(b.full_ms - a.full_ms for a, b in pairs if not self.is_inside(b.at_s))

    def faults(self) -> list[str]:
        """Why this run fails, as far as the faults' own windows tell."""
        late = [s.fault for s, w in zip(self.struck, self.windows, strict=True) if w.lag_back_s is None]
        return [f"{fault}: not everything was back to normal {WINDOW_MAX_S:.0f} s later" for fault in late]


def find_windows(struck: Sequence[Struck], samples: Sequence[Sample], eps: float) -> list[Window]:
    """One of each fault."""
    return [_window(one, samples, NORMAL_S * eps) for one in struck]


def _window(struck: Struck, samples: Sequence[Sample], normal_events: float) -> Window:
    start_s = struck.at_s
    least_s, most_s = start_s + WINDOW_MIN_S + struck.fault.for_s, start_s + WINDOW_MAX_S + struck.fault.for_s
    if struck.sign_ms is None:
        return Window(start_s, most_s, None)
    least_s = min(most_s, max(least_s, start_s + (struck.sign_ms - struck.wall_ms) / 1_000))
    calm_s: float | None = None  # since when
    was_behind = False
    for sample in samples:
        if not start_s < sample.at_s <= most_s:
            continue
        if sample.behind > normal_events:
            calm_s, was_behind = None, True
        elif calm_s is None:
            calm_s = sample.at_s
        if calm_s is not None and sample.at_s >= max(least_s, calm_s) + SETTLED_S:
            break
    if calm_s is None:
        is_over = not samples or samples[-1].at_s < most_s  # the run ended first: it says so itself where it had to be given up
        return Window(start_s, most_s, 0.0 if is_over and not was_behind else None)
    return Window(start_s, max(calm_s, least_s), calm_s - start_s if was_behind else 0.0)


def next_alerts(struck: Struck, alerts: pl.DataFrame) -> dict[int, float]:
    """By partition, ms from the fault until its next alert was visible; of one that was killed, by another owner.

    ``alerts``: partition, epoch and visible (wall time, ms). A killed driver's actors go on for a moment: that is no recovery.
    """
    epochs = struck.epochs if struck.fault.action == KILL else {}
    rows = {"partition": list(struck.partitions), "before": [epochs.get(p, 0) for p in struck.partitions]}
    hit = pl.DataFrame(rows, schema=dict.fromkeys(rows, pl.Int64))
    after = alerts.join(hit, on="partition").filter((pl.col("epoch") > pl.col("before")) & (pl.col("visible") > struck.wall_ms))
    first = after.group_by("partition").agg(pl.col("visible").min() - struck.wall_ms)
    return {int(partition): float(ms) for partition, ms in first.iter_rows()}


def split_alerts(alerts: pl.DataFrame, windows: Sequence[Window], start_ms: float, open_stall_ms: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of a latency table that a window may have delayed, and the others.

    Inside: what caused it was sent in a window, or before one and in time until then. A stall is open since ``open_stall_ms`` before its alert.
    """
    inside = pl.lit(value=False)
    begun = pl.col("intended") - pl.when(pl.col("kind") == ALERT_OPEN_STALL).then(open_stall_ms).otherwise(0.0)
    for window in windows:
        from_ms, to_ms = start_ms + window.start_s * 1_000, start_ms + window.end_s * 1_000
        inside |= (begun <= to_ms) & (pl.col("intended") >= from_ms - PROMISE_MS) & (pl.col("visible") >= from_ms)
    marked = alerts.with_columns(inside.fill_null(value=False).alias("inside"))
    return marked.filter(pl.col("inside")).drop("inside"), marked.filter(~pl.col("inside")).drop("inside")


def side(alerts: pl.DataFrame, send_delay: Quantiles, lags: Sequence[int]) -> Side:
    took = stage(alerts, "end_to_end")
    share = float((took <= PROMISE_MS).mean()) if took.size else 1.0
    return Side(share, quantiles(took), send_delay, max(lags, default=0))


def chaos_section(ordeal: Ordeal, events: int) -> dict[str, Any]:
    """The report's ``chaos``."""
    rows = zip(ordeal.struck, ordeal.windows, ordeal.recoveries, strict=True)
    return {
        "spec": ordeal.spec,
        "faults": [_row(struck, window, recovery) for struck, window, recovery in rows],
        "not_struck": ordeal.not_struck,
        "inside": ordeal.inside.as_dict() if ordeal.inside is not None else None,
        "outside": ordeal.outside.as_dict() if ordeal.outside is not None else None,
        "send_delay_covers": {"events": events - ordeal.untimed, "of": events},
        "fenced_writes": ordeal.fenced_writes,
        "takeovers": ordeal.takeovers,
        "stragglers": ordeal.stragglers,
        "limits_s": {"normal": NORMAL_S, "settled": SETTLED_S, "window_min": WINDOW_MIN_S, "window_max": WINDOW_MAX_S},
    }


def _row(struck: Struck, window: Window, recovery: Mapping[int, float]) -> dict[str, Any]:
    took = recovery_ms(struck, recovery)
    return {
        "what": str(struck.fault),
        "kind": struck.fault.kind,
        "at_s": round(struck.at_s, 3),
        "process": struck.process,
        "pid": struck.pid,
        "partitions": list(struck.partitions),
        "recovery_ms": [round(ms, 1) for ms in took],
        "at_work_ms": None if struck.sign_ms is None else round(struck.sign_ms - struck.wall_ms, 1),
        "lag_back_ms": None if window.lag_back_s is None else round(window.lag_back_s * 1_000, 1),
        "window_s": [round(window.start_s, 3), round(window.end_s, 3)],
    }


def recovery_ms(struck: Struck, recovery: Mapping[int, float]) -> list[float]:
    """Of what raises alerts, one value a partition, in order of partitions; of others, the first sign of work, if it was seen."""
    if struck.fault.target in ALERTING:
        return [recovery[partition] for partition in sorted(recovery)]
    return [] if struck.sign_ms is None else [struck.sign_ms - struck.wall_ms]


def recovery_section(ordeal: Ordeal) -> dict[str, Any]:
    """The report's ``recovery_ms``: percentiles of killed session actors, and of each kind."""
    values: dict[str, list[float]] = {}
    for struck, recovery in zip(ordeal.struck, ordeal.recoveries, strict=True):
        values.setdefault(struck.fault.kind, []).extend(recovery_ms(struck, recovery))
    by_kind = {kind: quantiles(np.array(took, np.float64)) for kind, took in values.items()}
    return {**_short(by_kind.get(KILLED_SESSIONS, Quantiles.none())), "by_kind": {kind: _short(q) for kind, q in sorted(by_kind.items())}}


def _short(q: Quantiles) -> dict[str, float | int | None]:
    return {name: round(value, 1) if isinstance(value, float) else value for name, value in asdict(q).items() if name not in ("p999", "negatives")}
