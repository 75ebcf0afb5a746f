"""What became of dead letters that were put back on a log: ``replays.ndjson``, beside the letters or in this user's home.

For each letter a line before it is sent (``intent``) and one after (``sent`` with its new place, or ``failed``: certainly not in the log). Where a
crash or a lost answer leaves an intent without an outcome, nobody knows but the log: such a letter is told, and not sent again unasked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from keystone.errors import UsageError
from keystone.log.kafka.lanes import ACKNOWLEDGED, FAILED
from keystone.sinks.letters_read import Letter, Place
from keystone.sinks.ndjson import LineFile

FILE: Final = "replays.ndjson"
INTENT, SENT, NOT_SENT = "intent", "sent", "failed"


class Ready(NamedTuple):
    """A letter mended, and where it goes."""

    letter: Letter
    line: bytes
    device_id: bytes
    partition: int


class Ending(NamedTuple):
    """How the send of one ended, in the log's words; ``offset``: -1 where none is known."""

    state: str
    offset: int


@dataclass(slots=True)
class History:
    """Of one log. ``open``: with an intent and no outcome."""

    sent: set[Place] = field(default_factory=set)
    open: set[Place] = field(default_factory=set)

    def note(self, state: str, place: Place) -> None:
        if state == INTENT:
            self.open.add(place)
            return
        self.open.discard(place)
        if state == SENT:
            self.sent.add(place)


def journal_path(given: str | None, source: str) -> Path:
    """``--journal``, else beside letters that are files, else a file of this user named by the source's URL."""
    if given is not None:
        return Path(given).absolute()
    if "://" not in source:
        path = Path(source).absolute()
        return (path if path.is_dir() else path.parent) / FILE
    share = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return share / "keystone" / "replays" / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.ndjson"


def history_of(path: Path, log_id: str) -> History:
    """What a journal says of a log; nothing where there is no such file. ``UsageError`` where it is no journal."""
    history = History()
    if not path.exists():
        return history
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):  # else a dead replay was writing it
                    _note(history, line, log_id, f"{path}, line {number:,}")
    except OSError as error:
        raise UsageError(f"--journal {path}: cannot be read ({error.strerror})") from error
    return history


def _note(history: History, line: bytes, log_id: str, where: str) -> None:
    try:
        row = orjson.loads(line)
        state, place = row["state"], Place(row["partition"], row["offset"], row["line"])
        if row["log"] == log_id:
            history.note(state, place)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{where}: is no line of a journal of replays: name another file by --journal, or mend this one") from error


class Journal:
    """The file, open for one replay at a time. What a method was given is on the disk when it returns."""

    def __init__(self, path: Path, log_id: str) -> None:
        self.path, self._log_id = path, log_id
        self._lock = _lock(path)
        try:
            self.history = history_of(path, log_id)
            self._file = LineFile(path)
        except BaseException:
            os.close(self._lock)
            raise

    def intend(self, batch: Iterable[Ready]) -> None:
        """Say that these are about to be sent."""
        self._write(self._row(INTENT, one, to_partition=one.partition) for one in batch)

    def end(self, batch: Sequence[Ready], endings: Sequence[Ending]) -> None:
        """Say how they ended, of those where it is known."""
        rows = []
        for one, (state, offset) in zip(batch, endings, strict=True):
            if state == ACKNOWLEDGED:
                rows.append(self._row(SENT, one, to_partition=one.partition, to_offset=offset))
            elif state == FAILED:
                rows.append(self._row(NOT_SENT, one))
        self._write(rows)

    def _row(self, state: str, one: Ready, **more: int) -> dict[str, Any]:
        place = one.letter.place
        self.history.note(state, place)
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        return {"state": state, **place._asdict(), "reason": one.letter.reason, **more, "at": at, "log": self._log_id}

    def _write(self, rows: Iterable[dict[str, Any]]) -> None:
        self._file.write_lines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        self._file.sync()

    def close(self) -> None:
        """May not be repeated."""
        self._file.close()
        os.close(self._lock)


def _lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}): name another file by --journal") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise UsageError(f"{path}: another replay is writing it: wait for its end") from None
    return file
