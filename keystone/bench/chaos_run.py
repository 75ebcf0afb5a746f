"""A run with faults. The judge: starts devices and driver as processes, strikes them, watches, and starts again what it killed.

It knows nothing of Ray. What it needs to know lies in the log's own counters and in what the processes said last, so it outlives all of
them. Devices are processes of their own, as devices are: a driver's death does not silence them.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from keystone.actors.fleet import FleetSpec
from keystone.actors.nodes import COMMITTER, FLEET, SESSION
from keystone.actors.stopping import StopSignal
from keystone.actors.supervisor import shares
from keystone.bench.chaos import DRIVER, KILL, Fault, Process
from keystone.bench.chaos_report import NORMAL_S, SETTLED_S, WINDOW_MIN_S, Ordeal, Sample, Struck
from keystone.bench.children import Child, ChildFailed, kill
from keystone.bench.driver import CATCH_UP_MAX_S, OVERRUN_MAX_S, START_AHEAD_S
from keystone.bench.driver_process import CLOSED, RUNNING, start_driver
from keystone.bench.engine import WORK_DIR
from keystone.bench.logs import BenchLog
from keystone.bench.machine import CpuMeter, wall_ms
from keystone.bench.plan import BenchPlan
from keystone.bench.relays import Relay
from keystone.bench.report import Measured
from keystone.bench.screen import Progress, count
from keystone.bench.signs import Sign, sign_of
from keystone.bench.striking import Striker, actors_of
from keystone.sim.plan import FleetPlan

LOOK_S: Final = 0.05  # between two looks: how exactly faults are timed
SAMPLE_S: Final = 0.1  # between two looks at the lag
METER_S: Final = 1.0  # between two looks at CPU and memory
SHOW_S: Final = 0.25
READY_MAX_S: Final = 600.0
FRESH_MS: Final = 2_000.0  # a driver's word that is older says nothing about now
CLOSE_MAX_S: Final = 300.0  # for a driver: twice what it gives its actors, and Ray
ORPHANS_WAIT_S: Final = 5.0  # for what a killed driver leaves: Ray's processes end when they miss it


@dataclass(slots=True)
class Heard:
    """What processes said last, by kind: ``logs.Hearing``."""

    statuses: dict[str, list[dict[str, Any]]]

    def of_kind(self, kind: str) -> Sequence[Said]:
        return [Said(status) for status in self.statuses.get(kind, ())]


@dataclass(frozen=True, slots=True)
class Said:
    status: dict[str, Any]


@dataclass(slots=True)
class ChaosRun:
    """``build`` -> ``drive`` -> ``drain`` -> ``close``, then ``end`` whatever happened."""

    plan: BenchPlan
    config_file: str | None
    out: Path
    log: BenchLog
    measured: Measured
    progress: Progress
    stop: StopSignal
    striker: Striker
    driver: Child = field(init=False)
    relays: list[Relay] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    signs: list[Sign] = field(default_factory=list)
    stragglers: list[str] = field(default_factory=list)
    fenced_writes: int = 0
    takeovers: list[dict[str, Any]] = field(default_factory=list)
    meter: CpuMeter = field(init=False)
    _drivers: int = 0
    _driver_killed: bool = False
    _orphans: list[tuple[float, psutil.Process]] = field(default_factory=list)
    _ray_dirs: set[str] = field(default_factory=set)
    _parts: dict[int, str] = field(default_factory=dict)  # of processes, by pid
    _next_s: dict[str, float] = field(default_factory=dict)  # of what is not done at each look
    _calm_since_s: float | None = None

    def __post_init__(self) -> None:
        self.meter = CpuMeter(lambda pid: self._parts.get(pid, "other"))

    @property
    def work_dir(self) -> Path:
        return self.out / WORK_DIR

    # --- phases -------------------------------------------------------------------------------------------------------
    def build(self, fleet_plan: FleetPlan) -> None:
        """Start driver and devices, and wait until all are ready."""
        self._start_driver()
        first_offsets = dict(self.log.start_offsets)
        for index, own in enumerate(shares(self.plan.partitions, self.plan.fleet_actors)):
            spec = FleetSpec(f"fleet-{index}", own, self.log.url, str(self.work_dir), fleet_plan)
            self.relays.append(Relay(spec, first_offsets, self.config_file))
        until = time.monotonic() + READY_MAX_S
        while not (self._is_up() and all(relay.is_ready() for relay in self.relays)) and not self.stop.is_asked():
            if time.monotonic() > until:
                raise ChildFailed(f"not everything is ready after {READY_MAX_S:.0f} s")
            time.sleep(LOOK_S)
            self._tend()

    def drive(self) -> None:
        """From the agreed start until the devices have sent everything, or something ends the run."""
        self.measured.start_ms = start_ms = wall_ms() + START_AHEAD_S * 1_000
        for relay in self.relays:
            relay.go(start_ms)
        time.sleep(max(0.0, (start_ms - wall_ms()) / 1_000))
        self.meter.open()
        is_done = self._watch("running", self.plan.seconds + OVERRUN_MAX_S, lambda: all(relay.is_finished() for relay in self.relays))
        elapsed_s = self._at_s()
        self.measured.seconds = float(min(self.plan.seconds, elapsed_s)) if self.stop.is_asked() else float(self.plan.seconds)
        if self.stop.is_asked():
            self.measured.faults.append(f"interrupted after {elapsed_s:.0f} s")
        elif not is_done:
            self.measured.faults.append(f"the fleets did not end within {OVERRUN_MAX_S:.0f} s of their schedule")
        self.striker.thaw(everything=True)
        for relay in self.relays:
            relay.finish()

    def drain(self, due_ms: float, margin_s: float) -> None:
        """Until the readers have caught up, and every alert expected by wall time ``due_ms`` had its chance."""
        if not self._watch("draining", CATCH_UP_MAX_S, lambda: self._is_up() and self.lag_events() == 0, is_interruptible=False):
            self.measured.faults.append(f"the session actors did not catch up within {CATCH_UP_MAX_S:.0f} s: {self.lag_events():,} events behind")
            return
        until_s = (due_ms - wall_ms()) / 1_000 + margin_s
        if not self.stop.is_asked():
            self._watch("open stalls", max(until_s, SETTLED_S), lambda: False)
        self._sample(self._at_s())

    def close(self) -> dict[str, Any]:
        """End the driver; its last word."""
        self.driver.tell(finish=True)
        until = time.monotonic() + CLOSE_MAX_S
        while self.driver.ended is None and time.monotonic() < until:
            time.sleep(LOOK_S)
            self._end_orphans()
        self.measured.cpu_s = self.meter.close()
        status = self.driver.status()
        if status.get("phase") != CLOSED:
            raise ChildFailed(status.get("error") or f"the driver did not close: {self.driver.last_lines()}")
        self.measured.faults += [*status["faults"], *status.get("late", ())]
        self._note(status)
        return status

    def end(self) -> None:
        """Leave no process behind."""
        self.striker.thaw(everything=True)
        for relay in self.relays:
            relay.end()
        if hasattr(self, "driver"):
            self.driver.end()
        self._end_orphans(everything=True)
        for ray_dir in self._ray_dirs:
            shutil.rmtree(ray_dir, ignore_errors=True)

    def ordeal(self) -> Ordeal:
        """What the faults were and did, as far as this run itself has seen."""
        found = Ordeal(self.striker.chaos.spec, self.striker.struck, samples=self.samples)
        found.stragglers, found.takeovers, found.fenced_writes = self.stragglers, self.takeovers, self.fenced_writes
        found.not_struck = [f"{fault}: the run was over before it could strike" for fault in self.striker.left()]
        return found

    # --- looking --------------------------------------------------------------------------------------------------------
    def _watch(self, phase: str, seconds: float, is_done: Callable[[], bool], *, is_interruptible: bool = True) -> bool:
        """Look, and do what there is to do, until ``is_done``; False where time or an interruption came first."""
        until = time.monotonic() + seconds
        while not is_done():
            if time.monotonic() > until or (is_interruptible and self.stop.is_asked()):
                return False
            self._tend()
            self._look(phase)
            if phase == "running":
                self._strike()
            time.sleep(LOOK_S)
        return True

    def _look(self, phase: str) -> None:
        at_s = self._at_s()
        if self._is_time("sample", SAMPLE_S):
            self._sample(at_s)
        if self._is_time("meter", METER_S):
            self.meter.sample()
        if self._is_time("show", SHOW_S):
            self._show(phase, at_s)

    def _is_time(self, what: str, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s < self._next_s.get(what, 0.0):
            return False
        self._next_s[what] = now_s + every_s
        return True

    def _sample(self, at_s: float) -> None:
        heard = self.heard()
        lag = self.log.lag_events(heard)
        due = self.plan.eps * min(max(at_s, 0.0), self.plan.seconds)
        behind = max(0, round(due) - self.log.events_appended(heard)) + lag
        self.samples.append(Sample(at_s, lag, behind, self.log.full_ms(heard)))
        if behind > NORMAL_S * self.plan.eps:
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = at_s

    def heard(self) -> Heard:
        """The last words of all."""
        wards = self.driver.status().get("wards", ())
        by_kind = {kind: [ward for ward in wards if ward["kind"] == kind] for kind in (SESSION, COMMITTER)}
        return Heard({**by_kind, FLEET: [relay.status for relay in self.relays]})

    def lag_events(self) -> int:
        return self.log.lag_events(self.heard())

    def _at_s(self) -> float:
        return (wall_ms() - self.measured.start_ms) / 1_000

    def _show(self, phase: str, at_s: float) -> None:
        heard, last = self.heard(), self.striker.struck[-1] if self.striker.struck else None
        events = self.log.events_appended(heard)
        self.progress.show(
            at_s,
            {
                "phase": phase,
                "time": f"{at_s:.0f}/{self.plan.seconds} s",
                "events": count(events),
                "lag": count(self.lag_events()),
                "alerts": count(sum(said.status.get("alerts", 0) for said in heard.of_kind(SESSION))),
                "last fault": f"{last.fault.kind} {at_s - last.at_s:.0f} s ago" if last is not None else "-",
                "faults left": count(len(self.striker.left())),
            },
        )

    # --- faults -----------------------------------------------------------------------------------------------------------
    def _strike(self) -> None:
        self.striker.thaw()
        at_s = self._at_s()
        fault = self.striker.due(at_s)
        if fault is None or at_s >= self.plan.seconds or (self.striker.chaos.waits and not self._is_well(at_s)):
            return
        below = self.driver.descendants() if self._kills_driver(fault) else []
        sign = sign_of(self.driver.status())
        struck = self.striker.strike(fault, self._processes(), at_s)
        if struck is None:
            return
        self.progress.say(f"{at_s:6.1f} s  {fault}  {struck.process} ({struck.pid})")
        self.signs.append(sign)
        self._note_struck(struck, below)

    @staticmethod
    def _kills_driver(fault: Fault) -> bool:
        return (fault.action, fault.target) == (KILL, DRIVER)

    def _note_struck(self, struck: Struck, below: list[psutil.Process]) -> None:
        if self._kills_driver(struck.fault):
            self._driver_killed = True
            self._note(self.driver.status())
            self._orphans += [(time.monotonic() + ORPHANS_WAIT_S, process) for process in below]
        for relay in self.relays:
            if struck.fault.action == KILL and relay.leader.pid == struck.pid:
                relay.note_kill()

    def _processes(self) -> list[Process]:
        """All that may be struck now."""
        status = self.driver.status()
        actors = actors_of(status) if self._is_fresh(status) else []
        epochs = tuple(owned for actor in actors for owned in actor.epochs)
        driver = Process(DRIVER, self.driver.name, self.driver.pid, tuple(range(self.plan.partitions)), epochs)
        return [*actors, *(relay.process() for relay in self.relays), *([driver] if self.driver.ended is None else [])]

    def _is_fresh(self, status: dict[str, Any]) -> bool:
        return bool(self.driver.ended is None and status.get("phase") == RUNNING and wall_ms() - status["at_ms"] < FRESH_MS)

    def _is_up(self) -> bool:
        """Whether every partition has an owner, and nothing is being started anew."""
        status = self.driver.status()
        if not self._is_fresh(status) or not status["is_owned"]:
            return False
        return all(ward["state"] == "running" and not ward["is_down"] and not ward["is_lost"] for ward in status["wards"])

    def _is_well(self, at_s: float) -> bool:
        """Whether the fault before is over, in every respect."""
        since_s = self._calm_since_s
        last = self.striker.struck[-1] if self.striker.struck else None
        is_past = last is None or at_s - last.at_s >= WINDOW_MIN_S + last.fault.for_s
        is_calm = since_s is not None and at_s - since_s >= SETTLED_S
        return is_past and is_calm and not self.striker.has_frozen and self._is_up() and all(relay.is_ready() for relay in self.relays)

    # --- keeping everything going -------------------------------------------------------------------------------------------
    def _tend(self) -> None:
        """Start again what was killed on purpose. Raises ``ChildFailed`` where something else ended, or an actor cannot go on."""
        for relay in self.relays:
            relay.tend()
        if self.driver.ended is not None and self._driver_killed:
            self._start_driver()
        status = self.driver.status()
        if self.driver.ended is not None or status.get("faults"):
            said = "; ".join(status.get("faults", ())) or status.get("error")
            raise ChildFailed(said or f"{self.driver.name} ended with status {self.driver.ended}: {self.driver.last_lines()}")
        self._note_parts(status)
        self._end_orphans()
        self._note_signs(status)

    def _note_signs(self, status: dict[str, Any]) -> None:
        waiting = [(struck, sign) for struck, sign in zip(self.striker.struck, self.signs, strict=True) if struck.sign_ms is None]
        sending = [(relay.process(), relay.status.get("sent_ms", 0.0)) for relay in self.relays] if waiting else []
        for struck, sign in waiting:
            if sign.is_given(struck, status, sending):
                struck.sign_ms = wall_ms()

    def _start_driver(self) -> None:
        self._drivers += 1
        self._driver_killed = False
        self.driver = start_driver(f"driver-{self._drivers}", self.plan, self.log, self.out, self.config_file)

    def _note(self, status: dict[str, Any]) -> None:
        """What a driver that ends has to tell."""
        self.measured.notes += status.get("notes", ())
        self.takeovers += status.get("takeovers", ())
        self.fenced_writes += status.get("fenced_writes", 0)

    def _note_parts(self, status: dict[str, Any]) -> None:
        if status.get("ray_dir"):
            self._ray_dirs.add(status["ray_dir"])
        for ward in status.get("wards", ()):
            if ward.get("pid") and ward["kind"] in (SESSION, COMMITTER):
                self._parts[ward["pid"]] = "sessions"
        for child in (child for relay in self.relays for child in relay.children()):
            self._parts[child.pid] = "fleet"

    def _end_orphans(self, *, everything: bool = False) -> None:
        """End what a killed driver left, where it does not end by itself."""
        for orphan in list(self._orphans):
            until_s, process = orphan
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                self._orphans.remove(orphan)
            elif everything or time.monotonic() > until_s:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.stragglers.append(process.name())
                kill(process)
                self._orphans.remove(orphan)
