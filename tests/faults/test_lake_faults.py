"""A lake on a disk that is full, forbidden, pulled away, or whose writer was killed: no torn file is ever seen."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from keystone.config import LakeConfig
from keystone.errors import SinkError
from keystone.sinks import lake as lake_module
from keystone.sinks.lake import LakeWriter
from keystone.sinks.lake_files import ParquetFile
from tests.lake_batches import ToyDictionaries, batch_of, random_rows

ROWS = random_rows(6000)


@pytest.fixture
def lake(tmp_path):
    return tmp_path / "lake"


def rows_in_place(directory):
    return sum(pq.ParquetFile(path).read().num_rows for path in directory.glob("event_date=*/*.parquet"))


def leftovers(directory):
    return [path.name for path in directory.parent.rglob("*.tmp")]


class FullDisk:
    """Writes of the container succeed until ``left`` of them, then fail half way, as a full disk does."""

    def __init__(self, monkeypatch, left):
        self.left = left
        append = ParquetFile._append

        def failing(file, parts):
            if self.left == 0:
                with file.path.open("ab") as torn:
                    torn.write(b"".join(parts)[:100])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.path))
            self.left -= 1
            append(file, parts)

        monkeypatch.setattr(ParquetFile, "_append", failing)


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4])
def test_a_full_disk_is_one_clear_error(lake, monkeypatch, writes):
    disk = FullDisk(monkeypatch, writes)
    dictionaries, writer = ToyDictionaries(), LakeWriter(lake, LakeConfig(row_group_rows=3000))
    batch = batch_of(ROWS[:3000], dictionaries)
    with pytest.raises(SinkError, match="No space left on device; free room there") as raised:  # noqa: PT012 - whichever call is first to tell
        for step in range(40):
            writer.append(batch, dictionaries)
            if step == 0:
                writer.flush()  # two writes: a row group and the footer
            writer.end_step(step)
        writer.close()
    assert disk.left == 0
    with pytest.raises(SinkError) as again:
        writer.close()
    assert again.value is raised.value
    assert leftovers(lake) == []
    assert rows_in_place(lake) == writer.rows_written == (3000 if writes >= 2 else 0)


def test_a_full_disk_does_not_leave_a_waiting_caller(lake, monkeypatch):
    FullDisk(monkeypatch, 0)
    dictionaries, writer = ToyDictionaries(), LakeWriter(lake, LakeConfig(row_group_rows=3000, queue_bytes_max=1))
    batch = batch_of(ROWS[:3000], dictionaries)
    with pytest.raises(SinkError):  # noqa: PT012
        for _ in range(1000):
            writer.append(batch, dictionaries)
    writer.abort()


def test_a_folder_that_cannot_be_made(lake):
    dictionaries, writer = ToyDictionaries(), LakeWriter(lake, LakeConfig())
    (lake / "event_date=2026-09-21").write_text("in the way")
    writer.append(batch_of(ROWS[:10], dictionaries), dictionaries)
    with pytest.raises(SinkError, match="choose another directory"):
        writer.close()
    assert leftovers(lake) == []


def test_a_name_that_is_taken_by_a_folder(lake):
    dictionaries, writer = ToyDictionaries(), LakeWriter(lake, LakeConfig())
    writer.append(batch_of(ROWS[:3], dictionaries), dictionaries)
    (lake / "event_date=2026-09-21" / lake_module.file_name(0, 0, 0) / "x").mkdir(parents=True)
    with pytest.raises(SinkError, match="cannot write"):
        writer.close()
    assert leftovers(lake) == []


def test_a_swept_file_is_not_begun_again_in_the_middle(lake):
    """A writer cut off from the run goes on while its successor sweeps: it must fail, not put a headless file in place."""
    dictionaries, writer = ToyDictionaries(), LakeWriter(lake, LakeConfig(row_group_rows=3000))
    writer.append(batch_of(ROWS[:3000], dictionaries), dictionaries)
    writer._thread.wait_until_idle()
    assert len(leftovers(lake)) == 1
    LakeWriter(lake, LakeConfig(), partitions=[0]).close()
    assert leftovers(lake) == []
    writer.append(batch_of(ROWS[3000:], dictionaries), dictionaries)
    with pytest.raises(SinkError, match="cannot write"):
        writer.close()
    assert rows_in_place(lake) == 0
    assert leftovers(lake) == []


def test_a_defect_in_the_thread_reaches_the_caller(lake):
    writer = LakeWriter(lake, LakeConfig())
    writer._thread.put(1, lambda: 1 / 0)
    with pytest.raises(SinkError, match="ZeroDivisionError"):
        writer.close()


CHILD = """
    import sys
    from keystone.config import LakeConfig
    from keystone.sinks.lake import LakeWriter
    from tests.lake_batches import ToyDictionaries, batch_of, random_rows
    dictionaries = ToyDictionaries()
    writer = LakeWriter(sys.argv[1], LakeConfig(row_group_rows=1000), partitions=[0])
    batch = batch_of(random_rows(2100), dictionaries)
    for step in range(1_000_000):
        writer.append(batch, dictionaries)
        batch.offset += 700
        if step % 3 == 2:
            writer.flush()
        print(step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_files_and_its_successor_begins_anew(lake):
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), str(lake)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as child:
        for line in child.stdout:
            if int(line) >= 7 and leftovers(lake):
                break
        child.send_signal(signal.SIGKILL)
    held = rows_in_place(lake)  # every file in place is whole
    assert held % 6300 == 0
    assert held >= 2 * 6300
    dictionaries, writer = ToyDictionaries(), LakeWriter(lake, LakeConfig(), partitions=[0])
    assert leftovers(lake) == []
    writer.discard_partition(0)
    assert rows_in_place(lake) == 0
    writer.append(batch_of(ROWS, dictionaries), dictionaries)
    assert writer.close() == 6000 == rows_in_place(lake)
