"""Anonymous memory that grows in place, and rooms that copies of it are made in again and again."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping as Named
from typing import Any, Final

import numpy as np
import numpy.typing as npt

ALIGNMENT: Final = 64  # of each copy in a room: a cache line
HEADROOM: Final = 1.5  # of a room that is made anew: tables grow, and its pages cost ten times what copying into them does


class Mapping:
    """Anonymous memory, zero until written, that grows in place."""

    def __init__(self, size_bytes: int) -> None:
        self._map = _anonymous(size_bytes)

    def view(self, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.frombuffer(self._map, dtype)

    def grow(self, size_bytes: int) -> None:
        """To at least ``size_bytes``. Views made before are dead: drop them first, else the bytes are copied."""
        size_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._map.resize(size_bytes)
        except (BufferError, SystemError, OSError, ValueError):  # a view lives, or the system cannot
            wider = _anonymous(size_bytes)
            np.frombuffer(wider, np.uint8)[: len(self._map)] = np.frombuffer(self._map, np.uint8)
            self._map = wider
        _ask_huge_pages(self._map)


class Room:
    """Memory that one snapshot after another is copied into: the next overwrites the one before, where no page is new.

    Who made a snapshot here uses the room again when nobody reads that snapshot any more.
    """

    def __init__(self, size_bytes: int = 0) -> None:
        self._bytes: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.reserve(size_bytes)

    def reserve(self, size_bytes: int) -> None:
        """Have that much; where it is made anew half as much more, every page of it touched. What was copied here before is forgotten.

        Costs up to 2 ms a MB on a virtual machine: for a thread that nobody waits for, before the stream has to stand still.
        """
        if size_bytes > self._bytes.size:
            self._bytes = Mapping(int(size_bytes * HEADROOM)).view(np.uint8)
            self._bytes.fill(0)  # other threads run meanwhile

    def copies(self, arrays: Named[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Copies of one-dimensional arrays, all of them in this room; where they do not fit, it is made anew, without touching its pages before."""
        size_bytes = sum(array.nbytes + ALIGNMENT for array in arrays.values())
        if size_bytes > self._bytes.size:
            self._bytes = Mapping(int(size_bytes * HEADROOM)).view(np.uint8)
        copies, at = {}, 0
        for name, array in arrays.items():
            copies[name] = self._bytes[at : at + array.nbytes].view(array.dtype)
            np.copyto(copies[name], array)
            at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        return copies


class Rooms:
    """Rooms that several tables take turns in: as many as are in use at once. For one thread."""

    def __init__(self) -> None:
        self._free: list[Room] = []

    def take(self) -> Room:
        """The one that was given back last, or a new one."""
        return self._free.pop() if self._free else Room()

    def give_back(self, room: Room) -> None:
        """Nobody reads what is in it any more."""
        self._free.append(room)


def _anonymous(size_bytes: int) -> mmap.mmap:
    size_bytes = max(1, -(-size_bytes // mmap.PAGESIZE)) * mmap.PAGESIZE
    created = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _ask_huge_pages(created)
    return created


def _ask_huge_pages(mapping: mmap.mmap) -> None:
    # Random access to 1 GB of 4 KB pages misses the translation cache at every event; 2 MB pages do not.
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None and len(mapping) >= 1 << 21:
        with contextlib.suppress(OSError):  # a kernel without them: slower, nothing else
            mapping.madvise(advice)
