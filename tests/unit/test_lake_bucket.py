"""Files on their way into a bucket: uploaded once they are whole, again where that failed, and gone from here only when nobody needs them here."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystone.errors import StoreUnavailable, UsageError
from keystone.segments import DataFile
from keystone.sinks.lake_bucket import LakeBucket, Spool

ROOT = Path(__file__).parents[2]
OWNER = """
import sys
from pathlib import Path
from keystone.sinks.lake_bucket import Spool
spool = Spool(Path(sys.argv[1]))
(spool.directory / "a.parquet").write_bytes(b"x")
print("open", flush=True)
sys.stdin.read()
"""


class Objects:
    """``failing``: raised by the next uploads, one each."""

    def __init__(self) -> None:
        self.there: dict[str, bytes] = {}
        self.failing: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()

    def put_file(self, name: str, path: Path) -> None:
        self.gate.wait(20)
        if self.failing:
            raise self.failing.pop(0)
        self.there[name] = path.read_bytes()


@pytest.fixture
def objects() -> Objects:
    return Objects()


@pytest.fixture
def bucket(objects: Objects, tmp_path: Path) -> Iterator[LakeBucket]:
    found = LakeBucket(objects, "s3://b/lake", tmp_path, spool_bytes_max=100)
    yield found
    objects.gate.set()
    found.close()


def file(tmp_path: Path, name: str, size: int = 10) -> DataFile:
    path = tmp_path / "data" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    return DataFile("events", f"data/{name}", 1, size, 1)


def test_files_are_there_when_they_are_shipped_and_leave_the_spool_later(bucket: LakeBucket, objects: Objects, tmp_path: Path) -> None:
    first, second = file(tmp_path, "a"), file(tmp_path, "b")
    bucket.begin(tmp_path / first.path, first.bytes)
    bucket.ship([first, second])
    assert objects.there == {"data/a": b"x" * 10, "data/b": b"x" * 10}
    assert (bucket.uploaded_files, bucket.uploaded_bytes, bucket.held_bytes) == (2, 20, 20)
    bucket.ship([first, second])
    assert bucket.uploaded_files == 2, "what is there is not uploaded again"
    assert (tmp_path / first.path).exists()
    bucket.forget([first, second])
    assert not (tmp_path / first.path).exists()
    assert bucket.held_bytes == 0
    bucket.forget([first])


@pytest.mark.parametrize("error", [StoreUnavailable("away"), UsageError("these keys may not do that")])
def test_what_failed_is_uploaded_again_and_told_once(
    bucket: LakeBucket, objects: Objects, tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = file(tmp_path, "a"), file(tmp_path, "b")
    objects.failing = [error, error, error]
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=str(error)):
            bucket.ship([one])
    with pytest.raises(StoreUnavailable):
        bucket.ship([one, other])
    bucket.ship([one, other])
    assert sorted(objects.there) == ["data/a", "data/b"]
    assert [record.getMessage() for record in caplog.records].count("files of the lake wait for their upload") == 1
    assert sum("takes files again" in record.getMessage() for record in caplog.records) == 1


def test_the_spool_is_bounded_and_a_pause_is_told_once(bucket: LakeBucket, objects: Objects, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    objects.gate.clear()
    files = [file(tmp_path, str(k), 40) for k in range(3)]
    for one in files:
        assert bucket.has_room()
        bucket.begin(tmp_path / one.path, one.bytes)
    assert not bucket.has_room()
    assert not bucket.has_room()
    objects.gate.set()
    bucket.ship(files)
    assert not bucket.has_room(), "until a checkpoint names them, they are needed here"
    bucket.forget(files[:2])
    assert bucket.has_room()
    told = [record.getMessage() for record in caplog.records]
    assert sum("the spool is full" in line for line in told) == 1
    assert told.count("the spool has room again") == 1


@pytest.mark.slow
def test_a_dead_process_s_spool_is_removed_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    owners = [subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(2)]
    for owner in owners:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"open\n"
    assert len(list(tmp_path.rglob("a.parquet"))) == 2
    owners[0].kill()
    owners[0].communicate()
    mine = Spool(tmp_path)
    assert len(list(tmp_path.rglob("a.parquet"))) == 1
    mine.close()
    mine.close()
    assert len(list(tmp_path.iterdir())) == 1
    owners[1].communicate()
    Spool(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_cannot_be_made_says_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"correct lake\.home_dir"):
        Spool(tmp_path / "file")
