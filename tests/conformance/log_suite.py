"""What every log must do, whoever keeps it. A module of tests subclasses ``LogSuite`` and gives a ``make_log`` fixture.

``make_log(partitions=1)`` returns a fresh, empty ``Log`` that takes records of up to RECORD_BYTES, and is closed after the test. A log
that keeps what nobody consumed, and takes its time from our clock, passes ``OwnLogSuite`` too, whose ``make_log`` also takes
``retention_bytes``, ``append_wait_max_ms`` and ``clock``. Kafka does neither: retention and time are the brokers'.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystone.clock import ManualClock
from keystone.errors import LogClosed, LogFull, LogInUse, OffsetOutOfRange, RecordTooLarge, UsageError
from keystone.events import LF, PADDING, Records
from keystone.log.base import Log, LogReader, LogWriter
from tests.examples import examples

SMALL = 1 << 18  # bytes retained by the logs that are meant to fill up
RECORD_BYTES = 1 << 14
WAIT_MS = 10_000  # for a log that is read in the background; where a record is there, no poll waits that long
FLUSH_S = 30.0
MakeLog = Callable[..., Log]


def values_of(records: Records) -> list[bytes]:
    """The values, after a look at every promise ``Records`` makes."""
    assert records.text.dtype == np.uint8
    for column in (records.starts, records.ends, records.offsets, records.append_ts_ms):
        assert column.dtype == np.int64
        assert column.shape == (len(records),)
        assert column.flags.c_contiguous
    if len(records):
        assert records.text.size >= records.ends[-1] + PADDING
        assert (records.text[records.ends] == LF).all()
        assert (records.ends >= records.starts).all()
        assert records.offsets.tolist() == list(range(int(records.offsets[0]), records.next_offset))
    return [records.text[start:end].tobytes() for start, end in zip(records.starts, records.ends, strict=True)]


def read_all(reader: LogReader, bytes_max: int = 1 << 20) -> list[bytes]:
    """Everything from the reader's place to the end."""
    values: list[bytes] = []
    while reader.position() < reader.end_offset():
        records = reader.poll(bytes_max=bytes_max, wait_ms=WAIT_MS)
        assert len(records), f"nothing came at {reader.position()} of {reader.end_offset()}"
        values += values_of(records)
    return values


def send_all(writer: LogWriter, values: list[bytes]) -> None:
    for value in values:
        writer.send(value)
    assert writer.flush(wait_s=FLUSH_S)


def fill(writer: LogWriter, size: int = RECORD_BYTES) -> int:
    """Append until the log is full; how many records it took."""
    count = 0
    try:
        while count < 10_000:
            writer.append(bytes(size))
            count += 1
    except LogFull:
        return count
    raise AssertionError("the log never filled up")


def soon(holds: Callable[[], bool]) -> None:
    """Wait until something holds; a log that is read in the background needs a moment."""
    until = time.monotonic() + WAIT_MS / 1_000
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


class LogSuite:
    def test_records_come_back_in_order_with_offsets_from_zero(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        sent = [b"%d" % i * (i % 50) for i in range(500)]
        appended = [writer.append(value) for value in sent]
        assert [a.offset for a in appended] == list(range(500))
        records = reader.poll(bytes_max=1 << 30, wait_ms=WAIT_MS)
        assert records.partition == 0
        assert records.next_offset == reader.position() == len(records)
        assert records.append_ts_ms.tolist() == [a.append_ts_ms for a in appended[: len(records)]]
        assert values_of(records) + read_all(reader) == sent
        assert reader.position() == reader.end_offset() == 500

    def test_a_record_is_readable_when_append_returns(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        for i in range(200):
            writer.append(b"%d" % i)
            assert values_of(reader.poll(bytes_max=1, wait_ms=WAIT_MS)) == [b"%d" % i]

    def test_empty_polls_wait_and_do_not_move(self, make_log: MakeLog) -> None:
        log = make_log()
        reader = log.reader(0)
        started = time.monotonic()
        records = reader.poll(bytes_max=1, wait_ms=50)
        assert time.monotonic() - started >= 0.049
        assert (len(records), records.next_offset, reader.position(), reader.start_offset(), reader.end_offset()) == (0, 0, 0, 0, 0)
        log.writer(0).append(b"x")
        read_all(reader)
        assert reader.poll(bytes_max=1, wait_ms=0).next_offset == 1

    def test_a_waiting_poll_wakes_for_a_record(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        later = threading.Timer(0.05, lambda: writer.append(b"now"))
        later.start()
        started = time.monotonic()
        assert values_of(reader.poll(bytes_max=1, wait_ms=30_000)) == [b"now"]
        assert time.monotonic() - started < 20
        later.join()

    def test_bytes_max_limits_a_poll_but_one_record_always_comes(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        send_all(writer, [bytes(1000)] * 20)
        assert len(reader.poll(bytes_max=1, wait_ms=WAIT_MS)) == 1
        assert len(reader.poll(bytes_max=3000, wait_ms=WAIT_MS)) in (3, 4)
        assert reader.poll(bytes_max=3000, wait_ms=WAIT_MS).size_bytes <= 4000

    def test_values_of_every_kind_and_size(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        frame = b'{"a":1}\n{"b":2}\n\n{"c":3}'
        sent = [b"", b"\n", b"\n\n", frame, frame + b"\n", b"\x00" * 9, b"\xff" * RECORD_BYTES, b""] + [bytes([i]) * i for i in range(1, 140)]
        for value in sent:
            writer.append(value, events=value.count(b"\n"))
        assert read_all(reader) == sent

    def test_bytes_memoryviews_and_arrays_are_taken(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        array = np.frombuffer(bytearray(b"an array, and a part of it"), np.uint8)
        for value in (b"bytes", memoryview(b"a memoryview")[2:], array, array[3:8], memoryview(b""), array[:0]):
            writer.append(value)
        array[:] = 0  # the log keeps its own copy
        assert read_all(reader) == [b"bytes", b"memoryview", b"an array, and a part of it", b"array", b"", b""]

    def test_a_record_over_the_limit_is_refused_and_harms_nothing(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        writer.append(b"before")
        with pytest.raises(RecordTooLarge, match="record_bytes_max"):
            writer.append(bytes(SMALL + 1))
        assert writer.append(b"after").offset == 1
        assert read_all(reader) == [b"before", b"after"]

    def test_partitions_are_apart(self, make_log: MakeLog) -> None:
        log = make_log(partitions=3)
        assert log.partitions == 3
        for partition in range(3):
            writer = log.writer(partition)
            for i in range(partition + 1):
                assert writer.append(b"%d.%d" % (partition, i)).offset == i
        for partition in range(3):
            reader = log.reader(partition)
            assert reader.partition == partition
            assert read_all(reader) == [b"%d.%d" % (partition, i) for i in range(partition + 1)]
        for partition in (-1, 3):
            with pytest.raises(UsageError, match="partition"):
                log.writer(partition)
            with pytest.raises(UsageError, match="partition"):
                log.reader(partition)

    def test_seek(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        send_all(writer, [b"%d" % i * 40 for i in range(1000)])
        for place in (0, 999, 1, 500, 1000, 37):
            reader.seek(place)
            assert reader.position() == place
            assert read_all(reader) == [b"%d" % i * 40 for i in range(place, 1000)]
        reader.seek(5)
        for outside in (-1, 1001):
            with pytest.raises(OffsetOutOfRange):
                reader.seek(outside)
        assert reader.position() == 5

    def test_two_readers_do_not_disturb_each_other(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, one, two = log.writer(0), log.reader(0), log.reader(0)
        for i in range(10):
            writer.append(b"%d" % i)
        first = one.poll(bytes_max=3, wait_ms=WAIT_MS)
        assert read_all(two) == [b"%d" % i for i in range(10)]
        assert 1 <= len(first) <= 3
        assert values_of(first) == [b"%d" % i for i in range(len(first))]
        assert one.position() == len(first)

    def test_append_times_follow_each_other(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        before_ms = time.time_ns() // 1_000_000
        times = [writer.append(b"x").append_ts_ms for _ in range(20)]
        assert times == sorted(times)
        assert before_ms - 1_000 <= times[0] <= times[-1] <= time.time_ns() // 1_000_000 + 1_000
        seen: list[int] = []
        while len(seen) < 20:
            seen += reader.poll(bytes_max=1 << 20, wait_ms=WAIT_MS).append_ts_ms.tolist()
        assert seen == times

    def test_log_time_passes_while_nothing_comes(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        writer.append(b"x")
        read_all(reader)
        now_ms = time.time_ns() // 1_000_000
        soon(lambda: reader.quiet_until(time.time_ns() // 1_000_000) >= now_ms)

    @pytest.mark.slow
    def test_no_record_is_from_before_what_a_reader_was_promised(self, make_log: MakeLog) -> None:
        """Threads, and pauses in which the partition falls silent."""
        self.check_promises(make_log())

    @staticmethod
    def check_promises(log: Log, total: int = 3_000) -> None:
        writer, reader = log.writer(0), log.reader(0)

        def write() -> None:
            for i in range(total):
                writer.send(b"%d" % i)
                if i % 8 == 0:
                    time.sleep(0.0001)
                if i % 500 == 0:
                    time.sleep(0.2)
            writer.flush(wait_s=FLUSH_S)

        thread = threading.Thread(target=write)
        thread.start()
        seen = promises = promised_ms = 0
        while seen < total:
            records = reader.poll(bytes_max=1 << 20, wait_ms=0)
            seen += len(records)
            assert (records.append_ts_ms >= promised_ms).all()
            quiet_ms = reader.quiet_until(time.time_ns() // 1_000_000)
            assert quiet_ms >= promised_ms
            promises += quiet_ms > promised_ms
            promised_ms = quiet_ms
        thread.join()
        assert promises > 0
        assert getattr(reader, "late_appends", 0) == 0

    def test_a_partition_has_one_writer_at_a_time(self, make_log: MakeLog) -> None:
        log = make_log(partitions=2)
        writer = log.writer(0)
        log.writer(1)
        with pytest.raises(LogInUse):
            log.writer(0)
        writer.append(b"one")
        writer.close()
        writer.close()
        with pytest.raises(LogClosed):
            writer.append(b"x")
        again = log.writer(0)
        assert again.append(b"two").offset == 1
        assert read_all(log.reader(0)) == [b"one", b"two"]

    def test_lag_counts_events(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        for _ in range(10):
            writer.append(b"three\nlines\nhere", events=3)
        first = reader.poll(bytes_max=16 * 4, wait_ms=WAIT_MS)
        assert len(first) == 4
        soon(lambda: log.lag(0) == 30)
        reader.processed(reader.position())
        assert log.lag(0) == 30 - 3 * reader.position()
        assert reader.position() == 4
        read_all(reader)
        reader.commit(reader.position())
        assert log.lag(0) == 0
        with pytest.raises(OffsetOutOfRange):
            reader.commit(11)

    def test_sends_are_counted_by_their_outcome(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        source = bytearray(b"0" * 100)
        for i in range(100):
            source[:] = b"%d" % (i % 10) * 100
            writer.send(memoryview(source), events=7, key=b"a device")  # the value is the caller's again when this returns
        assert writer.flush(wait_s=FLUSH_S)
        assert (writer.sent.acknowledged, writer.sent.acknowledged_events) == (100, 700)
        assert (writer.sent.failed, writer.sent.unknown, writer.sent.reasons) == (0, 0, {})
        assert writer.flush(wait_s=0)
        assert read_all(reader) == [b"%d" % (i % 10) * 100 for i in range(100)]
        assert writer.append(b"after").offset == 100
        assert writer.sent.acknowledged == 101

    def test_a_send_over_the_limit_is_refused_at_once_and_harms_nothing(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        writer.send(b"before")
        with pytest.raises(RecordTooLarge, match="record_bytes_max"):
            writer.send(bytes(SMALL + 1))
        writer.send(b"after")
        assert writer.flush(wait_s=FLUSH_S)
        assert read_all(reader) == [b"before", b"after"]

    def test_there_are_no_gaps_where_nothing_is_damaged(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        send_all(writer, [b"x"] * 50)
        read_all(reader)
        assert reader.take_gaps() == []

    def test_close_ends_a_waiting_poll(self, make_log: MakeLog) -> None:
        log = make_log()
        reader = log.reader(0)
        threading.Timer(0.05, reader.close).start()
        with pytest.raises(LogClosed):
            reader.poll(bytes_max=1, wait_ms=30_000)
        reader.close()
        for use in (lambda: reader.poll(bytes_max=1, wait_ms=0), lambda: reader.seek(0), lambda: reader.commit(0)):
            with pytest.raises(LogClosed):
                use()

    def test_closing_the_log_closes_what_it_gave(self, make_log: MakeLog) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        log.close()
        log.close()
        with pytest.raises(LogClosed):
            writer.append(b"x")
        with pytest.raises(LogClosed):
            reader.poll(bytes_max=1, wait_ms=0)
        with pytest.raises(LogClosed):
            log.reader(0)

    @settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors])
    @given(st.lists(st.tuples(st.binary(max_size=300), st.integers(1, 40)), max_size=40), st.integers(1, 4000), st.integers(0, 5))
    def test_a_reader_sees_exactly_the_bytes(self, make_log: MakeLog, sent: list[tuple[bytes, int]], bytes_max: int, ahead: int) -> None:
        log = make_log()
        writer, reader = log.writer(0), log.reader(0)
        expected = [value * times for value, times in sent]
        got: list[bytes] = []
        for i, value in enumerate(expected):
            writer.append(value)
            if i % 6 == ahead:
                got += values_of(reader.poll(bytes_max=bytes_max, wait_ms=WAIT_MS if reader.position() < reader.end_offset() else 0))
        got += read_all(reader, bytes_max)
        assert got == expected
        log.close()


class OwnLogSuite(LogSuite):
    """What a log promises besides that drops nothing before it is consumed, and takes its time from our clock."""

    def test_append_times_never_go_back(self, make_log: MakeLog) -> None:
        clock = ManualClock(5_000)
        log = make_log(clock=clock)
        writer, reader = log.writer(0), log.reader(0)
        times = []
        for step in (0, 10, -300, 5, 400, -1):
            clock.advance(step)
            times.append(writer.append(b"x").append_ts_ms)
        assert times == [5_000, 5_010, 5_010, 5_010, 5_115, 5_115]
        assert reader.poll(bytes_max=1 << 20, wait_ms=0).append_ts_ms.tolist() == times

    def test_a_silent_partition_is_quiet_until_now_and_appends_keep_to_it(self, make_log: MakeLog) -> None:
        clock = ManualClock(5_000)
        log = make_log(clock=clock)
        writer, reader = log.writer(0), log.reader(0)
        assert reader.quiet_until(4_000) == 4_000  # also before the first record
        assert writer.append(b"x").append_ts_ms == 5_000
        assert reader.quiet_until(6_000) == 4_000  # a record is waiting
        read_all(reader)
        assert [reader.quiet_until(now_ms) for now_ms in (6_000, 5_500, 7_000)] == [6_000, 5_500, 7_000]
        assert writer.append(b"y").append_ts_ms == 7_000  # its clock says 5,000: paused before, or set back
        clock.advance(4_000)
        assert [writer.append(b"z").append_ts_ms for _ in range(2)] == [9_000, 9_000]
        assert reader.quiet_until(8_000) == 7_000
        read_all(reader)
        assert reader.quiet_until(8_000) == 8_000
        other = log.reader(0)
        assert other.quiet_until(9_000) == 0  # its own place counts
        reader.close()
        with pytest.raises(LogClosed):
            reader.quiet_until(10_000)

    @pytest.mark.slow
    def test_no_record_is_from_before_what_was_promised_by_a_clock_that_lags(self, make_log: MakeLog) -> None:
        """Each append gets a clock reading that is up to a second old."""

        class OldClock:
            readings = 0

            def now_ms(self) -> int:
                self.readings += 1
                return time.time_ns() // 1_000_000 - self.readings * 37 % 1_000

        self.check_promises(make_log(retention_bytes=1 << 22, clock=OldClock()))

    def test_a_full_log_refuses_and_takes_again_once_consumed(self, make_log: MakeLog) -> None:
        log = make_log(retention_bytes=SMALL, append_wait_max_ms=30)
        writer, reader = log.writer(0), log.reader(0)
        count = fill(writer)
        assert SMALL // 2 <= count * RECORD_BYTES <= SMALL
        with pytest.raises(LogFull):
            writer.append(bytes(RECORD_BYTES))
        assert len(read_all(reader)) == count
        assert reader.start_offset() == 0
        with pytest.raises(LogFull):  # read is not consumed
            writer.append(bytes(RECORD_BYTES))
        reader.commit(count)
        assert writer.append(b"r" * RECORD_BYTES).offset == count
        assert read_all(reader) == [b"r" * RECORD_BYTES]
        assert reader.start_offset() > 0

    def test_a_waiting_writer_goes_on_when_room_appears(self, make_log: MakeLog) -> None:
        log = make_log(retention_bytes=SMALL, append_wait_max_ms=30_000)
        writer, reader = log.writer(0), log.reader(0)
        total = 10 * SMALL // RECORD_BYTES
        failures: list[BaseException] = []

        def write() -> None:
            try:
                for i in range(total):
                    writer.append(i.to_bytes(8, "big") * (RECORD_BYTES // 8))
            except BaseException as error:  # noqa: BLE001 - told to the test
                failures.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        seen = 0
        while seen < total and not failures:
            for value in values_of(reader.poll(bytes_max=5 * RECORD_BYTES, wait_ms=1000)):
                assert value == seen.to_bytes(8, "big") * (RECORD_BYTES // 8)
                seen += 1
            reader.commit(reader.position())
        thread.join()
        assert not failures
        assert seen == total
        assert reader.start_offset() > 0

    def test_consumed_records_stay_while_there_is_room(self, make_log: MakeLog) -> None:
        log = make_log(retention_bytes=SMALL)
        writer, reader = log.writer(0), log.reader(0)
        for i in range(10):
            writer.append(b"%d" % i)
        reader.commit(10)
        assert reader.start_offset() == 0
        assert read_all(log.reader(0)) == [b"%d" % i for i in range(10)]

    def test_a_reader_overtaken_by_retention_is_told(self, make_log: MakeLog) -> None:
        log = make_log(retention_bytes=SMALL, append_wait_max_ms=30)
        writer, slow, fast, never = log.writer(0), log.reader(0), log.reader(0), log.reader(0)
        writer.append(b"x")
        assert len(slow.poll(bytes_max=1, wait_ms=0)) == 1
        while slow.start_offset() <= slow.position():
            fast.commit(writer.append(bytes(RECORD_BYTES)).offset)
        for reader, place in ((slow, 1), (never, 0)):
            for _ in range(2):
                with pytest.raises(OffsetOutOfRange, match=f"offset {place} "):
                    reader.poll(bytes_max=1, wait_ms=0)
            assert reader.position() == place
            with pytest.raises(OffsetOutOfRange):
                reader.seek(place)
            reader.seek(reader.start_offset())
            first = reader.poll(bytes_max=1, wait_ms=0)
            assert first.offsets.tolist() == [reader.start_offset()]

    def test_commit_never_goes_back(self, make_log: MakeLog) -> None:
        log = make_log(retention_bytes=SMALL, append_wait_max_ms=30)
        writer, reader = log.writer(0), log.reader(0)
        count = fill(writer)
        reader.commit(count)
        reader.commit(0)
        assert writer.append(bytes(RECORD_BYTES)).offset == count

    def test_close_ends_a_waiting_append(self, make_log: MakeLog) -> None:
        log = make_log(retention_bytes=SMALL, append_wait_max_ms=30_000)
        writer = log.writer(0)
        threading.Timer(0.2, writer.close).start()
        with pytest.raises(LogClosed):
            fill(writer)
