"""A disk that is full, or a process without file descriptors: what is written waits, nothing is torn, and it goes on by itself."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from keystone.actors import durable
from keystone.config import LakeConfig
from keystone.errors import SinkBusy, SinkError
from keystone.sinks import lake_thread, session_file
from keystone.sinks.lake import LakeWriter
from keystone.sinks.lake_files import ParquetFile
from tests.lake_batches import ToyDictionaries, batch_of, random_rows
from tests.rows_on_full_disk import ALERTS_BEFORE, ALERTS_DURING, COHORTS_DURING
from tests.stories import IDLE_MS, PARTITIONS, Story

CONFIG = LakeConfig(row_group_rows=200, queue_bytes_max=20_000)


class Disk:
    """Takes only the first half of what is written, and refuses the rest, while it ``is_full``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.is_full, self.refused = False, 0
        disk, usual = self, ParquetFile._open

        class Half(io.FileIO):
            def write(self, text: Any, /) -> int:
                if not disk.is_full:
                    return super().write(text)
                disk.refused += 1
                super().write(text[: len(text) // 2])
                raise OSError(number, os.strerror(number), str(self.name))

        def open_(file: ParquetFile) -> io.FileIO:
            usual(file).close()
            return Half(file.path, "r+b")

        monkeypatch.setattr(ParquetFile, "_open", open_)
        monkeypatch.setattr(lake_thread, "ROOM_EVERY_S", 0.01)
        monkeypatch.setattr(lake_thread, "IDLE_LOOK_S", 0.02)


def until(claim: Any) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
@pytest.mark.parametrize("written_before", [0, 300])
def test_what_has_no_room_waits_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, written_before: int) -> None:
    disk = Disk(monkeypatch, number)
    rows, dictionaries = random_rows(600, seed=1), ToyDictionaries()
    lake = LakeWriter(tmp_path / "lake", CONFIG, is_table=True)
    partition = rows[0]["partition"]
    rows = [row for row in rows if row["partition"] == partition]
    lake.own(partition, 1, 0)
    for part in (rows[: min(written_before, len(rows) // 2)], rows[min(written_before, len(rows) // 2) :]):
        if part:
            lake.append(batch_of(part, dictionaries), dictionaries)
            lake.end_step(0)
            lake._thread.wait_until_idle()
        disk.is_full = True
    cut = lake.cut(partition)
    until(lambda: disk.refused >= 3)
    assert not lake.has_room()
    assert not cut.wait(0.05)
    with pytest.raises(SinkBusy, match="no room"):
        lake.flush()
    assert not list((tmp_path / "lake").rglob("*.parquet")), "nothing half done is in place"
    disk.is_full = False
    assert cut.wait(20)
    assert lake.has_room()
    found = [row for file in cut.files for row in pq.ParquetFile(file.path).read().to_pylist()]
    assert sorted((row["offset"], row["line"]) for row in found) == sorted((row["offset"], row["line"]) for row in rows)
    assert lake.close() == len(rows)


def test_an_end_does_not_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, errno.ENOSPC)
    rows, dictionaries = random_rows(50, seed=2), ToyDictionaries()
    lake = LakeWriter(tmp_path / "lake", CONFIG, is_table=True)
    disk.is_full = True
    lake.append(batch_of(rows, dictionaries), dictionaries)
    lake.cut(rows[0]["partition"])
    until(lambda: disk.refused)
    began_s = time.monotonic()
    with pytest.raises(SinkError):
        lake.close()
    assert time.monotonic() - began_s < 10
    assert not list(tmp_path.rglob("*.parquet"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_lake_of_files_alone_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay has somebody who waits for it."""
    disk = Disk(monkeypatch, errno.ENOSPC)
    dictionaries = ToyDictionaries()
    lake = LakeWriter(tmp_path / "lake", CONFIG)
    disk.is_full = True
    lake.append(batch_of(random_rows(50, seed=3), dictionaries), dictionaries)
    with pytest.raises(SinkError, match="free room there"):
        lake.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_session_records_without_room_wait_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    is_full, refused, usual = True, 0, session_file.sync

    def sync(path: Path) -> None:
        nonlocal refused
        if is_full and path.name.endswith(".tmp"):
            refused += 1
            raise OSError(number, os.strerror(number), str(path))
        usual(path)

    monkeypatch.setattr(session_file, "sync", sync)
    monkeypatch.setattr(durable, "RETRY_EVERY_S", 0.02)
    story = Story(tmp_path)
    story.write(0)
    actor = story.begin()
    until(lambda: refused >= 3)
    lake = tmp_path / "lake"
    assert actor.status()["state"] == "running"
    assert not list(lake.rglob("*/sessions/*.parquet")), "nothing half done is in place"
    story.write(1)
    time.sleep(0.3)
    assert sum(story.log.lag(p) for p in range(PARTITIONS)) > 0, "nothing more is read meanwhile"
    is_full = False
    totals = story.end(actor, idle_ms=IDLE_MS)
    story.commit()
    story.assert_all(totals)


def small_disk(directory: Path) -> list[str]:
    """The beginning of a command that sees a file system of 512 KiB in ``directory``, mounted for it alone; nothing where the kernel allows no such thing."""
    directory.mkdir()
    mount = f"mount -t tmpfs -o size=512k tmpfs {directory}"
    for unshare in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        command = [*unshare, "sh", "-c", f'{mount} && exec "$@"', "sh"]
        if shutil.which("unshare") and subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0:
            return command
    return []


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["mount", "limit"])
def test_rows_for_files_on_a_full_disk_wait_whole_and_are_there_once_afterwards(tmp_path: Path, disk: str) -> None:
    """Where nobody may mount a file system, the second way of it is tested twice."""
    command = small_disk(tmp_path / "disk") if disk == "mount" else []
    how = "mount" if command else "limit"
    given = [*command, sys.executable, "-m", "tests.rows_on_full_disk", how, str(tmp_path / "disk")]
    ended = subprocess.run(given, capture_output=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    seen = orjson.loads(ended.stdout)
    assert (seen["is_whole_before"], seen["is_neighbour_served"], seen["is_caught_up"], seen["left"]) == (True, True, True, 0)
    assert not seen["is_kept"], "no checkpoint may forget what is in memory only"
    assert seen["has_room"], "alerts have still room in memory, and cohorts never make anybody wait"
    assert re.search(r"(alerts|cohorts)-a\.ndjson cannot be written: (No space left on device|File too large); free room there$", seen["trouble"])
    assert seen["alerts"] == {"ids": list(range(ALERTS_BEFORE + ALERTS_DURING)), "repeats": 0}
    dropped = seen["status"]["dropped"]
    assert set(dropped) == {"cohorts:queue_full"}
    assert seen["cohorts"]["repeats"] == 0
    assert len(seen["cohorts"]["ids"]) == COHORTS_DURING - dropped["cohorts:queue_full"]
    assert b"Traceback" not in ended.stderr
