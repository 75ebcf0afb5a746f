"""A run of the simulator: everything its bytes depend on, and the arithmetic of rates."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from keystone.errors import UsageError
from keystone.events import I64
from keystone.partition import count_numbered_devices

BEAT_MIN_MS: Final = 200  # a player reports at most five times a second
BEAT_MAX_MS: Final = 10_000  # and at least every ten seconds; sessions time out after 90
DEVICES_MAX: Final = 1 << 28  # 2^28 x 72 B = 19 GB of seats
PARTITIONS_MAX: Final = 4096
#: Share of seats that play (the others pause or hang between two sessions), and what a seat sends beside Heartbeats, events/s,
#: on a usual, weak and bad path; measured over 120 s. Only starting values: the report interval follows the schedule.
SEATED_SHARE: Final = 0.975
OTHER_EPS: Final = 0.017
WEAK_EPS: Final = 0.15
BAD_EPS: Final = 0.34
FAST_EPS: Final = 200_000.0  # from here on a tick's fixed cost counts more than its 5 ms


class FleetPlan(BaseModel):
    """Two equal plans give the same bytes, whatever the number of actors and their timing.

    ``eps x seconds`` events are sent, spread evenly over ticks of ``tick_ms`` (0: chosen from ``eps``). ``epoch_ms`` is
    the devices' clock at the start. ``weak_path_share`` is the share of sessions on a path that is too slow for a while (what makes
    about 4% of sessions stall), ``bad_path_share`` of devices on one that is always too slow, ``hang_share`` of
    stall Buffers after which the device is never heard of again. The truth follows ``loop_threshold`` and ``open_stall_ms``.
    Raises ``UsageError`` where the figures do not go together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    eps: float = 20_000.0
    seconds: float = 60.0
    devices: int = 1_000_000
    partitions: int = 8
    epoch_ms: int = 1_790_000_000_000
    tick_ms: int = 0
    weak_path_share: float = 0.05
    bad_path_share: float = 0.002
    hang_share: float = 0.003
    loop_threshold: int = 3
    open_stall_ms: int = 10_000
    ladder_kbps: tuple[int, ...] = (235, 375, 560, 750, 1050, 1750, 2350, 3000, 4300, 5800)
    frame_events_max: int = 800
    frame_bytes_max: int = 256 << 10

    @model_validator(mode="after")
    def _check(self) -> FleetPlan:
        limits: tuple[tuple[bool, str], ...] = (
            (0 <= self.seed < 1 << 63, f"seed = {self.seed} must be from 0 to 2^63 - 1"),
            (0 < self.eps <= 1e8, f"eps = {self.eps:g} must be above 0 and at most 100,000,000"),
            (0 < self.seconds <= 86_400 * 20, f"seconds = {self.seconds:g} must be above 0 and at most 20 days"),
            (0 < self.devices <= DEVICES_MAX, f"devices = {self.devices} must be from 1 to {DEVICES_MAX}"),
            (0 < self.partitions <= PARTITIONS_MAX, f"partitions = {self.partitions} must be from 1 to {PARTITIONS_MAX}"),
            (10**12 <= self.epoch_ms < 9 * 10**12, f"epoch_ms = {self.epoch_ms} must be milliseconds since 1970, 13 digits"),
            (0 <= self.tick_ms <= 20, f"tick_ms = {self.tick_ms} must be from 1 to 20, or 0 to choose"),
            (all(0 <= s <= 1 for s in (self.weak_path_share, self.bad_path_share, self.hang_share)), "shares must be from 0 to 1"),
            (self.loop_threshold >= 1, f"loop_threshold = {self.loop_threshold} must be at least 1"),
            (7_000 <= self.open_stall_ms <= 20_000, f"open_stall_ms = {self.open_stall_ms} must be from 7,000 to 20,000: players that stall report within 2 s"),
            (1 <= len(self.ladder_kbps) <= 16 and list(self.ladder_kbps) == sorted(set(self.ladder_kbps)),
             "ladder_kbps must list 1 to 16 rising bitrates"),
            (0 < self.ladder_kbps[0] <= self.ladder_kbps[-1] < 100_000 if self.ladder_kbps else False, "ladder_kbps must be from 1 to 99,999"),
            (self.frame_events_max >= 1, f"frame_events_max = {self.frame_events_max} must be at least 1"),
            (self.frame_bytes_max >= 4096, f"frame_bytes_max = {self.frame_bytes_max} must be at least 4096"),
        )  # fmt: skip
        for holds, message in limits:
            if not holds:
                raise UsageError(message)
        needed = int(self.eps * BEAT_MIN_MS / 1000 / SEATED_SHARE) + 1
        if self.devices < needed:
            raise UsageError(
                f"devices = {self.devices} cannot send eps = {self.eps:g}, each at most every {BEAT_MIN_MS} ms: raise devices to {needed}, or lower eps"
            )
        return self

    @property
    def run_ms(self) -> int:
        """Length of the schedule."""
        return max(1, round(self.seconds * 1000))

    @property
    def events(self) -> int:
        """Events of the whole run, exactly."""
        return round(self.eps * self.seconds)

    @property
    def tick_length_ms(self) -> int:
        """A tick is sent when it ends: short where the rate is low, for latency; longer where its fixed cost (~20 us) counts."""
        return min(self.run_ms, self.tick_ms or (5 if self.eps < FAST_EPS else 10))

    @property
    def ticks(self) -> int:
        return -(-self.run_ms // self.tick_length_ms)

    @property
    def seats(self) -> int:
        """Devices that are in a session, or between two, at the same time. The others wait for their turn."""
        per_seat = SEATED_SHARE * 1000 / BEAT_MAX_MS + self._other_eps
        return min(self.devices, max(1, math.ceil(self.eps / per_seat)))

    @property
    def beat_ms(self) -> int:
        """Report interval that fills the rate, to begin with."""
        beats_eps = max(self.eps / self.seats - self._other_eps, 0.01)
        return int(min(max(SEATED_SHARE * 1000 / beats_eps, BEAT_MIN_MS), BEAT_MAX_MS))

    @property
    def _other_eps(self) -> float:
        """What a seat sends beside Heartbeats."""
        usual = OTHER_EPS + (WEAK_EPS - OTHER_EPS) * self.weak_path_share
        return usual + (BAD_EPS - usual) * self.bad_path_share


@lru_cache(maxsize=8)
def _devices_by_partition(devices: int, partitions: int) -> I64:
    counts = count_numbered_devices(devices, partitions)
    counts.flags.writeable = False
    return counts


def devices_by_partition(plan: FleetPlan) -> I64:
    """Devices of each partition, shape (partitions,)."""
    return _devices_by_partition(plan.devices, plan.partitions)


def seats_by_partition(plan: FleetPlan) -> I64:
    """Seats of each partition: in proportion to its devices, at least one where there is a device."""
    counts = devices_by_partition(plan)
    return np.where(counts > 0, np.clip((counts * plan.seats + plan.devices - 1) // plan.devices, 1, counts), 0).astype(np.int64)


def events_by_partition(plan: FleetPlan) -> list[int]:
    """Events each partition sends in the whole run, in proportion to its seats; they add up to ``plan.events``."""
    edges = [0, *(int(s) for s in np.cumsum(seats_by_partition(plan)))]
    total = edges[-1]
    return [plan.events * b // total - plan.events * a // total for a, b in pairwise(edges)]
