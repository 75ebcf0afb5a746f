"""The session actor: the only loop from the log to the sinks. It owns partitions; no Ray call is on its way.

A turn visits each partition once: poll -> step -> alerts and dead letters handed over -> lake -> commit of what is delivered. Order
matters: a record is committed when its alerts are visible, its dead letters in their place, and its rows in the lake's hands.

After a death Ray starts the process anew and the state is gone. The new one reads its partitions again from where the run
began, if that is still there: files of its partitions are discarded, alerts already said are not said again.
Where retention has dropped the beginning, building fails and the run with it: a wrong state would be worse than none.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keystone.actors.loop import LoopActor
from keystone.actors.outputs import Delivery, Output, OutputSpec, open_output, rehearsed
from keystone.actors.story import StoryTap
from keystone.config import Config
from keystone.decode import Decoder, Dictionaries
from keystone.errors import LedgerError, LogRecreated, LogUnreachable, OffsetOutOfRange
from keystone.events import EventBatch, Records
from keystone.log.base import Gap, Log, LogReader
from keystone.log.opening import open_log
from keystone.logs import get
from keystone.metrics import Ledger
from keystone.pipeline import PartitionPipeline, StepResult
from keystone.session_records import SESSION_SCHEMA
from keystone.sinks.lake import LakeWriter
from keystone.sinks.session_file import SessionFiles

POLL_BYTES_MAX = 2 << 20  # ~8,000 events, ~6 ms of work: then it is the next partition's turn
PAUSE_S = 0.002  # between turns where little comes in: what an event waits for a turn, at most
BUSY_BYTES_PER_S = 32e6  # from ~100,000 events/s on, batches of ~1 MB cost 0.2 us an event less than those of 0.25 MB,
BUSY_PERIOD_S = 0.02  # ... and turns begin this far apart, unless more is waiting already
RATE_MEMORY_S = 0.5  # over which the rate is averaged
TIMERS_EVERY_MS = 10  # of a partition without new records; a look costs ~20 us
PARTITIONS_EVERY_S = 1.0  # between two looks for partitions that the log has gained
DEAF_S = 1.0  # without news of log time: nobody answers for the log, and that is no silence; it passes every 25-100 ms else
GAPS_KEPT_MAX = 100  # that are listed; all are counted

log = get(__name__)


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a session actor needs to know. Paths are strings: they travel.

    ``start_offsets``: (partition, offset) where the run begins; empty: at 0, and building fails where that is gone.
    ``share`` of ``shares``: partitions the log gains meanwhile belong to this actor by their number. ``takes_gaps``: what retention
    has dropped under the reader is counted and passed over, instead of ending the run. ``files``: what the names of files of session
    records and dead letters begin with; it is this run's alone, for opening removes what a dead predecessor wrote under it.
    """

    name: str
    partitions: tuple[int, ...]
    log: str
    work_dir: str
    lake_dir: str | None
    config: Config
    sessions_expected: int = 0  # active at once, of all its partitions
    output: OutputSpec = field(default_factory=OutputSpec)
    sessions_dir: str | None = None
    start_offsets: tuple[tuple[int, int], ...] = ()
    share: int = 0
    shares: int = 0  # 0: the partitions are fixed
    has_story: bool = False
    takes_gaps: bool = False
    closes_sessions: bool = False  # at the end: what is open is recorded as ``open``
    files: str = ""  # empty: ``name``


@dataclass(slots=True)
class Owned:
    """One partition and what handles it. ``deliveries``: offsets behind what was handed over, by delivery, not committed yet."""

    partition: int
    reader: LogReader
    pipeline: PartitionPipeline
    timers_at_ms: int = 0  # when timers of a silent partition are looked at again
    quiet_ms: int = 0  # how far log time may pass, as of the last look
    heard_s: float = 0.0  # when that last went on
    generation: int = 0  # of seeks: what was delivered before one is not committed after it


@dataclass(slots=True)
class SessionTotals:
    """What a session actor did. ``ledger`` by SPEC 5 names; ``dead_letters`` by reason; ``gaps``: offsets passed over, by reason."""

    name: str
    partitions: tuple[int, ...]
    ledger: dict[str, int] = field(default_factory=dict)
    alerts: int = 0
    sessions_closed: int = 0
    sessions_active_max: int = 0
    state_bytes: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    gap_list: list[str] = field(default_factory=list)
    session_rows: int = 0
    undelivered: int = 0
    next_offsets: dict[int, int] = field(default_factory=dict)
    detect: Any = None  # LatencyHistogram, append to visible


class SessionActor(LoopActor):
    """Owns ``spec.partitions`` from the run's first record on."""

    def __init__(self, spec: SessionSpec) -> None:
        super().__init__(spec.name, spec.work_dir, spec.config.logs)
        self._spec = spec
        self._owned: list[Owned] = []
        self._totals = SessionTotals(spec.name, spec.partitions)
        self._log: Log
        self._output: Output
        self._decoder: Decoder
        self._lake: LakeWriter | None = None
        self._sessions: SessionFiles | None = None
        self._story = StoryTap(spec.config.detection.loop_threshold) if spec.has_story else None
        self._ledger = Ledger()
        self._began_s = 0.0  # when the last turn did
        self._bytes_per_s = 0.0
        self._has_news = False  # since the last look: records were read
        self._last_news_s = time.monotonic()
        self._last_append_ms = 0  # of all records read
        self._looked_s = 0.0  # for new partitions
        self._commits: deque[tuple[Owned, int]] = deque()  # by delivery: whose, and of which generation

    # --- building ---------------------------------------------------------------------------------------------------
    def _build(self) -> None:
        spec = self._spec
        _rehearse(spec)
        work_dir = Path(spec.work_dir)
        self._log = self._open_log()
        partitions = sorted({*spec.partitions, *self._gained()})
        readers = {p: self._open_reader(p) for p in partitions}
        mark = work_dir / f"{self.name}.began"
        files = spec.files or self.name
        self._output = open_output(spec.output, spec.config.kafka, name=self.name, files=files, work_dir=work_dir, is_again=mark.exists())
        mark.touch()
        self._lake = self._open_lake(partitions)
        self._sessions = SessionFiles(spec.sessions_dir, files, SESSION_SCHEMA) if spec.sessions_dir is not None else None
        each = spec.sessions_expected // max(1, len(readers))
        self._decoder = Decoder()
        self._owned = [Owned(p, reader, self._open_pipeline(p, each)) for p, reader in readers.items()]

    def _open_log(self) -> Log:
        return open_log(self._spec.log, self._spec.config.kafka)

    def _open_reader(self, partition: int) -> LogReader:
        """A reader where the run began."""
        reader = self._log.reader(partition)
        wanted, first = dict(self._spec.start_offsets).get(partition, 0), reader.start_offset()
        if first > wanted:
            raise OffsetOutOfRange(f"partition {partition}: the log retains offsets from {first:,} on; the state before them died with its actor")
        if wanted:
            reader.seek(wanted)
        return reader

    def _gained(self) -> list[int]:
        """Partitions that are ours by their number; beyond ``spec.partitions``, a predecessor may have read them."""
        spec = self._spec
        return list(range(spec.share, getattr(self._log, "partitions_now", lambda: self._log.partitions)(), spec.shares)) if spec.shares else []

    def _open_lake(self, partitions: Sequence[int]) -> LakeWriter | None:
        """The lake, without whatever a dead predecessor wrote of our partitions since the run began: they begin anew."""
        if self._spec.lake_dir is None:
            return None
        lake = LakeWriter(self._spec.lake_dir, self._spec.config.lake, partitions=partitions)
        starts = dict(self._spec.start_offsets)
        for partition in partitions:
            lake.discard_partition(partition, from_offset=starts.get(partition, 0))
        return lake

    def _open_pipeline(self, partition: int, sessions_expected: int) -> PartitionPipeline:
        pipeline = PartitionPipeline(partition, self._decoder, self._spec.config, sessions_expected=sessions_expected)
        pipeline.on_batch = self._batch_taker(pipeline)
        return pipeline

    def _batch_taker(self, pipeline: PartitionPipeline) -> Callable[[EventBatch, Dictionaries], None]:
        lake, story = self._lake, self._story
        if story is None:
            return lake.append if lake is not None else _ignore

        def take(batch: EventBatch, dictionaries: Dictionaries) -> None:
            if lake is not None:
                lake.append(batch, dictionaries)
            story.take(batch, dictionaries, pipeline.sessions)

        return take

    # --- the loop ---------------------------------------------------------------------------------------------------
    def _turn(self) -> float:
        began_s = time.monotonic()
        most = total = 0
        for owned in self._owned:
            read_bytes = self._visit(owned)
            most, total = max(most, read_bytes), total + read_bytes
        self._commit_delivered()
        self._has_news = total > 0
        if total:
            self._last_news_s = began_s
        if self._spec.shares and began_s - self._looked_s > PARTITIONS_EVERY_S:
            self._look_for_partitions(began_s)
        since_s = began_s - self._began_s
        share = min(1.0, since_s / RATE_MEMORY_S)
        self._bytes_per_s += share * (total / max(since_s, 1e-6) - self._bytes_per_s)
        self._began_s = began_s
        if most >= POLL_BYTES_MAX // 2:
            return 0.0
        period_s = BUSY_PERIOD_S if self._bytes_per_s > BUSY_BYTES_PER_S else 0.0
        return max(PAUSE_S, period_s - (time.monotonic() - began_s))

    def _visit(self, owned: Owned) -> int:
        """Handle what one partition has; bytes read."""
        now_ms = int(time.time() * 1_000)
        try:
            records = owned.reader.poll(bytes_max=POLL_BYTES_MAX, wait_ms=0)
        except OffsetOutOfRange as error:
            if not self._spec.takes_gaps:
                raise
            self._pass_over(owned, error)
            return 0
        for gap in owned.reader.take_gaps():
            self._note_gap(gap)
        if len(records) > 0:
            owned.timers_at_ms = now_ms + TIMERS_EVERY_MS
            self._last_append_ms = max(self._last_append_ms, int(records.append_ts_ms[-1]))
            self._step(owned, records, None, now_ms)
            owned.reader.processed(records.next_offset)
            return records.size_bytes
        if now_ms >= owned.timers_at_ms:
            owned.timers_at_ms = now_ms + TIMERS_EVERY_MS
            quiet_ms = owned.reader.quiet_until(now_ms)
            self._listen(owned, quiet_ms)
            self._step(owned, records, quiet_ms, now_ms)
        return 0

    def _listen(self, owned: Owned, quiet_ms: int) -> None:
        """Silence counts only while the log itself says that it is silent."""
        now_s = time.monotonic()
        if quiet_ms > owned.quiet_ms:
            owned.quiet_ms, owned.heard_s = quiet_ms, now_s
        elif now_s - owned.heard_s > DEAF_S:
            self._last_news_s = now_s

    def _step(self, owned: Owned, records: Records, now_ms: int | None, wall_ms: int) -> None:
        result = owned.pipeline.step(records, now_ms)
        # Alerts first: nobody waits for a Parquet page, somebody may for an alert.
        if result.alerts or result.dead_letters or len(records):
            self._commits.append((owned, owned.generation))
            self._output.send(Delivery(owned.partition, records.next_offset, result.alerts, result.decoded_ms, result.alerted_ms, result.dead_letters))
        if self._lake is not None:
            self._lake.end_step(wall_ms)
        self._count(result)

    def _count(self, result: StepResult) -> None:
        totals = self._totals
        self._ledger += result.ledger
        for closed in result.sessions:
            totals.sessions_closed += closed.rows
            if self._sessions is not None:
                self._sessions.write(closed)
        if self._sessions is not None:
            self._sessions.roll()
        for letter in result.dead_letters:
            totals.dead_letters[letter.reason] = totals.dead_letters.get(letter.reason, 0) + 1

    def _commit_delivered(self) -> None:
        """Commit offsets up to the last delivery that is finished, and tell the story of its alerts."""
        for delivery in self._output.finished():
            owned, generation = self._commits.popleft()
            if generation == owned.generation:
                owned.reader.commit(delivery.next_offset)
            if self._story is not None and delivery.alerts:
                self._story.take_alerts(delivery.alerts, delivery.visible_ms)

    # --- what a log may do under its reader ---------------------------------------------------------------------------
    def _pass_over(self, owned: Owned, error: OffsetOutOfRange) -> None:
        """Retention overtook us, or the topic was made anew: go on at its beginning, and count what is gone."""
        position = owned.reader.position()
        was_made_anew = isinstance(error, LogRecreated)
        try:
            start, end = owned.reader.start_offset(), owned.reader.end_offset()
            was_made_anew |= position > end
            if was_made_anew and self._lake is not None:
                self._lake.flush()  # offsets begin again: no file may span both
            owned.reader.seek(start)
        except LogUnreachable as unreachable:  # the next poll says the same again
            log.warning("records have to be passed over, and nobody answers for the log", partition=owned.partition, reason=str(unreachable))
            return
        owned.generation += 1
        reason = "recreated" if was_made_anew else "retention"
        self._note_gap(Gap(owned.partition, position, position if was_made_anew else start - 1, reason))

    def _note_gap(self, gap: Gap) -> None:
        totals = self._totals
        totals.gaps[gap.reason] = totals.gaps.get(gap.reason, 0) + gap.last_offset - gap.first_offset + 1
        if len(totals.gap_list) < GAPS_KEPT_MAX:
            totals.gap_list.append(str(gap))
        log.warning("records were passed over", partition=gap.partition, first_offset=gap.first_offset, last_offset=gap.last_offset, reason=gap.reason)

    def _look_for_partitions(self, now_s: float) -> None:
        """Own the partitions that the topic has gained and that are ours by their number, from their first record on."""
        self._looked_s = now_s
        known = {owned.partition for owned in self._owned}
        for partition in self._gained():
            if partition not in known:
                try:
                    reader = self._log.reader(partition)
                except LogUnreachable:  # it has no leader yet
                    return
                log.warning("the topic has gained a partition: devices move, and their open sessions end by timeout", partition=partition)
                self._owned.append(Owned(partition, reader, self._open_pipeline(partition, 0)))

    # --- ending -------------------------------------------------------------------------------------------------------
    def _is_over(self) -> bool:
        return self._finish_asked.is_set() and not self._has_news

    def _close(self) -> SessionTotals:
        totals = self._totals
        self._measure_state()
        if self._spec.closes_sessions:
            for owned in self._owned:
                self._count(owned.pipeline.finish())
        totals.undelivered = 0 if self._output.close() else self._output.pending()
        self._commit_delivered()
        if self._lake is not None:
            self._ledger += Ledger(lake_rows=self._lake.close())
        if self._sessions is not None:
            totals.session_rows = self._sessions.close()
        totals.partitions = tuple(owned.partition for owned in self._owned)
        totals.next_offsets = {owned.partition: owned.reader.position() for owned in self._owned}
        totals.ledger = asdict(self._ledger)
        totals.alerts, totals.detect = self._output.alerts, self._output.detect
        self._log.close()
        return totals

    # --- asked ------------------------------------------------------------------------------------------------------
    def _counters(self) -> dict[str, Any]:
        self._measure_state()
        owned = list(self._owned)
        alerts, detect_p99_ms = (self._output.alerts, self._output.detect.quantile(0.99)) if owned else (0, None)
        return {
            "alerts": alerts,
            "detect_p99_ms": detect_p99_ms,
            "sessions_active": self._totals.sessions_active_max,
            "sessions_now": sum(o.pipeline.sessions.active for o in owned),
            "state_bytes": self._totals.state_bytes,
            "partitions": [o.partition for o in owned],
            "received": self._ledger.received,
            "dead_lettered": self._ledger.dead_lettered,
            "lag_events": sum(getattr(o.reader, "lag_events", 0) for o in owned),
            "undelivered": self._output.pending() if owned else 0,
            "unusual": sum(o.pipeline.sessions.unusual for o in owned),
            "quiet_ms": min((o.pipeline.log_time_ms for o in owned), default=0) - self._last_append_ms,
            "silent_s": time.monotonic() - self._last_news_s,
            "gaps": dict(self._totals.gaps),
            "log": self._log.metrics() if owned and hasattr(self._log, "metrics") else {},
            "scenes": self._story.scenes if self._story is not None else 0,
            "told": self._story.told if self._story is not None else 0,
        }

    def story(self) -> list[dict[str, Any]]:
        """What there is to show since the last call."""
        return self._story.drain() if self._story is not None else []

    def _measure_state(self) -> None:
        owned = list(self._owned)
        active = sum(o.pipeline.sessions.active for o in owned)
        self._totals.sessions_active_max = max(self._totals.sessions_active_max, active)
        self._totals.state_bytes = max(self._totals.state_bytes, sum(o.pipeline.sessions.state_bytes for o in owned))


def _ignore(batch: EventBatch, dictionaries: Dictionaries) -> None:
    """No one wants the events."""


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
