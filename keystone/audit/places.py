"""The arithmetic of an audit: what is expected beside what is found, by minute. Pure.

Places are int64 arrays, shape (rows, 3): offset, line, append time in ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

MINUTE_MS: Final = 60_000
LINE_BITS: Final = 23  # of a record, which has 8 MiB at most
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NO_PLACES: Final[Places] = np.zeros((0, 3), np.int64)


class Sides(NamedTuple):
    """Flags: of expected rows those that are not found; of found rows those that are not expected, and those that repeat an earlier one."""

    missing: Flags
    extra: Flags
    doubled: Flags

    @property
    def are_same(self) -> bool:
        return not (self.missing.any() or self.extra.any() or self.doubled.any())


def compare(expected: Places, found: Places) -> Sides:
    """By offset and line, in any order. ``expected`` holds each once."""
    here, there = keys_of(expected), keys_of(found)
    _, first = np.unique(there, return_index=True)
    doubled = np.ones(there.size, np.bool_)
    doubled[first] = False
    return Sides(~np.isin(here, there), ~np.isin(there, here), doubled)


def keys_of(places: Places) -> npt.NDArray[np.int64]:
    """One number for offset and line, in their order."""
    return (places[:, 0] << LINE_BITS) + np.minimum(places[:, 1], (1 << LINE_BITS) - 1)


def is_not_kept(missing: Places, kept: Places, markers: Places) -> Flags:
    """Which of the missing letters were not kept on purpose: a marker is at or before them, and no kept letter between."""
    if not len(markers):
        return np.zeros(len(missing), np.bool_)
    marks, there, asked = np.sort(keys_of(markers)), np.sort(keys_of(kept)), keys_of(missing)
    at = np.searchsorted(marks, asked, side="right") - 1
    mark = marks[np.maximum(at, 0)]
    kept_between = np.searchsorted(there, asked) - np.searchsorted(there, mark)
    answer: Flags = (at >= 0) & (kept_between == 0)
    return answer


@dataclass(slots=True)
class Cell:
    """What is known of one minute of one partition.

    ``dead``: by the log, decoded again; ``letters``: those found. ``alerts``: of the lake.

    ``held_back``: alerts of the lake that a route does not give to the index; they are not in ``alerts``.
    """

    received: int = 0
    accepted: int = 0
    dead: int = 0
    lake: int = 0
    letters: int = 0
    not_kept: int = 0
    alerts: int = 0
    held_back: int = 0
    indexed: int = 0


class Cells:
    """By (partition, minute since the epoch); partition -1 where there is none."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], Cell] = {}

    def add(self, partition: int, append_ms: npt.NDArray[np.int64], *names: str) -> None:
        """Count one for each time given, in every column named."""
        minutes, counts = np.unique(append_ms // MINUTE_MS, return_counts=True)
        for minute, count in zip(minutes.tolist(), counts.tolist(), strict=True):
            cell = self.cells.setdefault((partition, minute), Cell())
            for name in names:
                setattr(cell, name, getattr(cell, name) + count)

    def sum(self, partition: int) -> Cell:
        """Of all its minutes."""
        total = Cell()
        for (number, _), cell in self.cells.items():
            if number == partition:
                for name in Cell.__slots__:
                    setattr(total, name, getattr(total, name) + getattr(cell, name))
        return total


@dataclass(frozen=True, slots=True)
class Difference:
    """``where``: lake, dead letters, index alerts, index sessions. ``minute``: since the epoch; None where nothing tells it.

    ``first``: of what differs; where no count does, what is wrong in words.
    """

    partition: int
    minute: int | None
    where: str
    expected: int = 0
    found: int = 0
    missing: int = 0
    extra: int = 0
    doubled: int = 0
    first: str = ""

    @property
    def text(self) -> str:
        counts = (("missing", self.missing), ("too many", self.extra), ("doubled", self.doubled))
        return ", ".join(f"{count:,} {name}" for name, count in counts if count)


def differences(partition: int, where: str, expected: Places, found: Places, sides: Sides, totals: tuple[dict[int, int], dict[int, int]]) -> list[Difference]:
    """One a minute in which the sides differ. ``totals``: what was expected and found, by minute."""
    missing, extra = by_minute(expected[sides.missing]), by_minute(found[sides.extra])
    doubled = by_minute(found[sides.doubled & ~sides.extra])
    firsts: dict[int, tuple[int, int]] = {}
    for rows in (expected[sides.missing], found[sides.extra], found[sides.doubled]):
        for offset, line, append_ms in rows.tolist():
            minute = append_ms // MINUTE_MS
            firsts[minute] = min(firsts.get(minute, (offset, line)), (offset, line))
    return [
        Difference(
            partition, minute if minute > 0 else None, where, expected=totals[0].get(minute, 0), found=totals[1].get(minute, 0),
            missing=missing.get(minute, 0), extra=extra.get(minute, 0), doubled=doubled.get(minute, 0), first=f"offset {offset:,}, line {line:,}",
        )
        for minute, (offset, line) in sorted(firsts.items())
    ]  # fmt: skip


def by_minute(rows: Places) -> dict[int, int]:
    """How many in each minute."""
    minutes, counts = np.unique(rows[:, 2] // MINUTE_MS, return_counts=True)
    return dict(zip(minutes.tolist(), counts.tolist(), strict=True))
