"""Files of the spill: whole or not there, read again in order, damage noticed, one process at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from keystone.errors import SinkError, UsageError
from keystone.sinks.base import Document
from keystone.sinks.spill import Spill

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
    for cut in range(text.index(b"\n") + 1, len(text), 7):
        path.write_bytes(text[:cut])
        spill = Spill(tmp_path / "a")
        ((kind, segment),) = spill.found()
        documents = spill.read(kind, segment)
        assert documents == {n: DOCUMENTS[n] for n in range(len(documents))}
        assert len(documents) < 20
        spill.delete(kind, segment)
        spill.close()
        assert not path.exists()
        assert path.with_suffix(".damaged").exists()


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


def test_a_disk_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "a")
    (tmp_path / "a" / "alerts-000000000001.part").mkdir()
    with pytest.raises(SinkError, match="cannot be written"):
        spill.write("alerts", DOCUMENTS)
    assert list(spill.found()) == []
    spill.close()
