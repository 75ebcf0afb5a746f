"""``dead_letters.bytes_max``: a flood fills nothing past it, and what is not kept is counted and marked."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.actors.outputs import Letters
from keystone.audit.places import is_not_kept
from keystone.config import Config, KafkaConfig
from keystone.events import DeadLetter
from keystone.letter_batch import LetterBatch
from keystone.sinks import letters_limit
from keystone.sinks.letter_objects import LetterObjects
from keystone.sinks.letters_limit import LINE_BYTES, LettersLimit
from keystone.sinks.letters_read import open_letters
from keystone.sinks.ndjson import NOT_KEPT, dead_letter_line
from keystone.store import open_store
from tests.letters import letter

numbers = itertools.count()


def flood(first: int, count: int, partition: int = 0) -> LetterBatch:
    return LetterBatch.of(letter(n, b"x" * 300, ("invalid_json", "bad_type")[n % 2], partition=partition) for n in range(first, first + count))


@given(st.integers(0, 1 << 62), st.integers(0, 1 << 40), st.binary(max_size=5_000))
def test_a_line_is_no_larger_than_it_is_reckoned(offset: int, line: int, raw: bytes) -> None:
    found = DeadLetter(99_999, offset, line, "not_an_object", len(raw), raw)
    assert len(dead_letter_line(found, per_line=False)) <= len(raw) * 4 // 3 + LINE_BYTES


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 400), max_size=5)), max_size=20),
    st.integers(0, 4_000),
    st.sets(st.integers(0, 19)),
)
def test_the_audit_finds_none_missing_whatever_comes(steps: list[tuple[int, list[int]]], bytes_max: int, moves: set[int]) -> None:
    limit = LettersLimit(bytes_max)
    for partition in range(3):
        limit.own(partition, 0)
    all_: dict[int, list[DeadLetter]] = {0: [], 1: [], 2: []}
    written: dict[int, list[DeadLetter]] = {0: [], 1: [], 2: []}
    for at, (partition, sizes) in enumerate(steps):
        if at in moves:
            limit.disown(partition)
            limit.own(partition, 0)
        some = [letter(len(all_[partition]) + n, b"x" * size, "bad_type", partition=partition) for n, size in enumerate(sizes)]
        all_[partition] += some
        written[partition] += limit.kept(partition, LetterBatch.of(some))
    for partition, found in written.items():
        markers = {one.offset for one in found if one.reason == NOT_KEPT}
        kept = {one.offset for one in found if one.reason != NOT_KEPT}
        missing = [one.offset for one in all_[partition] if one.offset not in kept]
        as_places = (np.array([(offset, 0, 0) for offset in sorted(some)], np.int64).reshape(-1, 3) for some in (missing, kept, markers))
        assert is_not_kept(*as_places).all()
        assert not markers & kept
    assert limit.not_kept.total() == sum(map(len, all_.values())) - sum(one.reason != NOT_KEPT for some in written.values() for one in some)


def test_files_stay_within_the_limit_also_over_owners(tmp_path: Path) -> None:
    limit = LettersLimit(100_000)
    letters = Letters(tmp_path, "x-", limit)
    letters.own(0, 1)
    for first in range(0, 1_000, 100):
        letters.write(0, flood(first, 100))
    letters.close()
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 80_000 < size < 101_000
    kept = [found for found in open_letters(str(tmp_path), KafkaConfig()).letters() if found.reason != NOT_KEPT]
    assert limit.not_kept.total() + len(kept) == 1_000
    assert limit.not_kept["invalid_json"] + sum(found.reason == "invalid_json" for found in kept) == 500

    limit = LettersLimit(100_000)
    letters = Letters(tmp_path, "x-", limit)
    letters.own(0, 2)  # what is there counts, so that restarts fill no disk either
    letters.write(0, flood(1_000, 1_000))
    letters.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 101_000
    marked = [found.place.offset for found in open_letters(str(tmp_path), KafkaConfig()).letters() if found.reason == NOT_KEPT]
    assert marked[0] == len(kept)
    assert limit.not_kept.total() >= 950


def test_the_markers_have_room_in_the_limit() -> None:
    limit = LettersLimit(1_000)
    for partition in (0, 1):
        limit.own(partition, 0)
    some = [LetterBatch.of(letter(n, b"", "bad_type", partition=partition) for n in range(9)) for partition in (0, 1)]
    kept = [one for partition in (0, 1) for one in limit.kept(partition, some[partition])]
    assert [one.reason == NOT_KEPT for one in kept] == [False] * 4 + [True] * 2
    assert len(kept) * LINE_BYTES <= 1_000


def test_files_stay_within_the_limit_however_often_a_run_is_started(tmp_path: Path) -> None:
    """The marker has room in it, and is not said again by each owner."""
    for epoch in range(1, 40):
        letters = Letters(tmp_path, "x-", LettersLimit(2_000))
        for partition in (0, 1):
            letters.own(partition, epoch)
        for partition in (0, 1):
            letters.write(partition, flood(epoch * 100, 100, partition))
        letters.close()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2_000
    markers = [found.place.partition for found in open_letters(str(tmp_path), KafkaConfig()).letters() if found.reason == NOT_KEPT]
    assert Counter(markers) == {0: 1, 1: 1}


def test_a_partition_given_away_makes_room(tmp_path: Path) -> None:
    limit = LettersLimit(60_000)
    letters = Letters(tmp_path, "x-", limit)
    letters.own(0, 1)
    letters.own(1, 1)
    letters.write(0, flood(0, 200))
    letters.write(1, flood(0, 10, partition=1))
    letters.disown(0)
    letters.write(1, flood(10, 10, partition=1))
    letters.close()
    found = list(open_letters(str(tmp_path), KafkaConfig()).letters(1))
    assert [(one.place.offset, one.reason == NOT_KEPT) for one in found] == [(0, True), *((n, False) for n in range(10, 20))]


def test_a_bucket_is_not_filled_and_nobody_waits_for_what_is_left_out() -> None:
    url = f"memory://letters-limit-{next(numbers)}/x"
    limit = LettersLimit(20_000)
    with closing(LetterObjects(open_store(url), url, "0f-", limit)) as objects:
        objects.own(0, 1)
        assert objects.write(0, flood(0, 100)) is not None
        assert objects.write(0, flood(100, 100)) is None
        assert objects.flush(10)
    found = list(open_letters(url, KafkaConfig()).letters())
    assert found[-1].reason == NOT_KEPT
    assert sum(len(one.raw) for one in found) < 20_000
    assert len(found) - 1 + limit.not_kept.total() == 200


def test_one_warning_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Counter[str]] = []
    now = [1_000.0]
    monkeypatch.setattr(letters_limit, "log", SimpleNamespace(warning=lambda *_, **given: told.append(given["by_reason"])))
    monkeypatch.setattr(letters_limit.time, "monotonic", lambda: now[0])
    limit = LettersLimit(0)
    for _ in range(130):
        limit.kept(0, flood(0, 10))
        now[0] += 1
    assert [sum(some.values()) for some in told] == [10, 600, 600]


def test_the_default_is_a_gibibyte_and_none_is_possible() -> None:
    assert Config().dead_letters.bytes_max == 1 << 30
    assert [one.reason for one in LettersLimit(0).kept(0, flood(3, 2))] == [NOT_KEPT]
