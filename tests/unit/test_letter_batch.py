"""Dead letters by columns are what the letters one by one are, however they are cut and joined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.decode import Decoder
from keystone.events import DEAD_LETTER_BYTES_MAX, PADDING, REASONS, DeadLetter, Records
from keystone.letter_batch import LetterBatch, cut_out
from keystone.sinks.ndjson import dead_letter_line, letter_lines

letters = st.builds(
    DeadLetter,
    partition=st.integers(0, 3),
    offset=st.integers(0, 1 << 60),
    line=st.integers(0, 9),
    reason=st.sampled_from([*REASONS, "not_kept", 'said "no"\n']),
    length=st.integers(0, 1 << 40),
    raw=st.binary(max_size=40),
)
lists = st.lists(letters, max_size=12)


@given(lists, lists, st.slices(12))
def test_a_batch_is_the_sequence_of_its_letters(first: list[DeadLetter], second: list[DeadLetter], part: slice) -> None:
    batch = LetterBatch.of(first) + LetterBatch.of(second)
    given_ = first + second
    assert batch == given_
    assert len(batch) == len(given_)
    assert [batch[at] for at in range(-len(given_), len(given_))] == given_ + given_
    assert batch[part] == given_[part]
    assert LetterBatch.joined([batch[part], batch]) == given_[part] + given_
    assert batch.by_reason() == {reason: count for reason in {one.reason for one in given_} if (count := sum(one.reason == reason for one in given_))}
    assert batch.kept_bytes.tolist() == [len(one.raw) for one in given_]
    assert list(letter_lines(batch, per_line=True)) == [dead_letter_line(one, per_line=True) for one in given_]


@given(lists, st.integers(0, 1 << 60), st.integers(0, 9))
def test_those_behind_a_place(given_: list[DeadLetter], offset: int, line: int) -> None:
    assert LetterBatch.of(given_).behind(offset, line) == [one for one in given_ if (one.offset, one.line) > (offset, line)]


def test_there_is_none_outside() -> None:
    batch = LetterBatch.of([DeadLetter(0, 1, 2, "bad_type", 3, b"abc")])
    for place in (1, -2):
        with pytest.raises(IndexError):
            batch[place]
    assert batch != [DeadLetter(0, 1, 2, "bad_type", 3, b"abd")]
    assert not LetterBatch()
    assert LetterBatch().by_reason() == {}


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=9))
def test_pieces_are_cut_out_one_behind_the_other(pieces: list[tuple[int, int]]) -> None:
    text = np.random.default_rng(1).integers(0, 256, 600 + PADDING).astype(np.uint8)
    starts, sizes = (np.array([piece[k] for piece in pieces], np.int64) for k in (0, 1))
    found, ends = cut_out(text, starts, sizes)
    assert found.tobytes() == b"".join(text[start : start + size].tobytes() for start, size in pieces)
    assert ends.tolist() == np.cumsum(sizes).tolist()


def test_of_a_long_line_the_first_64_kib_are_kept_and_memory_of_the_log_is_let_go_of() -> None:
    long = b"x" * (DEAD_LETTER_BYTES_MAX + 5)
    records = Records.of([b"{\n" + long + b"\n[]"], first_offset=7, append_ts_ms=1)
    (decoded,) = Decoder().decode(records)
    found = list(decoded.dead_letters)
    assert [(one.offset, one.line, one.reason, one.length) for one in found] == [
        (7, 0, "invalid_json", 1), (7, 1, "invalid_json", len(long)), (7, 2, "not_an_object", 2),
    ]  # fmt: skip
    assert [one.raw for one in found] == [b"{", long[:DEAD_LETTER_BYTES_MAX], b"[]"]
    assert not np.shares_memory(decoded.dead_letters.text, records.text)
