"""The store in a directory passes the suite; what a file system does beyond it: killed writers, no room, no right, no disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keystone import store as stores
from keystone.errors import StoreUnavailable, UsageError
from keystone.store import UNFINISHED, DirectoryStore, Store, open_store
from tests.conformance.store_suite import StoreSuite

ROOT = Path(__file__).parents[2]


class TestDirectoryStore(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(str(tmp_path / "below" / "store"))

    def again(self, store: Store) -> Store:
        assert isinstance(store, DirectoryStore)
        return open_store(f"file://{store.root}", fsync=False)


def unfinished(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(f"{UNFINISHED}*")]


KILLED = """
import sys
import numpy as np
from keystone.store import open_store
open_store(sys.argv[1]).put("a/x", [bytes(1000)])
print("ready", flush=True)
while True:
    open_store(sys.argv[1]).put("a/x", [np.ones(1 << 20, np.uint8).data] * 64)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_the_object_whole_and_the_next_write_sweeps(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    left = 0
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            deadline = time.monotonic() + 20
            while not unfinished(tmp_path) and time.monotonic() < deadline:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert len(store.get("a/x")) in {1000, 64 << 20}
        assert store.names("") == ["a/x"]
        left += len(unfinished(tmp_path))
        if left >= 2:
            break
    assert left
    store.put("a/y", [b"1"])
    assert unfinished(tmp_path) == []
    assert store.names("") == ["a/x", "a/y"]


def test_a_sweep_leaves_alone_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = DirectoryStore(tmp_path), DirectoryStore(tmp_path)
    write_all = stores._write_all

    def writes_between(file: int, parts: list[bytes]) -> None:
        monkeypatch.setattr(stores, "_write_all", write_all)
        write_all(file, [b"half, "])
        quick.put("y", [b"1"])
        assert len(unfinished(tmp_path)) == 1
        write_all(file, parts)

    monkeypatch.setattr(stores, "_write_all", writes_between)
    slow.put("x", [b"whole"])
    assert bytes(slow.get("x")) == b"half, whole"
    assert unfinished(tmp_path) == []


def test_a_draft_swept_before_it_is_locked_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    flock, drafts = stores.fcntl.flock, []

    def swept(file: int, how: int) -> None:
        if not drafts:
            drafts.extend(unfinished(tmp_path))
            stores._sweep(tmp_path)
            assert unfinished(tmp_path) == []
        flock(file, how)

    monkeypatch.setattr(stores.fcntl, "flock", swept)
    assert store.put_new("x", [b"1"])
    assert len(drafts) == 1
    assert bytes(store.get("x")) == b"1"


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.ENOSPC, StoreUnavailable, "free some space"),
        (errno.EDQUOT, StoreUnavailable, "free some space"),
        (errno.EIO, StoreUnavailable, "Input/output error"),
        (errno.ESTALE, StoreUnavailable, "Stale"),
        (errno.EROFS, UsageError, "choose a directory that can be written to"),
        (errno.EACCES, UsageError, "choose a directory that can be written to"),
    ],
)
def test_errors_of_the_system_are_one_line_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], advice: str) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/x", [b"before"])

    def fails(file: int, parts: list[bytes]) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(stores.os, "writev", fails)
        for write in (store.put, store.put_new):
            with pytest.raises(kind, match=advice) as caught:
                write("a/y" if write == store.put_new else "a/x", [b"after"])
            assert "\n" not in str(caught.value)
            assert str(tmp_path) in str(caught.value)
    assert unfinished(tmp_path) == []
    assert bytes(store.get("a/x")) == b"before"
    assert store.names("") == ["a/x"]


CUT_OFF = """
import resource, sys
import numpy as np
from keystone.errors import StoreUnavailable
from keystone.store import open_store
store = open_store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    store.put("a/x", [bytes(1000), np.ones(3 << 20, np.uint8).data])
except StoreUnavailable as error:
    print(error)
"""


@pytest.mark.slow
def test_a_write_that_the_system_cuts_off_leaves_nothing(tmp_path: Path) -> None:
    """A real one, in the middle of a part; a full disk does the same."""
    store = DirectoryStore(tmp_path)
    store.put("a/x", [b"before"])
    answer = subprocess.run([sys.executable, "-c", CUT_OFF, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (answer.returncode, answer.stdout) == (0, f"{tmp_path}/a/x: File too large\n"), answer.stderr
    assert bytes(store.get("a/x")) == b"before"
    assert unfinished(tmp_path) == []


def test_a_write_that_takes_less_than_it_was_given_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writev = os.writev
    monkeypatch.setattr(stores.os, "writev", lambda file, parts: writev(file, [bytes(parts[0])[:3]]))
    store = DirectoryStore(tmp_path)
    store.put("x", [b"abcdefg", b"", b"hi", b"jklmno"])
    assert bytes(store.get("x")) == b"abcdefghijklmno"


def test_more_parts_than_one_call_takes(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("x", [b"%d," % i for i in range(5000)])
    assert bytes(store.get("x")) == b"".join(b"%d," % i for i in range(5000))


def test_a_directory_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """Its disk may have been unmounted: what would be written below the mount point would be missing later."""
    store = DirectoryStore(tmp_path / "mount")
    (tmp_path / "mount").rmdir()
    for call in (lambda: store.put("a/x", [b"1"]), lambda: store.put_new("x", [b"1"]), lambda: store.names("")):
        with pytest.raises(StoreUnavailable, match="the directory is gone"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_listed_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/x", [b"1"])

    def fails(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", fails)
    with pytest.raises(StoreUnavailable, match="Input/output error"):
        store.names("a/")


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in ("file", "file/below"):
        with pytest.raises(UsageError, match="choose a directory"):
            DirectoryStore(tmp_path / path)


@pytest.mark.parametrize("fsync", [True, False])
def test_everything_is_on_the_disk_before_a_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fsync: bool) -> None:
    """The file before its name, every folder made on the way, then the folder of the name; or nothing of it where that is off."""
    done: list[str] = []
    link, rename, mkdir = os.link, Path.rename, Path.mkdir
    monkeypatch.setattr(stores.os, "fsync", lambda file: done.append(f"fsync {Path(f'/proc/self/fd/{file}').readlink().name.split('-')[0]}"))
    monkeypatch.setattr(stores.os, "link", lambda old, new: (done.append("link"), link(old, new))[1])
    monkeypatch.setattr(Path, "rename", lambda old, new: (done.append("rename"), rename(old, new))[1])
    monkeypatch.setattr(Path, "mkdir", lambda self, **how: (done.append(f"mkdir {self.name}"), mkdir(self, **how))[1])
    store = DirectoryStore(tmp_path / "s", fsync=fsync)
    store.put("a/b/x", [b"1"])
    store.put_new("a/y", [b"1"])
    made = ["mkdir s", "mkdir a", "fsync s", "mkdir b", "fsync a", "fsync .unfinished", "rename", "fsync b", "fsync .unfinished", "link", "fsync a"]
    assert [step for step in done if step != "mkdir s"] == [step for step in made[1:] if fsync or not step.startswith("fsync")]


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("ftp://x/y", "name a directory, or s3://bucket/prefix"),
        ("s3:///x", "name a directory, or s3://bucket/prefix"),
        ("file://host/x", "name a directory"),
        ("s3://user:secret@bucket/x", "credentials come from AWS_"),
        ("s3://bucket/x?region=y", "credentials come from AWS_"),
        ("s3://bucket/a b", "the prefix may hold"),
    ],
)
def test_places_that_are_none_say_what_to_write(url: str, advice: str) -> None:
    with pytest.raises(UsageError, match=advice) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_a_bucket_that_nobody_answers_for_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "hidden", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = open_store("s3://bucket/prefix")
    with pytest.raises(StoreUnavailable, match="s3://bucket/prefix") as caught:
        store.put_new("x", [b"1"])
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)
