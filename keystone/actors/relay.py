"""A fleet actor that one of its kind can take over from: devices whose process may be killed, and go on sending.

What is sent follows from the plan alone, so two processes make the same frames. One *leads*: it writes to the log. The other *follows*:
it makes each frame, looks for it in the log, and goes on to the next once it is there. When it is told to lead, the log's end says what
its predecessor had sent, and it goes on with the very next frame, at most a moment behind the schedule.

How late events were is kept in a file, a row for each slot of the schedule, so that it outlives the process that sent them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from keystone.actors.fleet import SLEEP_MAX_S, Driven, FleetActor, FleetSpec, FleetTotals
from keystone.errors import LogError, LogInUse
from keystone.kernels.histogram import BUCKETS
from keystone.metrics import LatencyHistogram

if TYPE_CHECKING:
    from keystone.actors.fleet import Floats
    from keystone.log.base import LogReader, LogWriter
    from keystone.sim.fleet import Frames

SLOT_MS: Final = 250  # of the schedule: what a killed process had not told yet, at most
FOLLOW_PAUSE_S: Final = 0.02  # between two looks at the log's end
FOLLOW_BROKER_PAUSE_S: Final = 0.2  # ... where that is a request
LEAD_WAIT_S: Final = 15.0  # for the system to let go of the predecessor's lock
BROKER_SETTLE_S: Final = 1.0  # what a dead process had sent to a broker is in the topic, or never will be
_HISTOGRAM: Final = [("counts", "<i8", (BUCKETS,)), ("tallies", "<i8", (2,)), ("extremes", "<f8", (2,))]
_ROW: Final = np.dtype([("slot", "<i8"), ("events", "<i8"), ("on_time", "<i8"), *_HISTOGRAM])


class Slot(NamedTuple):
    """How late the events were that the schedule has in [number, number + 1) x SLOT_MS."""

    number: int
    events: int
    events_on_time: int
    delays: LatencyHistogram


class SlotFile:
    """Rows that are appended by one process at a time. A torn last one is cut away by the next."""

    def __init__(self, path: Path) -> None:
        whole = path.stat().st_size // _ROW.itemsize * _ROW.itemsize if path.exists() else 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._fd, whole)

    def append(self, slot: Slot) -> None:
        state = slot.delays.__getstate__()
        row = np.zeros(1, _ROW)
        row["slot"], row["events"], row["on_time"] = slot.number, slot.events, slot.events_on_time
        row["counts"], row["tallies"], row["extremes"] = state["counts"], state["tallies"], state["extremes"]
        view = memoryview(row.tobytes())
        while view:
            view = view[os.write(self._fd, view) :]

    def close(self) -> None:
        os.close(self._fd)


def read_slots(path: Path) -> Iterator[Slot]:
    """All whole rows; a slot that two processes sent has two."""
    if not path.exists():
        return
    found = path.read_bytes()
    for row in np.frombuffer(found[: len(found) // _ROW.itemsize * _ROW.itemsize], _ROW):
        delays = LatencyHistogram()
        delays.__setstate__({"counts": row["counts"], "tallies": row["tallies"], "extremes": row["extremes"]})
        yield Slot(int(row["slot"]), int(row["events"]), int(row["on_time"]), delays)


def slots_path(work_dir: Path, name: str) -> Path:
    """Of the fleet actors that take over from each other under ``name``."""
    return work_dir / f"{name}.delays"


class Place:
    """Where one partition's stream is: its records so far, and how many of them the log is known to have."""

    def __init__(self, first_offset: int, reader: LogReader) -> None:
        self.records = 0  # made, those of the tick at hand included
        self.in_log = 0
        self.at_hand: Frames | None = None  # of the last tick: in the fleet's arrays until its next one
        self._first_offset, self._reader = first_offset, reader

    def look(self) -> None:
        self.in_log = self._reader.end_offset() - self._first_offset

    def take(self, frames: Frames) -> None:
        self.at_hand = frames
        self.records += len(frames)

    def unsent(self) -> int:
        """The first of the frames at hand that the log does not have."""
        count = len(self.at_hand) if self.at_hand is not None else 0
        return min(count, max(0, self.in_log - (self.records - count)))


class RelayFleet(FleetActor):
    """``lead`` makes it the one that sends. ``relay``: the name that its predecessors and successors share; ``first_offsets``: where the run begins."""

    def __init__(self, spec: FleetSpec, relay: str, first_offsets: dict[int, int], *, leads: bool) -> None:
        super().__init__(spec)
        self._relay, self._first_offsets = relay, first_offsets
        self._lead_asked = threading.Event()
        self._leads_from_start = leads
        self._is_leading = False
        self._places: dict[int, Place] = {}
        self._is_embedded = spec.log.startswith("embedded:")
        self._slots: SlotFile | None = None
        self._slot: Slot | None = None
        self._sent_ms = 0.0  # when something was sent last; wall time

    def lead(self) -> None:
        """Go on where the log ends: whoever led is dead."""
        self._lead_asked.set()

    def _open_writers(self) -> None:
        for driven in self._driven:
            partition = driven.partition
            self._places[partition] = Place(self._first_offsets.get(partition, 0), self._log.reader(partition))
        if self._leads_from_start:
            super()._open_writers()
            self._begin_to_lead()

    def _begin_to_lead(self) -> None:
        for place in self._places.values():
            place.look()
        self._slots = SlotFile(slots_path(Path(self._spec.work_dir), self._relay))
        self._is_leading = True

    # --- following --------------------------------------------------------------------------------------------------------
    def _turn(self) -> float:
        if self._is_leading or self._is_over():
            return super()._turn()
        if self._lead_asked.is_set():
            self._take_lead()
            return 0.0
        for place in self._places.values():
            if place.in_log < place.records:
                place.look()
        early_ms = self._early_ms()
        if early_ms > 0 or self._ticks >= self._spec.plan.ticks or any(place.in_log < place.records for place in self._places.values()):
            pause_s = FOLLOW_PAUSE_S if self._is_embedded else FOLLOW_BROKER_PAUSE_S
            return min(SLEEP_MAX_S, max(pause_s, early_ms / 1_000))
        for driven in self._driven:
            frames = driven.fleet.tick()
            if frames is not None:
                self._places[driven.partition].take(frames)
        self._ticks += 1
        return 0.0

    def _take_lead(self) -> None:
        """Open the writers, look where the log ends, and send what of the tick at hand is not there."""
        if not self._is_embedded:
            time.sleep(BROKER_SETTLE_S)
        until = time.monotonic() + LEAD_WAIT_S
        for driven in self._driven:
            driven.writer = self._open_patiently(driven.partition, until)
        self._begin_to_lead()
        for driven in self._driven:
            place = self._places[driven.partition]
            if place.in_log < place.records - (len(place.at_hand) if place.at_hand is not None else 0):
                raise LogError(f"partition {driven.partition}: the log has {place.in_log:,} of the run's records, and had more before")
            if place.at_hand is not None and place.unsent() < len(place.at_hand):
                super()._send(driven, place.at_hand, place.unsent())

    def _open_patiently(self, partition: int, until: float) -> LogWriter:
        while True:
            try:
                return self._open_writer(partition, preallocate=False)
            except LogInUse:
                if time.monotonic() > until:
                    raise
                time.sleep(FOLLOW_PAUSE_S)

    def _is_over(self) -> bool:
        return self._finish_asked.is_set() or (self._is_leading and super()._is_over())

    # --- leading ------------------------------------------------------------------------------------------------------------
    def _send(self, driven: Driven, frames: Frames, first: int = 0) -> None:  # noqa: ARG002 - the log says from where on
        place = self._places[driven.partition]
        place.take(frames)
        if (unsent := place.unsent()) < len(frames):
            super()._send(driven, frames, unsent)

    def _count(self, late_ms: Floats, *, is_on_time: bool) -> None:
        super()._count(late_ms, is_on_time=is_on_time)
        self._sent_ms = time.time() * 1_000
        number = self._ticks * self._spec.plan.tick_length_ms // SLOT_MS
        if self._slot is None or self._slot.number != number:
            self._end_slot()
            self._slot = Slot(number, 0, 0, LatencyHistogram())
        slot = self._slot
        slot.delays.add(late_ms)
        self._slot = slot._replace(events=slot.events + late_ms.size, events_on_time=slot.events_on_time + (late_ms.size if is_on_time else 0))

    def _end_slot(self) -> None:
        if self._slot is not None and self._slots is not None:
            self._slots.append(self._slot)
        self._slot = None

    def _close(self) -> FleetTotals:
        self._end_slot()
        if self._slots is not None:
            self._slots.close()
        totals = super()._close()
        totals.events = sum(driven.fleet.events for driven in self._driven)  # by all that led
        return totals

    def _counters(self) -> dict[str, Any]:
        """``events``: of the stream so far, whoever sent them."""
        return super()._counters() | {
            "events": sum(driven.fleet.events for driven in self._driven),
            "is_leading": self._is_leading,
            "sent_ms": self._sent_ms,
        }
