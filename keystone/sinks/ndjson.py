"""Alerts and dead letters as lines of JSON: for people, for tests, and for whatever tails a file."""

from __future__ import annotations

import os
import shutil
from binascii import b2a_base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from keystone.errors import SinkError, UsageError
from keystone.events import DEAD_LETTER_BYTES_MAX, DIMENSIONS, Alert, DeadLetter
from keystone.letter_batch import LetterBatch

BATCH_BYTES_MAX: Final = 8 << 20  # lines are written before more than this, and one line, are held
LETTER_BYTES_MAX: Final = DEAD_LETTER_BYTES_MAX * 4 // 3 + 4096  # of a dead letter's line
TAIL_BYTES: Final = 64 << 10  # read at once, from the end, when looking for the last whole line
#: Reason of the line that stands where letters are not kept any more (``dead_letters.bytes_max``): from its place on.
NOT_KEPT: Final = "not_kept"
_NO_DIMENSIONS: Final[dict[str, str | None]] = dict.fromkeys(DIMENSIONS)


def alert_line(alert: Alert) -> bytes:
    """One line, with its line feed. Strings that are no Unicode text are not expected: the decoder refuses them."""
    fields: dict[str, Any] = {
        "alert_id": alert.alert_id,
        "kind": alert.kind,
        "action": alert.action,
        "device_id": alert.device_id,
        "session_id": alert.session_id,
        "event_ts": alert.event_ts,
        "seq": alert.seq,
        "buffers_in_run": alert.buffers_in_run,
        "bitrate_kbps": alert.bitrate_kbps,
        "recommended_bitrate_kbps": alert.recommended_bitrate_kbps,
        **_NO_DIMENSIONS,
        **alert.dimensions,
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def dead_letter_line(letter: DeadLetter, *, per_line: bool) -> bytes:
    """One line. ``per_line``: a plain file, whose records are lines, so ``line`` is the number of the line in the file."""
    return next(letter_lines(LetterBatch.of([letter]), per_line=per_line))


def letter_lines(letters: LetterBatch, *, per_line: bool) -> Iterator[bytes]:
    """A line of each. Put together by hand: of a flood, making JSON of each letter cost more than decoding a good line."""
    reasons = [orjson.dumps(name) for name in letters.names]
    text = letters.text.data
    for partition, offset, line, reason, length, begin, end in letters.columns.T.tolist():
        raw = b2a_base64(text[begin:end], newline=False)
        known = offset if per_line else line, reasons[reason], length, raw, partition, offset
        yield b'{"line":%d,"reason":%b,"length":%d,"raw":"%b","partition":%d,"offset":%d}\n' % known


class LineFile:
    """Appends whole lines to a file. Opening it cuts off a last line that a dead run left torn.

    What ``write_lines`` was given is in the file, visible to every reader, when it returns. Raises ``UsageError`` where
    the file cannot be opened and ``SinkError`` where it cannot be written; then the file ends with a whole line, or, where it
    cannot be cut, nothing more is written before it could be.
    """

    def __init__(self, path: Path | str, *, keep: bool = True) -> None:
        """``keep=False`` starts the file anew."""
        self.path = Path(path)
        self.lines = 0  # written by us
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if keep else os.O_TRUNC), 0o644)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}; choose another directory") from error
        self._end = self._cut_torn_line()
        self._is_open = True
        self._has_rest = False  # behind the end: of a write that failed, and could not be cut off

    @property
    def size_bytes(self) -> int:
        """Of whole lines, those found included."""
        return self._end

    def _cut_torn_line(self) -> int:
        end = size = os.fstat(self._file).st_size
        while end > 0:
            start = max(0, end - TAIL_BYTES)
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end != size:
            os.ftruncate(self._file, end)
        return end

    def is_in_place(self) -> bool:
        """False where the path names another file or none, or somebody cut this one: what is written here, readers may not find."""
        try:
            there = self.path.stat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._file)) and there.st_size >= self._end

    def write_lines(self, lines: Iterable[bytes]) -> int:
        """Append lines, each with its line feed; returns how many."""
        held, size, count = [], 0, 0
        for line in lines:
            held.append(line)
            size += len(line)
            count += 1
            if size >= BATCH_BYTES_MAX:
                self._write(b"".join(held))
                held, size = [], 0
        if held:
            self._write(b"".join(held))
        self.lines += count
        return count

    def _write(self, text: bytes) -> None:
        if not self._is_open:
            raise SinkError(f"{self.path} was closed")
        written = 0
        try:
            if self._has_rest:
                os.ftruncate(self._file, self._end)
                self._has_rest = False
            while written < len(text):
                written += os.pwrite(self._file, memoryview(text)[written:], self._end + written)
        except OSError as error:
            self._cut_to(self._end)
            raise SinkError(f"{self.path} cannot be written: {error.strerror}; free room there") from error
        self._end += written

    def _cut_to(self, end: int) -> None:
        self._end = end
        try:
            os.ftruncate(self._file, end)
        except OSError:
            self._has_rest = True

    def write_synced(self, lines: Iterable[bytes]) -> int:
        """As ``write_lines`` and ``sync``, but all or nothing: where a part fails, none of these lines is left, so saying them again says them once."""
        end, said = self._end, self.lines
        try:
            count = self.write_lines(lines)
            self.sync()
        except SinkError:
            if self._is_open:
                self._cut_to(end)
            self.lines = said
            raise
        return count

    def sync(self) -> None:
        """What was written is on the disk when this returns. ``SinkError`` where it cannot be."""
        try:
            os.fdatasync(self._file)
        except OSError as error:
            raise SinkError(f"{self.path} cannot be written: {error.strerror}; free room there") from error

    def close(self) -> None:
        """May be repeated."""
        if self._is_open:
            self._is_open = False
            os.close(self._file)


def detach(path: Path) -> None:
    """Put a copy in a file's place: whoever still has it open, and wakes to write, writes where nobody reads any more."""
    copy = path.with_name(f".{path.name}.copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


def seal(path: Path) -> None:
    """Say that a file is finished: its writer is gone, and nothing is torn."""
    path.chmod(0o444)


def is_sealed(path: Path) -> bool:
    return not path.stat().st_mode & 0o222


def last_place(path: Path) -> tuple[int, int, bool]:
    """Offset and line of the last dead letter in a file of an earlier owner, and whether it is a marker; (-1, -1, False) where there is none.

    That owner can write it no more, and a torn last line is cut off.
    """
    if not is_sealed(path):
        detach(path)
        LineFile(path).close()
        seal(path)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LETTER_BYTES_MAX))
        lines = file.read().splitlines()
    if not lines:
        return -1, -1, False
    found = orjson.loads(lines[-1])
    return found["offset"], found["line"], found["reason"] == NOT_KEPT


class DeadLetterFile:
    """``dead_letters.ndjson``: ``line reason length raw partition offset`` for each line that could not be used.

    ``raw`` is base64 of at most the first 64 KiB. ``per_line`` (plain files): ``line`` counts the file's lines from 0.
    """

    def __init__(self, path: Path | str, *, per_line: bool, keep: bool = False) -> None:
        self._file = LineFile(path, keep=keep)
        self.path = self._file.path
        self._per_line = per_line

    @property
    def lines(self) -> int:
        """Lines written by us."""
        return self._file.lines

    def write(self, letters: Iterable[DeadLetter]) -> int:
        """Append; visible when this returns. Returns how many."""
        return self._file.write_lines(letter_lines(letters if isinstance(letters, LetterBatch) else LetterBatch.of(letters), per_line=self._per_line))

    def close(self) -> None:
        """May be repeated."""
        self._file.close()
