"""What must be alerted, told by the devices themselves: each counts its stalls since its last healthy report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from keystone.events import ALERT_LOOP, ALERT_OPEN_STALL, I64
from keystone.partition import device_id_of

KINDS = (ALERT_LOOP, ALERT_OPEN_STALL)
SCHEMA = {"device_id": pl.String, "session_id": pl.String, "kind": pl.String, "event_ts": pl.Int64, "seq": pl.Int64, "intended_ms": pl.Int64}


@dataclass(frozen=True, slots=True)
class Truth:
    """Expected alerts as columns of shape (alerts,), int64.

    ``device`` is the device's number, ``session`` the bits of its id, ``kind`` indexes ``KINDS``. ``event_ts`` (device clock, ms) is of
    the Buffer that raises the alert (open_stall: that opened the stall); ``seq`` the session's highest by then;
    ``intended_ms`` (device clock) when the alert's cause is complete: the Buffer's intended time (open_stall: the
    last event's, plus the limit).
    """

    device: I64
    session: I64
    kind: I64
    event_ts: I64
    seq: I64
    intended_ms: I64

    def __len__(self) -> int:
        return int(self.device.size)

    @classmethod
    def of_rows(cls, rows: I64, epoch_ms: int) -> Truth:
        """From the kernel's rows, shape (alerts, 6), whose times count from the run's start."""
        device, session, kind, event_ts, seq, intended_ms = (rows[:, i].copy() for i in range(6))
        return cls(device, session, kind, event_ts + epoch_ms, seq, intended_ms + epoch_ms)

    @classmethod
    def concat(cls, parts: list[Truth]) -> Truth:
        """Of several partitions."""
        none = cls.of_rows(np.zeros((0, 6), np.int64), 0)
        return cls(*(np.concatenate([getattr(part, name) for part in (none, *parts)]) for name in cls.__slots__))

    def frame(self) -> pl.DataFrame:
        """One row an expected alert, as ``truth.parquet`` has them: SCHEMA."""
        columns = {
            "device_id": [device_id_of(int(number)) for number in self.device],
            "session_id": [f"{int(bits) & 0xFFFF_FFFF_FFFF_FFFF:016x}" for bits in self.session],
            "kind": [KINDS[int(kind)] for kind in self.kind],
            "event_ts": self.event_ts, "seq": self.seq, "intended_ms": self.intended_ms,
        }  # fmt: skip
        return pl.DataFrame(columns, schema=SCHEMA)
