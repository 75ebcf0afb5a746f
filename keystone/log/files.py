"""NDJSON files as blocks of whole lines: plain, gzip, zstd, or standard input (``-``).

What a file is packed with is seen by its first bytes, not by its name. Several gzip members or zstd frames in one file
are read as one text. Lines never join across files: a file's last line ends with the file. Memory is one block, however
long a line is.
"""

from __future__ import annotations

import gzip
import os
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol, cast

import numpy as np

from keystone.errors import UsageError
from keystone.events import DEAD_LETTER_BYTES_MAX, LF, LINE_BYTES_MAX, PADDING, U8
from keystone.kernels.lines import count_lines

STANDARD_INPUT: Final = "-"
BLOCK_BYTES: Final = 4 << 20  # 16,000 events: one batch of the decoder
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"  # after a byte 0x50 to 0x5f
_BLANKS: Final = b" \t\r"


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines: ``text[:size]`` ends with an LF, and ``text.size >= size + PADDING``.

    ``text`` is uint8, read-only, and valid until the next block is asked for. ``first_line`` is the number of the first
    line, from 0, counted through all files in the order given; ``lines`` how many there are, blank ones included.
    """

    text: U8
    size: int
    first_line: int
    lines: int


@dataclass(frozen=True, slots=True)
class OversizeLine:
    """A line too long for a block, and so over LINE_BYTES_MAX: its number, its length in bytes without LF, and its head.

    ``is_blank``: nothing but spaces, tabs and CRs. Shorter lines over LINE_BYTES_MAX come in blocks like any other.
    """

    line: int
    length: int
    head: bytes
    is_blank: bool


class _Stream(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...


def read_ndjson(paths: Sequence[str | Path], bytes_max: int = BLOCK_BYTES) -> Iterator[Block | OversizeLine]:
    """Blocks of about ``bytes_max`` bytes (never less than the longest legal line), files in the order given.

    ``UsageError``, one line that names the file: at once where one is missing, a directory or unreadable; on the way
    where packed data is cut off or damaged (the lines before that have been handed out).
    """
    for path in paths:
        _look(path)
    return _blocks(paths, max(bytes_max, LINE_BYTES_MAX + 1))


def _look(path: str | Path) -> None:
    if str(path) == STANDARD_INPUT:
        return
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path}: is a directory, not a file")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{path}: cannot be read: permission denied")


def _blocks(paths: Sequence[str | Path], capacity: int) -> Iterator[Block | OversizeLine]:
    lines = _Lines(capacity)
    for path in paths:
        name = "standard input" if str(path) == STANDARD_INPUT else str(path)
        with _errors_named(name), _source(path) as source:
            yield from lines.of(_unpacked(source, path))


def _source(path: str | Path) -> AbstractContextManager[IO[bytes]]:
    if str(path) == STANDARD_INPUT:
        return nullcontext(sys.stdin.buffer)
    return Path(path).open("rb")


def _unpacked(source: IO[bytes], path: str | Path) -> _Stream:
    """The text in ``source``."""
    first = source.peek(4)[:4]  # type: ignore[attr-defined]
    if first.startswith(_GZIP):
        return cast("_Stream", gzip.GzipFile(fileobj=source))
    if first == _ZSTD or (first[1:] == _ZSTD_SKIPPABLE and first[0] >> 4 == 5):
        import pyarrow as pa  # its stream notices a frame that is cut off; the zstandard package's does not

        return cast("_Stream", pa.CompressedInputStream(source, "zstd"))
    for suffix, packing in ((".gz", "gzip"), (".zst", "zstd")):
        if str(path).endswith(suffix):
            raise UsageError(f"{path}: is not {packing} data, as its name says")
    return cast("_Stream", source)


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Every reader's errors as one line that names the file."""
    try:
        yield
    except EOFError as error:
        raise UsageError(f"{name}: the packed data is cut off: the file is not whole") from error
    except zlib.error as error:
        raise UsageError(f"{name}: the packed data is damaged: {error}") from error
    except OSError as error:  # gzip.BadGzipFile and Arrow's are such too
        if "Truncated compressed stream" in str(error):
            raise UsageError(f"{name}: the packed data is cut off: the file is not whole") from error
        kind = "cannot be read" if error.errno else "the packed data is damaged"
        raise UsageError(f"{name}: {kind}: {error.strerror or error}") from error


class _Lines:
    """One buffer that streams are read through; numbers lines across them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._store = bytearray(capacity + 1 + PADDING)
        self._room = memoryview(self._store)
        self._text: U8 = np.frombuffer(self._room.toreadonly(), np.uint8)
        self._line = 0

    def of(self, stream: _Stream) -> Iterator[Block | OversizeLine]:
        filled = 0
        while filled := self._fill(stream, filled):
            is_last = filled < self._capacity
            if is_last and self._store[filled - 1] != LF:
                self._store[filled] = LF
                filled += 1
            size = self._store.rfind(b"\n", 0, filled) + 1
            if size:
                block = Block(self._text, size, self._line, int(count_lines(self._text, size)))
                self._line += block.lines
                yield block
                if is_last:
                    return
            else:
                line, size, filled = self._oversize(stream, filled)
                yield line
            filled -= size
            self._room[:filled] = self._room[size : size + filled]

    def _fill(self, stream: _Stream, filled: int) -> int:
        """Read until the buffer is full or the stream ends."""
        while filled < self._capacity:
            count = stream.readinto(self._room[filled : self._capacity])
            if not count:
                break
            filled += count
        return filled

    def _oversize(self, stream: _Stream, filled: int) -> tuple[OversizeLine, int, int]:
        """The line that fills the buffer and goes on; where it ends in the buffer's last filling, and how full that is."""
        head = bytes(self._room[: min(filled, DEAD_LETTER_BYTES_MAX)])
        length, is_blank = 0, True
        while True:
            end = self._store.find(b"\n", 0, filled)
            piece = filled if end < 0 else end
            length += piece
            is_blank = is_blank and not self._store[:piece].strip(_BLANKS)
            if end >= 0 or filled == 0:
                line = OversizeLine(self._line, length, head, is_blank)
                self._line += 1
                return line, end + 1 if end >= 0 else 0, filled
            filled = self._fill(stream, 0)
