"""A run under way: session actors over every partition, watched until it is told to end, or has been idle."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keystone.actors.loop import OVER
from keystone.actors.runtime import RayRuntime
from keystone.actors.session import SessionActor, SessionSpec, SessionTotals
from keystone.actors.supervisor import SupervisionError, Supervisor, covers, shares
from keystone.config import Config
from keystone.errors import UsageError
from keystone.log.url import EmbeddedUrl, open_embedded
from keystone.logs import get
from keystone.metrics import LatencyHistogram, Ledger
from keystone.run.places import Places
from keystone.run.screen import StoryScreen

LOOK_EVERY_S: Final = 0.25
READY_MAX_S: Final = 120.0
CLOSE_MAX_S: Final = 120.0
FIRST_RECORD_WAIT_S: Final = 30.0  # before anything came at all: whoever sends may still be starting
IDLE_MARGIN_MS: Final = 200  # of log time, beyond the open-stall limit
RATE_OVER_S: Final = 2.0  # what "a second" is averaged over

log = get(__name__)


@dataclass(slots=True)
class RunResult:
    """What a run did, of the actors that ended well. ``faults``: lines that each make the run a failure."""

    ledger: Ledger = field(default_factory=Ledger)
    alerts: int = 0
    sessions: int = 0
    session_rows: int = 0
    lake_rows: int | None = None
    dead_letters: dict[str, int] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    gap_list: list[str] = field(default_factory=list)
    next_offsets: dict[int, int] = field(default_factory=dict)
    detect: LatencyHistogram = field(default_factory=LatencyHistogram)
    seconds: float = 0.0
    restarts: int = 0
    log_metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # by actor, as it last told
    faults: list[str] = field(default_factory=list)

    def add(self, totals: SessionTotals) -> None:
        """One actor's."""
        self.ledger += Ledger(**totals.ledger)
        self.alerts += totals.alerts
        self.sessions += totals.sessions_closed
        self.session_rows += totals.session_rows
        self.next_offsets |= totals.next_offsets
        self.gap_list += totals.gap_list
        for ours, theirs in ((self.dead_letters, totals.dead_letters), (self.gaps, totals.gaps)):
            for name, count in theirs.items():
                ours[name] = ours.get(name, 0) + count
        if totals.detect is not None:
            self.detect.merge(totals.detect)
        if totals.undelivered:
            self.faults.append(f"{totals.name}: {totals.undelivered} deliveries were not acknowledged in time")


class Service:
    """``run`` it once. ``is_stopped`` is asked a few times a second."""

    def __init__(self, places: Places, config: Config, *, session_actors: int, has_story: bool, until_idle_s: float | None) -> None:
        self._places, self._config = places, config
        self._actors = session_actors
        self._has_story = has_story
        self._until_idle_s = until_idle_s
        self._started_s = 0.0
        self._rates: list[tuple[float, int, int, int]] = []  # (s, events, scenes, told)
        self._stories: dict[str, Any] = {}

    def run(self, screen: StoryScreen, is_stopped: Callable[[], bool], on_ray: Callable[[], None] = lambda: None) -> RunResult:
        """Start, watch, end; the result. ``on_ray``: called when Ray has started (it takes signals over)."""
        work_dir = Path(tempfile.mkdtemp(prefix="keystone-run-"))
        # In a session of its own: Ctrl-C is ours, there it would end in a traceback.
        warming = subprocess.Popen([sys.executable, "-c", "from keystone.kernels import warm; warm()"], stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            with RayRuntime():
                on_ray()
                if _ended(warming, is_stopped) != 0:
                    raise UsageError("the kernels do not compile here: see the message above")
                if is_stopped():
                    return RunResult()
                return self._supervised(Supervisor(work_dir), work_dir, screen, is_stopped)
        finally:
            if warming.poll() is None:
                warming.terminate()
                warming.wait()
            shutil.rmtree(work_dir, ignore_errors=True)

    def _supervised(self, supervisor: Supervisor, work_dir: Path, screen: StoryScreen, is_stopped: Callable[[], bool]) -> RunResult:
        result = RunResult()
        try:
            self._build(supervisor, work_dir)
            supervisor.wait_ready(seconds=READY_MAX_S, is_stopped=is_stopped)
            self._started_s = time.monotonic()
            screen.say(self._headline())
            self._watch(supervisor, screen, is_stopped)
            self._end(supervisor, screen, result)
        except SupervisionError as error:
            result.faults.append(str(error))
        finally:
            result.seconds = time.monotonic() - self._started_s if self._started_s else 0.0
            supervisor.stop()
        return result

    def _headline(self) -> str:
        places = self._places
        lake = f", lake {places.lake_dir}" if places.lake_dir is not None else ""
        return f"reading {places.log} ({places.partitions} partitions, {self._actors} session actors), actions to {places.actions}{lake}"

    def _build(self, supervisor: Supervisor, work_dir: Path) -> None:
        places = self._places
        run = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
        for index, own in enumerate(shares(places.partitions, self._actors)):
            spec = SessionSpec(
                f"session-{index}", own, str(places.log), str(work_dir), _text(places.lake_dir), self._config,
                output=places.output, sessions_dir=_text(places.sessions_dir),
                start_offsets=tuple((p, places.start_offsets[p]) for p in own),
                share=index, shares=self._actors, has_story=self._has_story, takes_gaps=True, closes_sessions=True,
                files=f"{run}-session-{index}",
            )  # fmt: skip
            supervisor.add("session", spec.name, covers(own), SessionActor, spec)

    # --- watching ---------------------------------------------------------------------------------------------------------
    def _watch(self, supervisor: Supervisor, screen: StoryScreen, is_stopped: Callable[[], bool]) -> None:
        while not is_stopped() and not supervisor.faults():
            supervisor.poll()
            self._pass_on(supervisor)
            self._tell(supervisor, screen)
            seen = self._seen(supervisor)
            screen.status(time.monotonic() - self._started_s, seen)
            if self._until_idle_s is not None and self._is_idle(supervisor, seen):
                return
            time.sleep(LOOK_EVERY_S)

    def _tell(self, supervisor: Supervisor, screen: StoryScreen) -> None:
        """Fetch what there is to show, in order of time; waits for nobody."""
        if not self._has_story:
            return
        scenes = supervisor.gather("session", "story", self._stories)
        screen.tell(sorted((scene for part in scenes for scene in part), key=lambda scene: scene["at_ms"]))

    @staticmethod
    def _pass_on(supervisor: Supervisor) -> None:
        """What actors warned of, and that they were restarted, into this process's log."""
        while supervisor.warnings:
            name, line = supervisor.warnings.popleft()
            log.warning("an actor warns", actor=name, line=line)
        while supervisor.notes:
            log.warning("an actor was restarted", note=supervisor.notes.pop(0))

    def _seen(self, supervisor: Supervisor) -> dict[str, Any]:
        statuses = [ward.status for ward in supervisor.of_kind("session") if ward.status]

        def total(name: str) -> int:
            return sum(status.get(name, 0) for status in statuses)

        now_s = time.monotonic()
        self._rates.append((now_s, total("received"), total("scenes"), total("told")))
        while len(self._rates) > 2 and now_s - self._rates[1][0] > RATE_OVER_S:
            self._rates.pop(0)
        first, last = self._rates[0], self._rates[-1]
        since_s = max(last[0] - first[0], 1e-3)
        events, scenes, told = (max(0.0, (last[i] - first[i]) / since_s) for i in (1, 2, 3))
        return {
            "events_per_s": events,
            "scenes_per_s": scenes,
            "told_per_s": told,
            "sessions": total("sessions_now"),
            "alerts": total("alerts"),
            "dead_lettered": total("dead_lettered"),
            "detect_p99_ms": max((s["detect_p99_ms"] for s in statuses if s.get("detect_p99_ms") is not None), default=None),
            "lag_events": self._lag(total("lag_events")),
            "undelivered": total("undelivered"),
            "silent_s": min((s.get("silent_s", 0.0) for s in statuses), default=0.0),
            "unusual": total("unusual"),
            "received": total("received"),
            "quiet_ms": min((s.get("quiet_ms", 0) for s in statuses), default=0),
            "answered": len(statuses),
        }

    def _lag(self, told: int) -> int:
        """Events behind: by the session actors, or by the embedded log's own counters."""
        log_url = self._places.log
        if not isinstance(log_url, EmbeddedUrl):
            return told
        with closing(open_embedded(log_url, is_made=False)) as opened:
            return sum(opened.lag(p) for p in range(opened.partitions))

    def _is_idle(self, supervisor: Supervisor, seen: dict[str, Any]) -> bool:
        """Nothing came for long enough, everything is delivered, and no stall is open that could still become an alert."""
        if seen["answered"] < len(supervisor.of_kind("session")) or seen["lag_events"] or seen["undelivered"]:
            return False
        if seen["unusual"] and seen["quiet_ms"] < self._config.detection.open_stall_ms + IDLE_MARGIN_MS:
            return False
        silent_s = min(seen["silent_s"], time.monotonic() - self._started_s)  # an actor was silent while it was built, too
        needed_s = self._until_idle_s or 0.0
        return bool(silent_s >= (needed_s if seen["received"] else max(needed_s, FIRST_RECORD_WAIT_S)))

    # --- ending -----------------------------------------------------------------------------------------------------------
    def _end(self, supervisor: Supervisor, screen: StoryScreen, result: RunResult) -> None:
        result.faults += supervisor.faults()
        supervisor.order("session", "finish")
        if not supervisor.wait_until(OVER, "session", seconds=CLOSE_MAX_S) and not supervisor.faults():
            result.faults.append(f"the session actors did not close within {CLOSE_MAX_S:.0f} s")
        self._tell(supervisor, screen)
        self._pass_on(supervisor)
        for totals in supervisor.results("session"):
            result.add(totals)
        result.faults += [fault for fault in supervisor.faults() if fault not in result.faults]
        result.log_metrics = {ward.name: ward.status.get("log", {}) for ward in supervisor.of_kind("session")}
        result.restarts = sum(ward.restarts for ward in supervisor.of_kind("session"))
        if self._places.lake_dir is not None:
            result.lake_rows = result.ledger.lake_rows


def _ended(process: subprocess.Popen[bytes], is_stopped: Callable[[], bool]) -> int:
    """The exit status of a process, or 0 where the run is told to end first."""
    while process.poll() is None:
        if is_stopped():
            return 0
        time.sleep(0.05)
    return process.returncode


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def failures(result: RunResult) -> list[str]:
    """Every reason why the run is not right: sums that do not balance, records that were passed over, faults."""
    found = list(result.faults) + result.ledger.failures(has_lake=result.lake_rows is not None)
    if result.gaps:
        found.append("records were passed over: " + "; ".join(result.gap_list[:3]))
    return found
