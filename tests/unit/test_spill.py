"""Files of the spill: whole or not there, read again in order, damage noticed, one process at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keystone.errors import SinkError, UsageError
from keystone.sinks.base import Document
from keystone.sinks.lanes import Segment
from keystone.sinks.spill import READS_MAX, Spill

DOCUMENTS = [Document("alerts", f"id{n}", 20_000 + n, b'{"n":"\\u0000%d"}' % n + b" \0" * n, n - 1) for n in range(20)]


def written(directory: Path, files: int = 1) -> None:
    spill = Spill(directory)
    for _ in range(files):
        spill.write("alerts", DOCUMENTS)
    spill.close()


def test_what_was_written_is_read_after_a_restart_in_order(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "a")
    for kind in ("alerts", "sessions", "alerts"):
        spill.write(kind, DOCUMENTS)
    spill.close()
    again = Spill(tmp_path / "a")
    found = list(again.found())
    assert [(kind, segment.number, segment.documents) for kind, segment in found] == [("alerts", 1, 20), ("sessions", 2, 20), ("alerts", 3, 20)]
    assert again.read(*found[0]) == dict(enumerate(DOCUMENTS))
    assert again.write("alerts", DOCUMENTS).number == 4
    again.delete(*found[0])
    assert [segment.number for _, segment in again.found()] == [2, 3, 4]
    again.close()


def test_a_file_cut_anywhere_gives_what_is_whole_and_is_kept(tmp_path: Path) -> None:
    written(tmp_path / "a")
    (path,) = (tmp_path / "a").glob("*.spill")
    text = path.read_bytes()
    for cut in range(0, len(text), 7):
        path.write_bytes(text[:cut])
        spill = Spill(tmp_path / "a")
        for kind, segment in spill.found():
            documents = spill.read(kind, segment)
            assert documents == {n: DOCUMENTS[n] for n in range(len(documents))}
            assert len(documents) < 20
            spill.delete(kind, segment)
        spill.close()
        assert not path.exists()
        path.with_suffix(".damaged").unlink()


@pytest.mark.slow
def test_a_bit_flipped_anywhere_is_noticed_and_told(tmp_path: Path) -> None:
    written(tmp_path / "a")
    (path,) = (tmp_path / "a").glob("*.spill")
    text = path.read_bytes()
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        spill = Spill(tmp_path / "a")
        for kind, segment in spill.found():
            documents = spill.read(kind, segment)
            assert all(documents[n] == DOCUMENTS[n] for n in documents)
            assert all(n < segment.documents for n in documents)
            spill.delete(kind, segment)
        spill.close()
        assert path.with_suffix(".damaged").read_bytes() == changed
        path.with_suffix(".damaged").unlink()


def test_blocks_of_zeros_are_no_documents(tmp_path: Path) -> None:
    written(tmp_path / "a")
    (path,) = (tmp_path / "a").glob("*.spill")
    text = path.read_bytes()
    path.write_bytes(text[:400] + b"\0" * (len(text) - 400))
    spill = Spill(tmp_path / "a")
    ((kind, segment),) = spill.found()
    assert spill.read(kind, segment).keys() == set(range(len(spill.read(kind, segment))))
    spill.delete(kind, segment)
    assert path.with_suffix(".damaged").exists()
    spill.close()


def test_a_damaged_head_costs_no_document(tmp_path: Path) -> None:
    written(tmp_path / "a")
    (path,) = (tmp_path / "a").glob("*.spill")
    path.write_bytes(b"\xff" * 12 + path.read_bytes()[12:])
    spill = Spill(tmp_path / "a")
    ((kind, segment),) = spill.found()
    assert spill.read(kind, segment) == dict(enumerate(DOCUMENTS))
    spill.close()


def test_a_file_that_the_disk_does_not_give_is_asked_for_again_and_never_removed(tmp_path: Path) -> None:
    written(tmp_path / "a")
    (path,) = (tmp_path / "a").glob("*.spill")
    spill = Spill(tmp_path / "a")
    ((kind, segment),) = spill.found()
    path.rename(tmp_path / "away")
    path.mkdir()  # whoever runs the tests may read what nobody may
    for _ in range(READS_MAX - 1):
        with pytest.raises(SinkError, match="tried again"):
            spill.read(kind, segment)
    assert spill.read(kind, segment) == {}
    spill.delete(kind, segment)
    assert path.with_suffix(".damaged").exists()
    spill.close()


def test_a_file_set_aside_is_never_replaced_by_another(tmp_path: Path) -> None:
    written(tmp_path / "a")
    (path,) = (tmp_path / "a").glob("*.spill")
    path.rename(path.with_suffix(".damaged"))
    spill = Spill(tmp_path / "a")
    assert spill.write("alerts", DOCUMENTS).number == 2
    spill.close()


def test_a_changed_byte_costs_its_document_alone(tmp_path: Path) -> None:
    written(tmp_path / "a")
    (path,) = (tmp_path / "a").glob("*.spill")
    text = bytearray(path.read_bytes())
    text[text.index(b"id7") + 1] ^= 1
    path.write_bytes(text)
    spill = Spill(tmp_path / "a")
    ((kind, segment),) = spill.found()
    assert spill.read(kind, segment) == {n: one for n, one in enumerate(DOCUMENTS) if n != 7}
    spill.close()


def test_a_head_that_cannot_be_read_sets_the_file_aside(tmp_path: Path) -> None:
    written(tmp_path / "a", files=2)
    (tmp_path / "a" / "alerts-000000000001.spill").write_bytes(b"\xff" * 300)
    spill = Spill(tmp_path / "a")
    assert [segment.number for _, segment in spill.found()] == [2]
    assert (tmp_path / "a" / "alerts-000000000001.damaged").exists()
    spill.close()


def test_half_written_files_are_nobodys(tmp_path: Path) -> None:
    written(tmp_path / "a")
    (tmp_path / "a" / "alerts-000000000009.part").write_bytes(b"half")
    spill = Spill(tmp_path / "a")
    assert len(list(spill.found())) == 1
    assert not list((tmp_path / "a").glob("*.part"))
    spill.close()


@pytest.mark.slow
def test_one_process_uses_a_directory_and_a_dead_ones_files_are_adopted(tmp_path: Path) -> None:
    written(tmp_path / "dead", files=2)
    first = Spill(tmp_path / "a")
    assert [segment.documents for _, segment in first.found()] == [20, 20]
    with pytest.raises(UsageError, match="in use"):
        Spill(tmp_path / "a")
    second = Spill(tmp_path / "b")
    assert list(second.found()) == []
    first.close()
    second.close()


def test_files_of_another_sink_are_not_adopted(tmp_path: Path) -> None:
    other = Spill(tmp_path / "other", "topic")
    other.write("alerts", DOCUMENTS)
    other.close()
    spill = Spill(tmp_path / "a", "elastic")
    assert list(spill.found()) == []
    spill.close()
    heir = Spill(tmp_path / "b", "topic")
    assert [segment.documents for _, segment in heir.found()] == [20]
    heir.close()


@pytest.mark.slow
def test_another_process_is_refused_and_its_death_frees_the_directory(tmp_path: Path) -> None:
    code = "import sys; from keystone.sinks.spill import Spill; spill = Spill(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="in use by another run"):
            Spill(tmp_path / "a")
        process.kill()
    Spill(tmp_path / "a").close()


def test_a_disk_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "a")
    (tmp_path / "a" / "alerts-000000000001.part").mkdir()
    with pytest.raises(SinkError, match="cannot be written"):
        spill.write("alerts", DOCUMENTS)
    assert list(spill.found()) == []
    spill.close()


def many(spill: Spill, files: int, of_each: int = 5) -> list[Segment]:
    return [spill.write("alerts", [Document("alerts", f"{file}-{n}", 20_000, b'{"n":1}', n) for n in range(of_each)]) for file in range(files)]


def names_in(directory: Path) -> list[str]:
    spill = Spill(directory)
    found = [document.id for kind, segment in spill.found() for document in spill.read(kind, segment).values()]
    spill.close()
    return found


def test_small_files_become_one_of_what_is_pending_in_their_order(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "a")
    segments = many(spill, 4)
    segments[1].settled |= {0, 3}
    merged = spill.merge("alerts", segments[:3])
    assert (merged.number, merged.documents, merged.settled) == (3, 13, set())
    assert merged.size_bytes == (tmp_path / "a" / "alerts-000000000003.spill").stat().st_size
    assert [segment.number for _, segment in spill.found()] == [3, 4]
    whole = [f"{file}-{n}" for file in range(3) for n in range(5) if (file, n) not in {(1, 0), (1, 3)}]
    assert [document.id for document in spill.read("alerts", merged).values()] == whole
    assert spill.read("alerts", merged)[5] == Document("alerts", "1-1", 20_000, b'{"n":1}', 1)
    spill.close()
    assert names_in(tmp_path / "a") == [*whole, *(f"3-{n}" for n in range(5))]


def test_a_damaged_file_is_not_joined_and_all_stay_as_they_were(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "a")
    segments = many(spill, 3)
    path = tmp_path / "a" / "alerts-000000000002.spill"
    path.write_bytes(path.read_bytes()[:-3])
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    with pytest.raises(SinkError, match="is damaged"):
        spill.merge("alerts", segments)
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before
    spill.close()


@pytest.mark.parametrize("broken", ["open", "fsync", "replace"])
def test_a_disk_that_does_not_take_a_joined_file_leaves_all_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    spill = Spill(tmp_path / "a")
    segments = many(spill, 3)
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os if broken == "fsync" else Path, broken, fails)
        with pytest.raises(SinkError, match="No space left"):
            spill.merge("alerts", segments)
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before
    assert spill.merge("alerts", segments).documents == 15
    spill.close()


def test_a_joined_file_whose_name_is_not_synced_leaves_the_others_and_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spill = Spill(tmp_path / "a")
    segments = many(spill, 3)
    with monkeypatch.context() as disk:
        disk.setattr(Spill, "_sync", fails_to_sync)
        merged = spill.merge("alerts", segments)
    assert len(spill.read("alerts", merged)) == merged.documents == 15
    spill.close()
    assert sorted(set(names_in(tmp_path / "a"))) == [f"{file}-{n}" for file in range(3) for n in range(5)]
    assert len(list((tmp_path / "a").glob("*.spill"))) == 3


def fails_to_sync(_: Spill) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


JOINING = """
import itertools, sys
from keystone.sinks.base import Document
from keystone.sinks.spill import Spill
spill, segments = Spill(sys.argv[1]), []
for number in itertools.count():
    segments.append(spill.write("alerts", [Document("alerts", f"{number}-{n}", 20_000, b"x" * 2_000) for n in range(5)]))
    print(number, flush=True)  # acknowledged
    if len(segments) == 4:
        segments = [spill.merge("alerts", segments)]
"""


@pytest.mark.slow
@pytest.mark.parametrize("acknowledged", [5, 8, 13, 22])
def test_killed_at_any_moment_of_joining_nothing_acknowledged_is_lost(tmp_path: Path, acknowledged: int) -> None:
    with subprocess.Popen([sys.executable, "-c", JOINING, str(tmp_path / "a")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        last = max(int(process.stdout.readline()) for _ in range(acknowledged))
        process.kill()
        last = max([last, *(int(line) for line in process.stdout.read().splitlines())])
    found = names_in(tmp_path / "a")
    assert {f"{number}-{n}" for number in range(last + 1) for n in range(5)} <= set(found)
    assert not list((tmp_path / "a").glob("*.damaged"))
