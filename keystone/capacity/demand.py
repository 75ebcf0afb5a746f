"""What is asked of a plan: a load, and what the person who plans decides. Checked once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from keystone.capacity.rates import CODECS, LOGS
from keystone.errors import UsageError

EVENT_S: Final = 5.0  # a device sends about every 5 s: how many there are where only the rate is told
EPS_MAX: Final = 1e9
DEVICES_MAX: Final = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Demand:
    """``headroom``: share of every core, link and disk that is to stay free. ``zones``: availability zones that brokers are spread over.

    ``event_bytes``: of JSON; None: as measured. ``retention_hours``: of telemetry on the brokers. ``lake_days``, ``index_days``: how long
    these are kept. ``has_index``: False leaves the search server out.
    """

    eps: float
    devices: int
    log: str = "kafka"
    event_bytes: float | None = None
    codec: str = "lz4"
    replication: int = 3
    headroom: float = 0.3
    retention_hours: float = 24.0
    zones: int = 3
    lake_days: float = 30.0
    index_days: float = 7.0
    has_index: bool = True
    instance: str = "c7i.4xlarge"
    broker_instance: str = "m7i.2xlarge"
    index_instance: str = "r7i.2xlarge"

    def check(self) -> None:
        """``UsageError`` for what cannot be."""
        limits: tuple[tuple[str, float | None, float, float], ...] = (
            ("--eps", self.eps, 1, EPS_MAX),
            ("--devices", self.devices, 1, DEVICES_MAX),
            ("--bytes-per-event", self.event_bytes, 20, 1_048_576),
            ("--replication", self.replication, 1, 32),
            ("--headroom", self.headroom, 0, 0.9),
            ("--retention-hours", self.retention_hours, 0, 87_600),
            ("--zones", self.zones, 1, 16),
            ("--lake-days", self.lake_days, 0, 36_500),
            ("--index-days", self.index_days, 0, 36_500),
        )
        for name, value, low, high in limits:
            if value is not None and not low <= value <= high:  # nan is in no range
                raise UsageError(f"{name} {value:,.10g} must be from {low:,.10g} to {high:,.10g}")
        for name, word, known in (("--log", self.log, LOGS), ("--codec", self.codec, CODECS)):
            if word not in known:
                raise UsageError(f"{name} {word} must be one of {', '.join(known)}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
