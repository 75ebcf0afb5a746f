"""The sessions of one partition: apply events, let time pass, close; snapshot and restore (SPEC: a session, detection).

Choices where the specification is silent, the same in the reference of the tests:
the event's own bitrate counts as the last one before its alert is made; an event with a broken counter has no ``seq``,
in its alert neither; after an ``open_stall`` alert the run must end before the session can alert again; a late Stop
ends the run with its own ``ts``; the ``event_ts`` of ``open_stall`` is that of the Buffer that opened the stall, its
``seq`` the highest seen, its ``append_ts_ms`` the log time at which it was due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from keystone.config import CohortsConfig, DetectionConfig, SessionConfig
from keystone.detect import alerts_of
from keystone.events import FIRST_DIMENSION, I32, I64, INT_NULL, OUTCOMES, Alert, EventBatch
from keystone.kernels import session_rows as layout
from keystone.kernels import sessions as kernel
from keystone.kernels.cohorts import WINDOW_MS
from keystone.mappings import Room
from keystone.qoe import CohortPartial
from keystone.session_records import Names, SessionRecords, names_of
from keystone.session_snapshot import Arrays, DictionaryStore
from keystone.session_state import TableMemory

__all__ = ["Applied", "DictionaryStore", "Room", "SessionLook", "SessionRecords", "SessionTable"]

CLOSED_MAX: Final = 2048  # closed sessions of one kernel call; more make another
ALERTS_MAX: Final = 512
NAME_BYTES: Final = 64  # of an identifier, as room is first measured; grows with what is seen
_NO_ROWS: Final = np.zeros(0, np.int64)


@dataclass(slots=True)
class Applied:
    """What one call did. ``alert_rows`` (int64): the row of the batch that raised each alert, -1 where a timer did.

    ``cohorts``: of windows that log time has passed; with a plain file, parts of windows that more may come of.
    """

    alerts: list[Alert]
    alert_rows: I64
    sessions: SessionRecords
    cohorts: list[CohortPartial] = field(default_factory=list)
    applied: int = 0
    duplicates: int = 0
    late: int = 0


class SessionLook(NamedTuple):
    """Some numbers of a session that is kept, as its record would have them now; ``run`` is its stalls in a row."""

    start_ts: int
    end_ts: int
    startup_ms: int | None
    stall_ms: int
    playing_ms: int
    run: int
    outcome: str


class SessionTable:
    """Sessions of one partition. Not thread-safe; what it returns is the caller's.

    ``has_log_time`` False: a plain file; no timer ever fires. ``sessions_expected`` sizes the index once instead of by
    doubling. ``cohorts``: how they are counted, if at all. Raises ``UsageError`` for durations of 12 days or more, ``SessionsFull`` beyond
    ``session.sessions_max``.
    """

    def __init__(
        self,
        session: SessionConfig,
        detection: DetectionConfig,
        dictionaries: DictionaryStore,
        *,
        cohorts: CohortsConfig | None = None,
        has_log_time: bool = True,
        sessions_expected: int = 0,
    ) -> None:
        self._memory = TableMemory(session, detection, cohorts, has_log_time=has_log_time, sessions_expected=sessions_expected)
        self._ladder_kbps = detection.ladder_kbps
        self._dictionaries = dictionaries
        self._has_log_time = has_log_time
        self._partition = 0
        self._out = _new_out(NAME_BYTES)

    @property
    def active(self) -> int:
        """Sessions kept now, stopped ones in their grace time included."""
        return self._memory.active

    @property
    def unusual(self) -> int:
        """Sessions with a stall, an error or a hole in their numbers: no stall is open where there are none."""
        return int(self._memory.state[layout.SIDES_USED])

    @property
    def state_bytes(self) -> int:
        """Bytes of memory the state has come to use."""
        return self._memory.state_bytes

    @property
    def log_time_ms(self) -> int:
        """The highest log time seen."""
        return int(self._memory.state[layout.LOG_TIME])

    def apply(self, batch: EventBatch) -> Applied:
        """Apply a batch in log order, timers included that are due at each event for its session.

        Writes ``batch.duplicate`` and ``batch.late``. What only time brings about is left to ``advance``.
        """
        self._set_partition(batch.partition)
        done = self._begin()
        state = self._memory.state
        if batch.rows == 0:
            return done
        self._memory.cohorts.anchor(int(batch.ts[0]))
        events = _events(batch)
        state[layout.AT] = 0
        while True:
            kernel.apply_events(self._memory.table, self._out, events)
            reason = int(state[layout.REASON])
            if reason == layout.DONE:
                break
            if reason == layout.ROOM_OUT:
                self._drain(done)
                self._widen_out()
            elif reason == layout.SWEEP:
                self._advance(int(batch.append_ts_ms[state[layout.AT]]), done)
            elif reason == layout.WINDOW_OVER:
                self._pass_windows(int(batch.append_ts_ms[state[layout.AT]]), done)
            else:
                self._memory.make_room(reason, self._dictionaries)
        self._drain(done)
        done.cohorts = self._memory.cohorts.take(self._dictionaries)
        done.applied, done.duplicates, done.late = (int(state[k]) for k in (layout.APPLIED, layout.DUPLICATES, layout.LATE))
        return done

    def advance(self, log_time_ms: int) -> Applied:
        """Let log time pass: fire every timer due by ``log_time_ms``. Nothing happens without log time.

        How often this is called changes when results appear, never what they are.
        """
        done = self._begin()
        if self._has_log_time:
            self._advance(log_time_ms, done)
            done.cohorts = self._memory.cohorts.take(self._dictionaries)
        return done

    def close_all(self) -> Applied:
        """The end of a plain file: close what is open as ``open``, what is stopped as ``stop``."""
        done = self._begin()
        state = self._memory.state
        state[layout.AT] = 0
        while True:
            kernel.close_rows(self._memory.table, self._out)
            self._drain(done)
            if int(state[layout.REASON]) == layout.DONE:
                break
            self._widen_out()
        self._memory.cohorts.end(self._dictionaries)
        done.cohorts = self._memory.cohorts.take(self._dictionaries)
        self._memory.clear()
        return done

    def end_cohorts(self) -> list[CohortPartial]:
        """The end of what is read of a log: what the window under way has come to so far. Nothing may be applied after it."""
        self._memory.cohorts.end(self._dictionaries)
        return self._memory.cohorts.take(self._dictionaries)

    def anchor(self, ts_ms: int) -> None:
        """Of a plain file, before its first events here: the ``ts`` of the whole file's first accepted event, which windows are held near to."""
        self._memory.cohorts.anchor(ts_ms)

    @property
    def cohort_overflows(self) -> int:
        """Sessions opened so far that are counted as `other` in a dimension of theirs, because its values, or combinations, are too many."""
        return self._memory.cohorts.overflows

    def look(self, key_lo: int, key_hi: int) -> SessionLook | None:
        """A session as it is now, by the key of its events (EventBatch.key_lo, key_hi); None where it is not kept."""
        seen = np.zeros(layout.LOOK_WORDS, np.int64)
        if not kernel.look(self._memory.table, np.uint64(key_lo).astype(np.int64), np.uint64(key_hi).astype(np.int64), seen):
            return None
        start_ts, end_ts, startup, stall_ms, run, outcome = seen.tolist()
        startup_ms = None if startup == INT_NULL else startup
        return SessionLook(start_ts, end_ts, startup_ms, stall_ms, max(0, end_ts - start_ts - (startup_ms or 0) - stall_ms), run, OUTCOMES[outcome])

    def snapshot(self, room: Room | None = None) -> Arrays:
        """The whole state as arrays, dictionary strings included: copies made in ``room``, and views of what never changes.

        Memory is copied as it lies, nothing looks at a session: this is what the stream has to stand still for. Before they are
        kept, ``session_snapshot.packed`` takes out what is unused. Session keys are as the decoder hashed them: whoever restores
        must decode with the same seed. A room that is too small is made larger, which takes ten times as long as the copy: see
        ``Room.reserve`` and ``snapshot_bytes``.
        """
        return self._memory.snapshot(self._dictionaries, room) | {"partition": np.array([self._partition], np.int64)}

    @property
    def snapshot_bytes(self) -> int:
        """The room that a snapshot would take now."""
        return self._memory.snapshot_bytes

    def restore(self, arrays: Arrays) -> None:
        """Replace the state by a snapshot's, translating dimension codes to this process's dictionaries.

        ``arrays`` are only read, and not kept. Raises ``CheckpointDamaged`` where they do not fit together, ``UsageError`` for
        another schema, ``SessionsFull``. After ``CheckpointDamaged`` the table may not be used any more.
        """
        self._memory.restore(arrays, self._dictionaries)
        self._set_partition(int(arrays["partition"][0]))

    def live_codes(self, dimension: int) -> npt.NDArray[np.bool_]:
        """Which codes of CODED_DIMENSIONS[dimension] are in use. Shape (highest + 1,)."""
        return self._memory.live_codes(dimension)

    def remap(self, dimension: int, mapping: I32) -> None:
        """After the dictionaries are renumbered: replace each code by ``mapping[code]`` (>= 0 for every live one)."""
        self._memory.remap(dimension, mapping)

    def renumber(self, dictionaries: DictionaryStore, mappings: Sequence[I32]) -> None:
        """Use ``dictionaries`` from now on, with the codes ``mappings[column][code]``; columns are DICTIONARY_COLUMNS.

        Closed sessions that were handed out keep the dictionaries that they were made with.
        """
        for dimension, mapping in enumerate(mappings[FIRST_DIMENSION:]):
            self.remap(dimension, mapping)
        self._dictionaries = dictionaries

    def _begin(self) -> Applied:
        self._memory.state[layout.APPLIED : layout.CLOSED + 1] = 0
        return Applied([], _NO_ROWS, SessionRecords(self._dictionaries))

    def _set_partition(self, partition: int) -> None:
        self._partition = self._memory.cohorts.partition = partition

    def _advance(self, log_time_ms: int, done: Applied) -> None:
        """Everything due by then, each in its window."""
        log_time_ms = max(self.log_time_ms, log_time_ms)
        self._pass_windows(log_time_ms, done)
        self._sweep(log_time_ms, done)

    def _pass_windows(self, log_time_ms: int, done: Applied) -> None:
        """End, one after the other, the windows of cohorts that are over at ``log_time_ms``: what is due in each is done first."""
        cohorts, target = self._memory.cohorts, log_time_ms // WINDOW_MS
        if not cohorts.has_windows:
            return
        window = cohorts.window
        if window is None:
            cohorts.begin_window(target)
            return
        while window < target:
            self._sweep(max(self.log_time_ms, (window + 1) * WINDOW_MS - 1), done)
            window = window + 1 if self._memory.active else target
            cohorts.pass_window(window, self._dictionaries, self._memory.table)

    def _sweep(self, log_time_ms: int, done: Applied) -> None:
        while True:
            kernel.sweep(self._memory.table, self._out, log_time_ms)
            self._drain(done)
            if int(self._memory.state[layout.REASON]) == layout.DONE:
                return
            self._widen_out()

    def _drain(self, done: Applied) -> None:
        """Take alerts and closed sessions out of the kernel's arrays."""
        state, out = self._memory.state, self._out
        alerts, closed = int(state[layout.ALERTS]), int(state[layout.CLOSED])
        state[layout.ALERTS : layout.CLOSED + 1] = 0
        if alerts:
            numbers = out.alerts[: alerts * layout.ALERT_WORDS].reshape(alerts, -1)
            names = names_of(out.alert_text, out.alert_ends, alerts)
            codes = out.alert_codes[: alerts * layout.DIMS].reshape(alerts, -1)
            done.alerts += alerts_of(numbers, codes, names, self._ladder_kbps, self._dictionaries, self._partition)
            done.alert_rows = np.concatenate((done.alert_rows, numbers[:, layout.A_EVENT_ROW]))
        if closed:
            done.sessions.take(
                out.closed.reshape(layout.CLOSED_WORDS, -1)[:, :closed].copy(),
                out.closed_codes.reshape(layout.DIMS, -1)[:, :closed].copy(),
                Names.copy_of(out.closed_text, out.closed_ends, closed),
            )

    def _widen_out(self) -> None:
        """Room for a chunk of the longest names seen (fresh memory: untouched pages cost nothing)."""
        state = self._memory.state
        longest = int(max(state[layout.LONGEST_DEVICE], state[layout.LONGEST_SESSION], state[layout.LONGEST_USER]))
        if longest * 3 * (self._out.closed.size // layout.CLOSED_WORDS) > self._out.closed_text.size:
            self._out = _new_out(longest)


def _new_out(name_bytes: int) -> layout.Out:
    closed, alerts = (CLOSED_MAX, ALERTS_MAX) if name_bytes <= layout.LONG_BYTES else (4 * layout.BLOCK_ROWS, 4 * layout.BLOCK_ROWS)
    return layout.Out(
        np.empty(alerts * layout.ALERT_WORDS, np.int64), np.empty(alerts * layout.DIMS, np.int32), np.empty(3 * alerts * name_bytes, np.uint8),
        np.empty(3 * alerts, np.int64),
        np.empty(closed * layout.CLOSED_WORDS, np.int64), np.empty(closed * layout.DIMS, np.int32), np.empty(3 * closed * name_bytes, np.uint8),
        np.empty(3 * closed, np.int64),
    )  # fmt: skip


def _events(batch: EventBatch) -> layout.Events:
    # Row 0 of a matrix and the distance of its rows: the same type whether the matrix is whole or a slice of a wider one.
    ints, codes = batch.ints[0], batch.codes[FIRST_DIMENSION]
    device, session, user = batch.device_id, batch.session_id, batch.user_id
    return layout.Events(
        batch.rows, batch.kind, batch.ts, ints, batch.ints.strides[0] // 8, codes, batch.codes.strides[0] // 4,
        batch.key_lo.view(np.int64), batch.key_hi.view(np.int64), batch.user_hash.view(np.int64), batch.append_ts_ms,
        device.offsets, device.data, session.offsets, session.data, user.offsets, user.data, user.valid, batch.duplicate, batch.late,
    )  # fmt: skip
