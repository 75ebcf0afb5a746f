"""``keystone dead-letters list|show|count``: what is there, read again from any place, and shown so that no terminal is harmed."""

from __future__ import annotations

import base64
import itertools
import json
import unicodedata
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from keystone.clock import ManualClock
from keystone.config import KafkaConfig
from keystone.events import DeadLetter
from keystone.letter_batch import LetterBatch
from keystone.log.embedded import EmbeddedLog
from keystone.log.kafka.batches import BatchBuilder
from keystone.log.kafka.headers import headers_of
from keystone.run.letters_check import look_at
from keystone.run.letters_view import escaped, fault_of
from keystone.sinks.letter_objects import LetterObjects
from keystone.sinks.letters_read import Letter, Place, open_letters
from keystone.store import open_store
from tests.letters import letter, told, write

numbers = itertools.count()
GOOD = b'{"event":"Heartbeat","ts":1790000000000,"device_id":"d","session_id":"s"}'
SOME = [
    letter(3, b"\x1b[2Jnot json", "invalid_json"),
    letter(3, b"{}", "missing_field", line=2),
    letter(9, b'{"a":"\xff"}', "invalid_utf8"),
    letter(4, b"[1]", "not_an_object", partition=12),
]


# --- what is shown ----------------------------------------------------------------------------------------------------------------
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_byte_harms_a_terminal_and_none_is_lost(raw: bytes) -> None:
    for shown in (escaped(raw), escaped(raw, is_ascii=True), escaped(raw, width=20)):
        assert all(char.isprintable() for char in shown)
        assert not any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in shown)
        shown.encode()
    assert escaped(raw, is_ascii=True).isascii()
    assert cell_len(escaped(raw, width=20)) <= 20
    assert unescaped(escaped(raw)) == unescaped(escaped(raw, is_ascii=True)) == raw


def unescaped(shown: str) -> bytes:
    out, at = bytearray(), 0
    while at < len(shown):
        if shown[at] != "\\":
            out += shown[at].encode()
            at += 1
            continue
        kind = shown[at + 1]
        digits = {"x": 2, "u": 4, "U": 8}.get(kind, 0)
        if digits:
            code = int(shown[at + 2 : at + 2 + digits], 16)
            out += bytes([code]) if kind == "x" else chr(code).encode()
        else:
            out += {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}[kind]
        at += 2 + digits
    return bytes(out)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("a\u202eb".encode(), "a\\u202eb"),
        (b"\xff\\n", "\\xff\\\\n"),
        ("日本é".encode(), "日本é"),
        ("e\u0301\u0301\u0301".encode(), "e\u0301\u0301\\u0301"),
        ("\x85\u2028\U000e0001".encode(), "\\u0085\\u2028\\U000e0001"),
    ],
)
def test_how_it_is_escaped(raw: bytes, shown: str) -> None:
    assert escaped(raw) == shown


def test_what_is_cut_ends_within_the_width() -> None:
    assert escaped("日本日本".encode(), width=5) == "日本…"
    assert escaped(b"abc", width=3) == "abc"
    assert escaped(b"abcd", width=3, is_ascii=True) == "ab~"


@pytest.mark.parametrize(
    ("raw", "at", "what"),
    [
        (b'{"event":"a", x}', 14, "property name"),
        ('{"é":1,}'.encode(), 8, "property name"),
        (b'{"a":NaN}', 5, "NaN is no JSON"),
        (b'{"a":"\\ud800"}', 6, "unpaired surrogate"),
        (b'{"a":"\\ud83d\\ude00","b":"\\udc00"}', 25, "unpaired surrogate"),
        (b'{"a":"\xc3("}', 6, "invalid continuation"),
        (b"  [1]", 2, "no object"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, 320, "65 deep"),
        (b'{"event":"Start","ts":1}', None, "device_id, session_id: absent or null"),
        (GOOD.replace(b'"d"', b"7"), 40, "device_id is a number"),
        (GOOD.replace(b"1790000000000", b"-1"), 21, "ts is not from 0"),
        (GOOD, None, "it would be accepted now"),
    ],
)
def test_where_the_error_is(raw: bytes, at: int | None, what: str) -> None:
    reason = look_at(raw).reason or "bad_type"
    fault = fault_of(Letter(Place(0, 0, 0), reason, len(raw), raw, None, "f"))
    assert fault.at == at
    assert what in fault.what


def test_an_error_behind_what_is_kept_is_not_guessed() -> None:
    raw = b'{"a":"' + b"x" * 65_530
    assert fault_of(Letter(Place(0, 0, 0), "invalid_json", 70_000, raw, None, "f")) == (None, "behind the 65,536 bytes that are kept")
    assert fault_of(Letter(Place(0, 0, 0), "too_large", 1_048_577, raw, None, "f")).at == 1_048_576


@given(st.binary(max_size=200), st.sampled_from(["invalid_json", "invalid_utf8", "too_deep", "missing_field", "bad_type", "not_an_object", "unheard_of"]))
def test_looking_for_an_error_never_fails(raw: bytes, reason: str) -> None:
    fault = fault_of(Letter(Place(0, 0, 0), reason, len(raw), raw, None, "f"))
    assert fault.at is None or 0 <= fault.at <= len(raw)


# --- where they are read ------------------------------------------------------------------------------------------------------------
def places(url: str, partition: int | None = None) -> list[Place]:
    with closing(open_letters(url, KafkaConfig())) as source:
        return [found.place for found in source.letters(partition)]


def test_files_are_read_in_order_and_others_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, SOME)
    write(tmp_path, [letter(11, b"x", "invalid_json")], epoch=2)
    (tmp_path / "replays.ndjson").write_text('{"partition":0}\n')
    [*_, last] = sorted(tmp_path.glob("*p00000-e00000002.ndjson"))
    with last.open("ab") as file:
        file.write(b'{"no letter":1}\n{"line":0,"reas')  # a strange line, and one that is being written
    assert places(str(tmp_path)) == [(0, 3, 0), (0, 3, 2), (0, 9, 0), (0, 11, 0), (12, 4, 0)]
    assert places(str(tmp_path), 12) == [(12, 4, 0)]
    assert places(str(last)) == [(0, 11, 0)]
    with closing(open_letters(str(tmp_path), KafkaConfig())) as source:
        assert [found.raw for found in source.letters()][:3] == [one.raw for one in SOME[:3]]
        assert source.torn == 1


def test_objects_of_a_bucket_are_read_in_order() -> None:
    url = f"memory://letters-read-{next(numbers)}/x"
    objects = LetterObjects(open_store(url), url, "0f-")
    for partition in (0, 12):
        objects.own(partition, 1)
    for first in range(0, 4, 2):
        for one in SOME[first : first + 2]:
            objects.write(one.partition, LetterBatch.of([one]))
        assert objects.flush(20)
    objects.close()
    assert places(url) == [(0, 3, 0), (0, 3, 2), (0, 9, 0), (12, 4, 0)]
    assert places(url, 0) == [(0, 3, 0), (0, 3, 2), (0, 9, 0)]


@given(st.lists(st.tuples(st.binary(max_size=9), st.none() | st.binary(max_size=9), st.dictionaries(st.text(max_size=5), st.binary(max_size=200), max_size=7))))
def test_headers_are_read_as_they_were_written(records: list[tuple[bytes, bytes | None, dict[str, bytes]]]) -> None:
    builder = BatchBuilder()
    for value, key, headers in records:
        builder.add(value, key, tuple(headers.items()))
    assert list(headers_of(bytes(builder.records), len(records), 40)) == [(40 + n, headers) for n, (_, _, headers) in enumerate(records)]


# --- the commands -------------------------------------------------------------------------------------------------------------------
def test_list(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [*SOME, letter(10, b"y" * 500, "invalid_json")])
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = told(capsys, "dead-letters", "list", "--from", str(tmp_path))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["0:3:0", "invalid_json", "12"], ["0:3:2", "missing_field", "2"], ["0:9:0", "invalid_utf8", "9"], ["0:10:0", "invalid_json", "500"],
        ["12:4:0", "not_an_object", "3"],
    ]  # fmt: skip
    assert "\\x1b[2Jnot json" in lines[0]
    assert "\x1b" not in out
    assert all(len(line) <= 80 for line in lines)
    assert lines[3].endswith(("…", "~"))
    _, out, _ = told(capsys, "dead-letters", "list", "--from", str(tmp_path), "--newest", "--limit", "2")
    assert [line.split()[0] for line in out.splitlines()] == ["0:10:0", "0:9:0"]
    _, out, _ = told(capsys, "dead-letters", "list", "--from", str(tmp_path), "--reason", "invalid_json", "--reason", "not_an_object", "--limit", "2")
    assert [line.split()[0] for line in out.splitlines()] == ["0:3:0", "0:10:0"]
    _, out, _ = told(capsys, "dead-letters", "list", "--set", f"run.dead_letters={tmp_path}", "--partition", "12")
    assert [line.split()[0] for line in out.splitlines()] == ["12:4:0"]


def test_json_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, SOME)
    _, out, _ = told(capsys, "dead-letters", "list", "--from", str(tmp_path), "--json", "--limit", "0")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [base64.b64decode(row["raw"]) for row in rows] == [one.raw for one in SOME]
    assert [row["source"] for row in rows] == ["0f3a91c2-p00000-e00000001.ndjson"] * 3 + ["0f3a91c2-p00012-e00000001.ndjson"]


def test_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [*SOME, letter(10, b"yy", "invalid_json"), letter(11, b"", "not_kept")])
    status, out, err = told(capsys, "dead-letters", "count", "--from", str(tmp_path))
    assert status == 0
    assert out.splitlines()[0].split() == ["invalid_json", "partition", "0", "2", "14", "bytes"]
    assert out.splitlines()[-1] == "5 dead letters"
    assert "counted and not kept" in err
    _, out, _ = told(capsys, "dead-letters", "count", "--from", str(tmp_path), "--json")
    assert sum(json.loads(line)["letters"] for line in out.splitlines()) == 5


def with_log(folder: Path, records: int = 12) -> str:
    """One record each 20 s from a full minute on, in partition 0."""
    clock = ManualClock(1_790_000_040_000)
    with closing(EmbeddedLog.create(folder, partitions=2, segment_bytes=1 << 16, retention_bytes=1 << 18, clock=clock)) as log:
        writer = log.writer(0)
        for _ in range(records):
            writer.append(b"x")
            clock.advance(20_000)
    return f"embedded:{folder}"


def test_times_are_the_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, url = tmp_path / "letters", with_log(tmp_path / "log")
    write(folder, [letter(offset, b"x", "invalid_json") for offset in range(12)] + [letter(40, b"x", "invalid_json", partition=7)])
    words = ("--from", str(folder), "--log", url)
    _, out, _ = told(capsys, "dead-letters", "count", *words, "--by", "minute", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["minute"], row["letters"]) for row in rows] == [
        (None, 1), ("2026-09-21T14:14Z", 3), ("2026-09-21T14:15Z", 3), ("2026-09-21T14:16Z", 3), ("2026-09-21T14:17Z", 3),
    ]  # fmt: skip
    _, out, _ = told(capsys, "dead-letters", "list", *words, "--since", "2026-09-21T14:15:00Z", "--until", "1790000140000", "--partition", "0")
    assert [line.split()[0] for line in out.splitlines()] == ["0:3:0", "0:4:0"]
    assert "appended  2026-09-21T14:15Z" in told(capsys, "dead-letters", "show", "0:3:0", *words)[1]


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [*SOME, letter(20, b"[" * 65_536, "too_large", length=2_000_000)])
    status, out, _ = told(capsys, "dead-letters", "show", "0:9:0", "--from", str(tmp_path))
    assert status == 0
    assert "error     at byte 6: byte 0xff: invalid start byte" in out
    assert 'bytes up to the error\n{"a":"\nand from there on\n\\xff"}\n' in out
    assert "the first 65,536 of them kept: it cannot be replayed" in told(capsys, "dead-letters", "show", "0:20:0", "--from", str(tmp_path))[1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("list",), "say --from DIR, s3://BUCKET/PREFIX or kafka://"),
        (("list", "--from", "{tmp}/none"), "there is no such directory"),
        (("list", "--from", "ftp://x"), "write it as a directory, s3://"),
        (("list", "--from", "{tmp}", "--newest", "--limit", "0"), "name a number"),
        (("list", "--from", "{tmp}", "--since", "yesterday"), "--since yesterday: write a day, or a time such as"),
        (("list", "--from", "{tmp}", "--since", "2026-09-21"), "name the log they come from by --log"),
        (("count", "--set", "run.dead_letters=none"), "name where letters are by --from"),
        (("show", "0:1", "--from", "{tmp}"), "write it as PARTITION:OFFSET:LINE"),
        (("show", "0:1:1", "--from", "{tmp}"), "no dead letter is of 0:1:1"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, SOME)
    status, _, err = told(capsys, "dead-letters", *(word.format(tmp=tmp_path) for word in words))
    assert (status, err.count("\n")) == (2, 1)
    assert line in err


def test_letters_beside_a_lake_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "lake-dead-letters", [DeadLetter(0, 1, 0, "invalid_json", 1, b"{")])
    assert told(capsys, "dead-letters", "count", "--set", f"run.lake={tmp_path / 'lake'}")[1].endswith("1 dead letters\n")
