"""After a run: what the actors left becomes the run's files and numbers.

    alerts.ndjson     every alert, by partition and owner in order of visibility
    truth.parquet     device_id session_id kind event_ts seq intended_ms: every alert that was expected
    latency.parquet   alert_id kind device_id session_id intended appended decoded alerted visible

Intended times are wall time, as all others: the schedule's own, shifted by when the run started.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from keystone.actors.fleet import FleetTotals
from keystone.actors.session import SessionTotals
from keystone.actors.trail import alerts_path, moments_path, read_moments, trail_names, trail_owner
from keystone.bench.latency import ALERT_KEY, QUANTILES, Quantiles, latency_table, score
from keystone.bench.machine import Machine
from keystone.bench.report import Measured
from keystone.bench.verdict import Sums

if TYPE_CHECKING:
    from keystone.metrics import LatencyHistogram

ALERT_SCHEMA = {
    "alert_id": pl.String,
    "device_id": pl.String,
    "session_id": pl.String,
    "kind": pl.String,
    "event_ts": pl.Int64,
    "seq": pl.Int64,
}
TRUTH_COLUMNS = (*ALERT_KEY, "intended_ms")
TRUTH_SCHEMA = {**{name: ALERT_SCHEMA[name] for name in ALERT_KEY}, "intended_ms": pl.Float64}


def read_truth(fleets: list[FleetTotals], start_ms: float, epoch_ms: int) -> pl.DataFrame:
    """All expected alerts, intended times shifted from the schedule's clock to wall time."""
    paths = [path for fleet in fleets for path in fleet.truth_paths]
    if not paths:
        return pl.DataFrame(schema=TRUTH_SCHEMA)
    frames = [pl.read_parquet(path).select(pl.col(name).cast(TRUTH_SCHEMA[name]) for name in TRUTH_COLUMNS) for path in paths]
    return pl.concat(frames).with_columns(pl.col("intended_ms") + (start_ms - epoch_ms)).sort("intended_ms")


def read_alerts(work_dir: Path) -> pl.DataFrame:
    """All alerts with their moments, partition and epoch; those without noted moments have nulls."""
    found = []
    for trail in trail_names(work_dir):
        partition, epoch = trail_owner(trail)
        path = alerts_path(work_dir, trail)
        if not path.exists() or path.stat().st_size == 0:
            continue
        alerts = pl.read_ndjson(path, schema=ALERT_SCHEMA)
        moments = read_moments(moments_path(work_dir, trail)).unique("alert_id", keep="first")
        found.append(alerts.join(moments, on="alert_id", how="left").with_columns(partition=pl.lit(partition, pl.Int64), epoch=pl.lit(epoch, pl.Int64)))
    if not found:
        return pl.DataFrame(
            schema={**ALERT_SCHEMA, **dict.fromkeys(("appended", "decoded", "alerted", "visible"), pl.Float64), "partition": pl.Int64, "epoch": pl.Int64}
        )
    return pl.concat(found)


def join_alert_files(work_dir: Path, target: Path) -> None:
    """One alerts.ndjson of all."""
    with target.open("wb") as out:
        for trail in trail_names(work_dir):
            with alerts_path(work_dir, trail).open("rb") as source:
                shutil.copyfileobj(source, out, 1 << 20)


def lake_rows(lake: Path) -> int:
    """Rows of the lake's events, by the footers of the files in its newest snapshot: what any reader will find."""
    import pyarrow.parquet as pq

    from keystone.config import LakeConfig
    from keystone.sinks.iceberg.columns import EVENTS
    from keystone.sinks.iceberg.tables import LakeTables

    tables = LakeTables.open(lake, LakeConfig(), is_made=False)
    try:
        paths = [task.file.file_path.removeprefix("file://") for task in tables.load(EVENTS).scan().plan_files()]
    finally:
        tables.close()
    return sum(pq.read_metadata(path).num_rows for path in paths)


def lake_faults(lake: Path) -> list[str]:
    """What reading every file again finds wrong: each event once, in its place, as many as were committed."""
    from keystone.config import LakeConfig
    from keystone.sinks.iceberg.tables import LakeTables
    from keystone.sinks.iceberg.verify import verify

    tables = LakeTables.open(lake, LakeConfig(), is_made=False)
    try:
        verdicts = list(verify(tables))
    finally:
        tables.close()
    return [f"lake, partition {verdict.partition}: {fault}" for verdict in verdicts for fault in verdict.faults]


def histogram_quantiles(histogram: LatencyHistogram) -> Quantiles:
    """A merged histogram in the report's terms."""
    p50, p90, p99, p999 = (histogram.quantile(share) for share in QUANTILES.values())
    return Quantiles(p50, p90, p99, p999, histogram.max_ms, histogram.count, histogram.negatives)


def sum_fleets(measured: Measured, fleets: list[FleetTotals]) -> None:
    """What was sent, and how late."""
    from keystone.metrics import LatencyHistogram

    delays = LatencyHistogram()
    for fleet in fleets:
        measured.events += fleet.events
        measured.events_on_time += fleet.events_on_time
        measured.bytes += fleet.bytes
        measured.sessions += fleet.sessions
        if fleet.delays is not None:
            delays.merge(fleet.delays)
        if fleet.ambiguous:
            measured.notes.append(f"{fleet.name}: {fleet.ambiguous} silences near the open-stall limit, where the truth cannot tell")
    measured.send_delay = histogram_quantiles(delays)


def sum_sessions(measured: Measured, sessions: list[SessionTotals], lake: Path | None) -> None:
    """The ledger and the state of the session actors that ended well."""
    ledger: dict[str, int] = {}
    for totals in sessions:
        for one in totals.partitions.values():
            for name, value in one.ledger.as_dict().items():
                ledger[name] = ledger.get(name, 0) + value
        measured.state_bytes += totals.state_bytes
        measured.loop_cpu_s += totals.loop_cpu_s
        measured.sessions_active_max += totals.sessions_active_max
    measured.checkpoints = {
        "count": sum(totals.checkpoints for totals in sessions),
        "bytes": sum(totals.checkpoint_bytes for totals in sessions),
        "pause_ms_max": round(max((totals.pause_ms_max for totals in sessions), default=0.0), 1),
        "cpu_s": round(sum(totals.checkpoint_cpu_s for totals in sessions), 2),
    }
    measured.routing = {totals.name: totals.routing for totals in sessions if totals.routing}
    measured.faults += [f"{totals.name}: {totals.rows_left:,} rows for sinks are neither delivered nor on disk" for totals in sessions if totals.rows_left]
    names = ("received", "accepted", "applied", "duplicates", "dead_lettered")
    measured.sums = Sums(sent=measured.events, **{name: ledger.get(name, 0) for name in names}, lake_rows=lake_rows(lake) if lake is not None else None)


def note_commits(measured: Measured, status: dict[str, Any]) -> None:
    """What a committer last told of itself. ``age_ms_max``: from an event's append to the commit that made it visible in the lake."""
    measured.commits = {name: round(status[name]) for name in ("commits", "segments", "files", "commit_ms", "age_ms_max", "expired") if name in status}
    measured.commits["cpu_s"] = round(status.get("commit_cpu_s", 0.0), 2)


def judge_alerts(measured: Measured, truth: pl.DataFrame, alerts: pl.DataFrame, out: Path) -> None:
    """Score them, and write the two tables."""
    measured.score = score(truth, alerts)
    measured.alerts = latency_table(truth, alerts)
    truth.select(TRUTH_COLUMNS).write_parquet(out / "truth.parquet")
    measured.alerts.write_parquet(out / "latency.parquet")


def describe(measured: Measured, machine: Machine, versions: dict[str, str], config: dict[str, Any]) -> None:
    measured.machine, measured.versions, measured.config = machine.as_dict(), versions, config
