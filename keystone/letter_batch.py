"""Dead letters by columns: of a flood there are as many as of good lines, so nothing is made of each until somebody asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import numpy.typing as npt

from keystone.events import DEAD_LETTER_BYTES_MAX, I64, PADDING, U8, DeadLetter
from keystone.kernels.letters import BEGIN, COLUMNS, END, LINE, OFFSET, PARTITION, REASON
from keystone.kernels.lines import copy_pieces

__all__ = ["PARTITION", "LetterBatch", "cut_out"]


@dataclass(frozen=True, slots=True, eq=False)
class LetterBatch(Sequence[DeadLetter]):
    """Dead letters, those of a partition in the order of their places. A sequence of ``DeadLetter``, equal to any other of equal ones.

    ``columns`` int64 (COLUMNS, letters); REASON: places in ``names``. Of a letter the bytes ``text[BEGIN:END]`` are kept. Nothing is changed
    after it was made; what is cut out of one shares its memory.
    """

    columns: I64 = field(default_factory=lambda: np.zeros((COLUMNS, 0), np.int64))
    names: tuple[str, ...] = ()
    text: U8 = field(default_factory=lambda: np.zeros(0, np.uint8), repr=False)

    @classmethod
    def of(cls, letters: Iterable[DeadLetter]) -> LetterBatch:
        """From letters one by one."""
        given = list(letters)
        names = tuple(dict.fromkeys(letter.reason for letter in given))
        heads = [one.raw[:DEAD_LETTER_BYTES_MAX] for one in given]
        rows = [(one.partition, one.offset, one.line, names.index(one.reason), one.length, 0, len(head)) for one, head in zip(given, heads, strict=True)]
        columns = np.array(rows, np.int64).reshape(-1, COLUMNS).T
        columns[END] = np.cumsum(columns[END])
        columns[BEGIN, 1:] = columns[END, :-1]
        return cls(columns, names, np.frombuffer(b"".join(heads), np.uint8))

    @classmethod
    def joined(cls, parts: Sequence[LetterBatch]) -> LetterBatch:
        """One behind the other."""
        told = [part for part in parts if len(part)]
        if len(told) < 2:
            return told[0] if told else cls()
        names = tuple(dict.fromkeys(name for part in told for name in part.names))
        columns, texts = np.concatenate([part.columns for part in told], axis=1), 0
        at = 0
        for part in told:
            its = columns[:, at : at + len(part)]
            its[REASON] = np.array([names.index(name) for name in part.names], np.int64)[its[REASON]]
            its[[BEGIN, END]] += texts
            at, texts = at + len(part), texts + part.text.size
        return cls(columns, names, np.concatenate([part.text for part in told]))

    @property
    def offsets(self) -> I64:
        return np.asarray(self.columns[OFFSET])

    @property
    def lines(self) -> I64:
        return np.asarray(self.columns[LINE])

    @property
    def kept_bytes(self) -> I64:
        """What is kept of each, in bytes."""
        return np.asarray(self.columns[END] - self.columns[BEGIN])

    def behind(self, offset: int, line: int) -> LetterBatch:
        """Those after a place."""
        return self.picked(np.flatnonzero((self.offsets > offset) | ((self.offsets == offset) & (self.lines > line))))

    def by_reason(self) -> dict[str, int]:
        """How many there are of each."""
        counts = np.bincount(self.columns[REASON], minlength=len(self.names)).tolist()
        return {name: count for name, count in zip(self.names, counts, strict=True) if count}

    def picked(self, places: npt.NDArray[np.intp] | slice) -> LetterBatch:
        """Those at ``places``."""
        return LetterBatch(self.columns[:, places], self.names, self.text)

    # --- a sequence ---------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return int(self.columns.shape[1])

    def __iter__(self) -> Iterator[DeadLetter]:
        text = self.text.data
        for partition, offset, line, reason, length, begin, end in self.columns.T.tolist():
            yield DeadLetter(partition, offset, line, self.names[reason], length, bytes(text[begin:end]))

    @overload
    def __getitem__(self, at: int) -> DeadLetter: ...
    @overload
    def __getitem__(self, at: slice) -> LetterBatch: ...
    def __getitem__(self, at: int | slice) -> DeadLetter | LetterBatch:
        if isinstance(at, slice):
            return self.picked(at)
        place = range(len(self))[at]
        return next(iter(self.picked(slice(place, place + 1))))

    def __add__(self, more: Iterable[DeadLetter]) -> LetterBatch:
        return LetterBatch.joined([self, more if isinstance(more, LetterBatch) else LetterBatch.of(more)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def cut_out(text: U8, starts: I64, sizes: I64) -> tuple[U8, I64]:
    """The first bytes of pieces of ``text`` (with PADDING behind it), as many as a dead letter keeps, one behind the other; where each ends."""
    ends = np.cumsum(np.minimum(sizes, DEAD_LETTER_BYTES_MAX))
    size = int(ends[-1]) if ends.size else 0
    kept = np.empty(size + PADDING, np.uint8)
    copy_pieces(text, starts, ends, kept)
    return kept[:size], ends
