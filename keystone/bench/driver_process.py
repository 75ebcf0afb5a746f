"""The driver of a run with faults: Ray, the actors, and who watches them, in a process that may be killed itself.

It is stateless: another one, started on the same directory and log, finds checkpoints, epochs and the lake, and goes on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from keystone.actors.cohort_sinks import CohortSinks
from keystone.actors.loop import OVER
from keystone.actors.nodes import COMMITTER, SESSION
from keystone.actors.outputs import OutputSpec
from keystone.actors.runtime import RayRuntime
from keystone.actors.session import SessionTotals
from keystone.actors.supervising import appoint
from keystone.actors.supervisor import SupervisionError, Supervisor, Ward
from keystone.bench.children import Child, Ear, Mouth
from keystone.bench.engine import WORK_DIR, add_engine, add_session_actors, open_cohorts, session_name
from keystone.bench.logs import BenchLog
from keystone.bench.plan import BenchPlan
from keystone.config import Config
from keystone.config import load as load_config
from keystone.errors import KeystoneError
from keystone.log.url import KafkaUrl, parse_log_url

MODULE: Final = "keystone.bench.driver_process"
READY_MAX_S: Final = 600.0
CLOSE_MAX_S: Final = 120.0
FAULT_CLOSE_MAX_S: Final = 10.0
SAY_EVERY_S: Final = 0.1
LOOK_EVERY_S: Final = 0.05
BUILDING, RUNNING, CLOSED, FAILED = "building", "running", "closed", "failed"
TOTALS: Final = TypeAdapter(list[SessionTotals])


def start_driver(name: str, plan: BenchPlan, log: BenchLog, out: Path, config_file: str | None) -> Child:
    """A process that builds the engine and keeps it, until it is told ``finish``."""
    actions = log.output.actions
    order = {
        "name": name, "plan": plan.as_dict(), "out": str(out), "config": config_file, "log": log.url,
        "actions": str(actions) if actions is not None else None, "start_offsets": list(log.start_offsets),
    }  # fmt: skip
    return Child(MODULE, name, out / WORK_DIR, order)


@dataclass(frozen=True, slots=True)
class LogPlace:
    """See ``engine.Source``."""

    url: str
    output: OutputSpec
    start_offsets: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, order: dict[str, Any]) -> LogPlace:
        actions = parse_log_url(order["actions"]) if order["actions"] is not None else None
        output = OutputSpec(actions=actions) if isinstance(actions, KafkaUrl) else OutputSpec()
        return cls(order["log"], output, tuple((int(p), int(offset)) for p, offset in order["start_offsets"]))


@dataclass(slots=True)
class Keeping:
    """The engine under way. ``look`` keeps everybody informed."""

    order: dict[str, Any]
    ear: Ear
    mouth: Mouth
    supervisor: Supervisor
    ray_dir: str
    phase: str = BUILDING
    is_told_to_finish: bool = False
    notes: list[str] = field(default_factory=list)
    said_s: float = 0.0
    cohorts: CohortSinks | None = None
    result: dict[str, Any] = field(default_factory=dict)

    def look(self) -> bool:
        """Hear and say; True where it is to end."""
        for told in self.ear.hear():
            self.is_told_to_finish |= "finish" in told
        if time.monotonic() - self.said_s > SAY_EVERY_S:
            self.say()
        return self.is_told_to_finish or self.ear.is_orphan

    def say(self) -> None:
        self.said_s = time.monotonic()
        supervisor = self.supervisor
        self.notes += supervisor.notes
        supervisor.notes.clear()
        self.mouth.say({
            "phase": self.phase, "at_ms": time.time() * 1_000, "ray_dir": self.ray_dir, "is_owned": supervisor.is_owned(),
            "wards": [_told(ward) for ward in supervisor.wards], "faults": supervisor.faults(), "notes": self.notes,
            "takeovers": supervisor.recoveries, "fenced_writes": supervisor.fenced_writes, **self.result,
        })  # fmt: skip

    def keep(self, plan: BenchPlan, config: Config) -> None:
        """Build, run until told to finish, close."""
        place, out = LogPlace.of(self.order), Path(self.order["out"])
        add_engine(self.supervisor, plan, config, place, out)
        self.supervisor.wait_ready(seconds=READY_MAX_S, is_stopped=self.look)
        standbys = range(plan.session_actors, plan.session_actors + config.checkpoint.standbys)
        appoint(self.supervisor, range(plan.partitions), plan.session_actors, later=map(session_name, standbys), balance=config.balance)
        self.supervisor.wait_owned(seconds=READY_MAX_S, is_stopped=self.look)
        add_session_actors(self.supervisor, standbys, plan, config, place, out)  # now: their start would have kept the others from theirs
        self.phase = RUNNING
        self.cohorts = open_cohorts(plan, config, place.url, out)
        while not self.look() and not self.supervisor.faults():
            time.sleep(LOOK_EVERY_S)
            self.supervisor.poll()
            if self.cohorts is not None:
                self.cohorts.tick(self.supervisor)
        if not self.ear.is_orphan:
            self.close()

    def close(self) -> None:
        has_faults = bool(self.supervisor.faults())
        wait_s = FAULT_CLOSE_MAX_S if has_faults else CLOSE_MAX_S
        self.supervisor.settle()
        self._end(SESSION, wait_s, "the session actors did not close")
        totals = self.supervisor.results(SESSION)
        if self.cohorts is not None:
            self.cohorts.close(self.supervisor)
        for one in totals:
            one.detect = None
        self._end(COMMITTER, wait_s, "the lake's last commit did not end")
        self.result["totals"] = TOTALS.dump_python(totals, mode="json")
        self.phase = CLOSED

    def _end(self, kind: str, wait_s: float, what: str) -> None:
        has_faults = bool(self.supervisor.faults())
        self.supervisor.order(kind, "finish")
        is_closed = self.supervisor.wait_until(OVER, kind, seconds=wait_s, is_stopped=self._say_often(lambda: self.ear.is_orphan))
        if not is_closed and not has_faults and not self.supervisor.faults():
            self.result.setdefault("late", []).append(f"{what} within {wait_s:.0f} s")

    def _say_often(self, claim: Callable[[], bool]) -> Callable[[], bool]:
        def asked() -> bool:
            self.look()
            return claim()

        return asked


def _told(ward: Ward) -> dict[str, Any]:
    """What the judge needs to know of an actor."""
    status = ward.status
    names = ("pid", "incarnation", "turns", "alerts", "received", "received_of", "detect_p99_ms", "commits")
    owned = {"partitions": status.get("partitions", ()), "epochs": status.get("epochs", {})} if ward.kind == SESSION else {"partitions": ()}
    return {
        "kind": ward.kind, "name": ward.name, "state": ward.state, "is_down": ward.is_down, "is_lost": ward.is_lost, **owned,
        **{name: status[name] for name in names if name in status},
    }  # fmt: skip


def main(order_path: str) -> int:
    """Exit status 0 where everything was closed."""
    ear = Ear(order_path)
    order = ear.order
    config = load_config(Path(order["config"]) if order["config"] else None)
    work_dir = Path(order["out"]) / WORK_DIR
    with RayRuntime() as runtime:
        keeping = Keeping(order, ear, Mouth(work_dir, order["name"]), Supervisor(work_dir), str(runtime.temp_dir))
        try:
            keeping.keep(BenchPlan(**order["plan"]), config)
        except SupervisionError as error:
            keeping.result["error"] = str(error)
        except KeystoneError as error:
            keeping.result["error"] = f"the driver: {error}"
        keeping.phase = keeping.phase if keeping.phase == CLOSED else FAILED
        keeping.say()
        keeping.supervisor.stop()
    return 0 if keeping.phase == CLOSED else 1


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(status)  # nothing of Ray is waited for twice
