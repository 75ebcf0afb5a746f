"""Owns partitions of one log: takes them over, reads them, gives out what comes of them, saves them, lets go of them.

A turn visits each partition once: poll -> step -> alerts and dead letters handed over -> lake -> a checkpoint where one is due. What
is before a durable checkpoint is safe: its alerts are visible, its dead letters in their place, its rows in files that the
checkpoint names. Only then may the log forget it.

Who takes a partition over claims its epoch, which fences every earlier owner, and goes on where the newest checkpoint says: what
was done after that is done again, with the same results, under names that nobody else uses.

No Ray, no thread, no clock of its own: the session actor runs it, and so do the simulated schedules of the tests.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from keystone.actors.durable import Taken, is_worth_it
from keystone.actors.onward import Onward
from keystone.actors.outputs import Delivery, Output
from keystone.actors.owned import DEAF_S, Echo, Owned, PartitionTotals
from keystone.actors.story import StoryTap
from keystone.checkpoint import Checkpoint, Checkpoints, key_of
from keystone.clock import Clock, SystemClock
from keystone.config import Config
from keystone.decode import Decoder, Dictionaries
from keystone.errors import LogRecreated, LogUnreachable, OffsetOutOfRange, SinkBusy, StoreUnavailable
from keystone.events import EventBatch, Records
from keystone.log.base import Gap, Log
from keystone.logs import get
from keystone.mappings import Rooms
from keystone.pipeline import PartitionPipeline, StepResult
from keystone.sinks.lake_thread import Cut

POLL_BYTES_MAX: Final = 2 << 20  # ~8,000 events, ~6 ms of work: then it is the next partition's turn
TIMERS_EVERY_MS: Final = 10  # of a partition without new records; a look costs ~20 us
TRY_AGAIN_S: Final = 1.0  # to take over, where store or log did not answer
LATER: Final = (StoreUnavailable, LogUnreachable, SinkBusy)  # errors that say so
LATE_SHARE: Final = 0.5  # of the interval, by which a checkpoint may be late for those of other partitions

log = get(__name__)


class LakeOfOwner(Protocol):
    """What is asked of a lake's writer (``sinks.lake.LakeWriter``)."""

    def own(self, partition: int, epoch: int, log_number: int) -> None: ...
    def append(self, batch: EventBatch, dictionaries: Dictionaries) -> None: ...
    def end_step(self, now_ms: int) -> None: ...
    def cut(self, partition: int) -> Cut: ...
    def has_room(self) -> bool: ...


class Saving(Protocol):
    """What makes checkpoints durable (``durable.CheckpointThread``)."""

    def put(self, taken: Taken) -> None: ...
    def finished(self) -> Iterator[Taken]: ...
    def has_room(self) -> bool: ...
    def wait(self, wait_s: float) -> bool: ...


class Holding(Protocol):
    """What knows whether we still own (``leases.Leases``)."""

    def hold(self, key: str, epoch: int, since_s: float) -> None: ...
    def drop(self, key: str) -> None: ...
    def is_held(self, key: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """How partitions are owned.

    ``start_offsets``: where a partition without a checkpoint begins, 0 where it is not named. ``checkpoint_bytes``: of log, after
    which a checkpoint is due if time has not come before. ``takes_gaps``: what retention has dropped is counted and passed over,
    instead of ending everything. ``sessions_expected``: in one partition. ``lake_ends``: asks the lake where it ends, a second or more.
    """

    start_offsets: Mapping[int, int]
    checkpoint_bytes: int = 1 << 62
    takes_gaps: bool = False
    sessions_expected: int = 0
    lake_ends: Callable[[], Mapping[int, Echo]] | None = None


@dataclass(slots=True)
class Figures:
    """``pause_ms_max``: how long everything stood still for one checkpoint. ``takings``: partitions taken over, and how long that took."""

    checkpoints: int = 0
    checkpoint_bytes: int = 0
    pause_ms_max: float = 0.0
    takings: deque[dict[str, Any]] = None  # type: ignore[assignment]


class Owner:
    """One thread calls it. ``name`` tells people who claimed an epoch."""

    def __init__(
        self, name: str, config: Config, rules: Rules, source: Log, decoder: Decoder, checkpoints: Checkpoints, *,
        output: Output, saving: Saving, leases: Holding, lake: LakeOfOwner | None, has_side_files: bool = False,
        story: StoryTap | None = None, onward: Onward | None = None, clock: Clock | None = None, now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.owned: dict[int, Owned] = {}
        self.let_go: dict[int, int] = {}  # how often, of each partition that ever was
        self.figures = Figures(takings=deque(maxlen=1_000))
        self.last_append_ms = 0  # of all records read
        self.last_news_s = now_s()
        self._name, self._config, self._rules = name, config, rules
        self._log, self._decoder, self._checkpoints = source, decoder, checkpoints
        self._output, self._saving, self._leases, self._lake, self._story = output, saving, leases, lake, story
        self._onward = onward or Onward()
        self._has_side_files = has_side_files  # closed sessions and alerts are kept for them
        self._clock, self._now_s = clock or SystemClock(), now_s
        self._obey_again_s = self.last_news_s
        self._deliveries: deque[Owned] = deque()  # whose they are, in the order of sending
        self._rooms = Rooms()
        self._under_way = 0  # copies that are not durable yet

    # --- taking over and letting go -----------------------------------------------------------------------------------
    def take_over(self, partitions: Collection[int]) -> None:
        """Claim, then look where the last owner was: nobody else's checkpoint can become the newest after the claim.

        What is owned already stays, also where it was to be let go of: the last order counts. Raises one of
        ``LATER`` for the same again: what was taken by then is left out.
        """
        began_s = self._now_s()
        fresh = [partition for partition in partitions if partition not in self.owned]
        known = getattr(self._log, "partitions_now", lambda: self._log.partitions)()
        for partition in set(partitions).intersection(self.owned):
            self.owned[partition].is_leaving = False
        try:
            self._claim([partition for partition in fresh if partition < known])
            if fresh and max(fresh) >= known:  # gained: whoever gave it to us has heard of it before us
                raise LogUnreachable(f"{self._log.log_id}: nothing is known of partition {max(fresh)} yet")
        except LATER:
            for partition in set(fresh).difference(self.owned):
                self._leases.drop(key_of(partition))
            raise
        if fresh:
            self.figures.takings.append({"partitions": fresh, "ms": round((self._now_s() - began_s) * 1_000, 1)})

    def _claim(self, fresh: Iterable[int]) -> None:
        taken = {}
        for partition in fresh:
            key = key_of(partition)
            since_s = self._now_s()  # not after the claim: others may claim while we stand still there
            epoch = self._checkpoints.claim(key, self._name)
            self._leases.hold(key, epoch, since_s)
            taken[partition] = (epoch, self._checkpoints.latest(partition))
        self._output.own({p: epoch for p, (epoch, _) in taken.items()}, [{} if c is None else c.counters.get("outputs", {}) for _, c in taken.values()])
        for partition, (epoch, checkpoint) in taken.items():
            self.owned[partition] = self._open(partition, epoch, checkpoint)

    def _open(self, partition: int, epoch: int, checkpoint: Checkpoint | None) -> Owned:
        pipeline = PartitionPipeline(partition, self._decoder, self._config, sessions_expected=self._rules.sessions_expected)
        reader = self._log.reader(partition)
        start, log_id = self._rules.start_offsets.get(partition, 0), self._log.log_id
        owned = Owned(partition, epoch, reader, pipeline, PartitionTotals(), log_id, start, sessions_expected=self._rules.sessions_expected)
        pipeline.on_batch = self._batch_taker(owned)
        self._onward.own(partition, {})
        if checkpoint is not None:
            checkpoint.require_log(log_id)
            pipeline.restore(checkpoint.arrays)
            self._onward.own(partition, checkpoint.arrays)
            owned.totals = PartitionTotals.of(checkpoint)
            owned.first_offset = checkpoint.next_offset
            owned.segments, owned.committed = checkpoint.segments, checkpoint.committed
            owned.segment_sequence = 1 + max((s.sequence for s in checkpoint.segments), default=checkpoint.committed - 1)
            owned.outputs = checkpoint.counters.get("outputs", {})
            owned.log_number = checkpoint.counters.get("log_number", 0)
            if self._rules.lake_ends is not None and not self._checkpoints.is_newest(checkpoint):
                self._begin_echo(owned)
        if self._lake is not None:
            self._lake.own(partition, epoch, owned.log_number)
        self._place(owned)
        owned.due_s = self._now_s()
        owned.end_offset, owned.began_ms = owned.reader.end_offset(), self._clock.now_ms()
        return owned

    def _begin_echo(self, owned: Owned) -> None:
        """The newest checkpoint was damaged: what it had given to the lake may be committed already."""
        assert self._rules.lake_ends is not None  # noqa: S101 - asked before
        end = self._rules.lake_ends().get(owned.partition)
        if end is not None and end.next_sequence > owned.segment_sequence:
            owned.echo = end
            log.warning(
                "an older checkpoint is gone on from than the lake has segments of: they are not written again",
                partition=owned.partition, from_offset=owned.first_offset, to_offset=end.next_offset,
            )  # fmt: skip

    def _place(self, owned: Owned) -> None:
        """The reader where the partition's next record is, if it is still there."""
        wanted, first = owned.first_offset, owned.reader.start_offset()
        if first > wanted:
            self._checkpoints.check(key_of(owned.partition), owned.epoch)
            if not self._rules.takes_gaps:
                raise OffsetOutOfRange(f"partition {owned.partition}: the log retains offsets from {first:,} on, and its state ends at {wanted:,}")
            self._note_gap(owned, Gap(owned.partition, wanted, first - 1, "retention"))
        owned.reader.seek(max(wanted, first))

    def obey(self, orders: deque[tuple[str, Any]]) -> None:
        """Carry out what a supervisor told, in order: ("give", partitions), ("release", partitions), ("committed", by partition).

        What cannot be done while store, log or lake do not answer stays, with all that comes after it, for a later call.
        """
        while orders and self._now_s() >= self._obey_again_s:
            what, told = orders[0]
            try:
                {"give": self.take_over, "release": self.release, "committed": self.committed}[what](told)
            except LATER as error:
                log.warning("partitions cannot be taken over for now: trying again", partitions=told, reason=str(error))
                self._obey_again_s = self._now_s() + TRY_AGAIN_S
                return
            orders.popleft()

    def release(self, partitions: Iterable[int]) -> None:
        """A last checkpoint, then they are nobody's."""
        for partition in partitions:
            if partition in self.owned:
                self.owned[partition].is_leaving = True
                self.owned[partition].due_s = 0.0

    def _let_go(self, owned: Owned) -> None:
        del self.owned[owned.partition]
        self.let_go[owned.partition] = self.let_go.get(owned.partition, 0) + 1
        self._decoder.holders.discard(owned.pipeline.sessions)
        self._output.disown(owned.partition)
        self._onward.disown(owned.partition)
        self._leases.drop(key_of(owned.partition))
        owned.abandon()

    def _batch_taker(self, owned: Owned) -> Callable[[EventBatch, Dictionaries], None]:
        lake, story, onward = self._lake, self._story, self._onward

        def take(batch: EventBatch, dictionaries: Dictionaries) -> None:
            onward.take_events(batch, dictionaries)
            if lake is not None and owned.echo is None:
                lake.append(batch, dictionaries)
            elif lake is not None:
                owned.totals.lake_rows += batch.rows
            if story is not None:
                story.take(batch, dictionaries, owned.pipeline.sessions)

        return take

    # --- the loop ---------------------------------------------------------------------------------------------------
    def turn(self) -> tuple[int, int]:
        """Visit each partition once; bytes read, of the fullest one and of all."""
        began_s = self._now_s()
        most = total = 0
        for owned in list(self.owned.values()):
            if not self._leases.is_held(key_of(owned.partition)):
                continue
            self._send(owned)
            has_room = (self._lake is None or (self._lake.has_room() and self._saving.has_room())) and self._onward.has_room()
            read_bytes = 0 if owned.is_leaving or not has_room else self._visit(owned)
            most, total = max(most, read_bytes), total + read_bytes
            self._take_when_due(owned, began_s)
            owned.measure(began_s, self._config.balance.window_ms / 1_000)
        self._onward.end_turn()
        self.note_delivered()
        self.note_durable()
        if total:
            self.last_news_s = began_s
        return most, total

    def committed(self, behind: Mapping[int, int]) -> None:
        """What the lake has: by partition, the sequence behind its last segment."""
        for partition, sequence in behind.items():
            if partition in self.owned:
                self.owned[partition].is_committed(sequence)

    def _visit(self, owned: Owned) -> int:
        """Handle what one partition has; bytes read."""
        now_ms = self._clock.now_ms()
        try:
            records = owned.reader.poll(bytes_max=POLL_BYTES_MAX, wait_ms=0)
        except OffsetOutOfRange as error:
            if self._is_still_ours(owned):
                if not self._rules.takes_gaps:
                    raise
                self._pass_over(owned, error)
            return 0
        for gap in owned.reader.take_gaps():
            self._note_gap(owned, gap)
        if len(records) > 0:
            owned.timers_at_ms = now_ms + TIMERS_EVERY_MS
            self.last_append_ms = max(self.last_append_ms, int(records.append_ts_ms[-1]))
            if owned.echo is not None:
                echoed, records = records.split(owned.echo.next_offset)
                self._step(owned, echoed, None, now_ms)
                self._end_echo_when_over(owned, records, now_ms)
            self._step(owned, records, None, now_ms)
            owned.reader.processed(records.next_offset)
            owned.bytes_since += records.size_bytes
            return records.size_bytes
        if now_ms >= owned.timers_at_ms:
            owned.timers_at_ms = now_ms + TIMERS_EVERY_MS
            quiet_ms = owned.reader.quiet_until(now_ms)
            self._listen(owned, quiet_ms)
            self._step(owned, records, quiet_ms, now_ms)
        return 0

    def _end_echo_when_over(self, owned: Owned, left: Records, now_ms: int) -> None:
        """Let log time pass to where it was when the lake's last segment ended: what was due by then is in the lake as well."""
        echo = owned.echo
        if echo is not None and left.next_offset >= echo.next_offset:
            self._step(owned, Records.empty(owned.partition, echo.next_offset), echo.log_time_ms, now_ms)
            self._give_out(owned, owned.pipeline.settle(), has_records=False)
            owned.end_echo(echo)

    def _listen(self, owned: Owned, quiet_ms: int) -> None:
        """Silence counts only while the log itself says that it is silent."""
        now_s = self._now_s()
        if quiet_ms > owned.quiet_ms:
            owned.quiet_ms, owned.heard_s = quiet_ms, now_s
        elif now_s - owned.heard_s > DEAF_S:
            self.last_news_s = now_s

    def _step(self, owned: Owned, records: Records, now_ms: int | None, wall_ms: int) -> None:
        result = owned.pipeline.step(records, now_ms)
        if len(records):
            result.next_offset = records.next_offset
        self._give_out(owned, result, has_records=len(records) > 0)
        if self._lake is not None:
            self._lake.end_step(wall_ms)

    def _give_out(self, owned: Owned, result: StepResult, *, has_records: bool) -> None:
        # Alerts first: nobody waits for a Parquet page, somebody may for an alert.
        if result.alerts or result.dead_letters or has_records:
            owned.sent += 1
            owned.unsent.append(Delivery(owned.partition, result.next_offset, result.alerts, result.decoded_ms, result.alerted_ms, result.dead_letters))
            self._send(owned)
        owned.totals.count(result)
        self._onward.take(result, owned.pipeline.swept_ms)
        if self._has_side_files and (result.alerts or result.sessions):
            owned.keep(result)

    def _send(self, owned: Owned) -> None:
        """Say what there is to say, if the partition is still ours: milliseconds have passed since that was looked at, or we were frozen for minutes."""
        while owned.unsent and self._leases.is_held(key_of(owned.partition)):
            self._deliveries.append(owned)
            self._output.send(owned.unsent.popleft())

    def undelivered(self) -> int:
        """Deliveries that are not finished, those among them that were not given out."""
        return self._output.pending() + sum(len(owned.unsent) for owned in list(self.owned.values()))

    def note_delivered(self) -> None:
        """Count deliveries that are finished, and tell the story of their alerts."""
        for delivery in self._output.finished():
            owned = self._deliveries.popleft()
            owned.done += 1
            if self._story is not None and delivery.alerts:
                self._story.take_alerts(delivery.alerts, delivery.visible_ms)

    # --- checkpoints --------------------------------------------------------------------------------------------------
    def _take_when_due(self, owned: Owned, now_s: float) -> None:
        interval_s = self._config.checkpoint.interval_ms / 1_000
        is_urgent = owned.is_leaving or owned.bytes_since >= self._rules.checkpoint_bytes or now_s >= owned.due_s + LATE_SHARE * interval_s
        is_due = now_s >= owned.due_s or self._is_early(owned, now_s, interval_s)
        is_due = is_urgent or (is_due and not self._under_way)  # one after the other: copies share one room
        if owned.taken is None and is_due and owned.echo is None:
            self._take(owned)
            owned.due_s = now_s + interval_s
        owned.put_when_delivered(self._saving.put, self._onward.is_kept)

    def _is_early(self, owned: Owned, now_s: float, interval_s: float) -> bool:
        since_s, count = now_s - (owned.due_s - interval_s), len(self.owned)
        return is_worth_it(owned.bytes_since * count, since_s, owned.save_cpu_s * count, self._clock.now_ms() - owned.pipeline.log_time_ms)

    def _take(self, owned: Owned) -> None:
        self._give_out(owned, owned.pipeline.settle(), has_records=False)
        marks = self._output.marks()
        more = self._onward.snapshot(owned.partition)
        taken = owned.take(self._lake, owned.outputs if owned.is_catching_up else marks, self._rooms.take(), more)
        taken.mark = self._onward.mark()
        self._under_way += 1
        self.figures.pause_ms_max = max(self.figures.pause_ms_max, taken.pause_s * 1_000)

    def note_durable(self) -> None:
        for taken in self._saving.finished():
            self.figures.checkpoints += 1
            self.figures.checkpoint_bytes += taken.bytes
            self._rooms.give_back(taken.room)
            self._under_way -= 1
            owned = self.owned.get(taken.checkpoint.partition)
            if owned is None or owned.epoch != taken.checkpoint.epoch:
                continue
            owned.is_durable(taken)
            if owned.is_leaving and owned.is_saved:
                self._let_go(owned)
            elif owned.is_leaving:
                owned.due_s = 0.0

    # --- what a log may do under its reader ---------------------------------------------------------------------------
    def _is_still_ours(self, owned: Owned) -> bool:
        """Asked before records are missed: another owner may have let the log forget them. Raises ``Fenced`` then; False: nobody can say."""
        try:
            self._checkpoints.check(key_of(owned.partition), owned.epoch)
        except StoreUnavailable as error:
            log.warning("records are gone, and whether the partition is still owned cannot be looked up", partition=owned.partition, reason=str(error))
            return False
        return True

    def _pass_over(self, owned: Owned, error: OffsetOutOfRange) -> None:
        """Retention overtook us, or the log was made anew: go on at its beginning, and count what is gone."""
        position = owned.reader.position()
        try:
            start, end = owned.reader.start_offset(), owned.reader.end_offset()
            was_made_anew = isinstance(error, LogRecreated) or position > end
            if was_made_anew and not owned.is_saved:
                owned.due_s = 0.0  # offsets begin again, so what came before must be whole first; the next poll says the same again
                return
            owned.reader.seek(start)
        except LogUnreachable as unreachable:  # the next poll says the same again
            log.warning("records have to be passed over, and nobody answers for the log", partition=owned.partition, reason=str(unreachable))
            return
        owned.generation += 1
        if was_made_anew:
            owned.log_id, owned.first_offset, owned.log_number = self._log.log_id, start, owned.log_number + 1
            owned.end_offset = 0  # of the log as it was
            if self._lake is not None:
                self._lake.own(owned.partition, owned.epoch, owned.log_number)
        reason = "recreated" if was_made_anew else "retention"
        self._note_gap(owned, Gap(owned.partition, position, position if was_made_anew else start - 1, reason))

    def _note_gap(self, owned: Owned, gap: Gap) -> None:
        owned.totals.note_gap(gap)
        log.warning("records were passed over", partition=gap.partition, first_offset=gap.first_offset, last_offset=gap.last_offset, reason=gap.reason)

    # --- ending -------------------------------------------------------------------------------------------------------
    def save_all(self, wait_s: float) -> None:
        """Last checkpoints, so that the next run goes on from here. What has undelivered alerts keeps the one before."""
        until_s = self._now_s() + wait_s
        for _ in range(2):  # one may be under way that was taken before the last step
            for owned in list(self.owned.values()):
                self._saving.wait(max(0.0, until_s - self._now_s()))  # one after the other: they share one room
                self.note_durable()
                if owned.taken is None and not owned.is_saved:
                    self._take(owned)
                owned.put_when_delivered(self._saving.put, self._onward.is_kept)
        if not self._saving.wait(max(0.0, until_s - self._now_s())):
            log.warning("the last checkpoints could not be written: the next run begins where earlier ones end")
        self.note_durable()
