"""The reader over a log in this process's memory that is damaged, late, overtaken and made anew as planned."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest

from keystone.config import KafkaConfig
from keystone.errors import LogClosed, LogCorrupt, LogRecreated, OffsetOutOfRange
from keystone.log.base import Gap
from keystone.log.kafka import batches
from keystone.log.kafka.batches import BatchBuilder, end_offset
from keystone.log.kafka.client import EARLIEST
from keystone.log.kafka.fetcher import Chunk, Place
from keystone.log.kafka.reader import CORRUPT_TRIES_MAX, LATE_MARGIN_MS, RECORDS_MAX, KafkaReader
from tests.kafka_batches import resealed

NOW_MS = time.time_ns() // 1_000_000
LATE_MS = 100
OLD, NEW = "an id", "another id"


def batch_of(values: list[bytes], base: int, *, ms: int = NOW_MS, by_broker: bool = True, attributes: int = 0) -> bytearray:
    builder = BatchBuilder()
    for value in values:
        builder.add(value)
    wire = builder.encode("none", now_ms=ms, producer_id=-1, producer_epoch=-1, sequence=-1)
    wire[:8] = struct.pack(">q", base)
    wire[21:23] = struct.pack(">h", attributes | (batches.APPEND_TIME_BIT if by_broker else 0))
    return bytearray(resealed(wire))


class Topic:
    """One partition, and the fetcher and owner of its reader. ``at_once``: batches in one fetch."""

    url, topic, config, has_append_time, is_closed = "kafka://a:1/t", "t", KafkaConfig(), True, False

    def __init__(self, *parts: bytearray, at_once: int = 100) -> None:
        self.parts, self.at_once = list(parts), at_once
        self.topic_id: Any = OLD
        self.start = 0
        self.fetches = 0
        self.damage_once: Any = None
        self.place: Place
        self.committed: list[tuple[int, int]] = []

    @property
    def end(self) -> int:
        return self._last(self.parts[-1]) + 1 if self.parts else self.start

    @staticmethod
    def _last(part: bytes) -> int:
        """As brokers find batches: by headers that may be damaged."""
        base, _, _, _, _, _, delta, *_ = batches.HEADER.unpack_from(part)
        return int(base + delta)

    def reader(self, start: int = 0) -> KafkaReader:
        return KafkaReader(self, self, 0, start, lambda partition, offset: self.committed.append((partition, offset)))  # type: ignore[arg-type]

    # --- an owner -----------------------------------------------------------------------------------------------------------
    def append_late_max_ms(self) -> int:
        return LATE_MS

    def know_topic(self) -> None:
        pass

    def offset(self, partition: int, when: int) -> int:
        return self.start if when == EARLIEST else self.end

    # --- a fetcher ----------------------------------------------------------------------------------------------------------
    def add(self, place: Place) -> None:
        self.place = place
        self.wake()

    def remove(self, place: Place) -> None:
        assert place is self.place

    def wake_for_room(self) -> None:
        self.wake()

    def wake(self) -> None:
        place = self.place
        if place.chunks or place.fault or place.next_offset >= self.end:
            return
        self.fetches += 1
        found = [part for part in self.parts if self._last(part) >= place.next_offset][: self.at_once]
        data = bytearray(b"".join(found))
        if self.damage_once is not None:
            self.damage_once(data)
            self.damage_once = None
        place.end_offset = self.end
        behind = end_offset(memoryview(data), place.next_offset, self.end)
        assert behind is not None
        place.chunks.append(Chunk(memoryview(bytes(data)), behind))
        place.chunk_bytes += len(data)
        place.next_offset = behind

    def is_silent(self, since_ms: int) -> None:
        """A fetch that was sent then found nothing."""
        self.place.empty_since_ms = since_ms


def tens(count: int, **options: Any) -> list[bytearray]:
    return [batch_of([b"%d" % (10 * i + j) for j in range(10)], 10 * i, **options) for i in range(count)]


def take(reader: KafkaReader, bytes_max: int = 1 << 20) -> list[int]:
    """Offsets of one poll, whose values are their numbers."""
    records = reader.poll(bytes_max=bytes_max, wait_ms=0)
    values = [int(records.text[start:end].tobytes()) for start, end in zip(records.starts, records.ends, strict=True)]
    assert values == records.offsets.tolist()
    assert records.next_offset == reader.position()
    return values


def take_all(reader: KafkaReader, end: int, bytes_max: int = 1 << 20) -> list[int]:
    found: list[int] = []
    for _ in range(1_000):
        if reader.position() >= end:
            return found
        found += take(reader, bytes_max)
    raise AssertionError(f"it stands at {reader.position()}")


# --- what stands in the way -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bytes_max", [1, 25, 1 << 20])
def test_what_was_fetched_is_handed_out_before_a_fault_is_told(bytes_max: int) -> None:
    topic = Topic(*tens(3), at_once=2)
    reader = topic.reader()
    topic.start = 20
    topic.place.fault = OffsetOutOfRange("gone")
    assert take_all(reader, 20, bytes_max) == list(range(20))
    for _ in range(2):
        with pytest.raises(OffsetOutOfRange, match="offset 20 is not in the log, which holds 20 to 29"):
            take(reader)
    assert reader.position() == 20
    reader.seek(20)
    assert take_all(reader, 30) == list(range(20, 30))


def test_a_topic_made_anew_is_told_until_it_is_sought() -> None:
    topic = Topic(*tens(3))
    reader = topic.reader()
    assert take_all(reader, 30) == list(range(30))
    reader.processed(30)
    reader.commit(30)
    topic.place.fault, topic.parts, topic.topic_id = LogRecreated("anew"), tens(1), NEW
    for _ in range(2):
        with pytest.raises(LogRecreated, match="anew"):
            take(reader)
    with pytest.raises(OffsetOutOfRange):
        reader.seek(30)
    reader.seek(0)
    assert topic.place.topic_id == NEW
    assert take_all(reader, 10) == list(range(10))
    assert reader.lag_records == 10
    assert reader.end_known() == reader.end_offset()
    reader.commit(4)
    assert reader.lag_records == 6
    assert topic.committed == [(0, 30), (0, 4)]


def test_closed_is_told_before_anything_else() -> None:
    topic = Topic(*tens(1))
    reader = topic.reader()
    topic.place.fault = LogCorrupt("x")
    reader.close()
    assert reader.is_closed
    for use in (lambda: take(reader), lambda: reader.seek(0), lambda: reader.quiet_until(1), lambda: reader.processed(0)):
        with pytest.raises(LogClosed):
            use()


# --- damage ---------------------------------------------------------------------------------------------------------------
def flip(at: int) -> Any:
    def damage(data: bytearray) -> None:
        data[at] ^= 0x10

    return damage


def test_damage_on_the_way_is_fetched_again() -> None:
    topic = Topic(*tens(3))
    topic.damage_once = flip(len(topic.parts[0]) + 70)
    reader = topic.reader()
    assert take_all(reader, 30) == list(range(30))
    assert (reader.take_gaps(), topic.fetches) == ([], 2)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_damage_that_stays_is_a_gap_of_that_batch(which: int, at_once: int) -> None:
    topic = Topic(*tens(3), at_once=at_once)
    topic.parts[which][70] ^= 1
    reader = topic.reader()
    assert take_all(reader, 30) == [i for i in range(30) if i // 10 != which]
    assert reader.take_gaps() == [Gap(0, 10 * which, 10 * which + 9, "corrupt")]


@pytest.mark.parametrize("delta", [0, 4, 15, 29, 1_000, -1])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_damaged_count_of_offsets_takes_no_neighbour_with_it(delta: int, at_once: int) -> None:
    """Brokers find batches by it too, so that they may give the damaged one again."""
    topic = Topic(*tens(4), at_once=at_once)
    topic.parts[1][23:27] = struct.pack(">i", delta)
    reader = topic.reader()
    found, gaps = take_all(reader, 40), reader.take_gaps()
    passed = [offset for gap in gaps for offset in range(gap.first_offset, gap.last_offset + 1)]
    assert sorted(found + passed) == list(range(40)) or delta < 9  # a smaller one leaves a hole that looks like compaction's
    assert len(set(found)) == len(found)
    assert set(range(10)) <= set(found)
    if at_once > 1:
        assert [i for i in range(40) if i // 10 != 1] == found


def test_a_batch_with_a_good_checksum_and_bad_records_is_a_gap_too() -> None:
    topic = Topic(*tens(3))
    topic.parts[1][61] = 0x7F  # the first record's length
    topic.parts[1] = bytearray(resealed(topic.parts[1]))
    reader = topic.reader()
    assert take_all(reader, 30) == [*range(10), *range(20, 30)]
    assert reader.take_gaps() == [Gap(0, 10, 19, "corrupt")]
    assert topic.fetches == CORRUPT_TRIES_MAX


def test_a_seek_into_a_damaged_batch_counts_from_there() -> None:
    topic = Topic(*tens(3))
    topic.parts[1][70] ^= 1
    reader = topic.reader()
    reader.seek(14)
    assert take_all(reader, 30) == list(range(20, 30))
    assert reader.take_gaps() == [Gap(0, 14, 19, "corrupt")]


@pytest.mark.parametrize(("at", "value"), [(16, b"\x01"), (8, b"\x00\x00\x00\x07"), (0, b"\x00\x00\x00\x00\x00\x00\x00\x05")])
def test_where_the_way_is_lost_one_error_says_so_until_a_seek(at: int, value: bytes) -> None:
    topic = Topic(*tens(3))
    topic.parts[1][at : at + len(value)] = value
    reader = topic.reader()
    assert take_all(reader, 10) == list(range(10))
    fetches = set()
    for _ in range(3):
        with pytest.raises(LogCorrupt, match="seek behind it"):
            [take(reader) for _ in range(10)]
        fetches.add(topic.fetches)
    assert reader.position() == 10
    assert len(fetches) == 1
    reader.seek(20)
    assert take_all(reader, 30) == list(range(20, 30))
    assert reader.take_gaps() == []


def test_control_batches_are_passed() -> None:
    topic = Topic(*tens(1), batch_of([b"marker"], 10, attributes=batches.CONTROL_BIT), batch_of([b"11"], 11))
    reader = topic.reader()
    assert take_all(reader, 12) == [*range(10), 11]
    topic = Topic(batch_of([b"marker"], 0, attributes=batches.CONTROL_BIT))
    reader = topic.reader()
    assert (take(reader), reader.position(), reader.take_gaps()) == ([], 1, [])


@pytest.mark.slow
def test_many_empty_records_are_limited() -> None:
    topic = Topic(*[batch_of([b""] * 40_000, 40_000 * i) for i in range(3)])
    reader = topic.reader()
    counts = [len(reader.poll(bytes_max=1 << 20, wait_ms=0)) for _ in range(3)]
    assert max(counts) <= RECORDS_MAX
    assert sum(counts) <= 120_000
    while reader.position() < 120_000:
        assert len(reader.poll(bytes_max=1 << 20, wait_ms=0))


# --- time -----------------------------------------------------------------------------------------------------------------
def times(reader: KafkaReader) -> list[int]:
    return reader.poll(bytes_max=1, wait_ms=0).append_ts_ms.tolist()  # type: ignore[no-any-return]


def test_log_time_passes_only_while_everything_is_handed_out() -> None:
    topic = Topic(*tens(2), at_once=1)
    reader = topic.reader()
    topic.is_silent(NOW_MS)
    assert reader.quiet_until(NOW_MS) == 0  # two batches wait
    assert len(take(reader, 5)) == 5
    assert reader.quiet_until(NOW_MS) == 0
    take_all(reader, 20)
    assert reader.quiet_until(NOW_MS) == NOW_MS - LATE_MS
    assert reader.quiet_until(NOW_MS - 1_000) == NOW_MS - 1_000
    topic.is_silent(NOW_MS - 500)
    assert reader.quiet_until(NOW_MS) == NOW_MS - LATE_MS


def test_a_brokers_clock_that_lags_is_held_to_the_promise_counted_and_allowed_for(caplog: pytest.LogCaptureFixture) -> None:
    topic = Topic(batch_of([b"0"], 0, ms=NOW_MS - 5_000))
    reader = topic.reader()
    assert times(reader) == [NOW_MS - 5_000]
    topic.is_silent(NOW_MS)
    promised = reader.quiet_until(NOW_MS)
    topic.parts.append(batch_of([b"1", b"2"], 1, ms=NOW_MS - 400))
    topic.wake()
    assert times(reader) == [promised]
    assert times(reader) == [promised]
    assert reader.late_appends == 2
    assert len([record for record in caplog.records if "log time is held back" in record.message]) == 1
    topic.is_silent(NOW_MS + 1_000)
    assert reader.quiet_until(NOW_MS + 1_000) == NOW_MS + 1_000 - LATE_MS - (promised - NOW_MS + 400) - LATE_MARGIN_MS


def test_a_producers_clock_that_lags_holds_nothing_back(caplog: pytest.LogCaptureFixture) -> None:
    """One broken device must not stop the timers of all others for an hour."""
    topic = Topic(batch_of([b"0"], 0, by_broker=False))
    reader = topic.reader()
    assert times(reader) == [NOW_MS]
    topic.is_silent(NOW_MS + LATE_MS + 50)
    promised = reader.quiet_until(NOW_MS + 1_000)
    assert promised == NOW_MS + 50
    topic.parts.append(batch_of([b"1"], 1, ms=NOW_MS - 3_600_000, by_broker=False))
    topic.wake()
    assert times(reader) == [promised]
    assert reader.late_appends == 1
    topic.is_silent(NOW_MS + 1_000)
    assert reader.quiet_until(NOW_MS + 1_000) == NOW_MS + 1_000 - LATE_MS
    assert not caplog.records


@pytest.mark.parametrize("may_look", [True, False])
def test_a_producers_clock_that_leads_is_held_to_ours(may_look: bool) -> None:
    """Also where the topic's settings may not be seen: each batch says whose its times are."""
    topic = Topic(batch_of([b"0", b"1"], 0, ms=NOW_MS + 10_000_000, by_broker=False), batch_of([b"2"], 2, ms=NOW_MS))
    topic.has_append_time = may_look
    reader = topic.reader()
    found = reader.poll(bytes_max=1 << 20, wait_ms=0).append_ts_ms.tolist()
    assert len(found) == 3
    assert found == sorted(found)
    assert found[-1] <= time.time_ns() // 1_000_000


def test_times_never_go_back_and_are_those_of_then_where_records_are_read_again() -> None:
    topic = Topic(batch_of([b"0"], 0, ms=1_000), batch_of([b"1"], 1, ms=5_000), batch_of([b"2"], 2, ms=4_000))
    reader = topic.reader()
    assert [times(reader)[0] for _ in range(3)] == [1_000, 5_000, 5_000]
    topic.is_silent(9_000)
    assert reader.quiet_until(9_000) == 9_000 - LATE_MS
    reader.seek(0)
    assert reader.quiet_until(9_000) == 0
    assert [times(reader)[0] for _ in range(3)] == [1_000, 5_000, 5_000]
    assert reader.late_appends == 0


# --- lag ------------------------------------------------------------------------------------------------------------------
def test_lag_is_exact_where_all_records_hold_as_many() -> None:
    frame = b"\n".join(b'{"n":%d}' % i for i in range(7)) + b"\n"
    topic = Topic(*[batch_of([frame] * 300, 300 * i) for i in range(3)], at_once=1)
    reader = topic.reader()
    first = reader.poll(bytes_max=10 * len(frame), wait_ms=0)
    assert len(first) == 10
    assert reader.lag_events == 900 * 7
    reader.processed(10)
    assert reader.lag_events == 890 * 7
    reader.processed(0)  # a restarted one begins again
    assert reader.lag_events == 900 * 7
    reader.commit(10)
    reader.commit(5)
    assert reader.lag_events == 890 * 7
    with pytest.raises(OffsetOutOfRange):
        reader.processed(901)
    with pytest.raises(OffsetOutOfRange):
        reader.commit(-1)


def test_a_place_is_fetched_for_in_the_topic_it_is_of() -> None:
    """Another reader of the same log has found the topic made anew; this one must hear of it too, not read on there."""
    topic = Topic(*tens(2))
    topic.damage_once = flip(70)
    reader = topic.reader()
    topic.topic_id = NEW
    assert take_all(reader, 20) == list(range(20))
    assert topic.fetches == 2
    assert topic.place.topic_id == OLD
