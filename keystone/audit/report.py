"""An audit in lines for people, or as one JSON object."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from keystone.audit.engine import Audit, PartitionAudit, late_notes


def lines(found: Audit, *, has_letters: bool, has_index: bool, now_ms: int | None = None) -> Iterator[str]:
    """Partitions, then what differs, then notes and the verdict."""
    now = now_ms if now_ms is not None else int(time.time() * 1_000)
    for partition in found.partitions:
        yield _partition(found, partition, now, has_letters=has_letters, has_index=has_index)
    for kind, (expected, there) in found.indexed.items():
        held = f", {found.held_back[kind]:,} more held back by a route" if kind in found.held_back else ""
        yield f"index: {there:,} of {expected:,} {kind}{held}"
    if found.in_flight_documents:
        yield f"index: {found.in_flight_documents:,} documents in flight: newer than what the lake has committed"
    if found.differences:
        yield from _table(found)
    for note in (*found.notes, *late_notes(found, now)):
        yield f"note: {note}"
    yield f"DIFFERS: {len(found.differences):,} differences" if found.differences else "clean"


def _partition(found: Audit, partition: PartitionAudit, now_ms: int, *, has_letters: bool, has_index: bool) -> str:
    cell = found.cells.sum(partition.partition)
    parts = [
        f"partition {partition.partition}: offsets {partition.first_offset:,} to {partition.next_offset:,}",
        f"received {cell.received:,} = accepted {cell.accepted:,} + dead {cell.dead:,}",
        f"lake {cell.lake:,}",
    ]
    if has_letters:
        parts.append(f"dead letters {cell.letters:,}{f', and {cell.not_kept:,} counted only' if cell.not_kept else ''}")
    if has_index:
        parts.append(f"alerts {cell.alerts:,}, in the index {cell.indexed:,}{f', held back {cell.held_back:,}' if cell.held_back else ''}")
    if partition.in_flight:
        age = f" ({max(0, now_ms - partition.in_flight_ms) / 1_000:,.1f} s)" if partition.in_flight_ms is not None else ""
        parts.append(f"in flight {partition.in_flight:,} records{age}")
    return "; ".join(parts)


def _table(found: Audit) -> Iterator[str]:
    rows = [("minute (UTC)", "partition", "where", "expected", "found", "what")]
    for one in sorted(found.differences, key=lambda d: (d.minute or 0, d.partition, d.where)):
        counts = (f"{one.expected:,}", f"{one.found:,}") if one.text else ("", "")
        what = f"{one.text}, first: {one.first}" if one.text else one.first
        rows.append((minute_text(one.minute), "-" if one.partition < 0 else str(one.partition), one.where, *counts, what))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    for row in rows:
        head = "  ".join(f"{text:<{width}}" if k < 3 else f"{text:>{width}}" for k, (text, width) in enumerate(zip(row, widths, strict=False)))
        yield f"{head}  {row[5]}".rstrip()


def minute_text(minute: int | None) -> str:
    return "-" if minute is None else f"{datetime.fromtimestamp(minute * 60, UTC):%Y-%m-%dT%H:%MZ}"


def as_json(found: Audit) -> dict[str, Any]:
    """Everything, ``minutes`` included: a row for each minute and partition."""
    return {
        "clean": found.is_clean,
        "partitions": [asdict(partition) | asdict(found.cells.sum(partition.partition)) for partition in found.partitions],
        "differences": [asdict(one) | {"minute": minute_text(one.minute), "what": one.text} for one in found.differences],
        "indexed": {kind: {"expected": expected, "found": there} for kind, (expected, there) in found.indexed.items()},
        "held_back": found.held_back,
        "in_flight_documents": found.in_flight_documents,
        "notes": [*found.notes, *late_notes(found)],
        "minutes": [{"partition": p, "minute": minute_text(minute), **asdict(cell)} for (p, minute), cell in sorted(found.cells.cells.items()) if p >= 0],
    }
