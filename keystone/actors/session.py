"""The session actor: a process around an ``Owner``. It owns the partitions that it is given; no Ray call is on their way."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from keystone.actors.cohort_desk import CohortDesk, Fetched
from keystone.actors.console_tap import ConsoleTap
from keystone.actors.durable import CheckpointThread, SideFiles
from keystone.actors.leases import Leases
from keystone.actors.loop import LoopActor
from keystone.actors.onward import Onward
from keystone.actors.outputs import Output, OutputSpec, open_output, rehearsed
from keystone.actors.owned import Echo, Owned, PartitionTotals
from keystone.actors.owner import Owner, Rules
from keystone.actors.story import StoryTap
from keystone.checkpoint import Checkpoints
from keystone.config import Config, LakeConfig
from keystone.decode import Decoder
from keystone.errors import Fenced, KeystoneError, LedgerError, UsageError
from keystone.events import Records
from keystone.log.base import Log
from keystone.log.opening import open_log
from keystone.logs import get
from keystone.pipeline import PartitionPipeline
from keystone.sinks.lake import LakeWriter
from keystone.sinks.lake_bucket import LakeBucket, Spool
from keystone.sinks.letters_limit import LettersLimit
from keystone.sinks.opening import Refusals, SinksSpec
from keystone.store import open_bucket, open_store

PAUSE_S = 0.005  # between turns where little comes in: what an event waits for a turn, at least
PAUSE_TURNS = 3.0  # ... and as often what the turn took: it costs milliseconds however few its events, so a loop takes a quarter of a core
PAUSE_MAX_S = 0.02  # ... at most, unless more is waiting already
IDLE_PAUSE_S = 0.02  # of one that stands by: orders wait that long
HALF_POLL_BYTES = 1 << 20  # of a partition in one turn: then more is waiting
COMMIT_UNDER_WAY_S = 5.0  # that may still end for an owner that was replaced; they take 0.1-1 s
NO_ROOM_WAIT_S = 2.0  # for room on a full disk, at the end
LAST_CHECKPOINTS_S = 60.0  # for those at the end
ROWS_KEPT_S = 3.0  # for rows of routes to be acknowledged or on disk, at the end
SINKS_CLOSE_S = 5.0  # for what receivers are to get before the end; the rest is on disk, for the next run

log = get(__name__)


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a session actor needs to know. Paths are strings: they travel.

    ``state``: URL of the store of checkpoints. ``partitions``: owned from the start; others are given later. ``start_offsets``: where a
    partition without a checkpoint begins (0 where it is not named). ``checkpoint_bytes``: of log after which a checkpoint is due, if
    time has not come before. ``takes_gaps``: what retention has dropped under the reader is counted and passed over, instead
    of ending the run. ``lake_url``: of a lake in a bucket; its files are written to a spool in ``lake_dir`` first.
    """

    name: str
    partitions: tuple[int, ...]
    log: str
    work_dir: str
    state: str
    lake_dir: str | None
    config: Config
    sessions_expected: int = 0  # active at once, in all partitions of the log
    partitions_expected: int = 1  # of the log
    output: OutputSpec = field(default_factory=OutputSpec)
    start_offsets: tuple[tuple[int, int], ...] = ()
    checkpoint_bytes: int = 1 << 62
    has_story: bool = False
    takes_gaps: bool = False
    lake_is_plain: bool = False
    lake_url: str | None = None
    patience_s: float = 0.0  # for log and store, while it is built
    sinks: SinksSpec | None = None
    tells_cohorts: bool = False


@dataclass(slots=True)
class SessionTotals:
    """What a session actor did. ``partitions``: of those that it owned at its end, since their first records.

    ``alerts detect`` (append to visible): of what this actor itself made visible. ``pauses_ms``: how long its loop stood still for checkpoints.
    """

    name: str
    partitions: dict[int, PartitionTotals] = field(default_factory=dict)
    next_offsets: dict[int, int] = field(default_factory=dict)
    segments: dict[int, int] = field(default_factory=dict)  # the sequence behind the last durable one that the lake must come to have
    alerts: int = 0
    sessions_active_max: int = 0
    state_bytes: int = 0
    letters_not_kept: dict[str, int] = field(default_factory=dict)  # by reason: counted in the ledger, and past ``dead_letters.bytes_max``
    undelivered: int = 0
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    pause_ms_max: float = 0.0
    checkpoint_cpu_s: float = 0.0
    loop_cpu_s: float = 0.0  # of the loop's thread alone: it has one core at most
    detect: Any = None  # LatencyHistogram
    routing: dict[str, Any] = field(default_factory=dict)  # sinks and routes, as they ended
    rows_left: int = 0  # of routes, neither delivered nor on disk


class SessionActor(LoopActor):
    """Owns what it is given, from where the newest checkpoint says."""

    def __init__(self, spec: SessionSpec) -> None:
        super().__init__(spec.name, spec.work_dir, spec.config.logs)
        self._spec = spec
        self._totals = SessionTotals(spec.name)
        self._orders: deque[tuple[str, Any]] = deque()
        self._log: Log
        self._output: Output
        self._letters_limit: LettersLimit
        self._leases: Leases
        self._saving: CheckpointThread
        self._owner: Owner | None = None
        self._lake: LakeWriter | None = None
        self._spool: Spool | None = None
        self._bucket: LakeBucket | None = None
        self._onward = Onward(CohortDesk() if spec.tells_cohorts and spec.config.cohorts.enabled else None)
        self._refusals: Refusals | None = None
        self._console = ConsoleTap()
        self._story = StoryTap(spec.config.detection.loop_threshold) if spec.has_story else None
        self._has_news = False  # since the last look: records were read

    # --- orders, by Ray calls --------------------------------------------------------------------------------------------
    def give(self, partitions: Sequence[int]) -> None:
        """Own these from now on."""
        self._orders.append(("give", tuple(partitions)))

    def release(self, partitions: Sequence[int]) -> None:
        """Save these, and let go of them: ``status`` shows when that is done."""
        self._orders.append(("release", tuple(partitions)))

    def committed(self, behind: dict[int, int]) -> None:
        """What the lake has: by partition, the sequence behind its last segment."""
        self._orders.append(("committed", behind))

    # --- building ---------------------------------------------------------------------------------------------------
    def _build(self) -> None:
        spec, config = self._spec, self._spec.config
        _rehearse(spec)
        checkpoints = self._patiently(self._open_checkpoints, spec.patience_s)
        decoder = Decoder(seed=self._patiently(checkpoints.seed, spec.patience_s))
        self._log = self._patiently(lambda: open_log(spec.log, config.kafka), spec.patience_s)
        self._output = self._patiently(self._open_output, spec.patience_s)
        lake_dir = self._open_lake()
        self._open_sinks()
        self._leases = Leases(checkpoints)
        side_files = SideFiles(lake_dir, is_synced=self._bucket is None) if lake_dir is not None else None
        self._saving = CheckpointThread(checkpoints, side_files, self._lake.check if self._lake is not None else _nothing, self._bucket)
        expected = spec.sessions_expected // spec.partitions_expected
        lake = spec.lake_url or spec.lake_dir
        ends = partial(_lake_ends, lake, config.lake, is_plain=spec.lake_is_plain) if lake is not None else None
        rules = Rules(dict(spec.start_offsets), spec.checkpoint_bytes, spec.takes_gaps, expected, ends)
        self._owner = Owner(
            f"{self.name}-{self._incarnation[:8]}", config, rules, self._log, decoder, checkpoints,
            output=self._output, saving=self._saving, leases=self._leases, lake=self._lake, has_side_files=side_files is not None, story=self._story,
            onward=self._onward,
        )  # fmt: skip
        self._owner.take_over(spec.partitions)

    def _open_sinks(self) -> None:
        spec = self._spec
        if spec.sinks is not None:
            from keystone.actors.routing import open_routing

            self._refusals = Refusals(Path(spec.sinks.refused), f"{self.name}-{self._incarnation[:8]}")
            role = f"{self.name}-{self._incarnation[:8]}"
            self._onward.routing = open_routing(spec.sinks, spec.config, role=role, refusals=self._refusals, console=self._console)

    def _open_lake(self) -> Path | None:
        """Where files are written: the lake, or a spool before it."""
        spec, config = self._spec, self._spec.config.lake
        if spec.lake_dir is None:
            return None
        lake_dir = Path(spec.lake_dir)
        if spec.lake_url is not None:
            objects = open_bucket(spec.lake_url)
            self._spool = Spool(lake_dir)
            lake_dir = self._spool.directory
            self._bucket = LakeBucket(objects, spec.lake_url, lake_dir, config.spool_bytes_max)
        self._lake = LakeWriter(lake_dir, config, is_table=True, on_file=self._bucket.begin if self._bucket is not None else None)
        return lake_dir

    def _open_checkpoints(self) -> Checkpoints:
        config = self._spec.config.checkpoint
        return Checkpoints(open_store(self._spec.state, fsync=config.fsync), keep=config.keep)

    def _note_fenced(self, error: Fenced) -> None:
        with suppress(KeystoneError):  # then nobody hears of it
            self._open_checkpoints().note_refused(f"{self.name}-{self._incarnation[:8]}", error, time.time_ns() // 1_000_000)

    def _open_output(self) -> Output:
        spec = self._spec
        self._letters_limit = LettersLimit(spec.config.dead_letters.bytes_max)
        output = open_output(spec.output, spec.config.kafka, name=self.name, work_dir=Path(spec.work_dir), limit=self._letters_limit)
        if spec.sinks is None or not spec.config.routes:
            return output
        from keystone.actors.filtered import FilteredActions
        from keystone.routes import ACTIONS
        from keystone.sinks.opening import routes_of

        some = [route for route in routes_of(spec.sinks, spec.config).to(ACTIONS) if not route.is_identity]
        return FilteredActions(output, some[0]) if some else output

    # --- the loop ---------------------------------------------------------------------------------------------------
    def _turn(self) -> float:
        assert self._owner is not None  # noqa: S101 - built
        began_s = time.monotonic()
        self._owner.obey(self._orders)
        most, total = self._owner.turn()
        self._has_news = total > 0
        if most >= HALF_POLL_BYTES:
            return 0.0
        if not self._owner.owned:
            return IDLE_PAUSE_S
        return min(max(PAUSE_S, PAUSE_TURNS * (time.monotonic() - began_s)), PAUSE_MAX_S)

    # --- ending -------------------------------------------------------------------------------------------------------
    def _is_over(self) -> bool:
        return self._finish_asked.is_set() and not self._has_news

    def _close(self) -> SessionTotals:
        totals, owner = self._totals, self._owner
        assert owner is not None  # noqa: S101 - built
        self._measure_state()
        self._output.flush()
        owner.note_delivered()
        totals.undelivered = owner.undelivered()
        if self._onward.routing is not None and not self._onward.routing.settle(ROWS_KEPT_S):
            log.warning("rows of routes are neither acknowledged nor on disk: the next run gives them again")
        owner.save_all(LAST_CHECKPOINTS_S if self._saving.has_room() and (self._lake is None or self._lake.has_room()) else NO_ROOM_WAIT_S)
        self._output.close()
        if self._lake is not None:
            self._lake.close()
        totals.partitions = {owned.partition: owned.totals for owned in owner.owned.values()}
        totals.next_offsets = {owned.partition: owned.reader.position() for owned in owner.owned.values()}
        totals.segments = {owned.partition: 1 + owned.segments[-1].sequence for owned in owner.owned.values() if owned.segments}
        totals.letters_not_kept = dict(self._letters_limit.not_kept)
        totals.alerts, totals.detect = self._output.alerts, self._output.detect
        totals.checkpoints, totals.checkpoint_bytes = owner.figures.checkpoints, owner.figures.checkpoint_bytes
        totals.pause_ms_max, totals.checkpoint_cpu_s = owner.figures.pause_ms_max, self._saving.cpu_seconds
        totals.loop_cpu_s = self._loop_cpu_s
        self._close_sinks(totals)
        self._leases.close()
        self._saving.close()
        if self._bucket is not None and self._spool is not None:
            self._bucket.close()
            self._spool.close()
        self._log.close()
        return totals

    def _close_sinks(self, totals: SessionTotals) -> None:
        routing = self._onward.routing
        if routing is not None and self._refusals is not None:
            totals.rows_left = routing.close(SINKS_CLOSE_S)
            totals.routing = routing.status()
            self._refusals.close()

    # --- asked ------------------------------------------------------------------------------------------------------
    def _told_once(self) -> dict[str, Any]:
        takings = self._owner.figures.takings if self._owner is not None else deque()
        return super()._told_once() | {"takings": [takings.popleft() for _ in range(len(takings))]}

    def _counters(self) -> dict[str, Any]:
        owner = self._owner
        if owner is None:
            return {}
        self._measure_state()
        let_go = dict(owner.let_go)  # before what is owned: what was let go of by then is not among it, unless it was taken over again
        owned = list(owner.owned.values())
        return {
            "alerts": self._output.alerts,
            "detect_p99_ms": self._output.detect.quantile(0.99),
            "sessions_active": self._totals.sessions_active_max,
            "sessions_now": sum(o.pipeline.sessions.active for o in owned),
            "state_bytes": self._totals.state_bytes,
            "partitions": [o.partition for o in owned],
            "let_go": let_go,
            "epochs": {o.partition: o.epoch for o in owned},
            "loads": {o.partition: load for o in owned if (load := o.load.events_per_s) is not None},
            "received": sum(o.totals.ledger.received for o in owned),
            "received_of": {o.partition: o.totals.ledger.received for o in owned},
            "dead_lettered": sum(o.totals.ledger.dead_lettered for o in owned),
            "lag_events": sum(getattr(o.reader, "lag_events", 0) for o in owned),
            "undelivered": owner.undelivered(),
            "unusual": sum(o.pipeline.sessions.unusual for o in owned),
            "quiet_ms": min((o.pipeline.log_time_ms for o in owned), default=0) - owner.last_append_ms,
            "silent_s": time.monotonic() - owner.last_news_s,
            "gaps": _gaps(owned),
            "checkpoints": owner.figures.checkpoints,
            "pause_ms_max": owner.figures.pause_ms_max,
            "log": self._log.metrics() if hasattr(self._log, "metrics") else {},
            "log_partitions": getattr(self._log, "partitions_now", lambda: self._log.partitions)(),
            "scenes": self._story.scenes if self._story is not None else 0,
            "told": self._story.told if self._story is not None else 0,
            "routing": self._onward.routing.status() if self._onward.routing is not None else {},
            "refused": self._refusals.count if self._refusals is not None else 0,
        }

    def cohorts(self, cursor: tuple[str, int] | None = None) -> Fetched | None:
        """What was counted of cohorts since ``cursor``; None where nobody was to ask."""
        return self._onward.desk.fetch(cursor) if self._onward.desk is not None else None

    def lines(self) -> list[bytes]:
        """Of routes to the console, since the last call."""
        return self._console.drain()

    def story(self) -> list[dict[str, Any]]:
        """What there is to show since the last call."""
        return self._story.drain() if self._story is not None else []

    def _measure_state(self) -> None:
        owned = list(self._owner.owned.values()) if self._owner is not None else []
        active = sum(o.pipeline.sessions.active for o in owned)
        self._totals.sessions_active_max = max(self._totals.sessions_active_max, active)
        self._totals.state_bytes = max(self._totals.state_bytes, sum(o.pipeline.sessions.state_bytes for o in owned))


def _gaps(owned: Iterable[Owned]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in owned:
        for reason, count in one.totals.gaps.items():
            found[reason] = found.get(reason, 0) + count
    return found


def _lake_ends(lake: str, config: LakeConfig, *, is_plain: bool) -> dict[int, Echo]:
    """Where each partition ends in the lake, once a commit that was under way is over. Nothing where it has no tables yet."""
    from keystone.sinks.iceberg.places import has_catalog
    from keystone.sinks.iceberg.tables import LakeTables

    if is_plain:
        raise UsageError("the newest checkpoint is damaged, and a lake of plain files does not tell what it has: begin anew with another --lake and --state")
    if not has_catalog(lake, config):
        return {}
    time.sleep(COMMIT_UNDER_WAY_S)
    tables = LakeTables.open(lake, config, is_made=False)
    try:
        return {partition: Echo(link.next_offset, link.next_sequence, link.log_time_ms) for partition, link in tables.committed().items()}
    finally:
        tables.close()


def _nothing() -> None:
    """There is no lake that could have failed."""


def _rehearse(spec: SessionSpec) -> None:
    """Take a small stream through everything once: the first use of a kernel or a library costs up to a second."""
    name = '"device_id":"d","session_id":"s"'
    kinds = ("Start", "Heartbeat", *["Buffer"] * spec.config.detection.loop_threshold, "Stop")
    lines = [f'{{"event":"{kind}","ts":{1_000 + i},"seq":{i},{name}}}'.encode() for i, kind in enumerate(kinds)]
    with tempfile.TemporaryDirectory(dir=spec.work_dir) as scratch:
        lake = LakeWriter(scratch, spec.config.lake, partitions=[0])
        decoder = Decoder()
        pipeline = PartitionPipeline(0, decoder, spec.config, on_batch=lake.append)
        result = pipeline.step(Records.of([*lines, b"{"]), None)
        decoder.compact_dictionaries()
        lake.end_step(0)
        lake.close()
        rehearsed(result.alerts, Path(scratch))
        if len(result.alerts) != 1 or len(result.dead_letters) != 1:
            raise LedgerError(f"the rehearsal gave {len(result.alerts)} alerts and {len(result.dead_letters)} dead letters, not one of each")
