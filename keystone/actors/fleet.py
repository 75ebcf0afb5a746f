"""The fleet actor: devices of some partitions, sent open-loop.

What is sent when is fixed by the plan's seed. The loop sleeps until a tick is over, appends its frames, and notes how
late each event is against its intended time. When it falls behind it catches up as fast as it can: nothing is skipped,
and nothing is sent early.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keystone.actors.loop import LoopActor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from keystone.config import KafkaConfig
    from keystone.log.base import Log, LogWriter, Sent
    from keystone.metrics import LatencyHistogram
    from keystone.sim.fleet import Frames, PartitionFleet
    from keystone.sim.plan import FleetPlan

    Floats = npt.NDArray[np.floating[Any]]

START_WAIT_S = 600.0  # for the order to start, once ready
SLEEP_MAX_S = 0.25  # so that an order to finish is seen
FLUSH_WAIT_S = 150.0  # for the outcomes of what was sent: beyond kafka.delivery_timeout_ms each is known


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """What a fleet actor needs to know. Paths are strings: they travel."""

    name: str
    partitions: tuple[int, ...]
    log: str  # its URL
    work_dir: str
    plan: FleetPlan
    kafka: KafkaConfig | None = None  # None: the defaults
    one_event_per_record: bool = False  # with the device's id as key, instead of frames


@dataclass(slots=True)
class FleetTotals:
    """What a fleet actor sent. ``truth_paths``: Parquet, one row an expected alert, intended times by the devices' clock.

    ``acknowledged failed unknown``: events by the outcome of their record (``log.base.Sent``); together they are ``events``.
    """

    name: str
    partitions: tuple[int, ...]
    events: int = 0
    events_on_time: int = 0  # appended before the schedule's end and one tick more
    bytes: int = 0
    sessions: int = 0
    ambiguous: int = 0  # silences whose alert depends on delivery: the truth cannot tell; 0 but in tiny fleets
    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # of failed and unknown records
    waited_ms: int = 0  # for room in the log, or for its answers
    delays: LatencyHistogram | None = None
    truth_paths: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Driven:
    """One partition's devices and where their events go."""

    partition: int
    fleet: PartitionFleet
    writer: LogWriter | None = None


class FleetActor(LoopActor):
    """Sends the events of ``spec.partitions``, from ``go`` on."""

    def __init__(self, spec: FleetSpec) -> None:
        super().__init__(spec.name, spec.work_dir)
        self._spec = spec
        self._totals = FleetTotals(spec.name, spec.partitions)
        self._driven: list[Driven] = []
        self._go = threading.Event()
        self._start_ms = 0.0  # wall time of the schedule's start
        self._ticks = 0
        self._behind_ms = 0.0
        self._log: Log
        self._delays: LatencyHistogram

    def go(self, start_ms: float) -> None:
        """Start the schedule at wall time ``start_ms``."""
        self._start_ms = start_ms
        self._go.set()

    def _build(self) -> None:
        from keystone.metrics import LatencyHistogram

        _rehearse(self._spec.plan)
        self._log = self._open_log()
        LatencyHistogram().add([0.5])
        self._delays = LatencyHistogram()
        self._driven = [Driven(p, self._open_fleet(p)) for p in self._spec.partitions]
        self._open_writers()

    def _open_log(self) -> Log:
        from keystone.config import KafkaConfig
        from keystone.log.opening import open_log

        return open_log(self._spec.log, self._spec.kafka or KafkaConfig())

    def _open_writers(self) -> None:
        for driven in self._driven:
            driven.writer = self._open_writer(driven.partition, preallocate=True)

    def _open_writer(self, partition: int, *, preallocate: bool) -> LogWriter:
        from keystone.log.embedded import EmbeddedLog

        return self._log.writer(partition, preallocate=preallocate) if isinstance(self._log, EmbeddedLog) else self._log.writer(partition)

    def _open_fleet(self, partition: int) -> PartitionFleet:
        from keystone.sim.fleet import PartitionFleet

        return PartitionFleet(self._spec.plan, partition)

    def _wait_for_start(self) -> None:
        deadline = time.monotonic() + START_WAIT_S
        while not self._go.wait(SLEEP_MAX_S):
            if self._finish_asked.is_set():
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"no order to start within {START_WAIT_S:.0f} s")

    def _turn(self) -> float:
        """Send one tick of every partition if it is over, else sleep until it is."""
        if self._is_over():
            return SLEEP_MAX_S
        early_ms = self._early_ms()
        if early_ms > 0:
            return min(early_ms / 1_000, SLEEP_MAX_S)
        self._behind_ms = -early_ms
        for driven in self._driven:
            frames = driven.fleet.tick()
            if frames is not None and len(frames):
                self._send(driven, frames)
        self._ticks += 1
        return 0.0

    def _early_ms(self) -> float:
        """How long until the next tick is over."""
        plan = self._spec.plan
        return self._start_ms + min((self._ticks + 1) * plan.tick_length_ms, plan.run_ms) - time.time() * 1_000

    def _send(self, driven: Driven, frames: Frames, first: int = 0) -> None:
        """Hand over a tick's frames from ``first`` on; the time after the last one counts for all of them."""
        assert driven.writer is not None  # noqa: S101 - opened before the first tick is due
        places = zip(frames.starts[first:].tolist(), frames.ends[first:].tolist(), frames.events[first:].tolist(), strict=True)
        for start, end, events in places:
            if self._spec.one_event_per_record:
                _send_lines(driven.writer, frames.text[start:end].tobytes())
            else:
                driven.writer.send(frames.text[start:end], events=events)
        since_start_ms = time.time() * 1_000 - self._start_ms
        plan = self._spec.plan
        late_ms = since_start_ms - frames.intended_ms[int(frames.events[:first].sum()) :]
        self._count(late_ms, is_on_time=since_start_ms <= plan.run_ms + plan.tick_length_ms)

    def _count(self, late_ms: Floats, *, is_on_time: bool) -> None:
        """Events that were sent just now, and how late each was."""
        self._delays.add(late_ms)
        self._totals.events += late_ms.size
        self._totals.events_on_time += late_ms.size if is_on_time else 0

    def _is_over(self) -> bool:
        return self._finish_asked.is_set() or self._ticks >= self._spec.plan.ticks

    def _close(self) -> FleetTotals:
        for driven in self._driven:
            driven.fleet.finish()
            path = Path(self._spec.work_dir) / f"truth-{driven.partition:04d}.parquet"
            driven.fleet.truth().frame().write_parquet(path)
            self._totals.truth_paths.append(str(path))
            self._totals.bytes += driven.fleet.bytes
            self._totals.sessions += driven.fleet.sessions
            self._totals.ambiguous += driven.fleet.ambiguous_silences
        until = time.monotonic() + FLUSH_WAIT_S
        writers = self._writers()
        for writer in writers:
            writer.flush(wait_s=max(0.0, until - time.monotonic()))
            writer.close()
        self._log.close()  # what has no outcome by now is unknown
        for writer in writers:
            self._add_outcomes(writer.sent)
        self._totals.delays = self._delays
        return self._totals

    def _writers(self) -> list[LogWriter]:
        return [driven.writer for driven in self._driven if driven.writer is not None]

    def _add_outcomes(self, sent: Sent) -> None:
        totals = self._totals
        totals.acknowledged += sent.acknowledged_events
        totals.failed += sent.failed_events
        totals.unknown += sent.unknown_events
        totals.waited_ms += sent.waited_ms
        for reason, records in sent.reasons.items():
            totals.reasons[reason] = totals.reasons.get(reason, 0) + records

    def _counters(self) -> dict[str, Any]:
        events = self._totals.events
        sent = [writer.sent for writer in self._writers()]
        return {
            "acknowledged": sum(s.acknowledged_events for s in sent),
            "failed": sum(s.failed_events for s in sent),
            "unknown": sum(s.unknown_events for s in sent),
            "waited_ms": sum(s.waited_ms for s in sent),
            "events": events, "behind_ms": self._behind_ms, "send_delay_p99_ms": self._delays.quantile(0.99) if events else None,
        }  # fmt: skip


def _send_lines(writer: LogWriter, text: bytes) -> None:
    """Each event as a record of its own, its key the device's id."""
    import orjson

    for line in text.split(b"\n"):
        if line:
            writer.send(line, events=1, key=orjson.loads(line)["device_id"].encode())


def _rehearse(plan: FleetPlan) -> None:
    """A few ticks of a tiny fleet: the first use of a kernel costs up to a second."""
    from keystone.sim.fleet import PartitionFleet

    small = plan.model_copy(update={"eps": 1_000.0, "devices": 5_000, "seconds": 1.0, "partitions": 1})
    fleet = PartitionFleet(small, 0)
    while fleet.tick() is not None:
        pass
    fleet.truth().frame()
