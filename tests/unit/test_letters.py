"""Dead letters that go elsewhere than the alerts: to a bucket, in order, each once; or to files beside a topic of actions."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from keystone.actors.outputs import Delivery, Letters, LocalOutput, WithLetters
from keystone.errors import StoreUnavailable
from keystone.events import DeadLetter
from keystone.letter_batch import LetterBatch
from keystone.sinks import letter_objects
from keystone.sinks.letter_objects import LetterObjects
from keystone.sinks.ndjson import dead_letter_line
from keystone.store import Store, open_store

numbers = itertools.count()


class Moody:
    """A store that fails while it ``is_away``."""

    def __init__(self, store: Store) -> None:
        self._store, self.is_away, self.tries = store, False, 0

    def put(self, name: str, parts: Any) -> None:
        self.tries += 1
        if self.is_away:
            raise StoreUnavailable("away")
        self._store.put(name, parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Moody:
    monkeypatch.setattr(letter_objects, "AGE_MAX_S", 0.05)
    monkeypatch.setattr(letter_objects, "RETRY_EVERY_S", 0.01)
    monkeypatch.setattr(letter_objects, "LOOK_EVERY_S", 0.01)
    return Moody(open_store(f"memory://letters-{next(numbers)}"))


@pytest.fixture
def letters(store: Moody) -> Iterator[LetterObjects]:
    objects = LetterObjects(store, "memory://", "x-")  # type: ignore[arg-type]
    yield objects
    objects.close()


def letter(offset: int, partition: int = 5) -> DeadLetter:
    return DeadLetter(partition, offset, 2, "invalid_json", 1, b"{")


def there(store: Moody) -> list[tuple[int, int]]:
    lines = [line for name in store.names("x-") for line in bytes(store.get(name)).splitlines()]
    return [(row["partition"], row["offset"]) for row in map(orjson.loads, lines)]


def delivery(offset: int, *letters: DeadLetter, partition: int = 5) -> Delivery:
    return Delivery(partition, offset, [], [], [], LetterBatch.of(letters))


def until(claim: Any) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_letters_are_in_the_bucket_before_a_delivery_is_finished(store: Moody, letters: LetterObjects) -> None:
    store.is_away = True
    output = WithLetters(LocalOutput(None, None), letters)
    output.own({5: 8}, [])
    output.send(delivery(1))
    output.send(delivery(2, letter(1), letter(2)))
    output.send(delivery(3))
    until(lambda: store.tries >= 3)
    assert [done.next_offset for done in output.finished()] == [1]
    assert output.pending() == 2
    store.is_away = False
    until(lambda: output._tickets[0].is_done)  # type: ignore[union-attr]
    assert [done.next_offset for done in output.finished()] == [2, 3]
    assert there(store) == [(5, 1), (5, 2)]
    assert store.names("") == [f"x-p00005-e00000008-{2:020d}-{2:08d}.ndjson"]
    output.send(delivery(4, letter(3)))
    assert output.flush()
    assert there(store) == [(5, 1), (5, 2), (5, 3)]
    output.close()


def test_who_takes_over_leaves_out_what_is_there(store: Moody, letters: LetterObjects) -> None:
    letters.own(5, 1)
    letters.write(5, LetterBatch.of([letter(1), letter(2)]))
    assert letters.flush(20)
    other = LetterObjects(store, "memory://", "x-")  # type: ignore[arg-type]
    other.own(5, 2)
    other.own(6, 1)
    assert other.write(5, LetterBatch.of([letter(1), letter(2)])) is None
    assert other.write(5, LetterBatch.of([letter(2), letter(3)])) is not None
    assert other.write(6, LetterBatch.of([letter(1, 6)])) is not None
    assert other.flush(20)
    other.close()
    assert sorted(there(store)) == [(5, 1), (5, 2), (5, 3), (6, 1)]


def test_large_objects_are_cut_and_what_is_held_is_bounded(store: Moody, letters: LetterObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(dead_letter_line(letter(1), per_line=False))
    monkeypatch.setattr(letter_objects, "AGE_MAX_S", 100.0)
    monkeypatch.setattr(letter_objects, "OBJECT_BYTES_MAX", 3 * size)
    monkeypatch.setattr(letter_objects, "HELD_BYTES_MAX", 7 * size)
    letters.own(5, 1)
    for offset in range(1, 10):  # waits for room where there is none
        letters.write(5, LetterBatch.of([letter(offset)]))
    until(lambda: len(store.names("")) == 3)
    assert there(store) == [(5, offset) for offset in range(1, 10)]
    assert letters._held_bytes == 0


def test_what_is_let_go_of_keeps_nobody_waiting(store: Moody, letters: LetterObjects) -> None:
    store.is_away = True
    output = WithLetters(LocalOutput(None, None), letters)
    output.own({5: 1, 6: 1}, [])
    output.send(delivery(1, letter(1)))
    output.send(delivery(2, letter(1, 6), partition=6))
    until(lambda: store.tries >= 2)
    output.disown(5)
    store.is_away = False
    assert output.flush()
    assert [done.next_offset for done in output.finished()] == [1, 2]
    assert (6, 1) in there(store)
    output.close()


def test_files_beside_a_topic_of_actions(tmp_path: Path) -> None:
    """A topic of actions alone takes no dead letters: they would be nowhere."""
    output = WithLetters(LocalOutput(None, None), Letters(tmp_path, "x-"))
    output.own({5: 1}, [])
    output.send(delivery(1, letter(0)))
    assert len(list(output.finished())) == 1
    assert [orjson.loads(line)["offset"] for path in tmp_path.glob("x-*.ndjson") for line in path.read_bytes().splitlines()] == [0]
    output.close()
