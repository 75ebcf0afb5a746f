"""The report: everything a run says about itself, as one JSON object. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from keystone.bench.chaos_report import Ordeal, chaos_section, recovery_section
from keystone.bench.latency import STAGES, Quantiles, Score, quantiles, stage, within_promise
from keystone.bench.machine import MIB
from keystone.bench.plan import BenchPlan
from keystone.bench.verdict import READERS_LIMIT, Evidence, LagSample, LagTrend, Sums, judge, lag_trend

SCHEMA = 1
PARTS = ("fleet", "sessions", "other")


@dataclass(slots=True)
class Measured:
    """What one run gave. Times: wall, ms. ``events`` were appended in all, ``events_on_time`` within the schedule."""

    plan: BenchPlan
    start_ms: float = 0.0
    seconds: float = 0.0  # of schedule that were run; fewer than planned where interrupted
    events: int = 0
    events_on_time: int = 0
    bytes: int = 0
    sessions: int = 0
    score: Score = field(default_factory=lambda: Score(0, 0, 0, 0, 0))
    alerts: pl.DataFrame | None = None  # latency.latency_table
    send_delay: Quantiles = field(default_factory=Quantiles.none)
    sums: Sums = field(default_factory=Sums)
    lag: list[LagSample] = field(default_factory=list)
    log_full_ms: float = 0.0
    full_means: str = READERS_LIMIT
    cpu_s: dict[str, float] = field(default_factory=dict)  # by PARTS
    loop_cpu_s: float = 0.0  # of the session actors' loops, a part of ``sessions``: each is one thread
    broker_cpu_s: float | None = None  # of Kafka's brokers on this machine, in no sum
    rss_max_bytes: int = 0
    private_max_bytes: int = 0
    rss_by_part_bytes: dict[str, int] = field(default_factory=dict)
    state_bytes: int = 0  # of all session tables, at their largest
    sessions_active_max: int = 0
    checkpoints: dict[str, Any] = field(default_factory=dict)  # of the session actors that ended well
    commits: dict[str, Any] = field(default_factory=dict)  # of the lake, as the last committer counted them
    cohorts: dict[str, Any] = field(default_factory=dict)  # merged, told and sent
    routing: dict[str, Any] = field(default_factory=dict)  # rows by route, and sinks, of the session actors that ended well
    machine: dict[str, Any] = field(default_factory=dict)
    stolen_cores: float = 0.0  # while events were sent; of the driver's machine
    versions: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth telling, no reason to fail: a restart that lost nothing
    nodes: list[dict[str, Any]] = field(default_factory=list)  # of a cluster
    fenced_writes: int = 0  # owners on a cluster that came back after they were replaced, and were refused
    moves_ms: list[float] = field(default_factory=list)  # of partitions from one living owner to another
    recoveries_ms: list[float] = field(default_factory=list)  # of partitions whose owner was lost though nobody meant it
    unit_events_per_s: float | None = None
    ordeal: Ordeal | None = None  # where faults struck on purpose


def build_report(m: Measured) -> dict[str, Any]:
    """Judge, and lay out the keys. Rates in events/s, latencies in ms, CPU in us an event, memory as named."""
    trend = lag_trend(m.ordeal.lag_outside() if m.ordeal is not None else m.lag, m.seconds)
    achieved = m.events_on_time / m.seconds if m.seconds > 0 else 0.0
    latency = {name: quantiles(stage(m.alerts, name)) if m.alerts is not None else Quantiles.none() for name in STAGES}
    verdict = judge(_evidence(m, trend, achieved, latency["end_to_end"].max))
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "verdict": verdict.verdict,
        "reasons": verdict.reasons,
        "notes": m.notes,
        "target_eps": m.plan.eps,
        "achieved_eps": round(achieved, 1),
        "seconds": m.seconds,
        "events": m.events,
        "bytes": m.bytes,
        "devices": m.plan.devices,
        "sessions": m.sessions,
        "latency_ms": {name: q.as_dict() for name, q in latency.items()},
        "within_3s": within_promise(m.alerts, m.score.expected) if m.alerts is not None else (1.0 if m.score.expected == 0 else 0.0),
        "send_delay_ms": m.send_delay.as_dict(),
        "truth": m.score.as_dict(),
        "ledger": _ledger(m.sums),
        "lag": {
            "slope_events_per_s": round(trend.slope_events_per_s, 1),
            "max_events": trend.max_events,
            "resting_events": trend.resting_events,
            "log_full_ms": m.log_full_ms,
        },
        "cpu_us_per_event": _cpu(m),
        "memory": _memory(m),
        "checkpoints": m.checkpoints,
        "commits": m.commits,
        "cohorts": m.cohorts,
        "routing": m.routing,
        "machine": m.machine | {"stolen_cores": m.stolen_cores} if m.machine else {},
        "versions": m.versions,
        "config": {"bench": m.plan.as_dict(), **m.config},
        "seed": m.plan.seed,
        "start_ms": m.start_ms,
    }
    if m.nodes:
        report["nodes"], report["fenced_writes"] = m.nodes, m.fenced_writes
    if m.moves_ms:
        report["moves_ms"] = quantiles(np.array(m.moves_ms)).as_dict()
    if m.recoveries_ms:
        report["recovery_ms"] = quantiles(np.array(m.recoveries_ms)).as_dict()
    if m.ordeal is not None:
        report["chaos"], report["recovery_ms"] = chaos_section(m.ordeal, m.events), recovery_section(m.ordeal)
    if m.unit_events_per_s:
        report["unit"] = {"events_per_s": round(m.unit_events_per_s), "achieved_units": round(achieved / m.unit_events_per_s, 3)}
    return report


def _evidence(m: Measured, trend: LagTrend, achieved_eps: float, end_to_end_max_ms: float | None) -> Evidence:
    """What is judged: of a run with faults, times outside of their windows only."""
    evidence = Evidence(
        target_eps=m.plan.eps,
        achieved_eps=achieved_eps,
        score=m.score,
        sums=m.sums,
        lag=trend,
        send_delay_p99_ms=m.send_delay.p99,
        end_to_end_max_ms=end_to_end_max_ms,
        faults=tuple(m.faults),
        log_full_ms=m.log_full_ms,
        full_means=m.full_means,
    )
    if m.ordeal is None or m.ordeal.outside is None:
        return evidence
    return replace(
        evidence,
        send_delay_p99_ms=m.ordeal.outside.send_delay.p99,
        end_to_end_max_ms=m.ordeal.outside.end_to_end.max,
        faults=(*m.faults, *m.ordeal.faults()),
        log_full_ms=m.ordeal.full_ms_outside(),
        silence_max_ms=m.send_delay.max,
    )


def _ledger(sums: Sums) -> dict[str, int | None]:
    return {
        "sent": sums.sent,
        "received": sums.received,
        "accepted": sums.accepted,
        "applied": sums.applied,
        "duplicates": sums.duplicates,
        "dead_lettered": sums.dead_lettered,
        "lake_rows": sums.lake_rows,
    }


def _cpu(m: Measured) -> dict[str, float | None]:
    events = m.events
    if events == 0:
        return dict.fromkeys((*PARTS, "total", "loop", "broker"))
    parts: dict[str, float | None] = {part: round(m.cpu_s.get(part, 0.0) * 1e6 / events, 4) for part in PARTS}
    broker = None if m.broker_cpu_s is None else round(m.broker_cpu_s * 1e6 / events, 4)
    total, loop = (round(used * 1e6 / events, 4) for used in (sum(m.cpu_s.values()), m.loop_cpu_s))
    return {**parts, "total": total, "loop": loop, "broker": broker}


def _memory(m: Measured) -> dict[str, Any]:
    return {
        "rss_max_mib": round(m.rss_max_bytes / MIB, 1),  # the sum over all processes: pages of the log count in each that maps them
        "private_max_mib": round(m.private_max_bytes / MIB, 1),  # the same without shared pages
        "bytes_per_session": round(m.state_bytes / m.sessions_active_max, 1) if m.sessions_active_max else None,
        "state_mib": round(m.state_bytes / MIB, 1),
        "sessions_active_max": m.sessions_active_max,
        "rss_max_mib_by_part": {part: round(used / MIB, 1) for part, used in sorted(m.rss_by_part_bytes.items())},
    }
