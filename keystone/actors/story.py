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
from keystone.events import DICTIONARY_COLUMNS, KIND_BUFFER, KIND_HEARTBEAT, KIND_START, KIND_STOP, Alert, EventBatch
from keystone.sessions import SessionTable

LINES_PER_S: Final = 20.0  # of one actor: more than anyone reads
ALERTS_PER_S: Final = 5
KEPT_MAX: Final = 200  # not fetched yet
BITS_MAX: Final = 40
RATE_OVER_MIN_S: Final = 0.1  # a burst of a few milliseconds is no rate
RUN_ENDS: Final = (KIND_START, KIND_HEARTBEAT, KIND_STOP)
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
    """Fed by a session actor's loop, emptied from another thread.

    ``told``: lines handed out so far. ``scenes``: lines that there would have been; where a part of the sessions is shown, as many as
    these stand for.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._kept: deque[Scene] = deque(maxlen=KEPT_MAX)
        self._bits = 0
        self._second_s = time.monotonic()
        self._candidates = 0
        self._alerts = 0
        self.told = 0
        self.scenes = 0

    def take(self, batch: EventBatch, dictionaries: Dictionaries, table: SessionTable) -> None:
        """Look at one applied batch."""
        kind = batch.kind
        stalls = (kind == KIND_BUFFER) & (batch.late == 0)
        rows = np.flatnonzero(((kind == KIND_START) | stalls | (kind == KIND_STOP)) & (batch.duplicate == 0))
        self._candidates += rows.size
        self._adapt()
        if self._bits:
            rows = rows[(batch.key_lo[rows] & np.uint64((1 << self._bits) - 1)) == 0]
        looked = rows[: int(LINES_PER_S)].tolist()
        lines = sum(self._tell(batch, row, dictionaries, table) for row in looked)
        if looked:
            self.scenes += round(lines * rows.size / len(looked)) << self._bits

    def take_alerts(self, alerts: Sequence[Alert], visible_ms: Sequence[float]) -> None:
        """Alerts that were delivered: shown first, up to ALERTS_PER_S."""
        self.scenes += len(alerts)
        self._adapt()
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
        self.told += len(scenes)
        return scenes

    def _adapt(self) -> None:
        """Once a second, and at once where far more comes: show so many sessions that people can read."""
        since_s = time.monotonic() - self._second_s
        if since_s < 1.0 and self._candidates < 4 * LINES_PER_S * (1 << self._bits):
            return
        wanted = self._candidates / max(since_s, RATE_OVER_MIN_S) / LINES_PER_S
        if not (1 << self._bits) / 4 <= wanted <= 1 << self._bits:
            self._bits = max(0, min(BITS_MAX, int(np.ceil(np.log2(max(wanted, 1.0))))))
        if since_s >= 1.0:
            self._second_s, self._candidates, self._alerts = time.monotonic(), 0, 0

    def _tell(self, batch: EventBatch, row: int, dictionaries: Dictionaries, table: SessionTable) -> bool:
        """Whether the row makes a line; the stall that raises an alert does not, the alert does."""
        kind = int(batch.kind[row])
        seen = table.look(int(batch.key_lo[row]), int(batch.key_hi[row]))
        if seen is None:
            return False
        device, session = _text(batch.device_id.value(row)), _text(batch.session_id.value(row))
        at_ms = float(batch.append_ts_ms[row])
        if kind == KIND_START:
            user = batch.user_id.value(row)
            self._add(Scene(START, at_ms, device, session, None if user is None else _text(user), _dimensions(batch, row, dictionaries)))
        elif kind == KIND_BUFFER:
            run = _run_at(batch, row, seen.run)
            if not 0 < run < self._threshold:
                return False
            self._add(Scene(BUFFERING, at_ms, device, session, run=run, threshold=self._threshold))
        else:
            self._add(Scene(STOP, at_ms, device, session, view_ms=seen.playing_ms, stall_ms=seen.stall_ms, outcome=seen.outcome))
        return True

    def _add(self, scene: Scene) -> None:
        self._kept.append(scene)


def _run_at(batch: EventBatch, row: int, run_now: int) -> int:
    """Stalls in a row when ``row`` was applied, of a session that has ``run_now`` after the batch; 0 where it was stopped.

    A run that has ended by then is counted from this batch's first row on: at rates that people watch, batches are of milliseconds.
    """
    ours = np.flatnonzero((batch.key_lo == batch.key_lo[row]) & (batch.duplicate == 0) & (batch.late == 0))
    kinds, at = batch.kind[ours], int(np.searchsorted(ours, row))
    ends = np.flatnonzero(np.isin(kinds, RUN_ENDS))
    if not (ends > at).any():
        return run_now - int((kinds[at + 1 :] == KIND_BUFFER).sum())
    first = int(ends[ends < at].max(initial=-1)) + 1
    return int((kinds[first : at + 1] == KIND_BUFFER).sum())


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
