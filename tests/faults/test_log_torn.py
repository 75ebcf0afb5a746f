"""The embedded log after crashes: what was unfinished goes, what is damaged is told, what was acknowledged stays."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from keystone.errors import LogCorrupt, OffsetOutOfRange
from keystone.kernels import log as kernels
from keystone.log.embedded import EmbeddedLog
from keystone.log.segment import segment_path

SEGMENT = 1 << 16
SIZES = {"partitions": 1, "segment_bytes": SEGMENT, "retention_bytes": 4 * SEGMENT, "record_bytes_max": 1 << 14}


def values_of(log):
    reader = log.reader(0)
    values = []
    while len(records := reader.poll(bytes_max=1 << 20, wait_ms=0)):
        assert records.offsets.tolist() == list(range(len(values), records.next_offset))
        values += [records.text[s:e].tobytes() for s, e in zip(records.starts, records.ends, strict=True)]
    return values


def place(log):
    """Segment number and byte where the next record will lie."""
    return divmod(int(kernels.read_word(log._row(0), kernels.COMMITTED)), SEGMENT)


def patch(log, number, at, content):
    with segment_path(log.shape.folder(0), number).open("r+b") as file:
        file.seek(at)
        file.write(content)


def segment_bytes(log, number=0):
    return segment_path(log.shape.folder(0), number).read_bytes()


@pytest.fixture
def log(tmp_path):
    log = EmbeddedLog.create(tmp_path / "log", **SIZES)
    yield log
    log.remove()


SENT = [b"record %d " % i * (i + 1) for i in range(5)]


def write(log, values=SENT):
    writer = log.writer(0)
    for value in values:
        writer.append(value, events=2)
    writer.close()


@pytest.mark.slow
def test_a_record_cut_at_any_byte_is_cut_away_and_counted(log):
    """The last record's bytes reach the file up to any byte, garbage or zeros after: it was never acknowledged."""
    write(log)
    number, at = place(log)
    sixth = log.writer(0)
    sixth.append(b"never acknowledged" * 3, events=2)
    sixth.close()
    after = place(log)[1]
    whole = segment_bytes(log)[at:after]
    saved = log._row(0).copy()
    torn = 0
    for cut in range(len(whole)):
        for rest in (bytes(len(whole) - cut), b"\xa7" * (len(whole) - cut)):
            if (whole[:cut] + rest).startswith(whole[: kernels.HEAD + 18 * 3 + 1]):
                continue  # only padding is missing: the record is whole
            row = log._row(0)
            row[:] = saved
            row[kernels.COMMITTED], row[kernels.END_OFFSET], row[kernels.EVENTS_APPENDED] = number * SEGMENT + at, 5, 10
            patch(log, number, at, whole[:cut] + rest + bytes(64))
            before = log.stats(0).torn_records
            assert values_of(log) == SENT  # a reader does not see it, recovered or not
            writer = log.writer(0)
            begun = any((whole[:cut] + rest)[:8])
            torn += begun
            assert log.stats(0).torn_records - before == begun, cut
            assert writer.append(b"sixth").offset == 5
            assert log.stats(0).events_appended == 11
            writer.close()
            assert values_of(log) == [*SENT, b"sixth"]
    assert torn > 100


def test_a_whole_record_that_was_not_yet_published_is_kept(log):
    """The writer died between the last byte and the published word: nobody knows, so either is right; keeping loses least."""
    write(log)
    number, at = place(log)
    write(log, [b"whole"])
    row = log._row(0)
    row[kernels.COMMITTED], row[kernels.EVENTS_APPENDED] = number * SEGMENT + at, 10
    assert values_of(log) == SENT
    writer = log.writer(0)
    assert writer.append(b"next").offset == 6
    assert values_of(log) == [*SENT, b"whole", b"next"]
    assert log.stats(0).events_appended == 13
    assert log.stats(0).torn_records == 0


@pytest.mark.parametrize("kept", [0, 1, 8, 31, 32, 40, 77])
def test_a_file_that_lost_its_last_record_is_cut_back_when_nobody_had_consumed_it(log, kept):
    """After a power cut: the counters reached the disk, the last record did not."""
    write(log)
    number, at = place(log)
    write(log, [b"lost" * 20])
    os.truncate(segment_path(log.shape.folder(0), number), at + kept)
    writer = log.writer(0)
    assert log.stats(0).torn_records == 1
    assert writer.append(b"again").offset == 5
    assert values_of(log) == [*SENT, b"again"]


def test_consumed_records_are_never_given_a_second_meaning(log):
    write(log)
    reader = log.reader(0)
    reader.poll(bytes_max=1 << 20, wait_ms=0)
    reader.commit(5)
    _, at = place(log)
    patch(log, 0, at - 24, b"\xff" * 8)
    with pytest.raises(LogCorrupt, match="offset 4 at byte"):
        log.writer(0)
    with pytest.raises(LogCorrupt):  # and the lock was let go
        log.writer(0)


def test_a_reader_ahead_of_a_cut_log_is_told(log):
    write(log)
    reader = log.reader(0)
    reader.poll(bytes_max=1 << 20, wait_ms=0)
    _, at = place(log)
    patch(log, 0, at - 24, b"\xff" * 8)
    writer = log.writer(0)
    with pytest.raises(OffsetOutOfRange, match="offset 5"):
        reader.poll(bytes_max=1, wait_ms=0)
    assert writer.append(b"other").offset == 4


@pytest.mark.parametrize("target", range(4))
@pytest.mark.parametrize("where", ["length", "checksum", "offset", "time", "first byte", "last byte", "line feed"])
def test_damage_before_whole_records_names_file_and_place(log, target, where):
    write(log)
    reader = log.reader(0)
    records = reader.poll(bytes_max=1 << 20, wait_ms=0)
    start, end = int(records.starts[target]), int(records.ends[target])
    head = start - kernels.HEAD
    byte = {"length": head, "checksum": head + 8, "offset": head + 16, "time": head + 24, "first byte": start, "last byte": end - 1, "line feed": end}[where]
    patch(log, 0, byte, bytes([segment_bytes(log)[byte] ^ 0x40]))
    expected = re.escape(str(segment_path(log.shape.folder(0), 0))) + f".*offset {target} at byte {head} "
    with pytest.raises(LogCorrupt, match=expected):
        log.writer(0)
    again = log.reader(0)
    for offset in range(target):
        assert again.poll(bytes_max=1, wait_ms=0).offsets.tolist() == [offset]
    with pytest.raises(LogCorrupt, match=expected):
        again.poll(bytes_max=1, wait_ms=0)
    together = log.reader(0)
    if target:
        assert len(together.poll(bytes_max=1 << 20, wait_ms=0)) == target  # what is whole is handed out first
    with pytest.raises(LogCorrupt, match=expected):
        together.poll(bytes_max=1 << 20, wait_ms=0)


def test_damage_is_found_in_any_bit(log):
    """One flipped bit anywhere in a record, its head included, is seen."""
    write(log, [b"abcdefgh" * 9, b"last"])
    records = log.reader(0).poll(bytes_max=1 << 20, wait_ms=0)
    head, end = int(records.starts[0]) - kernels.HEAD, int(records.ends[0]) + 1
    content = bytearray(segment_bytes(log))
    row, columns, state = log._row(0), np.zeros((kernels.COLUMNS, 8), np.int64), np.zeros(kernels.STATE_WORDS, np.int64)
    for byte in range(head, end):
        for bit in range(8):
            content[byte] ^= 1 << bit
            state[:] = 0
            state[kernels.AT] = kernels.SEGMENT_HEAD
            assert kernels.walk(np.frombuffer(bytes(content), np.uint8), row, columns, state, 0, SEGMENT - kernels.TAIL, 1, True) == 0
            content[byte] ^= 1 << bit


def drain(reader):
    while len(reader.poll(bytes_max=1, wait_ms=0)):
        pass


def fill_two_segments(log):
    values = [bytes([i]) * 5000 for i in range(30)]
    write(log, values)
    assert place(log)[0] >= 2
    return values


def test_damage_in_an_earlier_segment_is_told(log):
    fill_two_segments(log)
    patch(log, 0, SEGMENT // 2, b"\x00\x11\x22")
    with pytest.raises(LogCorrupt, match=r"000000000000\.segment"):
        log.writer(0)


@pytest.mark.parametrize("number", [0, 1])
def test_a_segment_that_is_gone_is_told(log, number):
    fill_two_segments(log)
    segment_path(log.shape.folder(0), number).unlink()
    with pytest.raises(LogCorrupt, match=rf"00000000000{number}\.segment is gone"):
        log.writer(0)
    reader = log.reader(0)
    with pytest.raises(LogCorrupt, match=rf"00000000000{number}\.segment is gone"):
        drain(reader)


def test_a_damaged_segment_head_is_told(log):
    fill_two_segments(log)
    patch(log, 1, 33, b"\x55")
    with pytest.raises(LogCorrupt, match=r"000000000001\.segment: the head"):
        log.writer(0)


def test_a_cut_earlier_segment_is_told_to_readers_too(log):
    fill_two_segments(log)
    os.truncate(segment_path(log.shape.folder(0), 1), 1000)
    reader = log.reader(0)
    with pytest.raises(LogCorrupt, match=r"000000000001\.segment: 1,000 bytes long"):
        drain(reader)
    with pytest.raises(LogCorrupt, match=r"000000000001\.segment"):
        log.writer(0)


@pytest.mark.parametrize("content", ["whole", "garbage"])
def test_a_segment_made_ready_and_not_used_is_removed(log, content):
    values = fill_two_segments(log)
    number = place(log)[0]
    spare = segment_path(log.shape.folder(0), number + 1)
    shutil.copy(segment_path(log.shape.folder(0), 0), spare)
    if content == "garbage":
        spare.write_bytes(b"\xa5" * SEGMENT)
    writer = log.writer(0)
    assert not spare.exists()
    assert writer.append(b"next").offset == len(values)
    assert values_of(log) == [*values, b"next"]


def test_a_dropped_segment_left_behind_is_removed(log):
    values = fill_two_segments(log)
    row = log._row(0)
    second = log.reader(0)
    second.seek(len(values))
    row[kernels.FIRST_SEGMENT] = 1
    log.writer(0)
    assert not segment_path(log.shape.folder(0), 0).exists()
    assert log.stats(0).start_offset == 12
    reader = log.reader(0)
    assert reader.poll(bytes_max=1, wait_ms=0).offsets.tolist() == [12]


def test_a_first_writer_that_died_before_its_first_record_leaves_an_empty_log(log):
    segment_path(log.shape.folder(0), 0).write_bytes(b"half made")
    writer = log.writer(0)
    assert writer.append(b"x").offset == 0
    assert values_of(log) == [b"x"]


WRITER = """
import sys
from keystone.log.embedded import EmbeddedLog
writer = EmbeddedLog.open(sys.argv[1]).writer(0)
print("ready", flush=True)
i = int(sys.argv[2])
while True:
    print(writer.append(b"%d " % i * (i % 700 + 1)).offset, flush=True)
    i += 1
"""


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path):
    """Killed at random moments, again and again: every acknowledged record is there, once, and the next writer goes on."""
    log = EmbeddedLog.create(tmp_path / "log", **SIZES)
    reader = log.reader(0)
    acknowledged = -1
    for lap in range(6):
        command = [sys.executable, "-c", WRITER, str(log.directory), str(acknowledged + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout.readline() == "ready\n"
                until = time.monotonic() + 0.1 + 0.05 * lap
                while time.monotonic() < until:
                    acknowledged = int(process.stdout.readline())
                    check_and_commit(reader)
            finally:
                process.kill()
            rest = [int(line) for line in process.stdout.read().split("\n")[:-1]]
        acknowledged = max([acknowledged, *rest])
        assert reader.end_offset() in (acknowledged + 1, acknowledged + 2)
        acknowledged = reader.end_offset() - 1
        check_and_commit(reader)
        assert reader.position() == acknowledged + 1
    assert acknowledged > 100
    log.remove()
    assert not Path(log.directory).exists()


def check_and_commit(reader):
    while len(records := reader.poll(bytes_max=1 << 16, wait_ms=0)):
        for offset, start, end in zip(records.offsets, records.starts, records.ends, strict=True):
            assert records.text[start:end].tobytes() == b"%d " % offset * (offset % 700 + 1)
        reader.commit(records.next_offset)
