"""What a sink does next, decided from what it holds and the time: pure, one lane for each kind, one circuit for the receiver.

Who drives it (``keystone.sinks.shell``) asks ``next_send`` for each kind, and ``next_keep`` for the disk, does as told, and says how it
ended. Every row offered ends in exactly one place: acknowledged, refused, dropped (by reason), in memory, or on disk (``failures``).
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from keystone.config import SinksConfig
from keystone.errors import SinkBusy
from keystone.sinks.base import ALERTS, DROP_QUEUE_FULL, DROP_SPILL_FULL, DROP_TOO_OLD, KINDS, Answer, Document, Outcome, Rows
from keystone.sinks.circuit import Backoff, Circuit, State
from keystone.sinks.lanes import HELD_BYTES, Held, Lane, Offered, Segment, Slice
from keystone.sinks.steps import Delete, Encode, Load, Merge, Send, Wait, Write

ENCODE_ROWS_MAX: Final = 1_000  # at once: 8 ms for alerts, 22 for sessions with long strings; outside of the lock
PROBE_ITEMS_MAX: Final = 100  # of the try that closes a circuit: a weak receiver is not met with a full batch
SPILL_AGAIN_MS: Final = 5_000  # after a write that failed: a full disk is not asked more often
_EVERY_OFFER: Final = 1 << 62


class Outbox:
    """All calls under one lock. ``kinds``: those that are offered, each with a lane. ``has_spill``: whether there is a disk to write to."""

    def __init__(self, config: SinksConfig, *, has_spill: bool, kinds: Sequence[str] = KINDS, draw: Callable[[], float] = random.random) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()  # offered acknowledged refused retried spilled replayed damaged spill_errors
        self.dropped: Counter[tuple[str, str]] = Counter()  # (kind, reason)
        lingers_ms = {kind: config.alert_linger_ms if kind == ALERTS else config.linger_ms for kind in kinds}
        self.lanes = {kind: Lane(kind, kind not in config.may_drop, linger_ms) for kind, linger_ms in lingers_ms.items()}
        self.backoff = Backoff(config.retry_first_ms, config.retry_max_ms, draw)
        self.circuit = Circuit(config.open_after_failures, self.backoff)
        self.spill_bytes = 0
        self.is_flushing = False
        # A quarter of the queue, each document being more than HELD_BYTES: a file that were half of it would be unloaded as soon as it is loaded.
        self._file_bytes_max = min(config.spill_file_bytes, config.queue_bytes_max // 4, config.queue_items_max // 4 * HELD_BYTES)
        self._has_spill = has_spill
        self._spill_resume_ms = 0
        self._load_resume_ms = 0
        self._offers = 0
        self._open: dict[int, int] = {}  # offer -> rows only in memory, in the order of offers
        self._deletions: deque[Delete] = deque()
        self._mark, self._mark_by_ms = 0, 0

    # --- for the caller ---------------------------------------------------------------------------------------------------
    def has_room(self) -> bool:
        return not any(lane.is_kept and self._is_full(lane) for lane in self.lanes.values())

    def offer(self, rows: Sequence[Rows], now_ms: int) -> None:
        """Everything, or ``SinkBusy`` and nothing. Rows of kinds that may be dropped push out the oldest of their kind."""
        full = [one.kind for one in rows if self.lanes[one.kind].is_kept and self._is_full(self.lanes[one.kind])]
        if full:
            raise SinkBusy(f"no room for {full[0]}: the queue is full, and so is the spill, or there is none")
        self._offers += 1
        for one in rows:
            lane = self.lanes[one.kind]
            lane.take_in(Offered(self._offers, one, now_ms))
            self.counts["offered"] += one.rows
            self._open[self._offers] = self._open.get(self._offers, 0) + one.rows
            if not lane.is_kept and self._is_full(lane):
                self._shrink(lane)

    def mark(self, now_ms: int) -> int:
        """What was offered so far is acknowledged within ``mark_wait_ms``, or goes to disk then."""
        by_ms = now_ms + self.config.mark_wait_ms
        self._mark_by_ms = min(self._mark_by_ms, by_ms) if self._mark > self.kept() else by_ms
        self._mark = self._offers
        return self._offers

    def kept(self) -> int:
        """The last offer of which, and of all before it, nothing is only in memory."""
        return next(iter(self._open), self._offers + 1) - 1

    def is_empty(self) -> bool:
        """The receiver has everything."""
        return not self._open and not any(lane.items or lane.segments for lane in self.lanes.values())

    def has_deletions(self) -> bool:
        """Files whose documents are all judged are still there: sent again after the next start, were it now."""
        return bool(self._deletions)

    def only_in_memory(self) -> int:
        """Rows that a crash now would take."""
        return sum(self._open.values())

    # --- for a sender -----------------------------------------------------------------------------------------------------
    def next_send(self, kind: str, now_ms: int) -> Encode | Load | Send | Wait:
        lane = self.lanes[kind]
        if (hindrance := self._hindrance(lane, now_ms)) is not None:
            return hindrance
        due_ms = self._due_ms(lane, now_ms)
        stored = lane.stored() if now_ms >= self._load_resume_ms else None
        if stored is not None and not self._is_crowded(lane) and (lane.spill_turn or due_ms is None or due_ms > now_ms):
            stored.is_loaded = True
            lane.spill_turn = False
            return Load(kind, stored)
        if due_ms is None or due_ms > now_ms:
            return Wait(min((ms for ms in (due_ms, self._load_resume_ms) if ms is not None and ms > now_ms), default=None))
        items_max = min(PROBE_ITEMS_MAX if self.circuit.state is State.OPEN else _EVERY_OFFER, self.config.batch_items_max)
        if lane.rows_left and len(lane.ready) < items_max and sum(held.size_bytes for held in lane.ready) < self.config.batch_bytes_max:
            return Encode(kind, lane.cut(min(ENCODE_ROWS_MAX, items_max), _EVERY_OFFER))
        batch = lane.take_batch(now_ms, items_max, self.config.batch_bytes_max)
        self.circuit.start()
        lane.flight = batch
        lane.spill_turn = True
        return Send(kind, batch)

    def _hindrance(self, lane: Lane, now_ms: int) -> Wait | None:
        if self.circuit.state is State.HALF_OPEN:
            return Wait(None)
        if not self.circuit.may_try(now_ms):
            return Wait(self.circuit.until_ms)
        return Wait(lane.resume_ms) if now_ms < lane.resume_ms else None

    def _due_ms(self, lane: Lane, now_ms: int) -> int | None:
        """When a batch is worth sending: full, or its oldest has waited long enough, or one that was put off is due."""
        moments = [lane.next_due_ms()]
        if (oldest_ms := lane.oldest_ms()) is not None:
            is_full = lane.waiting() >= self.config.batch_items_max or lane.size_bytes >= self.config.batch_bytes_max
            moments.append(now_ms if is_full or self.is_flushing else oldest_ms + lane.linger_ms)
        return min((moment for moment in moments if moment is not None), default=None)

    def encoded(self, cut: Slice, documents: list[Document]) -> None:
        """``documents``: one for each row of the slice, but for those that cannot be said, which are refused."""
        kind = cut.rows.kind
        refused = cut.stop - cut.start - len(documents)
        self.lanes[kind].put(cut, documents)
        self.counts["refused"] += refused
        self._settle_offer(cut.offer, refused)

    def loaded(self, load: Load, documents: dict[int, Document], now_ms: int) -> None:
        """``documents``: those of the file that are whole, by place; the others are lost to the disk, and counted."""
        segment = load.segment
        lost = set(range(segment.documents)) - documents.keys() - segment.settled
        segment.settled |= lost
        self.counts["damaged"] += len(lost)
        self.counts["replayed"] += segment.pending
        self.lanes[load.kind].load(segment, documents, now_ms)
        if not segment.pending:
            self._finish_segment(load.kind, segment)

    def not_loaded(self, load: Load, now_ms: int) -> None:
        """The disk does not give the file now."""
        load.segment.is_loaded = False
        self.counts["spill_errors"] += 1
        self._load_resume_ms = now_ms + SPILL_AGAIN_MS

    def answered(self, send: Send, answers: Sequence[Answer], now_ms: int) -> None:
        """The receiver judged each document of the batch."""
        lane = self.lanes[send.kind]
        self.circuit.succeed()
        lane.flight = []
        off = 0
        for held, answer in zip(send.batch, answers, strict=True):
            if answer.outcome is Outcome.AGAIN:
                off += 1
                self._again(lane, held, now_ms)
            else:
                self.counts["acknowledged" if answer.outcome is Outcome.DONE else "refused"] += 1
                self._settle(lane, held)
        lane.bad_rounds = lane.bad_rounds + 1 if 2 * off > len(answers) else 0
        lane.resume_ms = now_ms + self.backoff.wait_ms(lane.bad_rounds) if lane.bad_rounds else 0

    def failed(self, send: Send, now_ms: int, *, wait_ms: int = 0) -> None:
        """Nothing is known to have been taken. ``wait_ms``: that the receiver asked for."""
        lane = self.lanes[send.kind]
        self.circuit.fail(now_ms, wait_ms=wait_ms)
        lane.flight = []
        lane.bad_rounds += 1
        lane.resume_ms = now_ms + self.backoff.wait_ms(lane.bad_rounds)
        self.counts["retried"] += len(send.batch)
        back = []
        for held in send.batch:
            held.attempts += 1
            if self._may_go_on(lane, held, now_ms):
                back.append(held)
        lane.put_back(back)

    def _again(self, lane: Lane, held: Held, now_ms: int) -> None:
        held.attempts += 1
        self.counts["retried"] += 1
        if self._may_go_on(lane, held, now_ms):
            lane.put_off(held, now_ms + self.backoff.wait_ms(held.attempts))

    def _may_go_on(self, lane: Lane, held: Held, now_ms: int) -> bool:
        """False where nothing more is to be done about it from memory."""
        if held.segment and not lane.segments[held.segment].is_loaded:  # forgotten while it was on its way
            lane.release(held)  # its file is read again, in its turn
            return False
        if not lane.is_kept and now_ms - held.since_ms >= self.config.give_up_ms:
            self._drop(lane, held, DROP_TOO_OLD)
            return False
        return True

    # --- for the disk -----------------------------------------------------------------------------------------------------
    def next_keep(self, now_ms: int) -> Encode | Write | Merge | Delete | Wait:
        if self._deletions:
            return self._deletions.popleft()
        is_marked = self._mark > self.kept()
        is_mark_due = is_marked and (now_ms >= self._mark_by_ms or self.circuit.state is not State.CLOSED)
        if self._has_spill and now_ms >= self._spill_resume_ms:
            for lane in self.lanes.values():
                if not lane.is_writing and (step := self._spill(lane, is_mark_due=is_mark_due)) is not None:
                    return step
            if (merge := self._merge()) is not None:
                return merge
        moments = [self._mark_by_ms if is_marked and not is_mark_due else 0, self._spill_resume_ms]
        return Wait(min((moment for moment in moments if moment > now_ms), default=None))

    def _spill(self, lane: Lane, *, is_mark_due: bool) -> Encode | Write | Delete | None:
        is_crowded = self._is_crowded(lane)
        if not is_crowded and not is_mark_due:
            return None
        if is_crowded:
            lane.unload()
        offer_max = _EVERY_OFFER if is_crowded else self._mark
        if lane.offers and lane.offers[0].offer <= offer_max:
            return Encode(lane.kind, lane.cut(ENCODE_ROWS_MAX, offer_max))
        batch, is_flight = lane.take_waiting(self._file_bytes_max, offer_max), False
        if not batch and is_mark_due:
            batch, is_flight = [held for held in lane.flight if held.segment == 0 and held.offer <= self._mark], True
        if not batch:
            return None
        if self.spill_bytes + sum(held.size_bytes for held in batch) > self.config.spill_bytes_max:
            return self._without_room(lane, batch, is_flight=is_flight)
        lane.is_writing = True
        return Write(lane.kind, batch, is_flight)

    def _without_room(self, lane: Lane, batch: list[Held], *, is_flight: bool) -> Delete | None:
        """The oldest of what may be dropped makes room; where that is this batch, it goes itself."""
        if not is_flight:
            lane.put_back(batch)
        for other in self.lanes.values():
            on_their_way = {held.segment for held in other.flight}
            segment = next((one for one in other.segments.values() if not one.is_loaded and one.number not in on_their_way), None)
            if segment is not None and not other.is_kept:
                self._count_drop(other.kind, DROP_SPILL_FULL, segment.pending)
                self._finish_segment(other.kind, segment)
                return self._deletions.pop()
        if not lane.is_kept and not is_flight:
            for held in lane.take_waiting(self._file_bytes_max, _EVERY_OFFER):
                self._drop(lane, held, DROP_SPILL_FULL)
        return None

    def written(self, write: Write, segment: Segment) -> None:
        """The file is on the disk. What of it was judged meanwhile is not waited for."""
        lane = self.lanes[write.kind]
        lane.is_writing = False
        self.spill_bytes += segment.size_bytes
        self.counts["spilled"] += len(write.batch)
        segment.is_loaded = write.is_flight
        lane.segments[segment.number] = segment
        for place, held in enumerate(write.batch):
            if held.is_settled:
                segment.settled.add(place)
                continue
            self._settle_offer(held.offer, 1)
            held.segment, held.place = segment.number, place
            if not write.is_flight:
                lane.release(held)
        if not segment.pending:
            self._finish_segment(write.kind, segment)

    def write_failed(self, write: Write, now_ms: int) -> None:
        lane = self.lanes[write.kind]
        lane.is_writing = False
        self._spill_resume_ms = now_ms + SPILL_AGAIN_MS
        self.counts["spill_errors"] += 1
        if not write.is_flight:
            lane.put_back(write.batch)

    def _merge(self) -> Merge | None:
        """Marks come each second, or more often, and each makes a file, however few its rows: small ones become one."""
        for lane in self.lanes.values():
            small = lane.small_segments(self._file_bytes_max)
            if small and self.spill_bytes + sum(one.size_bytes for one in small) <= self.config.spill_bytes_max:
                for one in small:
                    one.is_loaded = True  # nobody else reads or drops it meanwhile
                return Merge(lane.kind, small)
        return None

    def merged(self, merge: Merge, segment: Segment) -> None:
        """One file in place of these, with all that was pending of them, under the number of the last."""
        segments = self.lanes[merge.kind].segments
        for one in merge.segments[:-1]:
            del segments[one.number]
        segments[segment.number] = segment  # where the last one was: the order stays
        self.spill_bytes += segment.size_bytes - sum(one.size_bytes for one in merge.segments)

    def merge_failed(self, merge: Merge) -> None:
        """They stay as they are, for ever: what one of them lacks is found out when it is loaded."""
        for one in merge.segments:
            one.is_loaded, one.is_single = False, True
        self.counts["spill_errors"] += 1

    def found(self, kind: str, segment: Segment) -> None:
        """A file that an earlier life left; called before anything is offered, in the order of their numbers."""
        self.lanes[kind].segments[segment.number] = segment
        self.spill_bytes += segment.size_bytes
        self.counts["offered"] += segment.documents

    # --- for the books ----------------------------------------------------------------------------------------------------
    def failures(self) -> list[str]:
        """The sum that must hold, as a line where it does not. Nothing may be in the hands of a thread."""
        on_disk = sum(segment.pending for lane in self.lanes.values() for segment in lane.segments.values())
        settled = self.counts["acknowledged"] + self.counts["refused"] + self.counts["damaged"] + sum(self.dropped.values())
        ends = settled + self.only_in_memory() + on_disk
        return [] if self.counts["offered"] == ends else [f"offered = {self.counts['offered']:,} is not where it ended = {ends:,}"]

    def status(self) -> dict[str, Any]:
        lanes = {
            kind: {"items": lane.items, "bytes": lane.size_bytes, "spill_files": len(lane.segments), "in_flight": len(lane.flight)}
            for kind, lane in self.lanes.items()
        }
        return {
            **{name: self.counts[name] for name in ("offered", "acknowledged", "refused", "retried", "spilled", "replayed", "damaged", "spill_errors")},
            "dropped": {f"{kind}:{reason}": count for (kind, reason), count in sorted(self.dropped.items())},
            "circuit": self.circuit.state.value,
            "circuit_opened": self.circuit.opened,
            "spill_bytes": self.spill_bytes,
            "only_in_memory": self.only_in_memory(),
            "lanes": lanes,
        }

    # --- how it is done ---------------------------------------------------------------------------------------------------
    def _is_full(self, lane: Lane) -> bool:
        return lane.items >= self.config.queue_items_max or lane.size_bytes >= self.config.queue_bytes_max

    def _is_crowded(self, lane: Lane) -> bool:
        """Half full: time to write to disk, and not to read from it."""
        return 2 * lane.items > self.config.queue_items_max or 2 * lane.size_bytes > self.config.queue_bytes_max

    def _shrink(self, lane: Lane) -> None:
        """Drop the oldest that are not on their way, until a tenth is free: looking through all of them for each offer would cost ms."""
        items_max, bytes_max = self.config.queue_items_max * 9 // 10, self.config.queue_bytes_max * 9 // 10
        while (rows := max(lane.items - items_max, 0)) or lane.size_bytes > bytes_max:
            rows = max(rows, ENCODE_ROWS_MAX if lane.size_bytes > bytes_max else 1)
            batch = lane.take_waiting(HELD_BYTES * rows, _EVERY_OFFER)
            for held in batch:
                self._drop(lane, held, DROP_QUEUE_FULL)
            if batch or lane.unload():
                continue
            if not lane.offers:
                return  # what is left is on its way, or being encoded or written
            for cut in lane.cut(rows, _EVERY_OFFER):
                lane.items -= cut.stop - cut.start
                lane.size_bytes -= cut.size_bytes
                self._count_drop(lane.kind, DROP_QUEUE_FULL, cut.stop - cut.start)
                self._settle_offer(cut.offer, cut.stop - cut.start)

    def _drop(self, lane: Lane, held: Held, reason: str) -> None:
        self._count_drop(lane.kind, reason, 1)
        self._settle(lane, held)

    def _count_drop(self, kind: str, reason: str, rows: int) -> None:
        self.dropped[kind, reason] += rows

    def _settle(self, lane: Lane, held: Held) -> None:
        """Nothing more is owed for this one."""
        held.is_settled = True
        lane.release(held)
        if not held.segment:
            self._settle_offer(held.offer, 1)
            return
        segment = lane.segments[held.segment]
        segment.settled.add(held.place)
        if not segment.pending:
            self._finish_segment(lane.kind, segment)

    def _settle_offer(self, offer: int, rows: int) -> None:
        if rows == 0 or offer == 0:
            return
        self._open[offer] -= rows
        if self._open[offer] == 0:
            del self._open[offer]

    def _finish_segment(self, kind: str, segment: Segment) -> None:
        del self.lanes[kind].segments[segment.number]
        self.spill_bytes -= segment.size_bytes
        self._deletions.append(Delete(kind, segment))
