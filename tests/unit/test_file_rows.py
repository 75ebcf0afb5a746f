"""Rows as lines: whole whatever a row holds, each process in files of its own, what is acknowledged on the disk."""

from __future__ import annotations

import io
from pathlib import Path

import orjson
import pytest

from keystone.errors import SinkBusy, UsageError
from keystone.sinks.base import DONE, KINDS, Document
from keystone.sinks.file_rows import ConsoleRows, FileRows, line_of

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
