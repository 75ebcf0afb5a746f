"""The reference against examples done by hand, and its own deep-nesting grammar against the json module."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import (
    Number,
    decode_line,
    exact_int,
    is_grammatical,
    murmur2,
    parse_json,
    partition_of,
    reference_file,
    tokens,
)

GOOD = b'{"event":"start","ts":1,"device_id":"d","session_id":"s"'


def decoded(tail: bytes) -> dict[str, Any]:
    event = decode_line(GOOD + tail + b"}")
    assert isinstance(event, dict)
    return event


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", None),
        (b" \t\r", None),
        (GOOD + b' ,"x":"' + b"a" * 1_048_576 + b'"}', "too_large"),
        (b"[" * 1_048_577, "too_large"),
        (GOOD + b',"x":"\xff"}', "invalid_utf8"),
        (GOOD + b',"x":"\xed\xa0\x80"}', "invalid_utf8"),
        (b"\xff{", "invalid_utf8"),
        (GOOD + b',"x":NaN}', "invalid_json"),
        (GOOD + b',"x":-Infinity}', "invalid_json"),
        (GOOD + b",}", "invalid_json"),
        (GOOD + b',"x":01}', "invalid_json"),
        (GOOD + b',"x":1.}', "invalid_json"),
        (GOOD + b',"x":"\t"}', "invalid_json"),
        (GOOD + b',"x":"\\ud800"}', "invalid_json"),
        (GOOD + b',"x":"\\ud800","x":1}', "invalid_json"),
        (GOOD + b',"\\udc00":1}', "invalid_json"),
        (GOOD + b',"x":[["\\udc00"]]}', "invalid_json"),
        (GOOD + b',"x":"\\u12g4"}', "invalid_json"),
        (b"\xef\xbb\xbf" + GOOD + b"}", "invalid_json"),
        (GOOD + b"}\x0b", "invalid_json"),
        (GOOD + b"} {}", "invalid_json"),
        (b"[]", "not_an_object"),
        (b"[" * 65 + b"]" * 65, "not_an_object"),
        (b"1e99999999999999999999", "not_an_object"),
        (b"9" * 5000, "not_an_object"),
        (GOOD + b',"x":' + b"[" * 64 + b"]" * 64 + b"}", "too_deep"),
        (GOOD + b',"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}", "too_deep"),
        (GOOD + b',"x":' + b"[" * 500_000 + b"]" * 499_999 + b"}", "invalid_json"),
        (GOOD + b',"x":' + b"[" * 64 + b'"\\ud800"' + b"]" * 64 + b"}", "invalid_json"),
        (b"{}", "missing_field"),
        (b'{"event":null,"ts":"x","device_id":"d","session_id":"s"}', "missing_field"),
        (b'{"event":"a","ts":"1","device_id":"d","session_id":"s"}', "bad_type"),
        (b'{"event":"a","ts":true,"device_id":"d","session_id":"s"}', "bad_type"),
        (b'{"event":"a","ts":-1,"device_id":"d","session_id":"s"}', "bad_type"),
        (b'{"event":"a","ts":9007199254740992,"device_id":"d","session_id":"s"}', "bad_type"),
        (b'{"event":5,"ts":1,"device_id":"d","session_id":"s"}', "bad_type"),
    ],
)
def test_reasons(line: bytes, reason: str | None) -> None:
    assert decode_line(line) == reason


def test_depth_64_is_still_an_event() -> None:
    assert decoded(b',"x":' + b"[" * 63 + b"]" * 63)["event"] == "Start"


def test_fields() -> None:
    event = decoded(
        b',"seq":1.790e2,"region":7.50,"cdn":true,"isp":null,"phase":3,"fatal":"yes","title_id":"a","title_id":"","new":[1,2.50],"none":null,'
        b'"bitrate_kbps":-9007199254740992,"stall_ms":9007199254740993,"\\u0072eason":"\\ud83d\\ude00"'
    )
    assert (event["seq"], event["region"], event["cdn"], event["isp"], event["phase"]) == (179, "7.50", None, None, None)
    assert (event["fatal"], event["title_id"], event["bitrate_kbps"], event["stall_ms"]) == (None, "", -(2**53), None)
    assert event["reason"] == "\N{GRINNING FACE}"
    assert event["extra"] == {
        "cdn": True, "phase": Number("3"), "fatal": "yes", "new": [Number("1"), Number("2.50")], "stall_ms": Number("9007199254740993"),
    }  # fmt: skip
    assert decoded(b"")["extra"] is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("-0", 0), ("-0.9", 0), ("1e3", 1000), ("1.790e12", 1_790_000_000_000), ("9007199254740991.9", 2**53 - 1),
        ("9007199254740993", None), ("1e16", None), ("0e99999999999", 0), ("1E-99999999999", 0), ("12345e-2", 123), ("0.000012e6", 12),
        ("-9007199254740992", -(2**53)), ("1e99999999999", None), ("0.00e5", 0),
    ],
)  # fmt: skip
def test_exact_int(text: str, value: int | None) -> None:
    assert exact_int(text) == value


@given(st.text(alphabet='[]{}:,"a1 \\-.e', max_size=12))
def test_deep_grammar_equals_the_json_module(text: str) -> None:
    text = text.strip(" ")
    try:
        parse_json(text)
        is_json = True
    except ValueError:
        is_json = False
    found = tokens(text)
    assert (found is not None and is_grammatical(found)) == is_json


def test_murmur2_equals_kafkas() -> None:
    # Values of Kafka's own UtilsTest.
    kafka = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971}
    for key, value in kafka.items():
        assert murmur2(key) == value % 2**32
    assert partition_of("foobar", 7) == (-790332482 & 0x7FFFFFFF) % 7


def test_a_file_by_hand() -> None:
    def line(event: str, ts: int, seq: int, **fields: Any) -> dict[str, Any]:
        return {"event": event, "ts": ts, "device_id": "d", "session_id": "s", "seq": seq, **fields}

    events = [
        line("Start", 1000, 0, cdn="a"),
        line("Heartbeat", 1500, 1, bitrate_kbps=3000),
        line("Buffer", 2000, 2),
        line("Buffer", 2100, 2),
        line("BUFFER", 2200, 4, phase="seek"),
        line("Buffer", 2300, 5),
        line("buffer", 2400, 6, bitrate_kbps=750),
        line("Heartbeat", 2900, 3, bitrate_kbps=9),
        line("Stop", 3000, 7, cdn="b"),
    ]
    result = reference_file(b"\n".join(json.dumps(event).encode() for event in events) + b"\nnope\n", partitions=3)
    assert result.ledger() == {
        "received": 10, "accepted": 9, "applied": 8, "duplicates": 1, "dead_lettered": 1, "lake_rows": 9, "empty_records": 0,
    }  # fmt: skip
    (alert,), (session,), (dead,) = result.alerts, result.sessions, result.dead_letters
    assert (alert["event_ts"], alert["seq"], alert["buffers_in_run"], alert["bitrate_kbps"], alert["recommended_bitrate_kbps"]) == (2400, 6, 3, 750, 560)
    assert (alert["cdn"], session["cdn"]) == ("a", "b")
    assert (session["startup_ms"], session["stall_ms"], session["duration_ms"], session["playing_ms"]) == (500, 1000, 2000, 500)
    assert (session["events"], session["buffers"], session["late"], session["duplicates"], session["alerts"]) == (8, 3, 1, 1, 1)
    assert (session["mean_bitrate_kbps"], session["end_reason"], session["outcome"]) == (3000.0, "stop", "played")
    assert (dead["offset"], dead["reason"], dead["length"], dead["raw"]) == (9, "invalid_json", 4, b"nope")
