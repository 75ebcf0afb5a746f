"""The decoder agrees with the standard library's parser, made strict, on everything; cutting the bytes differently changes nothing."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone.decode import Decoder
from keystone.events import DICTIONARY_COLUMNS, INT_COLUMNS, Records
from tests import corpus
from tests.decoding import decode_lines, event_of, expected_lines
from tests.examples import examples

NAMES = ("event", "ts", "device_id", "session_id", "fatal", "user_id", *DICTIONARY_COLUMNS[1:], *INT_COLUMNS)


def assert_same(text: bytes, decoder: Decoder) -> None:
    found, expected = decode_lines(text, decoder), expected_lines(text)
    assert found.keys() == expected.keys()
    lines = text.split(b"\n")
    for number, outcome in expected.items():
        assert found[number] == outcome, (number, lines[number][:2000])


def test_corpus_is_large_enough() -> None:
    assert len(set(corpus.ALL)) >= 150


@pytest.mark.slow
@pytest.mark.parametrize("order", range(3))
def test_corpus(order: int) -> None:
    """The whole corpus in one text, three times over: learned spelling from one line meets every other line."""
    lines = corpus.SMALL * 3
    random.Random(order).shuffle(lines)
    assert_same(b"\n".join(lines), Decoder(rows_max=64, seed=order))


@pytest.mark.slow
def test_corpus_of_large_lines() -> None:
    assert_same(b"\n".join(corpus.SIZES), Decoder(seed=1))


@pytest.mark.parametrize("line", corpus.SMALL)
def test_each_line_alone_and_without_line_feed(line: bytes) -> None:
    assert_same(line, DECODER)


DECODER = Decoder(seed=7)  # keeps what it learns over all tests, as a long run does

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=40),
    st.sampled_from(["Start", "startup", "d", ""]),
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=5)
names = st.sampled_from(NAMES) | st.text(max_size=12) | st.sampled_from([n.upper() for n in NAMES])
good = st.fixed_dictionaries(
    {
        "event": st.sampled_from(["Start", "Heartbeat", "BUFFER", "stop", "Error", "Ad"]),
        "ts": st.integers(0, 2**53 - 1),
        "device_id": st.text(max_size=20),
        "session_id": st.text(max_size=40),
    }
)
spacing = st.sampled_from([(",", ":"), (", ", ": "), (" ,", " :\t"), (",\r", ":")])


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A JSON object with repeated keys, any order, any spacing, escaped or not."""
    members: list[tuple[str, Any]] = list(draw(good).items())
    members += draw(st.lists(st.tuples(names, values), max_size=8))
    members = draw(st.permutations(members))
    comma, colon = draw(spacing)
    ascii_only = draw(st.booleans())

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, separators=(comma, colon))

    return ("{" + comma.join(text(k) + colon + text(v) for k, v in members) + "}").encode("utf-8", "surrogatepass")


@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None)
@given(st.lists(lines(), min_size=1, max_size=8))
def test_objects_decode_as_the_reference_does(batch: list[bytes]) -> None:
    assert_same(b"\n".join(batch), DECODER)


@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.tuples(lines(), st.integers(0, 400), st.binary(min_size=1, max_size=3)), min_size=1, max_size=5))
def test_broken_objects_decode_as_the_reference_does(batch: list[tuple[bytes, int, bytes]]) -> None:
    broken = []
    for line, where, junk in batch:
        at = where % (len(line) + 1)
        broken += [line, line[:at] + junk + line[at + len(junk) :], line[:at] + junk + line[at:], line[:at] + line[at + 1 :]]
    assert_same(b"\n".join(broken), DECODER)


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.binary(max_size=60) | st.text('{}[],:"\\u0e1-+.truefalsn \t\r', max_size=40).map(str.encode), max_size=10))
def test_any_bytes(batch: list[bytes]) -> None:
    assert_same(b"\n".join(batch), DECODER)


@pytest.mark.slow
@settings(max_examples=examples(60), deadline=None)
@given(st.lists(lines(), min_size=1, max_size=12), st.integers(1, 5), st.lists(st.integers(0, 12), max_size=6))
def test_batch_cuts_change_nothing(batch: list[bytes], rows_max: int, cuts: list[int]) -> None:
    whole = decode_lines(b"\n".join(batch), Decoder(seed=3))
    assert decode_lines(b"\n".join(batch), Decoder(seed=4, rows_max=rows_max)) == whole
    edges = sorted({0, len(batch), *(c % len(batch) for c in cuts)})
    frames = [b"\n".join(batch[a:b]) for a, b in pairwise(edges)]
    decoder, found = Decoder(seed=5), {}
    for decoded in decoder.decode(Records.of([*frames, None])):
        for row in range(decoded.batch.rows):
            found[edges[int(decoded.batch.offset[row])] + int(decoded.batch.line[row])] = event_of(decoded.batch, row, decoder)
        for letter in decoded.dead_letters:
            found[edges[letter.offset] + letter.line] = letter.reason
    assert found == whole
