"""Which batches of a producer go now, to which broker, and when to look again. No clock, no connection: time and leaders are arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from keystone.log.kafka.client import RETRY_MS
from keystone.log.kafka.lanes import Batch, Lane

REQUEST_BYTES_MAX: Final = 8 << 20  # unpacked, of all batches in one request
NEVER: Final = float("inf")


@dataclass(slots=True)
class Due:
    """``by_leader``: what goes to each broker, at most one batch of a lane. ``again_s``: when there may be more, monotonic; ``NEVER`` where nothing waits."""

    by_leader: dict[int, list[Batch]] = field(default_factory=dict)
    again_s: float = NEVER
    lacks_leaders: bool = False  # of a lane that is due nobody is known to lead

    def take(self, leader: int, lane: Lane) -> bool:
        """The lane's first batch into the request to its leader, where that takes one more."""
        batches = self.by_leader.get(leader, [])
        if batches and sum(map(len, batches)) + len(lane.waiting[0]) > REQUEST_BYTES_MAX:
            return False
        lane.in_flight = lane.waiting.popleft()
        self.by_leader[leader] = [*batches, lane.in_flight]
        return True


def due(lanes: Iterable[Lane], now_s: float, *, linger_ms: float, leader_of: Callable[[Lane], int | None], busy: Collection[int]) -> Due:
    """What goes now to brokers that are not ``busy``, out of its queue and under way; the oldest first.

    What lingers for the same broker goes along: a request costs by itself, a batch more in it next to nothing.
    """
    found = Due()
    lingering: list[tuple[float, Lane]] = []
    for lane in sorted((lane for lane in lanes if lane.waiting and lane.in_flight is None), key=_oldest_s):
        if (at_s := due_s(lane, linger_ms)) > now_s:
            lingering.append((at_s, lane))
        elif (leader := leader_of(lane)) is None:
            lane.not_before_s = now_s + RETRY_MS / 1_000
            found.again_s = min(found.again_s, lane.not_before_s)
            found.lacks_leaders = True
        elif leader not in busy:
            found.take(leader, lane)
    for at_s, lane in lingering:
        leader = leader_of(lane) if lane.not_before_s <= now_s else None
        if leader is None or leader not in found.by_leader or not found.take(leader, lane):
            found.again_s = min(found.again_s, at_s)
    return found


def due_s(lane: Lane, linger_ms: float) -> float:
    """When a lane's first batch goes: at once if it is urgent, full, or repeated; else when it has lingered."""
    batch = lane.waiting[0]
    is_full = len(lane.waiting) > 1 or len(batch) >= lane.batch_bytes_max // 2
    lingers_s = 0.0 if batch.is_urgent or is_full or batch.attempts else batch.opened_s + linger_ms / 1_000
    return max(lane.not_before_s, lingers_s)


def expired(lanes: Iterable[Lane], now_s: float, *, timeout_ms: float) -> list[Batch]:
    """Batches that have waited for too long, out of their queues."""
    found = []
    for lane in lanes:
        while lane.waiting and lane.in_flight is None and now_s - lane.waiting[0].opened_s > timeout_ms / 1_000:
            found.append(lane.waiting.popleft())
    return found


def _oldest_s(lane: Lane) -> float:
    return lane.waiting[0].opened_s
