"""The vocabulary: kinds, columns, dtypes, and the batches that cross every boundary.

Nothing here imports anything of ours. Columns are spelled once, in the tuples below; their order is the order of
the rows of the two-dimensional arrays of an ``EventBatch``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

# --- kinds ------------------------------------------------------------------------------------------------------
# ``phase`` and ``fatal`` are folded into the kind, so that the session kernel needs neither column.
KIND_START: Final = 0
KIND_HEARTBEAT: Final = 1
KIND_BUFFER: Final = 2  # a stall
KIND_WAIT: Final = 3  # a Buffer of phase startup or seek: waiting that is not a stall
KIND_STOP: Final = 4
KIND_ERROR: Final = 5
KIND_FATAL: Final = 6  # an Error with fatal = true
KIND_OTHER: Final = 7  # any other event name
EVENT_NAMES: Final = ("Start", "Heartbeat", "Buffer", "Stop", "Error")

# --- columns of an event --------------------------------------------------------------------------------------
#: Dictionary-coded columns: rows of ``EventBatch.codes`` (int32, -1 = null).
DICTIONARY_COLUMNS: Final = (
    "event", "phase", "reason", "error_code",
    "title_id", "region", "country", "device_type", "os", "app_version", "cdn", "isp", "network",
)  # fmt: skip
#: Optional integers: rows of ``EventBatch.ints`` (int64, ``INT_NULL`` = null).
INT_COLUMNS: Final = (
    "seq", "bitrate_kbps", "position_ms", "buffer_ms", "stall_ms", "startup_ms", "dropped_frames",
)  # fmt: skip
#: Identifiers, one Arrow-layout string column each.
ID_COLUMNS: Final = ("device_id", "session_id", "user_id")
#: What an alert and a session record carry beside their own fields (SPEC: the dimensions), in this order.
DIMENSIONS: Final = (
    "user_id", "title_id", "region", "country", "device_type", "os", "app_version", "cdn", "isp", "network",
)  # fmt: skip
#: The dictionary-coded dimensions (all but ``user_id``): ``codes[FIRST_DIMENSION:]``.
CODED_DIMENSIONS: Final = DIMENSIONS[1:]
FIRST_DIMENSION: Final = DICTIONARY_COLUMNS.index("title_id")

INT_NULL: Final = np.iinfo(np.int64).min
CODE_NULL: Final = -1
BOOL_NULL: Final = -1

# --- dead letters ------------------------------------------------------------------------------------------------
#: In order of precedence: where several apply, the first is the reason.
REASONS: Final = (
    "too_large", "invalid_utf8", "invalid_json", "not_an_object", "too_deep", "missing_field", "bad_type",
)  # fmt: skip
LINE_BYTES_MAX: Final = 1_048_576  # between two LFs; longer lines are dead letters
DEPTH_MAX: Final = 64  # nested arrays and objects, the event itself counted
DEAD_LETTER_BYTES_MAX: Final = 64 << 10  # of an unusable line that are kept

# --- alerts and sessions -----------------------------------------------------------------------------------------
ALERT_LOOP: Final = "buffering_loop"
ALERT_OPEN_STALL: Final = "open_stall"
ACTION_DOWNGRADE: Final = "bitrate_downgrade"
OUTCOMES: Final = ("vpf", "vsf", "played", "ebvs")
END_REASONS: Final = ("stop", "timeout", "open")

PADDING: Final = 64  # bytes that kernels may read (never use) past the end of a text buffer
LF: Final = 10


@dataclass(frozen=True, slots=True)
class Records:
    """Log records of one partition, as one poll returned them.

    ``text`` is uint8; record ``i`` is ``text[starts[i]:ends[i]]``. Two promises let kernels run without bound checks:
    ``text[ends[i]]`` is a line feed (not part of the record), and ``text.size >= ends[-1] + PADDING``.
    ``starts ends offsets append_ts_ms`` are int64, shape (records,), offsets ascending. A null or empty value has
    ``starts[i] == ends[i]``. ``next_offset`` is where the next poll continues (also when nothing was read).
    The arrays belong to the reader and are valid until its next ``poll``.
    """

    partition: int
    text: U8
    starts: I64
    ends: I64
    offsets: I64
    append_ts_ms: I64
    next_offset: int

    def __len__(self) -> int:
        return int(self.starts.size)

    @property
    def size_bytes(self) -> int:
        """Bytes of all values together."""
        return int((self.ends - self.starts).sum())

    def split(self, offset: int) -> tuple[Records, Records]:
        """Those below ``offset`` and the others, of the same text."""
        at = int(np.searchsorted(self.offsets, offset))
        return self._part(slice(0, at), min(offset, self.next_offset)), self._part(slice(at, None), self.next_offset)

    def _part(self, rows: slice, next_offset: int) -> Records:
        return Records(self.partition, self.text, self.starts[rows], self.ends[rows], self.offsets[rows], self.append_ts_ms[rows], next_offset)

    @classmethod
    def empty(cls, partition: int, next_offset: int) -> Records:
        none = np.zeros(0, np.int64)
        return cls(partition, np.full(PADDING, LF, np.uint8), none, none, none, none, next_offset)

    @classmethod
    def of(cls, values: list[bytes | None], *, partition: int = 0, first_offset: int = 0, append_ts_ms: int | list[int] = 0) -> Records:
        """Records from byte strings: for tests, and for sources that hold single values."""
        joined = b"".join((v or b"") + b"\n" for v in values) + b"\n" * PADDING
        sizes = np.array([len(v or b"") for v in values], np.int64)
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes + 1)))[:-1].astype(np.int64)
        times = np.broadcast_to(np.asarray(append_ts_ms, np.int64), sizes.shape).copy()
        offsets = np.arange(first_offset, first_offset + len(values), dtype=np.int64)
        return cls(partition, np.frombuffer(joined, np.uint8), starts, starts + sizes, offsets, times, first_offset + len(values))


@dataclass(slots=True)
class StringColumn:
    """Arrow's layout: value ``i`` is ``data[offsets[i]:offsets[i + 1]]``; ``valid[i]`` is 0 where it is null.

    ``offsets`` int32 (rows + 1,), ``data`` uint8 with ``PADDING`` spare bytes, ``valid`` uint8 (rows,).
    """

    offsets: I32
    data: U8
    valid: U8

    def value(self, row: int) -> bytes | None:
        if not self.valid[row]:
            return None
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes()


@dataclass(slots=True)
class EventBatch:
    """Accepted events of one partition in log order, as columns. Shape (rows,) unless said.

    Owned by the decoder that filled it and overwritten by its next call: who wants to keep anything copies it.
    ``key_lo key_hi`` are the 128-bit seeded hash of (device_id, session_id); ``user_hash`` of user_id (0 = absent).
    ``duplicate late`` (uint8) are filled in by the session table.
    """

    partition: int
    rows: int
    kind: I8
    fatal: I8  # -1 null, 0, 1
    ts: I64  # device clock, ms since the epoch
    ints: I64  # (INT_COLUMNS, rows)
    codes: I32  # (DICTIONARY_COLUMNS, rows)
    device_id: StringColumn
    session_id: StringColumn
    user_id: StringColumn
    extra: StringColumn
    key_lo: U64
    key_hi: U64
    user_hash: U64
    offset: I64
    line: I32
    append_ts_ms: I64  # log time
    duplicate: U8
    late: U8

    def int_column(self, name: str) -> I64:
        return self.ints[INT_COLUMNS.index(name)]  # type: ignore[no-any-return]

    def code_column(self, name: str) -> I32:
        return self.codes[DICTIONARY_COLUMNS.index(name)]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A line that cannot be used: where it was, why, its length in bytes, and at most its first 64 KiB."""

    partition: int
    offset: int
    line: int
    reason: str
    length: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert and its action. ``seq`` and the bitrates are None where unknown; ``dimensions`` holds DIMENSIONS."""

    alert_id: str
    kind: str
    device_id: str
    session_id: str
    event_ts: int  # of the Buffer that raised it (open_stall: of the Buffer that opened the stall), device clock
    seq: int | None
    buffers_in_run: int
    bitrate_kbps: int | None
    recommended_bitrate_kbps: int
    dimensions: dict[str, str | None]
    append_ts_ms: int  # loop: when the triggering event was appended; open_stall: the log time at which it was due
    partition: int = 0
    action: str = field(default=ACTION_DOWNGRADE)
