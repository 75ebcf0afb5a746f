"""The devices of one partition, tick by tick.

Rates are exact: a tick takes from the calendar as many seats as its share of the schedule, the earliest first. So
the devices' own (virtual) time runs a little fast or slow against the schedule, and the report interval is steered to hold it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from keystone.errors import UsageError
from keystone.events import I64, PADDING, U8
from keystone.kernels import devices
from keystone.kernels import encode as encoder
from keystone.kernels import seats as seat
from keystone.partition import U32, numbered_devices_of
from keystone.sim import catalog, network
from keystone.sim.plan import FleetPlan, devices_by_partition, events_by_partition, seats_by_partition
from keystone.sim.truth import Truth

CHUNK_EVENTS: Final = 800  # of one kernel call: x 64 B of event rows and ~260 B of text = 260 KB, within a second-level cache
JOINING_SHARE: Final = 0.965  # of seats in mid-session at the start; the others are between two
STEER_MS_MIN: Final = 4_000  # slower than the report interval, or steering overshoots
LINE_U32: Final = 16  # uint32 of a cache line
GOLDEN: Final = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Frames:
    """What one partition sends at the end of one tick. The arrays are the fleet's and valid until its next ``tick``.

    Frame i is ``text[starts[i]:ends[i]]``: ``events[i]`` lines, the last without its line feed (which follows in ``text``).
    ``intended_ms`` int64 (events,) is each event's place on the schedule and ``due_ms`` the tick's end, both from
    the run's start; ``due_ms`` is at most a tick after them.
    """

    text: U8
    starts: I64
    ends: I64
    events: I64
    intended_ms: I64
    due_ms: int

    def __len__(self) -> int:
        return int(self.starts.size)

    def __bool__(self) -> bool:
        """True: a tick without frames is not the end (that is None)."""
        return True

    @property
    def lines(self) -> U8:
        """All frames as one NDJSON text, every line with its line feed."""
        return self.text[int(self.starts[0]) : int(self.ends[-1]) + 1] if len(self) else self.text[:0]


@lru_cache(maxsize=4)
def _tables(ladder_kbps: tuple[int, ...]) -> tuple[seat.Model, encoder.Texts]:
    return network.model(ladder_kbps), catalog.texts(ladder_kbps)


class PartitionFleet:
    """The devices of one partition. Its stream depends on the plan and the partition alone."""

    def __init__(self, plan: FleetPlan, partition: int) -> None:
        if not 0 <= partition < plan.partitions:
            raise UsageError(f"partition {partition} is not below partitions = {plan.partitions}")
        self.plan, self.partition = plan, partition
        self.quota = events_by_partition(plan)[partition]
        self._model, self._texts = _tables(plan.ladder_kbps)
        self._tick, self._ticks, self._tick_ms = 0, plan.ticks, plan.tick_length_ms
        self._bytes = 0
        self._finished = False
        seats = int(seats_by_partition(plan)[partition])
        self._fleet = _new_fleet(plan, partition, seats)
        self._beat_ms = plan.beat_ms
        self._steer_ms = max(STEER_MS_MIN, 2 * self._beat_ms)
        self._phase = (partition * GOLDEN >> 32) % self._ticks  # partitions with a low rate take turns
        most = self.quota // self._ticks + 2
        self._events = np.zeros(min(most, CHUNK_EVENTS, plan.frame_events_max) * seat.EVENT, np.uint32)
        self._intended = np.zeros(most, np.int64)
        self._text = np.empty(most * encoder.LINE_MAX + PADDING, np.uint8)
        self._frames = np.zeros((most + 1, 3), np.int64)
        self._truth = np.zeros((1024 + 2 * most, seat.TRUTH), np.int64)
        if seats:
            devices.fill_seats(self._fleet, self._model, round(JOINING_SHARE * 65536), self._beat_ms)

    def tick(self) -> Frames | None:
        """The next tick (it may hold no frame), or None after the last; then the truth is complete."""
        if self._tick == self._ticks or self._finished:
            self.finish()
            return None
        start_ms = self._tick * self._tick_ms
        due_ms = min(start_ms + self._tick_ms, self.plan.run_ms)
        wanted = self._quota_after(self._tick) - self._quota_after(self._tick - 1)
        frames = self._send(wanted, start_ms, due_ms)
        self._tick += 1
        return Frames(self._text, frames[:, 0], frames[:, 1], frames[:, 2], self._intended[:wanted], due_ms)

    def finish(self) -> None:
        """End the run here: nobody sends any more, and the truth gets a row for each stall left open. May be repeated."""
        if not self._finished:
            self._finished = True
            self._room_for_truth(self._fleet.rows.size // seat.ROW)
            devices.left_open(self._fleet, self._truth)

    def truth(self) -> Truth:
        """Expected alerts caused by the ticks so far (open stalls: those of hung devices; after the end, all)."""
        return Truth.of_rows(self._truth[: self._counter(seat.C_TRUTH)], self.plan.epoch_ms)

    @property
    def events(self) -> int:
        """Events sent so far."""
        return self._counter(seat.C_EVENTS)

    @property
    def bytes(self) -> int:
        """Bytes of their lines, line feeds counted."""
        return self._bytes

    @property
    def sessions(self) -> int:
        """Sessions that sent an event so far."""
        return self._counter(seat.C_SESSIONS)

    @property
    def stalls(self) -> int:
        """Stalls so far."""
        return self._counter(seat.C_STALLS)

    @property
    def stalled_sessions(self) -> int:
        """Sessions that stalled at least once so far."""
        return self._counter(seat.C_STALLED)

    @property
    def hangs(self) -> int:
        """Devices that fell silent for ever."""
        return self._counter(seat.C_HANGS)

    @property
    def ambiguous_silences(self) -> int:
        """Silences within 3 s of the open-stall limit, where delivery decides. 0 but in tiny fleets at starved rates."""
        return self._counter(seat.C_AMBIGUOUS)

    @property
    def seats(self) -> int:
        """Devices in a session, or between two, at once."""
        return self._fleet.rows.size // seat.ROW

    @property
    def drift_ms(self) -> int:
        """The devices' time less the schedule's."""
        return (self._counter(seat.C_SLOT) << seat.SLOT_SHIFT) - self._tick * self._tick_ms

    def _counter(self, cell: int) -> int:
        return int(self._fleet.counters[cell])

    def _quota_after(self, tick: int) -> int:
        return (self.quota * (tick + 1) + self._phase) // self._ticks

    def _send(self, wanted: int, start_ms: int, due_ms: int) -> I64:
        """Fill text, intended times and frame rows with ``wanted`` events; return the frame rows."""
        if wanted == 0:
            return self._frames[:0]
        self._steer()
        self._room_for_truth(2 * wanted)
        step_q20 = ((due_ms - start_ms) << 20) // wanted
        done = at = frame = 0
        while done < wanted:
            chunk = min(wanted - done, self._events.size // seat.EVENT)
            chunk = devices.advance(self._fleet, self._model, chunk, done, step_q20, start_ms, self._events, self._intended, self._truth)
            begin = at
            at = encoder.encode(self._events, chunk, self._texts, self.plan.epoch_ms, self._text, at, self.plan.frame_bytes_max, self._frames, frame)
            done += chunk
            while self._frames[frame, 1] != at - 1:
                frame += 1
            frame += 1
            self._bytes += at - begin
        return self._frames[:frame]

    def _steer(self) -> None:
        """Shorten reports where the devices' time runs ahead (they send too little for the rate), lengthen them where it lags."""
        beat = self._beat_ms - self._beat_ms * self.drift_ms // self._steer_ms
        self._fleet.counters[seat.C_BEAT_MS] = max(100, self._beat_ms // 2, min(beat, self._beat_ms * 3 // 2))

    def _room_for_truth(self, rows: int) -> None:
        used = self._counter(seat.C_TRUTH)
        if used + rows > self._truth.shape[0]:
            wider = np.zeros((2 * (used + rows), seat.TRUTH), np.int64)
            wider[:used] = self._truth[:used]
            self._truth = wider


def _new_fleet(plan: FleetPlan, partition: int, seats: int) -> seat.Fleet:
    """Empty seats and calendar, all devices of the partition in the pool. 64 B a seat + 5 B for the calendar + 4 B a device."""
    chunks = seats // (seat.CHUNK - 1) + seat.SLOTS + 2  # one begun chunk a slot, and no more
    counters = np.zeros(seat.C_CELLS, np.int64)
    numbered = int(devices_by_partition(plan)[partition])
    counters[seat.C_FREE] = chunks
    counters[seat.C_POOL_SIZE] = numbered
    counters[seat.C_BEAT_MS] = plan.beat_ms
    counters[seat.C_SEED] = ((plan.seed * GOLDEN) ^ (partition * 0xD6E8FEB86659FD93)) & 0x7FFF_FFFF_FFFF_FFFF
    counters[seat.C_THRESHOLD] = plan.loop_threshold
    counters[seat.C_OPEN_STALL] = plan.open_stall_ms
    counters[seat.C_HANG_Q16] = round(plan.hang_share * 65536)
    counters[seat.C_WEAK_Q16] = round(plan.weak_path_share * 65536)
    counters[seat.C_BAD_Q16] = round(plan.bad_path_share * 65536)
    return seat.Fleet(
        rows=_on_a_line(seats * seat.ROW),
        chunks=np.zeros(chunks * seat.CHUNK, np.uint32),
        heads=np.full(seat.SLOTS, seat.NO_CHUNK, np.int32),
        fills=np.zeros(seat.SLOTS, np.int32),
        free=np.arange(chunks, dtype=np.uint32)[::-1].copy(),
        pool=numbered_devices_of(plan.devices, plan.partitions, partition, numbered),
        ready=np.zeros(CHUNK_EVENTS + 16, np.uint32),
        counters=counters,
    )


def _on_a_line(words: int) -> U32:
    """uint32 zeros that begin on a cache line: a seat that straddles two costs two misses."""
    room = np.zeros(words + LINE_U32, np.uint32)
    first = -(room.ctypes.data // 4) % LINE_U32
    return room[first : first + words]
