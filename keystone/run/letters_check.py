"""What the decoder says of a single line: the same one that a run uses, so what passes here is accepted there."""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

from keystone.decode import Decoder
from keystone.events import Records

ROWS_MAX: Final = 64


class Look(NamedTuple):
    """``lines``: that the bytes hold, blank ones not counted. ``reason``: of the first that cannot be used. ``device_id``: of the first event."""

    lines: int
    reason: str | None
    device_id: bytes | None


def look_at(line: bytes) -> Look:
    """The bytes as the value of one log record."""
    lines, reason, device = 0, None, None
    for decoded in _decoder().decode(Records.of([line])):
        lines += decoded.received
        if decoded.dead_letters and reason is None:
            reason = decoded.dead_letters[0].reason
        if decoded.batch.rows and device is None:
            device = decoded.batch.device_id.value(0)
    return Look(lines, reason, device)


@cache
def _decoder() -> Decoder:
    return Decoder(rows_max=ROWS_MAX)
