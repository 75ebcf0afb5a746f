"""The embedded log keeps every promise of a log, and those of its own: files, processes, memory shared between them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keystone.errors import LogClosed, LogFull, LogInUse, OffsetOutOfRange, UsageError
from keystone.kernels import log as kernels
from keystone.log import embedded, partition
from keystone.log.embedded import EmbeddedLog, default_directory, directory_of
from keystone.log.segment import segment_numbers, segment_path

from .log_suite import RECORD_BYTES, SMALL, MakeLog, OwnLogSuite, fill, read_all, values_of

SIZES: dict[str, Any] = {"partitions": 1, "segment_bytes": 1 << 16, "retention_bytes": SMALL, "record_bytes_max": RECORD_BYTES}


class TestEmbeddedLog(OwnLogSuite):
    @pytest.fixture
    def make_log(self, tmp_path: Path) -> Iterator[MakeLog]:
        made: list[EmbeddedLog] = []

        def make(**options: Any) -> EmbeddedLog:
            made.append(EmbeddedLog.create(tmp_path / f"log{len(made)}", **{**SIZES, **options}))
            return made[-1]

        yield make
        for log in made:
            log.remove()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    log = EmbeddedLog.create(tmp_path / "log", append_wait_max_ms=30, **SIZES)
    yield log
    log.remove()


def laps(log: EmbeddedLog, writer: Any, count: int) -> None:
    """Go ``count`` times round the ring, everything consumed at once."""
    reader = log.reader(0)
    for i in range(count * SMALL // RECORD_BYTES):
        reader.commit(writer.append(i.to_bytes(8, "big") * (RECORD_BYTES // 8)).offset + 1)
    reader.close()


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# --- files used again ------------------------------------------------------------------------------------------


def inodes(log: EmbeddedLog) -> set[int]:
    folder = log.shape.folder(0)
    return {segment_path(folder, number).stat().st_ino for number in segment_numbers(folder)}


def test_consumed_segments_are_used_again(log: EmbeddedLog) -> None:
    writer = log.writer(0)
    laps(log, writer, 1)
    first = inodes(log)
    laps(log, writer, 5)
    assert inodes(log) == first
    assert len(first) == SMALL // SIZES["segment_bytes"]


def test_views_do_not_change_under_a_reader_that_was_overtaken(log: EmbeddedLog) -> None:
    """The writer leaves a segment alone that a reader holds, and takes a new file instead."""
    writer, holder = log.writer(0), log.reader(0)
    writer.append(b"held " * 100)
    records = holder.poll(bytes_max=1 << 20, wait_ms=0)
    before = inodes(log)
    laps(log, writer, 5)
    assert not before & inodes(log)
    assert holder.start_offset() > 1
    assert values_of(records) == [b"held " * 100]
    with pytest.raises(OffsetOutOfRange):
        holder.poll(bytes_max=1, wait_ms=0)
    holder.seek(holder.start_offset())  # lets go
    read_all(holder)
    held = inodes(log)
    laps(log, writer, 5)
    assert len(held & inodes(log)) >= len(held) - 1


@pytest.mark.slow
def test_a_reader_in_another_process_holds_its_segment_too(log: EmbeddedLog) -> None:
    writer = log.writer(0)
    writer.append(b"held")
    program = (
        "import sys\nfrom keystone.log.embedded import EmbeddedLog\nreader = EmbeddedLog.open_url(sys.argv[1]).reader(0)\n"
        "records = reader.poll(bytes_max=1, wait_ms=0)\nprint('held', flush=True)\nsys.stdin.read()\n"
        "print(records.text[records.starts[0]:records.ends[0]].tobytes().decode())"
    )
    with subprocess.Popen([sys.executable, "-c", program, log.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = inodes(log)
        laps(log, writer, 3)
        assert not before & inodes(log)
        assert other.communicate("")[0] == "held\n"
    after = inodes(log)
    laps(log, writer, 3)
    assert inodes(log) == after  # the dead process's lock went with it


def test_a_slow_reader_never_sees_bytes_change(log: EmbeddedLog) -> None:
    """Threads, no pauses: what a poll returns stays as it was appended, or the poll says that it was overtaken."""
    writer = log.writer(0)
    done = threading.Event()
    seen: list[int] = []
    failures: list[object] = []

    def read() -> None:
        reader = log.reader(0)
        while not done.is_set():
            try:
                if reader.position() < reader.start_offset():
                    reader.seek(reader.end_offset())
                records = reader.poll(bytes_max=4 * RECORD_BYTES, wait_ms=1)
            except OffsetOutOfRange:  # also of the seek: the writer never pauses
                continue
            for offset, start, end in zip(records.offsets.tolist(), records.starts, records.ends, strict=True):
                seen.append(offset)
                for _ in range(2):
                    time.sleep(0.001)
                    value = records.text[start:end].tobytes()
                    if value != (offset % (SMALL // RECORD_BYTES)).to_bytes(8, "big") * (RECORD_BYTES // 8):
                        failures.append((offset, value[:16]))

    thread = threading.Thread(target=read)
    thread.start()
    while len(seen) < 40 and not failures and thread.is_alive():
        laps(log, writer, 1)
    done.set()
    thread.join()
    assert not failures
    assert seen == sorted(set(seen))
    assert len(seen) >= 40


def test_closing_while_views_are_held_is_safe(log: EmbeddedLog) -> None:
    writer, reader = log.writer(0), log.reader(0)
    writer.append(b"kept in view")
    records = reader.poll(bytes_max=1, wait_ms=0)
    log.remove()
    assert values_of(records) == [b"kept in view"]


def test_a_preallocated_ring_is_all_there_from_the_start(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = log.shape.folder(0)
    writer = log.writer(0, preallocate=True)
    files = {path.stat().st_ino for path in folder.glob("*.segment")}
    assert len(files) == log.shape.segments
    assert segment_numbers(folder) == [0]
    monkeypatch.setattr(os, "posix_fallocate", None)  # nothing more is allocated
    count = fill(writer)
    assert inodes(log) == files
    reader = log.reader(0)
    assert len(read_all(reader)) == count
    reader.commit(count)
    reader.close()
    laps(log, writer, 3)
    assert inodes(log) == files
    writer.close()
    monkeypatch.undo()
    (folder / "spare003.segment").write_bytes(b"left by a writer that died")
    log.writer(0)
    assert inodes(log) == files
    assert not list(folder.glob("spare*"))


# --- full ------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_nothing_is_lost(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = log.writer(0)
    appended = [writer.append(bytes(RECORD_BYTES)).offset for _ in range(3)]

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(LogFull) as raised:
        fill_forever(writer)
    assert "file system is full" in one_line(raised)
    reader = log.reader(0)
    assert len(read_all(reader)) == len(appended)
    monkeypatch.undo()
    assert writer.append(b"room again").offset == len(appended)


def fill_forever(writer: Any) -> None:
    for _ in range(1000):
        writer.append(bytes(RECORD_BYTES))


def test_a_full_disk_makes_the_writer_use_what_is_consumed_sooner(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = log.writer(0), log.reader(0)
    while len(segment_numbers(log.shape.folder(0))) < 3:
        reader.commit(writer.append(bytes(RECORD_BYTES)).offset + 1)

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    before = inodes(log)
    laps(log, writer, 3)
    assert inodes(log) == before


def test_a_full_log_names_offsets_and_its_reader(log: EmbeddedLog) -> None:
    writer = log.writer(0)
    count = fill(writer)
    with pytest.raises(LogFull) as raised:
        writer.append(bytes(RECORD_BYTES))
    assert f"of offsets 0 to {count - 1}" in one_line(raised)
    assert log.stats(0).waited_ms >= 25


def test_a_log_that_cannot_fit_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_free_bytes", lambda _: SMALL - 1)
    with pytest.raises(UsageError) as raised:
        EmbeddedLog.create(tmp_path / "log", **SIZES)
    assert "lower retention_bytes, or choose another directory" in one_line(raised)
    assert not (tmp_path / "log").exists()


# --- whose directory -------------------------------------------------------------------------------------------


def test_another_runs_directory_is_refused(log: EmbeddedLog) -> None:
    with pytest.raises(LogInUse) as raised:
        EmbeddedLog.create(log.directory, **SIZES)
    assert "holds the log of another run" in one_line(raised)
    log.writer(0)
    with pytest.raises(LogInUse, match=rf"being written by process {os.getpid()}: choose another directory"):
        EmbeddedLog.create(log.directory, **SIZES)


@pytest.mark.slow
def test_a_writer_in_another_process_is_named(log: EmbeddedLog) -> None:
    log.writer(0)
    program = (
        "import sys\nfrom keystone.errors import LogInUse\nfrom keystone.log.embedded import EmbeddedLog\n"
        "try:\n    EmbeddedLog.open(sys.argv[1]).writer(0)\nexcept LogInUse as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(log.directory)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{log.directory}: partition 0 is being written by process {os.getpid()}: choose another directory, or stop it\n"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: (path / "notes.txt").write_text("mine"), "is not empty, and no log"),
        (lambda path: (path / "control").write_text(""), "starting, or died starting"),
        (lambda path: (path.rmdir(), path.write_text("a file")), "is not a directory"),
    ],
)
def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path, make: Any, says: str) -> None:
    path = tmp_path / "d"
    path.mkdir()
    make(path)
    with pytest.raises((UsageError, LogInUse)) as raised:
        EmbeddedLog.create(path, **SIZES)
    assert says in one_line(raised)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format is 2, this program reads 1"),
        ({"segment_bytes": None}, "is not a log's description"),
        ({"partitions": 2}, "belongs to another log, or was cut"),
        ({"run": 7}, "belongs to another log, or was cut"),
    ],
)
def test_a_log_of_another_kind_is_refused(log: EmbeddedLog, change: dict[str, Any], says: str) -> None:
    path = log.directory / "log.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UsageError) as raised:
        EmbeddedLog.open(log.directory)
    assert says in one_line(raised)


def test_opening_what_is_no_log_is_refused(tmp_path: Path, log: EmbeddedLog) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match="holds no log"):
            EmbeddedLog.open(path)
    with pytest.raises(UsageError, match="is not a directory"):
        EmbeddedLog.open(tmp_path / "file")
    with pytest.raises(UsageError, match="has 1 partitions, not 4"):
        EmbeddedLog.open(log.directory, partitions=4)
    (log.directory / "control").unlink()
    with pytest.raises(UsageError, match="control is gone"):
        EmbeddedLog.open(log.directory)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"partitions": 0}, "partitions = 0"),
        ({"segment_bytes": 1000}, "segment_bytes = 1000"),
        ({"segment_bytes": 65537}, "segment_bytes = 65537"),
        ({"retention_bytes": 1 << 16}, "makes 1 segments"),
        ({"retention_bytes": 1 << 30}, "makes 16384 segments"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(tmp_path: Path, change: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError) as raised:
        EmbeddedLog.create(tmp_path / "log", **{**SIZES, **change})
    assert says in one_line(raised)


def test_the_default_directory_is_in_memory_where_that_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.tempfile, "gettempdir", lambda: "/elsewhere")
    monkeypatch.setattr(embedded, "_free_bytes", lambda _: 4 << 30)
    path, line = default_directory(memory=tmp_path)
    assert path.parent == tmp_path
    assert line == f"log: {path} (in memory, 4.0 GiB free)"
    monkeypatch.setattr(embedded, "_free_bytes", lambda _: 64 << 20)
    path, line = default_directory(memory=tmp_path)
    assert path.parent == Path("/elsewhere")
    assert line == f"log: {path} ({tmp_path} has 64 MiB free, less than 2,048)"
    assert default_directory(memory=tmp_path).path != path  # fresh each time


def test_urls() -> None:
    assert directory_of("embedded:/a/b c") == Path("/a/b c")
    for bad in ("embedded:", "kafka://host", "/a/b"):
        with pytest.raises(UsageError, match="embedded:DIRECTORY"):
            directory_of(bad)


# --- between opens and processes -------------------------------------------------------------------------------


def test_everything_is_there_after_a_reopen(log: EmbeddedLog) -> None:
    sent = [b"%d" % i * 900 for i in range(60)]
    writer = log.writer(0)
    for value in sent:
        last = writer.append(value, events=3)
    log.close()
    again = EmbeddedLog.open(log.directory)
    assert again.partitions == 1
    assert read_all(again.reader(0)) == sent
    appended = again.writer(0).append(b"more")
    assert appended.offset == 60
    assert appended.append_ts_ms >= last.append_ts_ms
    stats = again.stats(0)
    assert (stats.end_offset, stats.events_appended, stats.lag_events, stats.torn_records) == (61, 181, 181, 0)
    again.close()


def test_an_object_opened_apart_sees_appends_commits_and_lag(log: EmbeddedLog) -> None:
    other = EmbeddedLog.open(log.directory)
    writer, reader = log.writer(0), other.reader(0)
    for i in range(10):
        writer.append(b"x", events=i)
    assert (other.lag(0), reader.end_offset()) == (45, 10)
    reader.poll(bytes_max=4, wait_ms=0)
    reader.commit(4)
    assert (log.lag(0), log.stats(0).events_consumed, log.stats(0).consumed_offset) == (45 - 6, 6, 4)
    restarted = other.reader(0)
    restarted.seek(4)
    restarted.processed(4)
    assert log.lag(0) == 39
    assert read_all(restarted) == [b"x"] * 6
    restarted.processed(10)
    assert (log.lag(0), log.stats(0).events_consumed) == (0, 6)
    other.close()


def test_a_reader_may_come_before_the_first_writer(log: EmbeddedLog) -> None:
    reader = log.reader(0)
    assert len(reader.poll(bytes_max=1, wait_ms=1)) == 0
    reader.seek(0)
    reader.commit(0)
    writer = log.writer(0)
    assert len(reader.poll(bytes_max=1, wait_ms=1)) == 0
    writer.append(b"first")
    assert read_all(reader) == [b"first"]


def test_a_reader_at_the_end_of_a_dropped_segment_was_not_overtaken(log: EmbeddedLog) -> None:
    writer, reader = log.writer(0), log.reader(0)
    first_of_next = 0
    while len(segment_numbers(log.shape.folder(0))) < 2:
        first_of_next = writer.append(bytes(RECORD_BYTES)).offset
    while reader.position() < first_of_next:
        reader.poll(bytes_max=1, wait_ms=0)
    reader.commit(first_of_next)
    while reader.start_offset() < first_of_next:
        writer.append(bytes(RECORD_BYTES))
    assert reader.start_offset() == first_of_next
    assert reader.poll(bytes_max=1, wait_ms=0).offsets.tolist() == [first_of_next]


@pytest.mark.slow
def test_many_records_of_one_poll_are_limited(tmp_path: Path) -> None:
    log = EmbeddedLog.create(tmp_path / "log", **{**SIZES, "segment_bytes": 8 << 20, "retention_bytes": 16 << 20})
    writer, reader = log.writer(0), log.reader(0)
    for _ in range(70_000):
        writer.append(b"")
    assert len(reader.poll(bytes_max=1 << 30, wait_ms=0)) == 65_536
    assert len(reader.poll(bytes_max=1 << 30, wait_ms=0)) == 70_000 - 65_536
    log.remove()


def test_remove_deletes_the_log_and_nothing_else(log: EmbeddedLog) -> None:
    log.writer(0).append(b"x")
    (log.directory / "notes.txt").write_text("mine")
    log.remove()
    assert [path.name for path in log.directory.iterdir()] == ["notes.txt"]
    with pytest.raises(LogClosed):
        log.writer(0)
    (log.directory / "notes.txt").unlink()
    log.remove()
    assert not log.directory.exists()


def test_a_wrong_count_of_events_is_refused(log: EmbeddedLog) -> None:
    writer = log.writer(0)
    for events in (-1, 1 << 31):
        with pytest.raises(ValueError, match="events"):
            writer.append(b"x", events=events)
    assert writer.append(b"x", events=(1 << 31) - 1).offset == 0
    assert log.lag(0) == (1 << 31) - 1


# --- log time of a silent partition ----------------------------------------------------------------------------


def test_an_append_under_way_holds_log_time_back(log: EmbeddedLog) -> None:
    """A writer that stopped between its mark and the record's publication, as ``append_record`` leaves the row there."""
    writer, reader = log.writer(0), log.reader(0)
    writer.append(b"before")
    read_all(reader)
    row = log._row(0)
    now_ms = int(row[kernels.LAST_APPEND_MS])
    assert reader.quiet_until(now_ms + 10) == now_ms + 10
    kernels.write_word(row, kernels.APPENDING, now_ms + 20 + 1)
    assert [reader.quiet_until(now_ms + wait) for wait in (15, 20, 30, 1_000)] == [now_ms + 15, now_ms + 20, now_ms + 20, now_ms + 20]
    kernels.write_word(row, kernels.APPENDING, 0)
    assert reader.quiet_until(now_ms + 1_000) == now_ms + 1_000
    assert writer.append(b"after").append_ts_ms == now_ms + 1_000
    assert int(row[kernels.APPENDING]) == 0


def test_an_append_that_died_does_not_stop_log_time_for_ever(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = log.writer(0), log.reader(0)
    row = log._row(0)
    kernels.write_word(row, kernels.APPENDING, 1_000 + 1)
    assert reader.quiet_until(2_000) == 1_000
    monkeypatch.setattr(partition, "APPEND_HELD_MAX_S", -1.0)
    assert reader.quiet_until(2_000) == 2_000
    monkeypatch.undo()
    assert reader.quiet_until(3_000) == 2_000
    writer.close()
    log.writer(0)  # the next writer clears the mark
    assert reader.quiet_until(3_000) == 3_000


def test_a_full_log_does_not_hold_log_time_back(log: EmbeddedLog) -> None:
    writer, reader = log.writer(0), log.reader(0)
    fill(writer)
    read_all(reader)
    assert reader.quiet_until(1 << 50) == 1 << 50
