"""Segments: the files that hold everything one partition gave out over a range of log offsets. Pure data, JSON in and out.

The segments of a partition chain: each begins where the one before ended, in offsets and in ``sequence``. One is in
exactly one snapshot of the lake, or in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from keystone.errors import CheckpointDamaged

TABLES: Final = ("events", "sessions", "alerts")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file, in place under the lake's directory. ``event_date``: days since the epoch, of events only."""

    table: str
    path: str
    rows: int
    bytes: int
    event_date: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: object) -> Self:
        """Raises ``CheckpointDamaged`` for anything that ``to_json`` does not give."""
        fields = _fields(found, {"table": str, "path": str, "rows": int, "bytes": int, "event_date": int | None})
        file = cls(**fields)
        if file.table not in TABLES or not _is_inside(file.path) or file.rows < 0 or file.bytes < 0:
            raise CheckpointDamaged(f"no data file of the lake: {found!r:.200}")
        return file


@dataclass(frozen=True, slots=True)
class Segment:
    """Everything accepted in log offsets [first_offset, next_offset), the sessions closed and alerts raised meanwhile.

    ``epoch``: of the owner that wrote it. ``next_offset`` equals ``first_offset`` where only time passed. ``log_time_ms``:
    how far log time had passed. ``sequence``: the partition's segments from 0, over all epochs. ``log_number``: how often
    the log had been deleted and made anew: with another number, offsets begin again.
    """

    partition: int
    epoch: int
    first_offset: int
    next_offset: int
    log_time_ms: int
    sequence: int
    files: tuple[DataFile, ...]
    log_number: int = 0

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _NUMBERS} | {"files": [file.to_json() for file in self.files]}

    @classmethod
    def from_json(cls, found: object) -> Self:
        """Raises ``CheckpointDamaged`` for anything that ``to_json`` does not give."""
        fields = _fields(found, dict.fromkeys(_NUMBERS, int) | {"files": list})
        if any(fields[name] < 0 for name in _NUMBERS) or fields["next_offset"] < fields["first_offset"]:
            raise CheckpointDamaged(f"no segment: {found!r:.200}")
        fields["files"] = tuple(DataFile.from_json(file) for file in fields["files"])
        return cls(**fields)


_NUMBERS: Final = ("partition", "epoch", "first_offset", "next_offset", "log_time_ms", "sequence", "log_number")


def _fields(found: object, types: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a JSON object that has exactly these, of these types (True and False are no numbers)."""
    if not isinstance(found, dict) or set(found) != set(types):
        raise CheckpointDamaged(f"not an object of {', '.join(types)}: {found!r:.200}")
    for name, kind in types.items():
        if isinstance(found[name], bool) or not isinstance(found[name], kind):
            raise CheckpointDamaged(f"{name} = {found[name]!r:.200} has the wrong type")
    return dict(found)


def _is_inside(path: str) -> bool:
    """Whether a path stays in the directory it is relative to."""
    return bool(path) and not path.startswith("/") and "\0" not in path and not {"", ".", ".."} & set(path.split("/"))
