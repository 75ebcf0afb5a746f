"""What ``keystone.sinks.outbox`` has its threads do next, and how they say that it is done."""

from __future__ import annotations

from dataclasses import dataclass

from keystone.sinks.lanes import Held, Segment, Slice


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before ``until_ms`` (None: before something changes)."""

    until_ms: int | None


@dataclass(frozen=True, slots=True)
class Encode:
    """Make documents of these rows, then ``encoded``."""

    kind: str
    slices: list[Slice]


@dataclass(frozen=True, slots=True)
class Load:
    """Read this file of the spill, then ``loaded``."""

    kind: str
    segment: Segment


@dataclass(frozen=True, slots=True)
class Send:
    """Send these, then ``answered`` or ``failed``."""

    kind: str
    batch: list[Held]


@dataclass(frozen=True, slots=True)
class Write:
    """Write these into a new file of the spill, then ``written`` or ``write_failed``. ``is_flight``: they are on their way as well."""

    kind: str
    batch: list[Held]
    is_flight: bool


@dataclass(frozen=True, slots=True)
class Merge:
    """Make one file of these of the spill, the oldest first, then ``merged`` or ``merge_failed``."""

    kind: str
    segments: list[Segment]


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove this file of the spill."""

    kind: str
    segment: Segment
