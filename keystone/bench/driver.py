"""One run: build, start at an agreed time, watch, drain, close, collect. Decides nothing; ``verdict`` does.

Ray is started once by whoever makes a ``Driver`` and serves all its runs (a search makes a dozen).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from keystone.actors.cohort_sinks import CohortSinks
from keystone.actors.fleet import FleetActor, FleetSpec
from keystone.actors.growth import Growth
from keystone.actors.loop import FINISHED, OVER
from keystone.actors.nodes import Placement, check_shared
from keystone.actors.owner import TIMERS_EVERY_MS
from keystone.actors.stopping import StopSignal
from keystone.actors.supervising import appoint
from keystone.actors.supervisor import SupervisionError, Supervisor, covers, shares
from keystone.bench import collect
from keystone.bench.cluster import SHARED, Outages, nodes_section
from keystone.bench.cohorts import CohortTable
from keystone.bench.engine import STATE_DIR, add_engine, add_session_actors, open_cohorts, session_name
from keystone.bench.logs import BenchLog
from keystone.bench.machine import CpuMeter, StealMeter, stolen_note, usable_cores, wall_ms
from keystone.bench.plan import BenchPlan
from keystone.bench.report import Measured
from keystone.bench.screen import Progress, count, duration
from keystone.bench.verdict import LagSample
from keystone.checkpoint import refused_in
from keystone.config import Config
from keystone.events import ALERT_OPEN_STALL
from keystone.sim.plan import FleetPlan

READY_MAX_S = 600.0  # to build 10M devices and their tables
START_AHEAD_S = 1.0  # so that every fleet actor has its order before the first tick
SAMPLE_S = 0.25  # between two looks at lag and health
METER_EVERY = 4  # looks between two looks at CPU and memory
OVERRUN_MAX_S = 60.0  # that a fleet may need beyond its schedule to send the rest
CATCH_UP_MAX_S = 60.0  # for the readers, after that
DUE_MARGIN_S = 2.0  # for the last open stalls to be written
CLOSE_MAX_S = 120.0  # for the lake
FLEET_CLOSE_MAX_S = 30.0  # for the log's answers to what was sent last
FAULT_CLOSE_MAX_S = 10.0  # where an actor is lost, the others get only this long


@dataclass(slots=True)
class Run:
    """One run under way."""

    plan: BenchPlan
    config: Config
    out: Path
    log: BenchLog
    supervisor: Supervisor
    measured: Measured
    meter: CpuMeter
    progress: Progress
    stop: StopSignal
    other_cpu_s: float = 0.0
    cohorts: CohortSinks | None = None
    cohort_table: CohortTable = field(default_factory=CohortTable)
    growth: Growth | None = None  # where how many session actors there are is ours to choose
    outages: Outages = field(default_factory=lambda: Outages(()))
    looks: int = field(default=0)
    grows: bool = False

    @property
    def work_dir(self) -> Path:
        return self.out / ".work"

    # --- phases -----------------------------------------------------------------------------------------------------
    def build(self, fleet_plan: FleetPlan) -> None:
        """Create the actors and wait until all are ready. Nothing of it is timed."""
        add_engine(self.supervisor, self.plan, self.config, self.log, self.out)
        if self.grows:
            self.growth = Growth(self._add, self._check, session_name, self.plan.session_actors, self.plan.session_actors, self.plan.partitions)
        for index, own in enumerate(shares(self.plan.partitions, self.plan.fleet_actors)):
            fleet = FleetSpec(f"fleet-{index}", own, self.log.url, str(self.work_dir), fleet_plan, self.config.kafka)
            self.supervisor.add("fleet", fleet.name, covers(own), FleetActor, fleet)
        self.supervisor.wait_ready(seconds=READY_MAX_S, is_stopped=self.stop.is_asked)
        appoint(self.supervisor, range(self.plan.partitions), self.plan.session_actors, balance=self.config.balance)
        self.supervisor.wait_owned(seconds=READY_MAX_S, is_stopped=self.stop.is_asked)
        self.cohorts = open_cohorts(self.plan, self.config, self.log.url, self.out, self.cohort_table.take)

    def _add(self, numbers: Iterable[int]) -> None:
        add_session_actors(self.supervisor, numbers, self.plan, self.config, self.log, self.out)

    def _check(self, placement: Placement) -> None:
        check_shared({"--out": self.out}, placement.nodes, SHARED)

    def drive(self) -> None:
        """From the agreed start until the fleets have sent everything, or something ends the run."""
        start_ms = wall_ms() + START_AHEAD_S * 1_000
        self.measured.start_ms = start_ms
        self.supervisor.order("fleet", "go", start_ms)
        time.sleep(max(0.0, (start_ms - wall_ms()) / 1_000))
        self.meter.open()
        steal = StealMeter()
        self._watch("running", self.plan.seconds + OVERRUN_MAX_S, lambda: all(w.state == FINISHED for w in self.supervisor.of_kind("fleet")))
        self._note_steal(steal.cores())
        elapsed_s = self._elapsed_s()
        self.measured.seconds = float(min(self.plan.seconds, elapsed_s)) if self.stop.is_asked() else float(self.plan.seconds)
        if self.stop.is_asked():
            self.measured.faults.append(f"interrupted after {elapsed_s:.0f} s")
        elif self.supervisor.faults():
            self.measured.seconds = max(1.0, min(float(self.plan.seconds), elapsed_s))
        elif elapsed_s >= self.plan.seconds + OVERRUN_MAX_S:
            self.measured.faults.append(f"the fleets did not end within {OVERRUN_MAX_S:.0f} s of their schedule")
        self.supervisor.order("fleet", "finish")
        self.supervisor.wait_until(OVER, "fleet", seconds=FLEET_CLOSE_MAX_S)

    def _note_steal(self, stolen_cores: float) -> None:
        self.measured.stolen_cores = round(stolen_cores, 3)
        if (note := stolen_note(stolen_cores, usable_cores())) is not None:
            self.measured.notes.append(note)

    def drain(self, due_ms: float) -> None:
        """Until the readers have caught up and every alert expected by wall time ``due_ms`` had its chance."""
        caught_up = self._watch("draining", CATCH_UP_MAX_S, lambda: self.lag_events() == 0, is_interruptible=False)
        self.other_cpu_s = self.meter.peek().get("other", 0.0)
        if not caught_up and not self.supervisor.faults():
            self.measured.faults.append(f"the session actors did not catch up within {CATCH_UP_MAX_S:.0f} s: {self.lag_events():,} events behind")
        until_s = (due_ms + TIMERS_EVERY_MS - wall_ms()) / 1_000 + DUE_MARGIN_S
        if until_s > 0 and caught_up and not self.stop.is_asked():
            self._watch("open stalls", until_s, lambda: False)

    def close(self) -> list[Any]:
        """End the session actors and return their totals; CPU is counted up to here."""
        has_faults = bool(self.supervisor.faults())
        self.supervisor.settle()
        self.supervisor.order("session", "finish")
        wait_s = FAULT_CLOSE_MAX_S if has_faults else CLOSE_MAX_S
        if not self.supervisor.wait_until(OVER, "session", seconds=wait_s) and not has_faults and not self.supervisor.faults():
            self.measured.faults.append(f"the session actors did not close within {wait_s:.0f} s")
        used = self.meter.close()
        self.measured.cpu_s = {**used, "other": self.other_cpu_s}
        totals = self.supervisor.results("session")
        self._close_cohorts()
        self.supervisor.order("committer", "finish")
        if not self.supervisor.wait_until(OVER, "committer", seconds=wait_s) and not has_faults and not self.supervisor.faults():
            self.measured.faults.append(f"the lake's last commit did not end within {wait_s:.0f} s")
        for ward in self.supervisor.of_kind("committer"):
            collect.note_commits(self.measured, ward.status)
        return totals

    def _close_cohorts(self) -> None:
        if self.cohorts is not None:
            left = self.cohorts.close(self.supervisor)
            self.measured.cohorts = self.cohorts.status() | {"left": left, "told": self.cohort_table.write(self.out)}

    # --- watching ---------------------------------------------------------------------------------------------------
    def _watch(self, phase: str, seconds: float, is_done: Callable[[], bool], *, is_interruptible: bool = True) -> bool:
        """Look every SAMPLE_S until ``is_done``; False where time, a fault or an interruption came first."""
        until = time.monotonic() + seconds
        while not is_done():
            if time.monotonic() > until or self.supervisor.faults() or (is_interruptible and self.stop.is_asked()):
                return False
            self._look(phase)
            time.sleep(SAMPLE_S)
        return True

    def _look(self, phase: str) -> None:
        self.supervisor.poll()
        if self.growth is not None and (line := self.growth.tick(self.supervisor)) is not None:
            self.progress.say(line)
        self.outages.look(self.supervisor.of_kind("session"), time.monotonic())
        if self.cohorts is not None:
            self.cohorts.tick(self.supervisor)
        at_s, lag = self._elapsed_s(), self.lag_events()
        self.measured.lag.append(LagSample(at_s, lag))
        if self.looks % METER_EVERY == 0:
            self.meter.sample()
        self.looks += 1
        fleets = [w.status for w in self.supervisor.of_kind("fleet")]
        alerts = sum(w.status.get("alerts", 0) for w in self.supervisor.of_kind("session"))
        delays = [f["send_delay_p99_ms"] for f in fleets if f.get("send_delay_p99_ms") is not None]
        detect = [w.status["detect_p99_ms"] for w in self.supervisor.of_kind("session") if w.status.get("detect_p99_ms") is not None]
        events = self.log.events_appended(self.supervisor)
        self.progress.show(
            at_s,
            {
                "phase": phase,
                "time": f"{at_s:.0f}/{self.plan.seconds} s",
                "events": count(events),
                "events/s": count(events / min(at_s, self.plan.seconds) if at_s > 0 else 0),
                "lag": count(lag),
                "alerts": count(alerts),
                "detect p99": duration(max(detect, default=None)),
                "send delay p99": duration(max(delays, default=None)),
            },
        )

    def note_places(self, placement: Placement) -> None:
        """Where actors are, and what became of those that were lost."""
        self.measured.recoveries_ms, self.measured.moves_ms = self.outages.ended_ms, self.outages.moved_ms
        if placement.is_joined:
            self.measured.fenced_writes = max(self.supervisor.fenced_writes, len(refused_in(str(self.out / STATE_DIR))))
            self.measured.nodes = nodes_section(placement, self.supervisor)

    def _elapsed_s(self) -> float:
        return (wall_ms() - self.measured.start_ms) / 1_000

    def lag_events(self) -> int:
        return self.log.lag_events(self.supervisor)


@dataclass(slots=True)
class Driver:
    """Makes runs, one after another, in one Ray."""

    config: Config
    make_log: Callable[[BenchPlan], BenchLog]
    progress: Progress
    stop: StopSignal
    keep_log: bool = False
    placement: Placement = field(default_factory=Placement)
    grows: bool = False  # with the nodes that join

    def run(self, plan: BenchPlan, out: Path) -> Measured:
        """One run of ``plan`` into ``out``, which must be empty or absent. Always returns what could be measured."""
        out.mkdir(parents=True, exist_ok=True)
        work_dir = out / ".work"
        work_dir.mkdir()
        supervisor = Supervisor(work_dir, self.placement)
        log = self.make_log(plan)
        meter = CpuMeter(supervisor.part_of, supervisor.used)
        run = Run(
            plan, self.config, out, log, supervisor, Measured(plan), meter, self.progress, self.stop, outages=Outages(range(plan.partitions)), grows=self.grows
        )
        try:
            self._phases(run)
        finally:
            supervisor.stop()
            if (kept := log.close(keep=self.keep_log)) is not None:
                self.progress.say(kept)
            shutil.rmtree(work_dir, ignore_errors=True)
            if kept is None:  # nobody can go on without the log
                shutil.rmtree(out / STATE_DIR, ignore_errors=True)
        return run.measured

    def _phases(self, run: Run) -> None:
        fleet_plan = make_fleet_plan(run.plan, self.config)
        measured = run.measured
        try:
            run.build(fleet_plan)
        except SupervisionError as error:
            measured.faults.append(str(error))
            return
        if self.stop.is_asked():
            measured.faults.append("interrupted before the start")
            return
        run.drive()
        fleets = run.supervisor.results("fleet")
        truth = collect.read_truth(fleets, measured.start_ms, fleet_plan.epoch_ms)
        run.drain(due_ms(truth, run.log.last_append_ms(), self.config))
        drained_ms = wall_ms()
        log_full_ms, broker_cpu_s = run.log.full_ms(run.supervisor), run.log.broker_cpu_s()
        run.note_places(self.placement)
        sessions = run.close()
        measured.faults += run.supervisor.faults()
        measured.notes += run.supervisor.notes
        measured.log_full_ms, measured.full_means = log_full_ms, run.log.full_means
        measured.broker_cpu_s = broker_cpu_s
        measured.rss_max_bytes, measured.private_max_bytes = run.meter.rss_max_bytes, run.meter.private_max_bytes
        measured.rss_by_part_bytes = run.meter.rss_by_part_bytes
        if self.stop.is_asked():  # what was not due yet when it ended was not missed
            truth = truth.filter(pl.col("intended_ms") < drained_ms - TIMERS_EVERY_MS)
        collect.sum_fleets(measured, fleets)
        collect.sum_sessions(measured, sessions, run.out / "lake" if run.plan.lake else None)
        collect.join_alert_files(run.work_dir, run.out / "alerts.ndjson")
        collect.judge_alerts(measured, truth, collect.read_alerts(run.work_dir), run.out)


def due_ms(truth: pl.DataFrame, last_append_ms: int, config: Config) -> float:
    """Wall time by which every expected alert is due: as scheduled, or in log time, if the generator was late."""
    if truth.height == 0:
        return 0.0
    scheduled_ms = float(truth["intended_ms"].max() or 0.0)  # type: ignore[arg-type]
    has_open_stalls = bool((truth["kind"] == ALERT_OPEN_STALL).any())
    return max(scheduled_ms, last_append_ms + config.detection.open_stall_ms if has_open_stalls else 0.0)


def make_fleet_plan(plan: BenchPlan, config: Config) -> FleetPlan:
    """The simulator's plan for a run; the truth follows the detector's settings."""
    detection = config.detection
    chosen: dict[str, Any] = {}
    if plan.epoch_ms is not None:
        chosen["epoch_ms"] = plan.epoch_ms
    if plan.bad_paths is not None:
        chosen["bad_path_share"] = plan.bad_paths
    return FleetPlan(
        eps=plan.eps,
        seconds=plan.seconds,
        devices=plan.devices,
        seed=plan.seed,
        partitions=plan.partitions,
        loop_threshold=detection.loop_threshold,
        open_stall_ms=detection.open_stall_ms,
        ladder_kbps=detection.ladder_kbps,
        **chosen,
    )
