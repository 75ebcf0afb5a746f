"""What of a log a replay reads: for each partition from which offset to which, and how far log time passes there."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from keystone.config import Config
from keystone.errors import UsageError
from keystone.log.opening import open_log
from keystone.run.places import EARLIEST, LATEST, moment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keystone.log.embedded import EmbeddedLog
    from keystone.log.kafka import KafkaLog
    from keystone.sinks.iceberg.chain import Link

ALWAYS: Final = 1 << 62


class Span(NamedTuple):
    """Offsets [first, end) of a partition. ``until_ms``: where log time ends; None: at the last record."""

    partition: int
    first: int
    end: int
    until_ms: int | None


@dataclass(frozen=True, slots=True)
class LogRange:
    """``from_ms until_ms``: alerts of append times in [from_ms, until_ms) are within. ``remarks``: for people."""

    spans: tuple[Span, ...]
    from_ms: int
    until_ms: int
    remarks: tuple[str, ...] = ()


def find_range(url: str, begin: str, end: str, config: Config, live: Mapping[int, Link] | None = None) -> LogRange:
    """Look at the log. ``begin``: "earliest" or a time; ``end``: "latest" or a time, both of the append.

    ``live``: where a lake ends that the result is compared with: what is behind that is left out. Raises ``UsageError`` where nothing is to be read.
    """
    from_ms = 0 if begin == EARLIEST else moment(begin, option="--from", words=(EARLIEST,))
    until_ms = ALWAYS if end == LATEST else moment(end, option="--to", words=(LATEST,))
    if from_ms >= until_ms:
        raise UsageError(f"--from {begin} is not before --to {end}: nothing lies between")
    with closing(open_log(url, config.kafka)) as log:
        there, ends = _bounds(log)
        starts = there if from_ms == 0 else {p: max(offset, there[p]) for p, offset in log.offsets_at(from_ms).items()}
        stops = ends if until_ms == ALWAYS else {p: min(offset, ends[p]) for p, offset in log.offsets_at(until_ms).items()}
    passed_ms = None if until_ms == ALWAYS else min(until_ms, int(time.time() * 1_000)) - 1
    spans = [Span(partition, first, max(first, stops[partition]), passed_ms) for partition, first in sorted(starts.items())]
    remarks = []
    if live is not None:
        spans = [_within(span, live.get(span.partition)) for span in spans]
        if from_ms == 0 and any(link.first_offset < starts.get(partition, 0) for partition, link in live.items()):
            remarks.append("the log has forgotten the beginning of what the lake holds: sessions from before begin anew in the middle")
        latest_ms = max((link.log_time_ms for link in live.values()), default=0)
        if until_ms != ALWAYS and until_ms > latest_ms:
            remarks.append("the lake does not reach --to yet: compared is what it has")
    if not any(span.end > span.first for span in spans):
        raise UsageError(f"{url}: no record lies between --from {begin} and --to {end}{'' if live is None else ' that the lake has'}: name other times")
    return LogRange(tuple(spans), from_ms, until_ms, tuple(remarks))


def _bounds(log: EmbeddedLog | KafkaLog) -> tuple[dict[int, int], dict[int, int]]:
    """Start and end offset of each partition."""
    there, ends = {}, {}
    for partition in range(log.partitions):
        with closing(log.reader(partition)) as reader:
            there[partition], ends[partition] = reader.start_offset(), reader.end_offset()
    return there, ends


def _within(span: Span, link: Link | None) -> Span:
    """What the lake has of it: no more records, and no more time."""
    if link is None:
        return span._replace(end=span.first)
    until_ms = link.log_time_ms if span.until_ms is None else min(span.until_ms, link.log_time_ms)
    return span._replace(end=min(span.end, max(span.first, link.next_offset)), until_ms=until_ms)
