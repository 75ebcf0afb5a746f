"""What a plan is made of: figures with a unit and a reason, rounded once, so that sums of what is shown are what is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

#: unit -> digits behind the point. A unit that is not here is no unit of a plan.
UNITS: Final = {
    "events/s": 0, "us/event": 3, "devices": 0, "actors": 0, "partitions": 0, "nodes": 0, "brokers": 0, "cores": 2, "GiB": 1, "MB/s": 1, "GB": 0,
    "GB/day": 1, "requests/s": 2, "documents/s": 1, "$/month": 0,
}  # fmt: skip


def rounded(value: float, unit: str) -> float:
    """To what is shown of ``unit``. Never falls where ``value`` rises."""
    return round(value, UNITS[unit])


def ceil(value: float) -> int:
    """The whole number at or above, where 2.0000000001 is 2: sums of floats are no reason for a machine more."""
    return math.ceil(value - 1e-9)


@dataclass(frozen=True, slots=True)
class Line:
    """``parts``: keys of the lines whose sum it is. ``why``: how it follows, for people."""

    key: str
    name: str
    value: float
    unit: str
    why: str = ""
    parts: tuple[str, ...] = ()


@dataclass(slots=True)
class Section:
    """Lines under one title, by key."""

    title: str
    lines: dict[str, Line] = field(default_factory=dict)

    def add(self, key: str, name: str, value: float, unit: str, why: str = "") -> float:
        """Take a figure, rounded to what is shown; the rounded value is returned, for whatever follows from it."""
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{key} = {value} {unit}")
        self.lines[key] = Line(key, name, rounded(value, unit), unit, why)
        return self.lines[key].value

    def total(self, key: str, name: str, parts: tuple[str, ...], why: str = "") -> float:
        """The sum of lines of this section, of one unit."""
        (unit,) = {self.lines[part].unit for part in parts}
        self.lines[key] = Line(key, name, rounded(sum(self.lines[part].value for part in parts), unit), unit, why, parts)
        return self.lines[key].value

    def __getitem__(self, key: str) -> float:
        return self.lines[key].value

    def __iter__(self) -> Iterator[Line]:
        return iter(self.lines.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """``notes``: what a reader must know before relying on it. ``assumptions``: everything it rests on, a line each."""

    asked: dict[str, Any]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    assumptions: tuple[str, ...]

    def __getitem__(self, key: str) -> Line:
        return next(section.lines[key] for section in self.sections if key in section.lines)

    def as_dict(self) -> dict[str, Any]:
        """For machines: sections by title, lines by key."""
        return {
            "asked": self.asked,
            "sections": {section.title: {line.key: _told(line) for line in section} for section in self.sections},
            "notes": list(self.notes),
            "assumptions": list(self.assumptions),
        }


def _told(line: Line) -> dict[str, Any]:
    parts = {"parts": list(line.parts)} if line.parts else {}
    return {"name": line.name, "value": line.value, "unit": line.unit, "why": line.why, **parts}
