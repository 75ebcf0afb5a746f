"""docs/dead_letters.md: its commands do what it says."""

from __future__ import annotations

import re
import shlex
from contextlib import closing
from pathlib import Path

import pytest

from keystone.log.embedded import EmbeddedLog
from keystone.run import letters_expr
from tests.letters import letter, told, write

DOC = Path(__file__).parents[2] / "docs" / "dead_letters.md"


def commands() -> list[list[str]]:
    blocks = [text for _, text in re.findall(r"^```(\w*)\n(.*?)^```$", DOC.read_text(), re.DOTALL | re.MULTILINE)]
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("keystone ")]


def test_the_commands_run_in_this_order(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    event = b'{"event":"Start","timestamp":"1790000000000","device_id":"d","session_id":"s"}'
    write(tmp_path / "letters", [letter(n, event, "missing_field") for n in range(18)])
    write(
        tmp_path / "letters",
        [letter(18, event.replace(b"timestamp", b"ts").replace(b'"', b"'").replace(b"'1790000000000'", b"1790000000000"), "invalid_json")],
        epoch=2,
    )
    EmbeddedLog.create(tmp_path / "log", partitions=2, segment_bytes=1 << 16, retention_bytes=1 << 18).close()
    [python] = re.findall(r"^```python\n(.*?)^```", DOC.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "mend.py").write_text(python)
    outs = []
    places = {"LETTERS": str(tmp_path / "letters"), "LOG": f"embedded:{tmp_path / 'log'}"}
    for words in commands():
        if words[0] == "dead-letters":
            status, out, err = told(capsys, *(places.get(word, word) for word in words))
            assert status in (0, 1), err
            outs.append((status, out))
    assert [status for status, _ in outs] == [0, 0, 0, 0, 1, 0]
    assert outs[0][1].endswith("19 dead letters\n")
    assert outs[3][1].splitlines()[-1].startswith("3 would be sent")
    assert outs[4][1].startswith("18 sent")
    assert outs[5][1].startswith("1 sent")
    with closing(EmbeddedLog.open(tmp_path / "log")) as log:
        assert sum(log.stats(partition).end_offset for partition in range(2)) == 19


def test_the_grammar_is_the_modules() -> None:
    grammar = [line.strip() for line in (letters_expr.__doc__ or "").splitlines() if line.startswith("    ")]
    assert grammar
    text = DOC.read_text()
    assert all(line in text for line in grammar)


def test_the_audit_is_the_one_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    [audit] = [words for words in commands() if words[0] == "audit"]
    told_ = told(capsys, "audit", "--help")[1]
    assert all(word in told_ for word in audit if word.startswith("--"))
