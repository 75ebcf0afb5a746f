"""Rows as lines: whole whatever a row holds, each process in files of its own, what is acknowledged on the disk."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from keystone.clock import ManualClock
from keystone.errors import SinkBusy, UsageError
from keystone.sinks.base import DONE, KINDS, Document
from keystone.sinks.file_rows import ConsoleRows, FileRows, RowFile, line_of

PWRITE = os.pwrite
HOSTILE = [
    Document("alerts", '"}\n{"id":"x"', 1, orjson.dumps({"a": '"}\n{"delete":{}}\r\n\u2028'})),
    Document("alerts", "é", 1, b'{"a":\n1}', 7),
]


def test_whatever_a_row_holds_it_is_one_line() -> None:
    lines = [line_of(document) for document in HOSTILE]
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines)
    assert [orjson.loads(line)["id"] for line in lines] == [document.id for document in HOSTILE]
    assert orjson.loads(lines[1]) == {"id": "é", "revision": 7, "row": {"a": 1}}


def test_two_processes_write_files_of_their_own_and_a_torn_line_is_cut(tmp_path: Path) -> None:
    for process in ("a/0", "../b"):
        rows = FileRows(tmp_path / "rows", process, KINDS)
        assert rows.send_batch(HOSTILE) == [DONE] * 2
        rows.close()
    names = {path.name for path in (tmp_path / "rows").iterdir()}
    assert names == {f"{kind}-{process}.ndjson" for kind in KINDS for process in ("a_0", ".._b")}
    torn = tmp_path / "rows" / "alerts-a_0.ndjson"
    torn.write_bytes(torn.read_bytes() + b'{"id":"half')
    rows = FileRows(tmp_path / "rows", "a/0", ["alerts"])
    rows.send_batch(HOSTILE)
    rows.close()
    assert len([orjson.loads(line) for line in torn.read_bytes().splitlines()]) == 4


def test_what_was_closed_takes_nothing_and_a_directory_that_is_none_is_one_line(tmp_path: Path) -> None:
    rows = FileRows(tmp_path / "rows", "a", ["alerts"])
    rows.close()
    rows.close()
    with pytest.raises(SinkBusy, match="was closed"):
        rows.send_batch(HOSTILE)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="choose another directory"):
        FileRows(tmp_path / "file" / "rows", "a", ["alerts"])


def test_the_console_shows_lines_with_their_kind() -> None:
    out = io.BytesIO()
    rows = ConsoleRows(out)
    assert rows.send_batch(HOSTILE) == [DONE] * 2
    assert [orjson.loads(line)["kind"] for line in out.getvalue().splitlines()] == ["alerts", "alerts"]
    out.close()
    with pytest.raises(SinkBusy, match="takes nothing"):
        rows.send_batch(HOSTILE)


def rows_of(*numbers: int) -> list[Document]:
    return [Document("alerts", str(number), 1, orjson.dumps({"seq": number})) for number in numbers]


def ids_in(path: Path) -> list[str]:
    return [orjson.loads(line)["id"] for line in path.read_bytes().splitlines()]


def fails(number: int = errno.ENOSPC) -> Callable[..., Any]:
    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def torn_write(descriptor: int, text: memoryview, at: int) -> int:
    """As a disk with little room: a part, then nothing."""
    if len(text) < 40:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return PWRITE(descriptor, text[:-20], at)


def test_a_sync_that_fails_leaves_none_of_its_lines_so_that_each_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = FileRows(tmp_path, "a", ["alerts"])
    rows.send_batch(rows_of(1))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fails(errno.EIO))
        with pytest.raises(SinkBusy, match=r"alerts-a\.ndjson cannot be written: Input/output error; free room there$"):
            rows.send_batch(rows_of(2, 3))
    assert ids_in(tmp_path / "alerts-a.ndjson") == ["1"]
    rows.send_batch(rows_of(2, 3))
    rows.close()
    assert ids_in(tmp_path / "alerts-a.ndjson") == ["1", "2", "3"]


def test_half_a_line_that_cannot_be_cut_off_is_cut_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = FileRows(tmp_path, "a", ["alerts"])
    rows.send_batch(rows_of(1))
    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", torn_write)
        broken.setattr(os, "ftruncate", fails(errno.EIO))
        with pytest.raises(SinkBusy, match="No space left"):
            rows.send_batch(rows_of(*range(100, 140)))
        with pytest.raises(SinkBusy, match="Input/output error"):
            rows.send_batch(rows_of(*range(100, 140)))
    rows.send_batch(rows_of(2))  # shorter than what is left of the others
    rows.close()
    assert ids_in(tmp_path / "alerts-a.ndjson") == ["1", "2"]


def test_files_turn_at_their_limit_and_their_names_are_in_the_order_of_their_lines(tmp_path: Path) -> None:
    clock = ManualClock(1_790_000_000_000)
    limit = 5 * len(line_of(rows_of(10)[0]))
    file = RowFile(tmp_path / "alerts-a.ndjson", limit, clock)
    for number in range(10, 40):
        file.append([line_of(row) for row in rows_of(number)])
        clock.advance(-1_000 if number % 2 else 0)  # a clock that stands, and goes back
    file.close()
    paths = sorted(tmp_path.iterdir())
    assert [name for path in paths for name in ids_in(path)] == [str(number) for number in range(10, 40)]
    assert len(paths) == 6
    assert {path.stat().st_size for path in paths} == {limit}
    assert paths[0].name == "alerts-a.20260921141318000.ndjson"
    assert paths[-1].name == "alerts-a.ndjson"


def test_a_batch_larger_than_a_file_is_one_file_and_without_a_limit_none_turns(tmp_path: Path) -> None:
    for limit, files in ((50, 3), (0, 1)):
        folder = tmp_path / str(limit)
        rows = FileRows(folder, "a", ["alerts"], file_bytes_max=limit)
        for first in (10, 20, 30):
            rows.send_batch(rows_of(*range(first, first + 10)))
        rows.close()
        assert [name for path in sorted(folder.iterdir()) for name in ids_in(path)] == [str(number) for number in range(10, 40)]
        assert len(list(folder.iterdir())) == files


def test_a_restart_goes_on_in_the_file_and_names_of_the_life_before(tmp_path: Path) -> None:
    clock = ManualClock(1_790_000_000_000)
    for first in range(10, 30, 4):
        file = RowFile(tmp_path / "alerts-a.ndjson", 150, clock)
        for row in rows_of(*range(first, first + 4)):
            file.append([line_of(row)])
        file.close()
        clock.advance(-60_000)
    assert [name for path in sorted(tmp_path.iterdir()) for name in ids_in(path)] == [str(number) for number in range(10, 30)]
    assert len(list(tmp_path.iterdir())) > 3


def test_a_full_file_that_cannot_be_renamed_grows_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = FileRows(tmp_path, "a", ["alerts"], file_bytes_max=50)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", fails())
        for number in (1, 2, 3):
            assert rows.send_batch(rows_of(number)) == [DONE]
    assert ids_in(tmp_path / "alerts-a.ndjson") == ["1", "2", "3"]
    rows.send_batch(rows_of(4))
    rows.close()
    assert ids_in(tmp_path / "alerts-a.ndjson") == ["4"]


def test_a_next_file_that_cannot_be_made_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = FileRows(tmp_path, "a", ["alerts"], file_bytes_max=50)
    rows.send_batch(rows_of(1, 2))
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", fails())
        for _ in range(2):
            with pytest.raises(SinkBusy, match="No space left"):
                rows.send_batch(rows_of(3))
    rows.send_batch(rows_of(3))
    rows.close()
    first, second = sorted(tmp_path.iterdir())
    assert (ids_in(first), ids_in(second)) == (["1", "2"], ["3"])


def test_a_file_that_somebody_takes_away_or_empties_is_begun_anew(tmp_path: Path) -> None:
    path, away = tmp_path / "alerts-a.ndjson", tmp_path / "away"
    rows = FileRows(tmp_path, "a", ["alerts"])
    rows.send_batch(rows_of(1))
    path.rename(away)
    rows.send_batch(rows_of(2))
    assert (ids_in(away), ids_in(path)) == (["1"], ["2"])
    path.unlink()
    rows.send_batch(rows_of(3))
    assert ids_in(path) == ["3"]
    os.truncate(path, 0)  # as logrotate does by copytruncate
    rows.send_batch(rows_of(4))
    rows.close()
    assert ids_in(path) == ["4"]
