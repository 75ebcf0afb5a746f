"""Bytes of log records to columns and dead letters (SPEC: an event). One exact parser, compiled; see ``kernels/decode.py``."""

from __future__ import annotations

import hashlib
import secrets as entropy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from keystone.events import (
    DICTIONARY_COLUMNS,
    EVENT_NAMES,
    FIRST_DIMENSION,
    I32,
    LINE_BYTES_MAX,
    PADDING,
    REASONS,
    U8,
    U64,
    EventBatch,
    Records,
    StringColumn,
)  # fmt: skip
from keystone.kernels import decode as kernel
from keystone.kernels import fields
from keystone.kernels import words as word_kernel
from keystone.kernels.columns import take_rows
from keystone.kernels.glue import Glue, new_glue
from keystone.letter_batch import LetterBatch, cut_out
from keystone.partition import partitions_of
from keystone.session_snapshot import Strings

ROWS_MAX = 16384  # of one batch, 4 MB of columns; with 8192 the lake, whose pages these are, cost 5% more, with 4096 15%
BYTES_MAX = 4 << 20  # of text one batch may take in; bounds the identifier columns
DEAD_MAX = 1024  # dead letters of one kernel call; more make another call

#: Strings that dictionaries may come to before those that no session uses are forgotten, or twice what sessions used the last
#: time, if that is more: so that forgetting costs less than learning did. 262,144 of 16 bytes take ~40 MB with their codes.
DICTIONARY_ENTRIES_MAX: Final = 1 << 18
DICTIONARY_BYTES_MAX: Final = 32 << 20  # the same for the bytes of their text: a value may have 1 MiB

_DUPLICATE, _LATE = 4, 5  # rows of ``Columns.valid`` behind the four string columns
PHASES = ("startup", "seek")  # codes 0 and 1 of the phase column; the kernel knows them
_PHASE = DICTIONARY_COLUMNS.index("phase")
_FIXED = {0: len(EVENT_NAMES), _PHASE: len(PHASES)}  # codes that always stand for the same
Flags = npt.NDArray[np.bool_]


class Dictionaries:
    """The strings behind the codes of DICTIONARY_COLUMNS, one code space a column, codes dense from 0.

    Codes never change while the object lives (``compact`` makes a new one). ``event`` codes 0..4 are EVENT_NAMES.
    """

    def __init__(self, *, seed: int | None = None, words: word_kernel.Words | None = None) -> None:
        """New ones, with random secrets where no ``seed`` is given; or those of a table that ``compact`` made."""
        columns = len(DICTIONARY_COLUMNS)
        self._values: list[list[str]] = [[] for _ in range(columns)]
        self._arrow: list[pa.Array | None] = [None] * columns
        self._seen = 0
        if words is not None:
            self.words = words
            return
        source = np.random.default_rng(entropy.randbits(128) if seed is None else seed)
        self.words = word_kernel.new_words(columns, source.integers(0, 1 << 63, 8, dtype=np.uint64) << np.uint64(1) | np.uint64(1))
        for name in EVENT_NAMES:
            self.intern(0, name.encode())
        for name in PHASES:
            self.intern(_PHASE, name.encode())

    def intern(self, column: int, value: bytes) -> int:
        """Code of ``value`` (UTF-8) in the column, new if need be."""
        text = np.frombuffer(value + b"\0" * PADDING, np.uint8).copy()
        while True:
            code = int(word_kernel.intern_one(text, len(value), column, self.words))
            if code >= 0:
                return code
            self.grow(len(value))

    def grow(self, size: int = LINE_BYTES_MAX) -> None:
        """Twice the slots, and arena room for a string of ``size`` bytes."""
        words = self.words
        slots = np.zeros(words.slots.size * 2, np.uint64)
        arena = np.empty(2 * words.arena.size + size, np.uint8)
        arena[: words.state[word_kernel.BYTES]] = words.arena[: words.state[word_kernel.BYTES]]
        start, sizes, column, code = (np.concatenate((a, np.zeros_like(a))) for a in (words.start, words.size, words.column, words.code))
        self.words = word_kernel.Words(slots, arena, start, sizes, column, code, words.codes_used, words.state, words.secrets)
        word_kernel.rehash(words.slots, self.words)

    def compact(self, live: Sequence[Flags | None]) -> tuple[Dictionaries, list[I32]]:
        """New dictionaries with the live codes only, numbered anew without gaps, and for each column ``mapping[old]``: new or -1.

        ``live`` has for each of DICTIONARY_COLUMNS a flag a code (codes beyond its end are dead), or None: none is live.
        EVENT_NAMES and PHASES stay, with their codes; other spellings of EVENT_NAMES are forgotten. Order is kept, and
        the secrets are, so that session keys stay. This object stays as it is, for whoever still holds its codes.
        """
        old = self.words
        entries, size = int(old.state[word_kernel.COUNT]), int(old.state[word_kernel.BYTES])
        mappings = [self._mapping(column, live[column]) for column in range(len(DICTIONARY_COLUMNS))]
        first = np.cumsum([0, *(mapping.size for mapping in mappings)])[:-1]
        codes = np.concatenate(mappings)[first[old.column[:entries]] + old.code[:entries]]
        is_alias = (old.column[:entries] == 0) & (codes < len(EVENT_NAMES)) & (np.arange(entries) >= len(EVENT_NAMES))
        is_kept = (codes >= 0) & ~is_alias
        numbers = np.cumsum(is_kept) - 1

        slots = old.slots.reshape(-1, word_kernel.SLOT_WORDS)
        slots = slots[slots[:, 3] != 0]
        places = (slots[:, 3] & word_kernel.LOW_32).astype(np.int64) - 1
        slots, places = slots[is_kept[places]], places[is_kept[places]]
        slots[:, 3] = (numbers[places] + 1 | codes[places].astype(np.int64) << 32).astype(np.uint64)
        text = old.arena[:size][np.repeat(is_kept, old.size[:entries])]  # strings lie end to end, in the order of their entries

        compacted = _words_of(slots, text, old.size[:entries][is_kept], old.column[:entries][is_kept], codes[is_kept], old.secrets)
        return Dictionaries(words=compacted), mappings

    def _mapping(self, column: int, live: Flags | None) -> I32:
        is_live = np.zeros(self.size(column), np.bool_)
        if live is not None:
            is_live[: live.size] = live[: is_live.size]
        is_live[: _FIXED.get(column, 0)] = True
        return np.where(is_live, np.cumsum(is_live) - 1, -1).astype(np.int32)

    def _catch_up(self) -> None:
        words = self.words
        entries = int(words.state[word_kernel.COUNT])
        for entry in range(self._seen, entries):
            column, code = int(words.column[entry]), int(words.code[entry])
            if code == len(self._values[column]):  # else an alias of a known event name
                start, size = int(words.start[entry]), int(words.size[entry])
                self._values[column].append(words.arena[start : start + size].tobytes().decode())
                self._arrow[column] = None
        self._seen = entries

    def values(self, column: int) -> list[str]:
        """All strings of the column by code. The list grows; do not change it."""
        self._catch_up()
        return self._values[column]

    def text(self, column: int, code: int) -> str:
        """The string behind a code >= 0."""
        known = self._values[column]
        return known[code] if code < len(known) else self.values(column)[code]

    def size(self, column: int) -> int:
        """Number of codes of the column."""
        return int(self.words.codes_used[column])

    def strings(self) -> Strings:
        """All strings so far, without a pass over them: views of what is only ever added to (a larger table is another one)."""
        words = self.words
        count, size = int(words.state[word_kernel.COUNT]), int(words.state[word_kernel.BYTES])
        return Strings(words.arena[:size], words.size[:count], words.column[:count], words.code[:count])

    def fingerprint(self) -> U8:
        """16 bytes that tell whether two dictionaries hash alike, and do not tell how."""
        return np.frombuffer(hashlib.blake2b(self.words.secrets.tobytes(), digest_size=16, person=b"keystone").digest(), np.uint8)

    def arrow(self, column: int) -> pa.Array:
        """All strings of the column by code, as an Arrow string array."""
        self._catch_up()
        cached = self._arrow[column]
        if cached is None:
            cached = self._arrow[column] = pa.array(self._values[column], pa.string())
        return cached

    @property
    def entries(self) -> int:
        """Strings held, all columns together."""
        return int(self.words.state[word_kernel.COUNT])

    @property
    def text_bytes(self) -> int:
        """Bytes of these strings."""
        return int(self.words.state[word_kernel.BYTES])

    @property
    def state_bytes(self) -> int:
        """Bytes allocated."""
        return sum(array.nbytes for array in self.words)


def _words_of(slots: U64, text: U8, sizes: npt.NDArray[np.int64], column: npt.NDArray[np.int64], code: I32, secrets: U64) -> word_kernel.Words:
    """A table of these entries, with as much room again. ``slots`` (entries, SLOT_WORDS) in any order."""
    count = sizes.size
    words = word_kernel.new_words(len(DICTIONARY_COLUMNS), secrets)
    room = words.start.size
    while room < 2 * count:
        room *= 2
    start, size, columns, codes = (np.zeros(room, np.int64) for _ in range(4))
    start[:count], size[:count], columns[:count], codes[:count] = np.cumsum(sizes) - sizes, sizes, column, code
    arena = np.empty(max(words.arena.size, 2 * text.size), np.uint8)
    arena[: text.size] = text
    words.codes_used[:] = np.bincount(column, minlength=words.codes_used.size)
    words.state[[word_kernel.COUNT, word_kernel.BYTES]] = count, text.size
    table = word_kernel.Words(
        np.zeros(2 * room * word_kernel.SLOT_WORDS, np.uint64), arena, start, size, columns, codes, words.codes_used, words.state, secrets
    )
    word_kernel.rehash(slots.reshape(-1), table)
    return table


class CodeHolder(Protocol):
    """Whoever keeps dictionary codes of dimensions beyond the batch they came with."""

    def live_codes(self, dimension: int) -> Flags:
        """Which codes of CODED_DIMENSIONS[dimension] are in use; the highest may be the last, codes that are not given out yet are passed over."""

    def renumber(self, dictionaries: Dictionaries, mappings: Sequence[I32]) -> None:
        """Use ``dictionaries`` from now on: replace each code by ``mappings[column][code]``, >= 0 for every code in use."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One batch out of the decoder. ``received`` counts its lines, ``empty_records`` the records without a value."""

    batch: EventBatch
    dead_letters: LetterBatch
    received: int
    empty_records: int


class _Memory:
    """Writable view of an array that may be read-only: kernels are compiled once, for writable arrays; they only read."""

    def __init__(self, array: U8) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def as_kernel_text(text: U8) -> U8:
    """The same bytes as an array that kernels accept, without a copy."""
    if text.flags.writeable:
        return text
    return np.asarray(_Memory(text))


class Decoder:
    """Decodes the records of any number of partitions; one thread. Holds the learned spelling and the dictionaries.

    The dictionaries stay within ``entries_max`` and ``text_bytes_max``, or twice what the sessions used, and what one batch
    brings: beyond that, before the next batch, ``dictionaries`` is replaced by a new object. Who keeps codes is in
    ``holders`` (weakly), and is renumbered then.
    """

    def __init__(
        self,
        *,
        rows_max: int = ROWS_MAX,
        bytes_max: int = BYTES_MAX,
        seed: int | None = None,
        entries_max: int = DICTIONARY_ENTRIES_MAX,
        text_bytes_max: int = DICTIONARY_BYTES_MAX,
    ) -> None:
        self.rows_max, self.bytes_max = rows_max, bytes_max
        self.dictionaries = Dictionaries(seed=seed)
        self.holders: WeakSet[CodeHolder] = WeakSet()
        self.compactions = 0
        self._limits = self._due = (entries_max, text_bytes_max)
        self._glue: Glue = new_glue()
        self.columns = fields.new_columns(rows_max, bytes_max)
        self._scratch = fields.new_scratch()
        self._dead = np.zeros((5, DEAD_MAX), np.int64)
        self._progress = np.zeros(12, np.int64)

    def decode(self, records: Records, *, per_line: bool = False) -> Iterator[Decoded]:
        """Decode all records, a batch of at most ``rows_max`` rows at a time, in log order.

        Each batch is overwritten by the next, and its codes are good for ``dictionaries`` until then. Nothing in the bytes
        makes this raise: a line that cannot be used is a dead letter. ``per_line``: every line counts as a record of its
        own: offset = the record's offset + the line's number in it, line = 0.
        """
        text = as_kernel_text(records.text)
        progress = self._progress
        progress[kernel.P_RECORD], progress[kernel.P_AT] = 0, -1
        while True:
            self._compact_when_due()
            kernel.decode_records(
                text, records.starts, records.ends, records.offsets, records.append_ts_ms, int(per_line), self.rows_max, self.bytes_max,
                self.columns, self._glue, self.dictionaries.words, self._scratch, self._dead, progress,
            )  # fmt: skip
            yield self._decoded(records, per_line=per_line)
            status = int(progress[kernel.P_STATUS])
            if status == kernel.STATUS_GROW:
                self.dictionaries.grow()
            elif status == kernel.STATUS_DONE:
                return

    def _compact_when_due(self) -> None:
        dictionaries = self.dictionaries
        if dictionaries.entries > self._due[0] or dictionaries.text_bytes > self._due[1]:
            self.compact_dictionaries()

    def compact_dictionaries(self) -> None:
        """Forget every string that no holder uses. Between batches only."""
        live = [self._live_codes(column) for column in range(len(DICTIONARY_COLUMNS))]
        self.dictionaries, mappings = self.dictionaries.compact(live)
        for holder in self.holders:
            holder.renumber(self.dictionaries, mappings)
        self._due = max(self._limits[0], 2 * self.dictionaries.entries), max(self._limits[1], 2 * self.dictionaries.text_bytes)
        self.compactions += 1

    def _live_codes(self, column: int) -> Flags | None:
        """Which codes of a column some holder uses; of those before the dimensions nobody keeps any."""
        if column < FIRST_DIMENSION:
            return None
        is_live = np.zeros(self.dictionaries.size(column), np.bool_)
        for holder in self.holders:
            used = holder.live_codes(column - FIRST_DIMENSION)
            is_live[: used.size] |= used[: is_live.size]
        return is_live

    def _decoded(self, records: Records, *, per_line: bool) -> Decoded:
        progress = self._progress
        rows = int(progress[kernel.P_ROWS])
        dead = self._dead_letters(records, int(progress[kernel.P_DEAD]), per_line=per_line)
        return Decoded(batch_of(self.columns, records.partition, rows), dead, int(progress[kernel.P_RECEIVED]), int(progress[kernel.P_EMPTY]))

    def _dead_letters(self, records: Records, count: int, *, per_line: bool) -> LetterBatch:
        if not count:
            return LetterBatch()
        of_record, lines, starts, sizes, reasons = self._dead[:, :count]
        offsets = records.offsets[of_record]
        if per_line:
            offsets, lines = offsets + lines, np.zeros(count, np.int64)
        text, ends = cut_out(records.text, starts, sizes)
        columns = np.stack((np.full(count, records.partition), offsets, lines, reasons, sizes, np.append(0, ends[:-1]), ends))
        return LetterBatch(columns, REASONS, text)

    @property
    def state_bytes(self) -> int:
        """Bytes of the dictionaries (the rest is fixed)."""
        return self.dictionaries.state_bytes


def batch_of(columns: fields.Columns, partition: int, rows: int) -> EventBatch:
    """The first ``rows`` rows as a batch; nothing is copied."""
    c = columns
    device, session, user, extra = (
        StringColumn(c.ends[i, : rows + 1], data, c.valid[i, :rows]) for i, data in enumerate((c.device, c.session, c.user, c.extra))
    )
    return EventBatch(
        partition, rows, c.kind[:rows], c.fatal[:rows], c.ts[:rows], c.ints[:, :rows], c.codes[:, :rows], device, session, user, extra,
        c.key_lo[:rows], c.key_hi[:rows], c.user_hash[:rows], c.offset[:rows], c.line[:rows], c.append_ts[:rows],
        c.valid[_DUPLICATE, :rows], c.valid[_LATE, :rows],
    )  # fmt: skip


class PartitionSplitter:
    """Deals the rows of a plain file's batch to the partitions that their devices belong to (murmur2)."""

    def __init__(self, decoder: Decoder, partitions: int) -> None:
        self._source = decoder.columns
        self._target = fields.new_columns(decoder.rows_max, decoder.bytes_max)
        self._partitions = partitions

    def split(self, batch: EventBatch, wanted: Sequence[int]) -> Iterator[EventBatch]:
        """The rows of each wanted partition that has any, in order. Each is overwritten by the next."""
        partitions = partitions_of(batch.device_id, self._partitions)
        present = np.bincount(partitions, minlength=self._partitions)
        for partition in wanted:
            if present[partition]:
                rows = int(take_rows(self._source, partitions, partition, batch.rows, self._target))
                yield batch_of(self._target, partition, rows)
