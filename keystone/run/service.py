"""A run under way: session actors over every partition, watched until it is told to end, or has been idle."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol

from keystone.actors.cohort_sinks import CohortSinks, wants_cohorts
from keystone.actors.committer import CommitterActor, CommitterSpec
from keystone.actors.growth import Growth
from keystone.actors.loop import BUILD_PATIENCE_S, OVER
from keystone.actors.nodes import Placement, ask_nodes, counted
from keystone.actors.owned import PartitionTotals
from keystone.actors.runtime import RayRuntime
from keystone.actors.session import SessionActor, SessionSpec, SessionTotals
from keystone.actors.supervising import appoint
from keystone.actors.supervisor import SupervisionError, Supervisor, covers
from keystone.checkpoint import refused_in
from keystone.config import Config
from keystone.errors import UsageError
from keystone.log.url import EmbeddedUrl, LogUrl, open_embedded
from keystone.logs import get
from keystone.metrics import LatencyHistogram, Ledger
from keystone.routes import CONSOLE
from keystone.run.cluster import check_places, fitted, joined
from keystone.run.places import PARQUET, SPOOL, Places
from keystone.sinks.plain_lake import staging_of

LOOK_EVERY_S: Final = 0.25
READY_MAX_S: Final = 120.0
CLOSE_MAX_S: Final = 120.0
FIRST_RECORD_WAIT_S: Final = 30.0  # before anything came at all: whoever sends may still be starting
IDLE_MARGIN_MS: Final = 200  # of log time, beyond the open-stall limit
COMMIT_FIGURES: Final = ("commits", "segments", "files", "commit_ms", "lag_ms", "age_ms_max", "expired", "compacted")
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
    dead_letters_not_kept: dict[str, int] = field(default_factory=dict)  # by reason: of these, past ``dead_letters.bytes_max``
    gaps: dict[str, int] = field(default_factory=dict)
    gap_list: list[str] = field(default_factory=list)
    next_offsets: dict[int, int] = field(default_factory=dict)
    detect: LatencyHistogram = field(default_factory=LatencyHistogram)
    seconds: float = 0.0
    restarts: int = 0
    fenced_writes: int = 0
    recoveries: list[dict[str, Any]] = field(default_factory=list)  # partitions taken over after the start
    checkpoints: dict[str, Any] = field(default_factory=dict)
    commits: dict[str, Any] = field(default_factory=dict)  # of the lake, as the committer last told
    log_metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # by actor, as it last told
    routing: dict[str, Any] = field(default_factory=dict)  # by actor, sinks and rows by route, as they ended
    cohorts: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, totals: SessionTotals, before: Mapping[int, PartitionTotals]) -> None:
        """One actor's; what its partitions had come to ``before`` this run is not this run's."""
        for partition, one in totals.partitions.items():
            mine = since(one, before.get(partition, PartitionTotals()))
            self.ledger += replace(mine.ledger, lake_rows=mine.lake_rows)
            self.alerts += mine.alerts
            self.sessions += mine.sessions_closed
            self.session_rows += mine.session_rows
            self.gap_list += mine.gap_list
            for ours, theirs in ((self.dead_letters, mine.dead_letters), (self.gaps, mine.gaps)):
                for name, count in theirs.items():
                    ours[name] = ours.get(name, 0) + count
        for reason, count in totals.letters_not_kept.items():
            self.dead_letters_not_kept[reason] = self.dead_letters_not_kept.get(reason, 0) + count
        self.next_offsets |= totals.next_offsets
        self.checkpoints = {
            "count": self.checkpoints.get("count", 0) + totals.checkpoints,
            "bytes": self.checkpoints.get("bytes", 0) + totals.checkpoint_bytes,
            "pause_ms_max": max(self.checkpoints.get("pause_ms_max", 0.0), totals.pause_ms_max),
            "cpu_s": self.checkpoints.get("cpu_s", 0.0) + totals.checkpoint_cpu_s,
        }
        if totals.detect is not None:
            self.detect.merge(totals.detect)
        if totals.routing:
            self.routing[totals.name] = totals.routing
        if totals.rows_left:
            self.faults.append(f"{totals.name}: {totals.rows_left:,} rows for sinks are neither delivered nor on disk: the next run gives them again")
        if totals.undelivered:
            self.faults.append(f"{totals.name}: {totals.undelivered} deliveries were not acknowledged in time")


class Screen(Protocol):
    """Who shows a run to people (``screen.StoryScreen``), or keeps it for those who ask."""

    def say(self, line: str, style: str | None = None) -> None: ...
    def tell(self, scenes: list[dict[str, Any]]) -> None: ...
    def status(self, at_s: float, seen: dict[str, Any]) -> None: ...


class Service:
    """``run`` it once. ``is_stopped`` is asked a few times a second."""

    def __init__(
        self, places: Places, config: Config, *, session_actors: int | None, has_story: bool, until_idle_s: float | None, address: str | None = None
    ) -> None:
        self._places, self._config = places, config
        self._wanted = session_actors
        self._actors, self._standbys = 1, 0
        self._address = address
        self._placement = Placement()
        self._growth: Growth | None = None
        self._refused_before: set[str] = set()
        self._has_story = has_story
        self._until_idle_s = until_idle_s
        self._started_s = 0.0
        self._spec: SessionSpec
        self._rates: list[tuple[float, int, int, int]] = []  # (s, events, scenes, told)
        self._stories: dict[str, Any] = {}
        self._cohorts: CohortSinks | None = None
        self._has_console = any(route.sink == CONSOLE for route in config.routes)
        self._lines: dict[str, Any] = {}

    def run(self, screen: Screen, is_stopped: Callable[[], bool], on_ray: Callable[[], None] = lambda: None) -> RunResult:
        """Start, watch, end; the result. ``on_ray``: called when Ray has started (it takes signals over)."""
        work_dir = Path(tempfile.mkdtemp(prefix="keystone-run-"))
        # In a session of its own: Ctrl-C is ours, there it would end in a traceback.
        warming = subprocess.Popen([sys.executable, "-c", "from keystone.kernels import warm; warm()"], stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            with RayRuntime(work_dir, self._address):
                on_ray()
                self._placement = joined() if self._address is not None else Placement()
                check_places(places := self._places, self._config, self._placement)
                self._actors, self._standbys = fitted(self._wanted, places.partitions, self._config.checkpoint.standbys, self._placement)
                if _ended(warming, is_stopped) != 0:
                    raise UsageError("the kernels do not compile here: see the message above")
                if is_stopped():
                    return RunResult()
                return self._supervised(Supervisor(work_dir, self._placement), work_dir, screen, is_stopped)
        finally:
            if warming.poll() is None:
                warming.terminate()
                warming.wait()
            shutil.rmtree(work_dir, ignore_errors=True)

    def _supervised(self, supervisor: Supervisor, work_dir: Path, screen: Screen, is_stopped: Callable[[], bool]) -> RunResult:
        result, places = RunResult(), self._places
        try:
            self._build(supervisor, work_dir)
            standbys = range(self._actors, self._actors + self._standbys)
            appoint(supervisor, range(places.partitions), self._actors, later=map(_name, standbys), balance=self._config.balance)
            supervisor.wait_ready(seconds=READY_MAX_S, is_stopped=is_stopped)
            supervisor.wait_owned(seconds=READY_MAX_S, is_stopped=is_stopped)
            supervisor.recoveries.clear()
            self._started_s = time.monotonic()
            screen.say(self._headline())
            self._add_session_actors(supervisor, standbys)  # now: their start would have kept the others from theirs
            self._cohorts = self._open_cohorts()
            if self._wanted is None and not isinstance(places.log, EmbeddedUrl):
                self._growth = Growth(
                    partial(self._add_session_actors, supervisor), partial(check_places, places, self._config), _name,
                    self._actors, self._actors + self._standbys, places.partitions, self._standbys,
                )  # fmt: skip
            self._watch(supervisor, screen, is_stopped)
            self._end(supervisor, screen, result)
        except SupervisionError as error:
            result.faults.append(str(error))
        finally:
            result.seconds = time.monotonic() - self._started_s if self._started_s else 0.0
            supervisor.stop()
            if self._placement.is_spread:
                ask_nodes([node for node in self._placement.nodes if not node.is_ours], "remove", str(work_dir))
        return result

    def _headline(self) -> str:
        places = self._places
        lake = f", lake {places.lake}" if places.lake is not None else ""
        nodes = f" on {counted(len(self._placement.nodes), 'node')}" if self._placement.is_joined else ""
        index = f", index {places.sinks.elastic}" if places.sinks is not None and places.sinks.elastic is not None else ""
        actors = f"{counted(places.partitions, 'partition')}, {counted(self._actors, 'session actor')}{nodes}"
        return f"reading {places.log} ({actors}), actions to {places.actions}{lake}{index}"

    def _build(self, supervisor: Supervisor, work_dir: Path) -> None:
        places, config = self._places, self._config
        self._refused_before = refused_in(self._places.state)
        state = places.state or str(work_dir / "state")
        room = _room_of_a_partition(places.log)
        lake_dir = places.lake_dir if places.lake_dir is None or places.lake_format != PARQUET else staging_of(places.lake_dir)
        if places.home_dir is not None:
            lake_dir = places.home_dir / SPOOL
        self._spec = SessionSpec(
            "", (), str(places.log), str(work_dir), state, _text(lake_dir), config, output=places.output,
            start_offsets=tuple(places.start_offsets.items()), checkpoint_bytes=room // 2, has_story=self._has_story, takes_gaps=True,
            lake_is_plain=places.lake_format == PARQUET, lake_url=places.lake_url, patience_s=BUILD_PATIENCE_S,
            sinks=places.sinks, tells_cohorts=places.sinks is not None and wants_cohorts(config, places.sinks),
        )  # fmt: skip
        self._add_session_actors(supervisor, range(self._actors))
        if places.lake is not None:
            committing = CommitterSpec(places.lake, state, str(work_dir), config.lake, is_plain=places.lake_format == PARQUET, patience_s=BUILD_PATIENCE_S)
            supervisor.add("committer", "committer", "the lake's commits", CommitterActor, committing)

    def _open_cohorts(self) -> CohortSinks | None:
        sinks = self._places.sinks
        return CohortSinks(self._config, sinks, range(self._places.partitions)) if sinks is not None and self._spec.tells_cohorts else None

    def _add_session_actors(self, supervisor: Supervisor, numbers: Iterable[int]) -> None:
        for number in numbers:
            supervisor.add("session", _name(number), "nothing yet", SessionActor, replace(self._spec, name=_name(number)))

    # --- watching ---------------------------------------------------------------------------------------------------------
    def _watch(self, supervisor: Supervisor, screen: Screen, is_stopped: Callable[[], bool]) -> None:
        while not is_stopped() and not supervisor.faults():
            supervisor.poll()
            if self._growth is not None and (line := self._growth.tick(supervisor)) is not None:
                screen.say(line)
            self._pass_on(supervisor)
            self._tell(supervisor, screen)
            if self._cohorts is not None:
                self._cohorts.tick(supervisor)
            seen = self._seen(supervisor)
            screen.status(time.monotonic() - self._started_s, seen)
            if self._until_idle_s is not None and self._is_idle(supervisor, seen):
                return
            time.sleep(LOOK_EVERY_S)

    def _tell(self, supervisor: Supervisor, screen: Screen) -> None:
        """Fetch what there is to show, in order of time; waits for nobody."""
        if self._has_console:
            told = [lines for _, lines in supervisor.gather("session", "lines", self._lines)]
            for line in chain(*told, self._cohorts.console.drain() if self._cohorts is not None else ()):
                screen.say(line.decode("utf-8", "replace"))
        if not self._has_story:
            return
        scenes = supervisor.gather("session", "story", self._stories)
        screen.tell(sorted((scene for _, part in scenes for scene in part), key=lambda scene: scene["at_ms"]))

    @staticmethod
    def _pass_on(supervisor: Supervisor) -> None:
        """What actors warned of, and what became of them and their partitions, into this process's log."""
        while supervisor.warnings:
            name, line = supervisor.warnings.popleft()
            log.warning("an actor warns", actor=name, line=line)
        while supervisor.notes:
            log.warning("the supervisor says", note=supervisor.notes.pop(0))

    def _seen(self, supervisor: Supervisor) -> dict[str, Any]:
        statuses = [ward.status for ward in supervisor.of_kind("session") if ward.status and not ward.is_down and not ward.is_lost]
        owners = [status for status in statuses if status.get("partitions")]

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
            "silent_s": min((s.get("silent_s", 0.0) for s in owners), default=0.0),
            "unusual": total("unusual"),
            "received": total("received"),
            "quiet_ms": min((s.get("quiet_ms", 0) for s in owners), default=0),
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
        if not supervisor.is_owned() or seen["lag_events"] or seen["undelivered"]:
            return False
        if seen["unusual"] and seen["quiet_ms"] < self._config.detection.open_stall_ms + IDLE_MARGIN_MS:
            return False
        silent_s = min(seen["silent_s"], time.monotonic() - self._started_s)  # an actor was silent while it was built, too
        needed_s = self._until_idle_s or 0.0
        return bool(silent_s >= (needed_s if seen["received"] else max(needed_s, FIRST_RECORD_WAIT_S)))

    # --- ending -----------------------------------------------------------------------------------------------------------
    def _end(self, supervisor: Supervisor, screen: Screen, result: RunResult) -> None:
        result.faults += supervisor.faults()
        supervisor.settle()
        supervisor.order("session", "finish")
        if not supervisor.wait_until(OVER, "session", seconds=CLOSE_MAX_S) and not supervisor.faults():
            result.faults.append(f"the session actors did not close within {CLOSE_MAX_S:.0f} s")
        self._tell(supervisor, screen)
        self._pass_on(supervisor)
        self._end_cohorts(supervisor, result)
        before = {partition: PartitionTotals.of(head) for partition, head in self._places.before.items()}
        totals = supervisor.results("session")
        for one in totals:
            result.add(one, before)
        closed = {partition for one in totals for partition in one.partitions}
        if left := tuple(sorted(set(range(self._places.partitions)) - closed)):
            result.faults.append(f"{covers(left)}: lost with its owner as the run ended: the next run goes on where its last checkpoint is")
        self._end_commits(supervisor, result, totals)
        result.faults += [fault for fault in supervisor.faults() if fault not in result.faults]
        result.log_metrics = {ward.name: ward.status.get("log", {}) for ward in supervisor.of_kind("session")}
        result.restarts = sum(ward.restarts for ward in supervisor.of_kind("session"))
        result.fenced_writes, result.recoveries = (
            max(supervisor.fenced_writes, len(refused_in(self._places.state) - self._refused_before)),
            supervisor.recoveries,
        )
        if self._places.lake is not None:
            result.lake_rows = result.ledger.lake_rows

    def _end_cohorts(self, supervisor: Supervisor, result: RunResult) -> None:
        if self._cohorts is not None:
            left = self._cohorts.close(supervisor)
            result.cohorts = self._cohorts.status()
            if left:
                result.cohorts["left"] = left

    def _end_commits(self, supervisor: Supervisor, result: RunResult, totals: Sequence[SessionTotals]) -> None:
        """The committer ends last: it takes what the last checkpoints name."""
        if self._places.lake is None:
            return
        supervisor.order("committer", "finish")
        if not supervisor.wait_until(OVER, "committer", seconds=CLOSE_MAX_S) and not supervisor.faults():
            result.faults.append(f"the lake's last commit did not end within {CLOSE_MAX_S:.0f} s: the next run does it")
        for ward in supervisor.of_kind("committer"):
            result.commits = {name: ward.status.get(name) for name in COMMIT_FIGURES}
            result.fenced_writes += ward.status.get("fenced_writes", 0)
            committed = ward.status.get("committed", {})
            late = [p for one in totals for p, sequence in one.segments.items() if committed.get(p, 0) < sequence]
            if late and not ward.fault:
                result.faults.append(f"{covers(tuple(late))}: the last segments are not committed to the lake: the next run does it")


def since(now: PartitionTotals, before: PartitionTotals) -> PartitionTotals:
    """What was added to a partition's totals."""
    ledger = Ledger(*(getattr(now.ledger, f.name) - getattr(before.ledger, f.name) for f in fields(Ledger)))

    def more(counts: Mapping[str, int], earlier: Mapping[str, int]) -> dict[str, int]:
        return {name: count - earlier.get(name, 0) for name, count in counts.items() if count != earlier.get(name, 0)}

    return PartitionTotals(
        ledger, now.alerts - before.alerts, now.sessions_closed - before.sessions_closed, now.session_rows - before.session_rows,
        more(now.dead_letters, before.dead_letters), more(now.gaps, before.gaps), now.gap_list[len(before.gap_list) :], now.lake_rows - before.lake_rows,
    )  # fmt: skip


def _name(number: int) -> str:
    return f"session-{number}"


def _room_of_a_partition(log_url: LogUrl) -> int:
    """Bytes that a partition of an embedded log can hold; one of Kafka has no such end."""
    if not isinstance(log_url, EmbeddedUrl):
        return 1 << 62
    with closing(open_embedded(log_url, is_made=False)) as opened:
        return opened.retention_bytes


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
