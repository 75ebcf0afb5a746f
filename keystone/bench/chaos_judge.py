"""From the faults to a report: runs ``ChaosRun``, and turns what it, the devices and the driver left into figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from keystone.actors.fleet import FleetTotals
from keystone.actors.owner import TIMERS_EVERY_MS
from keystone.actors.relay import SLOT_MS, read_slots, slots_path
from keystone.actors.stopping import StopSignal
from keystone.bench import collect
from keystone.bench.chaos import Chaos
from keystone.bench.chaos_report import Ordeal, find_windows, next_alerts, side, split_alerts
from keystone.bench.chaos_run import ChaosRun
from keystone.bench.children import ChildFailed
from keystone.bench.driver import DUE_MARGIN_S, due_ms, make_fleet_plan
from keystone.bench.driver_process import TOTALS
from keystone.bench.engine import LAKE_DIR
from keystone.bench.logs import BenchLog
from keystone.bench.machine import wall_ms
from keystone.bench.plan import BenchPlan
from keystone.bench.report import Measured
from keystone.bench.screen import Progress
from keystone.bench.striking import Striker
from keystone.bench.verdict import LagSample
from keystone.config import Config
from keystone.metrics import LatencyHistogram

SLOT_S: Final = SLOT_MS / 1_000


def judge_chaos(
    plan: BenchPlan, config: Config, config_file: str | None, out: Path, log: BenchLog, chaos: Chaos, progress: Progress, stop: StopSignal
) -> Measured:
    """One run of ``plan`` into ``out``, whose work directory is there. Always returns what could be measured."""
    run = ChaosRun(plan, config_file, out, log, Measured(plan), progress, stop, Striker(chaos))
    try:
        _phases(run, config)
    except ChildFailed as error:
        run.measured.faults.append(str(error))
    finally:
        run.end()
    if run.measured.ordeal is None:
        run.measured.ordeal = _bare(run)
    return run.measured


def _phases(run: ChaosRun, config: Config) -> None:
    measured, fleet_plan = run.measured, make_fleet_plan(run.plan, config)
    run.build(fleet_plan)
    if run.stop.is_asked():
        measured.faults.append("interrupted before the start")
        return
    run.drive()
    fleets = [totals for relay in run.relays if (totals := relay.totals()) is not None]
    truth = collect.read_truth(fleets, measured.start_ms, fleet_plan.epoch_ms)
    run.drain(due_ms(truth, run.log.last_append_ms(), config) + TIMERS_EVERY_MS, DUE_MARGIN_S)
    drained_ms = wall_ms()
    heard = run.heard()
    measured.log_full_ms, measured.full_means, measured.broker_cpu_s = run.log.full_ms(heard), run.log.full_means, run.log.broker_cpu_s()
    status = run.close()
    if run.stop.is_asked():  # what was not due yet when it ended was not missed
        truth = truth.filter(pl.col("intended_ms") < drained_ms - TIMERS_EVERY_MS)
    _collect(run, config, fleets, truth, status)


def _collect(run: ChaosRun, config: Config, fleets: list[FleetTotals], truth: pl.DataFrame, status: dict[str, Any]) -> None:
    measured, lake = run.measured, run.out / LAKE_DIR if run.plan.lake else None
    measured.rss_max_bytes, measured.private_max_bytes = run.meter.rss_max_bytes, run.meter.private_max_bytes
    measured.rss_by_part_bytes = run.meter.rss_by_part_bytes
    measured.lag = [LagSample(sample.at_s, sample.lag) for sample in run.samples]
    collect.sum_fleets(measured, fleets)
    collect.sum_sessions(measured, TOTALS.validate_python(status["totals"]), lake)
    if lake is not None:
        run.progress.say("reading the lake again")
        measured.faults += collect.lake_faults(lake)
    alerts = collect.read_alerts(run.work_dir)
    collect.join_alert_files(run.work_dir, run.out / "alerts.ndjson")
    collect.judge_alerts(measured, truth, alerts, run.out)
    measured.ordeal = _ordeal(run, config, alerts)


def _ordeal(run: ChaosRun, config: Config, alerts: pl.DataFrame) -> Ordeal:
    measured, ordeal = run.measured, _bare(run)
    ordeal.recoveries = [next_alerts(struck, alerts) for struck in ordeal.struck]
    whole, inside, outside = (LatencyHistogram() for _ in range(3))
    slots = [slot for relay in run.relays for slot in read_slots(slots_path(run.work_dir, relay.name))]
    for slot in slots:
        whole.merge(slot.delays)
        start_s = slot.number * SLOT_S
        is_hit = any(window.start_s < start_s + SLOT_S and start_s < window.end_s for window in ordeal.windows)
        (inside if is_hit else outside).merge(slot.delays)
    measured.events_on_time = sum(slot.events_on_time for slot in slots)
    measured.send_delay = collect.histogram_quantiles(whole)
    ordeal.untimed = measured.events - whole.count
    if measured.alerts is not None:
        hit, spared = split_alerts(measured.alerts, ordeal.windows, measured.start_ms, config.detection.open_stall_ms)
        ordeal.inside = side(hit, collect.histogram_quantiles(inside), _lags(ordeal, is_inside=True))
        ordeal.outside = side(spared, collect.histogram_quantiles(outside), _lags(ordeal, is_inside=False))
    return ordeal


def _bare(run: ChaosRun) -> Ordeal:
    """Without what only a whole run tells."""
    ordeal = run.ordeal()
    ordeal.windows = find_windows(ordeal.struck, ordeal.samples, run.plan.eps)
    ordeal.recoveries = [{} for _ in ordeal.struck]
    return ordeal


def _lags(ordeal: Ordeal, *, is_inside: bool) -> Sequence[int]:
    return [sample.lag for sample in ordeal.samples if ordeal.is_inside(sample.at_s) == is_inside]
