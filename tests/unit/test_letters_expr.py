"""The language of ``dead-letters replay --expr``: what it does, what it refuses, and that no text or line makes it fail otherwise."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.errors import UsageError
from keystone.run.letters_expr import CannotMend, Program

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(), values, max_size=5)


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        (".ts = .timestamp | del(.timestamp)", {"timestamp": 1}, {"ts": 1}),
        ('.event = "Heartbeat" | .ts = tonumber(.ts)', {"ts": "1790000000000"}, {"ts": 1790000000000, "event": "Heartbeat"}),
        (".a.b.c = 1.5e1", {}, {"a": {"b": {"c": 15.0}}}),
        ('."a b"."é" = null', {"a b": {"x": 1}}, {"a b": {"x": 1, "é": None}}),
        (".id = tostring(.id)", {"id": 7}, {"id": "7"}),
        (".id = tostring(tonumber(.id))", {"id": "7"}, {"id": "7"}),
        (".id = tostring(.id)", {"id": [True, None]}, {"id": "[true,null]"}),
        ("del(.a, .b.c, .x.y)", {"a": 1, "b": {"c": 1, "d": 2}, "x": 3}, {"b": {"d": 2}, "x": 3}),
        (".x = .nothing.there", {}, {"x": None}),
        ('if .v == "2.1" then .ts = .t | del(.t) end', {"v": "2.1", "t": 3}, {"v": "2.1", "ts": 3}),
        ("if .v != 1 then .a = true else .a = false end", {"v": True}, {"v": True, "a": True}),
        ("if .v == 1 then if .w == null then .a = 1 end else .a = 2 end", {"v": 1}, {"v": 1, "a": 1}),
        (".b = .a | .b.x = 2", {"a": {"x": 1}}, {"a": {"x": 1}, "b": {"x": 2}}),
        (".n = .n", {"n": 123456789012345678901234567890}, {"n": 123456789012345678901234567890}),
    ],
)
def test_what_it_does(text: str, before: object, after: object) -> None:
    assert json.loads(Program(text)(json.dumps(before).encode())) == after


@pytest.mark.parametrize(
    ("text", "at", "what"),
    [
        ("", 1, "the end stands where a path"),
        (".ts = ", 6, "the end stands where a path, a constant"),
        (".ts = .x |", 11, "the end stands where a path"),
        ("ts = .x", 1, "ts stands where a path"),
        (".ts == 1", 5, '== stands where "=" should'),
        (".ts = tonumber(.x", 18, 'the end stands where ")" should'),
        (".ts = .x ; .y = 1", 10, "';' means nothing here"),
        (".a = map(.x)", 6, "map stands where"),
        (".a.[0] = 1", 4, "'[' means nothing here"),
        ('."\\q" = 1', 2, "is no JSON string"),
        ("del()", 5, ") stands where a path should"),
        ('if .a == "x" then .b = 1', 25, 'the end stands where "end" should'),
        (".a = " + "tostring(" * 40 + ".b" + ")" * 40, 294, "nested more than 32 deep"),
        (".a = 1 .b = 2", 8, '. stands where "|" or the end should'),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, at: int, what: str) -> None:
    with pytest.raises(UsageError) as told:
        Program(text)
    assert f"character {at}:" in str(told.value)
    assert what in str(told.value)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        (".a = 1", b"{", "no JSON: only --python"),
        (".a = 1", b'{"a":"\xff"}', "no JSON: only --python"),
        (".a = 1", b'{"a":NaN}', "no JSON: only --python"),
        (".a = 1", b"[" * 100_000, "no JSON: only --python"),
        (".a = 1", b"[1]", "no JSON object"),
        (".a.b = 1", b'{"a":2}', '.a.b: "a" is no object'),
        (".x = .a.b", b'{"a":2}', "no object"),
        (".a = tonumber(.a)", b'{"a":"x"}', "tonumber()"),
        (".a = tonumber(.a)", b'{"a":"0x10"}', "tonumber()"),
        (".a = tonumber(.a)", b'{"a":true}', "tonumber()"),
        (".a = 1", b'{"b":1e999}', "would be no JSON"),
        (".a = 1", b'{"b":"\\ud800"}', "would be no JSON"),
    ],
)
def test_a_line_it_cannot_mend(text: str, line: bytes, what: str) -> None:
    with pytest.raises(CannotMend) as told:
        Program(text)(line)
    assert what in str(told.value)


@given(objects, values)
def test_assigning_and_deleting(before: dict[str, object], value: object) -> None:
    line = json.dumps({**before, "from": value}).encode()
    assert json.loads(Program(".to = .from | del(.from)")(line)) == {**{k: v for k, v in before.items() if k != "from"}, "to": value}


@given(st.text(alphabet='.abdelifthn="\\1|()= !,x') | st.text())
def test_any_text_is_a_program_or_one_line(text: str) -> None:
    with suppress(UsageError):
        Program(text)


def test_a_mistake_is_one_line_whatever_is_in_it() -> None:
    with pytest.raises(UsageError) as told:
        Program('.a "x\n\x1b"')
    assert str(told.value).isprintable()
    with pytest.raises(UsageError, match="too many digits"):
        Program(f".a = {'1' * 5_000}")


@given(st.binary() | objects.map(lambda event: json.dumps(event).encode()))
def test_any_line_is_mended_or_told(line: bytes) -> None:
    with suppress(CannotMend):
        Program(".a.b = tostring(.c) | if .d != true then .e = tonumber(.f) end")(line)


def test_numbers_without_end_are_no_crash() -> None:
    with pytest.raises(CannotMend):
        Program(".a = tonumber(.a)")(json.dumps({"a": "1" * 5_000}).encode())
