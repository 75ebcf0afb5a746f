"""Files of lines: alerts and dead letters, whatever their strings hold and however the run before ended."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.errors import SinkError
from keystone.events import DEAD_LETTER_BYTES_MAX, DIMENSIONS, Alert, DeadLetter
from keystone.sinks import ndjson
from keystone.sinks.ndjson import DeadLetterFile, LineFile, alert_line

FIELDS = [
    "alert_id", "kind", "action", "device_id", "session_id", "event_ts", "seq", "buffers_in_run", "bitrate_kbps", "recommended_bitrate_kbps",
    "user_id", "title_id", "region", "country", "device_type", "os", "app_version", "cdn", "isp", "network",
]  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


def alert(alert_id="a" * 32, **fields):
    given_ = {
        "kind": "buffering_loop", "device_id": "d", "session_id": "s", "event_ts": 5, "seq": None, "buffers_in_run": 3, "bitrate_kbps": None,
        "recommended_bitrate_kbps": 235, "dimensions": dict.fromkeys(DIMENSIONS), "append_ts_ms": 9,
    }  # fmt: skip
    return Alert(alert_id, **{**given_, **fields})


def letter(raw=b"{", *, offset=7, line=2, partition=3, length=None):
    return DeadLetter(partition, offset, line, "invalid_json", len(raw) if length is None else length, raw)


def lines(path):
    text = path.read_bytes()
    assert text == b"" or text.endswith(b"\n")
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


def test_an_alert_has_all_its_fields_in_order(tmp_path):
    file = LineFile(tmp_path / "alerts.ndjson")
    dimensions = {name: f"the {name}" for name in DIMENSIONS}
    assert file.write_lines(map(alert_line, [alert(), alert("b", seq=2**53 - 1, bitrate_kbps=3000, dimensions=dimensions)])) == 2
    first, second = lines(file.path)
    assert list(first) == list(second) == FIELDS
    assert first == {
        **dict.fromkeys(FIELDS), "alert_id": "a" * 32, "kind": "buffering_loop", "action": "bitrate_downgrade", "device_id": "d", "session_id": "s",
        "event_ts": 5, "buffers_in_run": 3, "recommended_bitrate_kbps": 235,
    }  # fmt: skip
    assert {name: second[name] for name in DIMENSIONS} == dimensions
    assert (second["seq"], second["bitrate_kbps"]) == (2**53 - 1, 3000)
    file.close()


@given(texts=st.lists(TEXT, max_size=8))
def test_strings_survive(tmp_path_factory, texts):
    file = LineFile(tmp_path_factory.mktemp("alerts") / "alerts.ndjson")
    alerts = [alert(str(i), device_id=text, dimensions={**dict.fromkeys(DIMENSIONS), "isp": text}) for i, text in enumerate(texts)]
    file.write_lines(map(alert_line, alerts))
    assert [(line["device_id"], line["isp"]) for line in lines(file.path)] == [(text, text) for text in texts]
    file.close()


@pytest.mark.parametrize("text", ["\0", "\u2028\u2029", "𝄞", '"\\\n\r\t', "\x7f\x1f", "é"])
def test_strings_that_break_writers(tmp_path, text):
    file = LineFile(tmp_path / "alerts.ndjson")
    file.write_lines([alert_line(alert(session_id=text))])
    assert [line["session_id"] for line in lines(file.path)] == [text]
    file.close()


def test_alerts_are_visible_when_write_returns(tmp_path):
    file = LineFile(tmp_path / "alerts.ndjson")
    for count in range(1, 4):
        file.write_lines([alert_line(alert(str(count)))])
        assert len(lines(file.path)) == count == file.lines
    file.close()


@pytest.mark.parametrize("tail_bytes", [8, 64 << 10])
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_torn_last_line_is_cut_off_wherever_it_tore(tmp_path, monkeypatch, kept, tail_bytes):
    monkeypatch.setattr(ndjson, "TAIL_BYTES", tail_bytes)
    whole = [alert_line(alert(str(i))) for i in range(kept + 1)]
    path = tmp_path / "alerts.ndjson"
    for cut in (*range(1, len(whole[-1]), 23), len(whole[-1]) - 1):
        path.write_bytes(b"".join(whole[:-1]) + whole[-1][:cut])
        file = LineFile(path)
        assert file.write_lines([alert_line(alert(str(kept)))]) == 1  # what tore is not known as said
        file.close()
        assert [line["alert_id"] for line in lines(path)] == [str(i) for i in range(kept + 1)]


def test_a_dead_letter(tmp_path):
    raw = bytes(range(256))
    file = DeadLetterFile(tmp_path / "dead_letters.ndjson", per_line=False)
    assert file.write([letter(raw, length=1_500_000)]) == 1
    assert lines(file.path) == [{"line": 2, "reason": "invalid_json", "length": 1_500_000, "raw": base64.b64encode(raw).decode(), "partition": 3, "offset": 7}]
    file.close()


def test_a_dead_letter_of_a_plain_file_tells_the_line_of_the_file(tmp_path):
    file = DeadLetterFile(tmp_path / "dead_letters.ndjson", per_line=True)
    file.write([letter(offset=41, line=0, partition=0)])
    assert [(r["line"], r["offset"], r["partition"]) for r in lines(file.path)] == [(41, 41, 0)]
    file.close()


def test_only_the_first_64_kib_are_kept(tmp_path):
    file = DeadLetterFile(tmp_path / "dead_letters.ndjson", per_line=True)
    file.write([letter(b"x" * (DEAD_LETTER_BYTES_MAX + 1))])
    (line,) = lines(file.path)
    assert base64.b64decode(line["raw"]) == b"x" * DEAD_LETTER_BYTES_MAX
    assert line["length"] == DEAD_LETTER_BYTES_MAX + 1
    file.close()


def test_many_large_letters_are_written_in_bounded_pieces(tmp_path, monkeypatch):
    file = LineFile(tmp_path / "lines")
    sizes = []
    write = file._write
    monkeypatch.setattr(file, "_write", lambda text: (sizes.append(len(text)), write(text)))
    assert file.write_lines(b"x" * 99_999 + b"\n" for _ in range(300)) == 300
    assert sum(sizes) == 30_000_000 == file.path.stat().st_size
    assert max(sizes) < ndjson.BATCH_BYTES_MAX + 100_000


def test_a_file_starts_anew_unless_told(tmp_path):
    path = tmp_path / "dead_letters.ndjson"
    for _ in range(2):
        file = DeadLetterFile(path, per_line=True)
        file.write([letter()])
        file.close()
        file.close()
    assert len(lines(path)) == 1
    with pytest.raises(SinkError, match="closed"):
        file.write([letter()])
