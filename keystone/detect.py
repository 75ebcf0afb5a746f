"""Alerts: what the session kernel found, made into actions (SPEC: detection).

The kernel decides when (it alone has the state); here are the rung of the ladder, the ids and the words.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from typing import Final

from keystone.events import ALERT_LOOP, ALERT_OPEN_STALL, DIMENSIONS, FIRST_DIMENSION, I32, I64, INT_NULL, Alert
from keystone.kernels import session_rows as layout
from keystone.session_snapshot import DictionaryStore

KINDS: Final = (ALERT_LOOP, ALERT_OPEN_STALL)  # by the kernel's numbers
ALERT_ID_DIGITS: Final = 32


def recommended_bitrate_kbps(ladder_kbps: tuple[int, ...], bitrate_kbps: int | None) -> int:
    """The rung next below ``bitrate_kbps``; the lowest if there is no bitrate, or no rung below."""
    if bitrate_kbps is None:
        return ladder_kbps[0]
    return ladder_kbps[max(0, bisect_left(ladder_kbps, bitrate_kbps) - 1)]


def alert_id(device_id: str, session_id: str, start_ts: int, ordinal: int, kind: str) -> str:
    """The same for every replay: SHA-256 over identity, start, ordinal in the session and kind, NUL between."""
    name = f"{device_id}\0{session_id}\0{start_ts}\0{ordinal}\0{kind}"
    return hashlib.sha256(name.encode()).hexdigest()[:ALERT_ID_DIGITS]


def alerts_of(
    numbers: I64, codes: I32, names: list[tuple[str, str, str | None]], ladder_kbps: tuple[int, ...], dictionaries: DictionaryStore, partition: int
) -> list[Alert]:
    """Alerts from the kernel's rows.

    ``numbers`` (alerts, ALERT_WORDS), ``codes`` (alerts, coded dimensions), ``names`` device, session and user of each.
    """
    return [
        _alert(row, row_codes, name, ladder_kbps, dictionaries, partition) for row, row_codes, name in zip(numbers.tolist(), codes.tolist(), names, strict=True)
    ]


def _alert(
    row: list[int], codes: list[int], names: tuple[str, str, str | None], ladder_kbps: tuple[int, ...], dictionaries: DictionaryStore, partition: int
) -> Alert:
    device_id, session_id, user_id = names
    kind = KINDS[row[layout.A_KIND]]
    seq, bitrate = row[layout.A_SEQ], row[layout.A_BITRATE]
    bitrate_kbps = None if bitrate == INT_NULL else bitrate
    text = dictionaries.text
    words = [None if code < 0 else text(column, code) for column, code in enumerate(codes, FIRST_DIMENSION)]
    return Alert(
        alert_id=alert_id(device_id, session_id, row[layout.A_START_TS], row[layout.A_ORDINAL], kind),
        kind=kind,
        device_id=device_id,
        session_id=session_id,
        event_ts=row[layout.A_EVENT_TS],
        seq=None if seq == INT_NULL else seq,
        buffers_in_run=row[layout.A_RUN],
        bitrate_kbps=bitrate_kbps,
        recommended_bitrate_kbps=recommended_bitrate_kbps(ladder_kbps, bitrate_kbps),
        dimensions=dict(zip(DIMENSIONS, (user_id, *words), strict=True)),
        append_ts_ms=row[layout.A_APPEND_TS],
        partition=partition,
    )
