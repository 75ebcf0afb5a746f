"""What a person at a terminal is shown of a stream: a few sessions, whole, however fast it is.

At high rates the sessions whose key ends in enough zero bits are shown, so that a session that is shown is shown from its
Start to its Stop. It costs one comparison of a column a batch; nothing here changes what is computed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from keystone.decode import Dictionaries
from keystone.events import DICTIONARY_COLUMNS, KIND_BUFFER, KIND_START, KIND_STOP, Alert, EventBatch
from keystone.sessions import SessionTable

LINES_PER_S: Final = 20.0  # of one actor: more than anyone reads
ALERTS_PER_S: Final = 5
KEPT_MAX: Final = 200  # not fetched yet
BITS_MAX: Final = 40
_SHOWN_DIMENSIONS: Final = ("region", "country", "device_type", "os", "cdn", "title_id")
TEXT_LETTERS_MAX: Final = 80  # of one string of a device

START, BUFFERING, ALERT, STOP = "start", "buffering", "alert", "stop"


@dataclass(frozen=True, slots=True)
class Scene:
    """One line of the story. ``run`` of ``threshold``: stalls in a row; times in ms; ``latency_ms`` from append to visible."""

    what: str
    at_ms: float
    device: str
    session: str
    user: str | None = None
    dimensions: dict[str, str] | None = None
    run: int = 0
    threshold: int = 0
    from_kbps: int | None = None
    to_kbps: int | None = None
    latency_ms: float | None = None
    kind: str = ""
    view_ms: int = 0
    stall_ms: int = 0
    outcome: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class StoryTap:
    """Fed by a session actor's loop, emptied from another thread."""

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._kept: deque[Scene] = deque(maxlen=KEPT_MAX)
        self._bits = 0
        self._second_s = time.monotonic()
        self._candidates = 0
        self._alerts = 0
        self.told = 0  # lines so far, of ``scenes`` that there would have been
        self.scenes = 0

    def take(self, batch: EventBatch, dictionaries: Dictionaries, table: SessionTable) -> None:
        """Look at one applied batch."""
        kind = batch.kind
        rows = np.flatnonzero(((kind == KIND_START) | (kind == KIND_BUFFER) | (kind == KIND_STOP)) & (batch.duplicate == 0))
        self._candidates += rows.size
        self.scenes += rows.size
        self._adapt()
        if self._bits:
            rows = rows[(batch.key_lo[rows] & np.uint64((1 << self._bits) - 1)) == 0]
        for row in rows[: int(LINES_PER_S)].tolist():
            self._tell(batch, row, dictionaries, table)

    def take_alerts(self, alerts: Sequence[Alert], visible_ms: Sequence[float]) -> None:
        """Alerts that were delivered: shown first, up to ALERTS_PER_S."""
        self.scenes += len(alerts)
        for alert, at_ms in zip(alerts, visible_ms, strict=True):
            self._alerts += 1
            if self._alerts > ALERTS_PER_S:
                return
            dimensions = {name: _short(value) for name in _SHOWN_DIMENSIONS if (value := alert.dimensions.get(name)) is not None}
            self._add(
                Scene(
                    ALERT, at_ms, _short(alert.device_id), _short(alert.session_id), None, dimensions, alert.buffers_in_run, self._threshold,
                    alert.bitrate_kbps, alert.recommended_bitrate_kbps, at_ms - alert.append_ts_ms, alert.kind,
                )
            )  # fmt: skip

    def drain(self) -> list[dict[str, Any]]:
        """The scenes since the last call."""
        scenes = []
        while self._kept:
            scenes.append(self._kept.popleft().as_dict())
        return scenes

    def _adapt(self) -> None:
        """Once a second: show half as many sessions, or twice."""
        since_s = time.monotonic() - self._second_s
        if since_s < 1.0 and self._candidates < 4 * LINES_PER_S * (1 << self._bits):
            return
        rate = self._candidates / max(since_s, 1e-3)
        if rate > LINES_PER_S * (1 << self._bits):
            self._bits = min(BITS_MAX, int(np.ceil(np.log2(rate / LINES_PER_S))))
        elif self._bits and rate < LINES_PER_S * (1 << self._bits) / 4:
            self._bits -= 1
        if since_s >= 1.0:
            self._second_s, self._candidates, self._alerts = time.monotonic(), 0, 0

    def _tell(self, batch: EventBatch, row: int, dictionaries: Dictionaries, table: SessionTable) -> None:
        kind = int(batch.kind[row])
        seen = table.look(int(batch.key_lo[row]), int(batch.key_hi[row]))
        if seen is None:
            return
        device, session = _text(batch.device_id.value(row)), _text(batch.session_id.value(row))
        at_ms = float(batch.append_ts_ms[row])
        if kind == KIND_START:
            user = batch.user_id.value(row)
            self._add(Scene(START, at_ms, device, session, None if user is None else _text(user), _dimensions(batch, row, dictionaries)))
        elif kind == KIND_BUFFER:
            later = int(((batch.kind[row + 1 :] == KIND_BUFFER) & (batch.key_lo[row + 1 :] == batch.key_lo[row])).sum())
            run = max(1, seen.run - later)
            if run < self._threshold:
                self._add(Scene(BUFFERING, at_ms, device, session, run=run, threshold=self._threshold))
        else:
            self._add(Scene(STOP, at_ms, device, session, view_ms=seen.playing_ms, stall_ms=seen.stall_ms, outcome=seen.outcome))

    def _add(self, scene: Scene) -> None:
        self._kept.append(scene)
        self.told += 1


def _dimensions(batch: EventBatch, row: int, dictionaries: Dictionaries) -> dict[str, str]:
    found = {}
    for name in _SHOWN_DIMENSIONS:
        column = DICTIONARY_COLUMNS.index(name)
        code = int(batch.codes[column, row])
        if code >= 0:
            found[name] = _short(dictionaries.text(column, code))
    return found


def _text(value: bytes | None) -> str:
    return _short((value or b"").decode("utf-8", "replace"))


def _short(text: str) -> str:
    return text if len(text) <= TEXT_LETTERS_MAX else text[: TEXT_LETTERS_MAX - 1] + "…"
