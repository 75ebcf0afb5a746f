"""The rules of committing: which segments are in a table already, which chain on, and which must be refused.

Pure: what the table says was committed last, and the segments given, in; what to do, out. A table's *chain* says for each
partition where its committed segments end. It travels in the summary of each snapshot, so that it is replaced in the same
atomic step as the data, goes back when somebody rolls the table back, and needs no search.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final, NamedTuple

from keystone.errors import LakeDamaged
from keystone.segments import Segment

#: Keys of a snapshot's summary. JSON by partition: a ``Link``; a ``Span``; and the epoch of the committer that wrote it.
CHAIN_KEY: Final = "keystone.chain"
ADDED_KEY: Final = "keystone.added"
COMMITTER_KEY: Final = "keystone.committer-epoch"


class Link(NamedTuple):
    """Where the committed segments of one partition end, in one table."""

    first_offset: int  # of the first segment committed of this log
    next_offset: int
    next_sequence: int
    epoch: int  # that wrote the last one
    rows: int  # of this table, since the first one
    log_number: int = 0  # of the last one: how often the log was made anew
    log_time_ms: int = 0  # of the last one


class Span(NamedTuple):
    """What one snapshot added of one partition."""

    first_offset: int
    next_offset: int
    first_sequence: int
    next_sequence: int
    epoch: int  # of the last of these segments
    rows: int


Chain = Mapping[int, Link]


@dataclass(slots=True)
class Plan:
    """What one commit of one table shall do. Partitions in ``refused`` have nothing in ``take``."""

    take: list[Segment] = field(default_factory=list)
    chain: dict[int, Link] = field(default_factory=dict)  # of all partitions, once ``take`` is in
    added: dict[int, Span] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    known: int = 0  # segments that are in already


def plan(chain: Chain, segments: Iterable[Segment], table: str, *, floor: Chain | None = None) -> Plan:
    """Decide over ``segments``, in any order, repeats included, for a table that ``chain`` was read from.

    ``floor``: the chain of ``events``, read before this one. Whatever it says is committed is in this table too, or
    had no file for it: a table that had nothing to add for a while need not be committed to.
    """
    result = Plan(chain=dict(chain))
    by_partition: dict[int, list[Segment]] = defaultdict(list)
    for segment in segments:
        by_partition[segment.partition].append(segment)
    for partition, given in sorted(by_partition.items()):
        end = _furthest(chain.get(partition), (floor or {}).get(partition))
        _Partition(table, end).plan_into(result, partition, sorted(given, key=lambda s: s.sequence))
    return result


def _furthest(own: Link | None, floor: Link | None) -> Link | None:
    if floor is None or (own is not None and own.next_sequence >= floor.next_sequence):
        return own
    return floor._replace(rows=own.rows if own is not None else 0)


@dataclass(slots=True)
class _Partition:
    """Walks the segments of one partition from where its chain ends."""

    table: str
    end: Link | None
    take: list[Segment] = field(default_factory=list)

    def plan_into(self, result: Plan, partition: int, given: list[Segment]) -> None:
        known = 0
        start = self.end
        for segment in given:
            if self.take and segment == self.take[-1]:
                continue  # given twice
            is_known, fault = self._look_at(segment)
            if fault:
                result.refused[partition] = fault
                return
            known += is_known
            if not is_known:
                self._link(segment)
        result.known += known
        if self.take and self.end is not None:
            first = self.take[0]
            result.take += self.take
            result.chain[partition] = self.end
            rows = self.end.rows - (start.rows if start is not None else 0)
            result.added[partition] = Span(first.first_offset, self.end.next_offset, first.sequence, self.end.next_sequence, self.end.epoch, rows)

    def _look_at(self, segment: Segment) -> tuple[bool, str]:
        """Whether the segment is in already, and why it cannot be taken."""
        if self.end is not None and segment.sequence < self.end.next_sequence:
            return True, self._contradicts(segment, self.end)
        return False, self._breaks(segment)

    def _breaks(self, segment: Segment) -> str:
        """Empty where a segment that is not in begins where the chain ends."""
        end, number = self.end, segment.sequence
        if end is None:
            unknown = f"the lake has nothing of it, and the first segment given is number {number}: this is not the lake it was committed to"
            return unknown if number else ""
        if number > end.next_sequence:
            return f"segments {end.next_sequence} to {number - 1} are missing: the lake ends at offset {end.next_offset}"
        if segment.log_number == end.log_number and segment.first_offset != end.next_offset:
            what = "leaves a hole: it begins" if segment.first_offset > end.next_offset else "overlaps: it begins"
            return f"segment {number} {what} at offset {segment.first_offset}, and the lake ends at {end.next_offset}"
        if segment.log_number < end.log_number:
            return f"segment {number} is of an earlier log than the lake has already"
        if segment.epoch < end.epoch:
            return f"segment {number} is of epoch {segment.epoch}, and the lake has one of epoch {end.epoch} before it"
        return ""

    def _contradicts(self, segment: Segment, end: Link) -> str:
        """Empty where a segment that is in already can be the one that was committed under its number."""
        is_last = segment.sequence == end.next_sequence - 1
        same = (
            (segment.next_offset, segment.epoch) == (end.next_offset, end.epoch)
            if is_last
            else segment.next_offset <= end.next_offset or segment.log_number < end.log_number
        )
        if same:
            return ""
        return (
            f"segment {segment.sequence} of epoch {segment.epoch} ends at offset {segment.next_offset}, and the lake, committed up to segment"
            f" {end.next_sequence - 1} of epoch {end.epoch}, ends at {end.next_offset}: its owner restored an older state than was committed"
        )

    def _link(self, segment: Segment) -> None:
        rows = sum(file.rows for file in segment.files if file.table == self.table)
        before = self.end.rows if self.end is not None else 0
        begins = self.end is None or self.end.log_number != segment.log_number
        first = segment.first_offset if begins or self.end is None else self.end.first_offset
        self.end = Link(first, segment.next_offset, segment.sequence + 1, segment.epoch, before + rows, segment.log_number, segment.log_time_ms)
        self.take.append(segment)


def in_portions(segments: Iterable[Segment], files_max: int) -> Iterator[list[Segment]]:
    """The same segments in portions of at most ``files_max`` files (or one segment), each partition's in order."""
    by_partition: dict[int, list[Segment]] = defaultdict(list)
    for segment in segments:
        by_partition[segment.partition].append(segment)
    ranks = zip_longest(*(sorted(given, key=lambda s: s.sequence) for given in by_partition.values()))
    portion: list[Segment] = []
    files = 0
    for segment in (segment for rank in ranks for segment in rank if segment is not None):
        if portion and files + len(segment.files) > files_max:
            yield portion
            portion, files = [], 0
        portion.append(segment)
        files += len(segment.files)
    if portion:
        yield portion


def to_text(links: Mapping[int, Link] | Mapping[int, Span]) -> str:
    """One JSON object, the partitions in order: ~45 bytes each, so that 10,000 partitions take 0.5 MB of a snapshot."""
    return json.dumps({str(partition): list(links[partition]) for partition in sorted(links)}, separators=(",", ":"))


def chain_of(text: str) -> dict[int, Link]:
    """Raises ``LakeDamaged`` for what ``to_text`` did not write."""
    return {partition: Link(*numbers) for partition, numbers in _numbers(text, len(Link._fields)).items()}


def spans_of(text: str) -> dict[int, Span]:
    """Raises ``LakeDamaged`` for what ``to_text`` did not write."""
    return {partition: Span(*numbers) for partition, numbers in _numbers(text, len(Span._fields)).items()}


def _numbers(text: str, width: int) -> dict[int, list[int]]:
    try:
        found = {int(partition): numbers for partition, numbers in json.loads(text).items()}
    except (ValueError, AttributeError):
        found = {-1: []}
    for numbers in found.values():
        if not isinstance(numbers, list) or len(numbers) != width or any(type(n) is not int for n in numbers):
            raise LakeDamaged(f"a snapshot of the lake says nothing readable of its partitions: {text:.80}")
    return found
