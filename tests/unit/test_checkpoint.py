"""Checkpoints: what is saved comes back, the newest first; versions, damage, epochs, and the seed."""

from __future__ import annotations

import itertools
import logging
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone import checkpoint as module
from keystone import checkpoint_format as framing
from keystone.checkpoint import EPOCHS_KEPT, Checkpoint, Checkpoints, key_of
from keystone.errors import CheckpointDamaged, Fenced, StoreUnavailable, UsageError
from keystone.metrics import Ledger
from keystone.session_snapshot import SCHEMA
from keystone.store import Buffer, Store, open_store
from tests.checkpoints import segment
from tests.examples import examples

numbers = itertools.count()


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://checkpoint-{next(numbers)}")


def made(epoch: int = 1, sequence: int = 0, *, partition: int = 3, **fields: Any) -> Checkpoint:
    arrays = {"rows": np.arange(1000) + sequence, "text": np.frombuffer(b"abc", np.uint8), "none": np.zeros(0, np.uint16)}
    whole: dict[str, Any] = {"segments": (segment(5), segment(6)), "committed": 5, "log_id": "log", "arrays": arrays, "counters": {"dead": {"x": 3}}}
    whole |= {"next_offset": 70, "log_time_ms": 1_790_000_000_000, "ledger": Ledger(received=7, accepted=7, applied=7)}
    return Checkpoint(partition, epoch, sequence, **(whole | fields))


def same(left: Checkpoint | None, right: Checkpoint) -> bool:
    assert left is not None
    arrays = left.arrays.keys() == right.arrays.keys() and all(np.array_equal(left.arrays[name], array) for name, array in right.arrays.items())
    dtypes = all(left.arrays[name].dtype == array.dtype for name, array in right.arrays.items()) if arrays else False
    return left.to_json() == right.to_json() and arrays and dtypes


# --- the bytes --------------------------------------------------------------------------------------------------------
dtypes = st.sampled_from([np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float64])
arrays = st.dictionaries(st.text(max_size=9), st.tuples(dtypes, st.integers(0, 200)).map(lambda kind: np.arange(kind[1]).astype(kind[0])), max_size=5)


@given(arrays=arrays, fields=st.dictionaries(st.text(max_size=5), st.integers(-(2**63), 2**63 - 1) | st.text(max_size=70)))
def test_fields_and_arrays_come_back(arrays: framing.Arrays, fields: dict[str, Any]) -> None:
    content = b"".join(framing.encode(fields, arrays, schema=9))
    head, found = framing.decode(memoryview(content))
    assert (head.fields, head.schema, head.size) == (fields, 9, len(content))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].tolist()) == (array.dtype, array.tolist())


def test_arrays_are_read_only_views_and_aligned_in_the_object() -> None:
    wide = np.arange(20)
    content = np.frombuffer(b"".join(framing.encode({}, {"a": np.ones(3, np.uint8), "b": wide, "big": wide.astype(">i8")}, schema=1)), np.uint8).copy()
    _, found = framing.decode(content.data)
    assert all(np.shares_memory(array, content) and not array.flags.writeable for array in found.values())
    for array in found.values():
        assert (array.__array_interface__["data"][0] - content.__array_interface__["data"][0]) % framing.ALIGNMENT == 0
    assert found["big"].tolist() == wide.tolist()
    assert found["big"].dtype.str == "<i8"


@pytest.mark.parametrize("array", [np.zeros((2, 2)), np.array(["a"]), np.array([None]), np.zeros(2, np.complex128)])
def test_other_arrays_are_not_kept(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one of numbers is kept"):
        framing.encode({}, {"a": array}, schema=1)


def test_a_head_is_read_without_the_arrays(store: Store) -> None:
    checkpoints = Checkpoints(store)
    epoch = checkpoints.claim(key_of(3), "me")
    large = made(epoch, arrays={"rows": np.arange(1 << 20)})
    assert checkpoints.save(large) > 8 << 20
    read: list[int] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def get(self, name: str) -> memoryview:
            raise AssertionError("all of it is read")

        def get_range(self, name: str, start: int, size: int) -> memoryview:
            content = store.get_range(name, start, size)
            read.append(len(content))
            return content

    found = Checkpoints(Watched()).header(3)
    assert found is not None
    assert (found.to_json(), found.arrays) == (large.to_json(), {})
    assert sum(read) <= framing.HEAD_BYTES + 1


def test_a_head_with_many_segments(store: Store) -> None:
    checkpoints = Checkpoints(store)
    long = made(checkpoints.claim(key_of(3), "me"), segments=tuple(segment(5 + k, files=3) for k in range(300)))
    checkpoints.save(long)
    assert same(checkpoints.latest(3), long)
    found = checkpoints.header(3)
    assert found is not None
    assert found.segments == long.segments


# --- which one --------------------------------------------------------------------------------------------------------
def test_the_newest_is_of_the_highest_epoch_then_sequence(store: Store) -> None:
    checkpoints = Checkpoints(store, keep=100)
    assert checkpoints.latest(3) is checkpoints.header(3) is None
    assert checkpoints.partitions() == []
    for epoch in range(1, 4):
        assert checkpoints.claim(key_of(3), "me") == epoch
        for sequence in (0, 9, 10, 99_999_999, 100_000_000):
            checkpoints.save(made(epoch, sequence))
            assert same(checkpoints.latest(3), made(epoch, sequence))
    assert checkpoints.latest(4) is None
    checkpoints.claim(key_of(12), "me")
    checkpoints.save(made(1, partition=12))
    assert checkpoints.partitions() == [3, 12]


def test_older_ones_are_swept(store: Store) -> None:
    checkpoints = Checkpoints(store, keep=3)
    for _ in range(2):
        epoch = checkpoints.claim(key_of(3), "me")
        for sequence in range(4):
            checkpoints.save(made(epoch, sequence))
    kept = [f"checkpoints/p00003/e00000002-0000000{sequence}" for sequence in (1, 2, 3)]
    assert store.names("checkpoints/") == kept


def test_those_that_vanish_while_they_are_looked_at_are_looked_for_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(store)
    epoch = checkpoints.claim(key_of(3), "me")
    checkpoints.save(made(epoch, 0))
    get, last = store.get, made(epoch, 1)

    def swept(name: str) -> memoryview:
        if name.endswith("-00000000"):
            checkpoints.save(last)
            store.delete([name])
        return get(name)

    monkeypatch.setattr(store, "get", swept)
    assert same(checkpoints.latest(3), last)


def test_a_damaged_one_is_passed_over_and_told_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "keystone.checkpoint")
    checkpoints = Checkpoints(store)
    epoch = checkpoints.claim(key_of(3), "me")
    for sequence in range(3):
        checkpoints.save(made(epoch, sequence))
    content = bytes(store.get(made(epoch, 2).name))
    store.put(made(epoch, 2).name, [content[:-1]])
    store.put(made(epoch, 1).name, [content[:9], b"?", content[10:]])
    for _ in range(2):
        assert same(checkpoints.latest(3), made(epoch, 0))
        found = checkpoints.header(3)
        assert found is not None
        assert found.sequence == 0
    told = [record for record in caplog.records if record.name == "keystone.checkpoint"]
    assert len(told) == 2
    store.delete([made(epoch, 0).name])
    with pytest.raises(UsageError, match="all damaged: bring one back from a backup, or remove them"):
        checkpoints.latest(3)


def test_one_under_anothers_name_is_damaged(store: Store) -> None:
    checkpoints = Checkpoints(store)
    epoch = checkpoints.claim(key_of(3), "me")
    checkpoints.save(made(epoch, 0))
    store.put(made(epoch, 7).name, [store.get(made(epoch, 0).name)])
    assert same(checkpoints.latest(3), made(epoch, 0))


def test_another_logs_is_refused() -> None:
    made(log_id="a").require_log("a")
    with pytest.raises(UsageError, match="belongs to the log a, not to b"):
        made(log_id="a").require_log("b")


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": -1},
        {"epoch": True},
        {"next_offset": "7"},
        {"ledger": {}},
        {"ledger": None},
        {"segments": None},
        {"segments": [{}]},
        {"counters": []},
        {"log_id": 7},
        {"more": 1},
    ],
)
def test_fields_that_are_no_checkpoints_are_refused(wrong: dict[str, Any]) -> None:
    whole = made().to_json()
    assert same(Checkpoint.from_json(whole, made().arrays), made())
    with pytest.raises(CheckpointDamaged):
        Checkpoint.from_json(whole | wrong, {})


# --- versions ---------------------------------------------------------------------------------------------------------
def written(store: Store, monkeypatch: pytest.MonkeyPatch, **versions: int) -> Checkpoints:
    """A checkpoint as another version of the program would write it."""
    checkpoints = Checkpoints(store)
    epoch = checkpoints.claim(key_of(3), "me")
    with monkeypatch.context() as patch:
        patch.setattr(framing, "FORMAT", versions.get("format", framing.FORMAT))
        patch.setattr(module, "SCHEMA", versions.get("schema", SCHEMA))
        checkpoints.save(made(epoch))
    return checkpoints


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"format": framing.FORMAT + 1}, r"e00000001-00000000: it was written by a newer version \(format 2, this one reads 1\): use that version"),
        ({"format": 0}, r"older version \(format 0, this one reads 1\)"),
        ({"schema": SCHEMA + 1}, rf"newer version \(schema {SCHEMA + 1}, this one reads {SCHEMA}\): use that version, or another directory"),
        ({"schema": 0}, rf"older version \(schema 0, this one reads {SCHEMA}\)"),
    ],
)
def test_another_versions_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch, versions: dict[str, int], message: str) -> None:
    """Also where an older readable one is left: what was written since would be lost without a word."""
    checkpoints = written(store, monkeypatch, **versions)
    for read in (checkpoints.latest, checkpoints.header):
        with pytest.raises(UsageError, match=message):
            read(3)


def test_an_older_schema_is_migrated_step_by_step(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCHEMA", 7)
    checkpoints = written(store, monkeypatch, schema=5)

    def renames(fields: dict[str, Any], arrays: framing.Arrays) -> tuple[dict[str, Any], framing.Arrays]:
        return fields | {"log_id": f"{fields['log_id']} 6"}, {f"{name} 6": array for name, array in arrays.items()}

    def doubles(fields: dict[str, Any], arrays: framing.Arrays) -> tuple[dict[str, Any], framing.Arrays]:
        return fields | {"log_id": f"{fields['log_id']} 7"}, {name: array * 2 for name, array in arrays.items()}

    monkeypatch.setitem(module.MIGRATIONS, 5, renames)
    monkeypatch.setitem(module.MIGRATIONS, 6, doubles)
    found, head = checkpoints.latest(3), checkpoints.header(3)
    assert found is not None
    assert head is not None
    assert found.log_id == head.log_id == "log 6 7"
    assert found.arrays["rows 6"].tolist() == (np.arange(1000) * 2).tolist()


# --- epochs -----------------------------------------------------------------------------------------------------------
def test_each_claim_is_the_next_epoch_and_fences_those_before(store: Store) -> None:
    first, second = Checkpoints(store), Checkpoints(store)
    assert first.current("p00003") == 0
    assert [first.claim("p00003", "a"), second.claim("p00003", "b")] == [1, 2]
    assert first.claim("committer", "c") == 1
    second.check("p00003", 2)
    with pytest.raises(Fenced, match="p00003 belongs to epoch 2 now, this was its owner in epoch 1") as caught:
        first.check("p00003", 1)
    carried = pickle.loads(pickle.dumps(caught.value))  # as an actor's answer is
    assert (carried.key, carried.epoch, carried.current, str(carried)) == ("p00003", 1, 2, str(caught.value))
    with pytest.raises(Fenced):
        first.save(made(1))
    assert store.names("checkpoints/") == []
    with pytest.raises(ValueError, match="no key"):
        first.current("../p00003")


def test_those_who_were_refused_leave_word_and_the_oldest_is_removed(store: Store) -> None:
    checkpoints = Checkpoints(store)
    assert checkpoints.refused() == set()
    for number in range(EPOCHS_KEPT + 3):
        checkpoints.note_refused(f"session-{number}", Fenced("p00003", 1, 2), 1_790_000_000_000 + number)
    found = sorted(checkpoints.refused())
    assert len(found) == EPOCHS_KEPT
    assert (found[0].rpartition("-")[2], found[-1].rpartition("-")[2]) == ("3", str(EPOCHS_KEPT + 2))
    assert b"p00003" in bytes(store.get(found[0]))
    assert checkpoints.partitions() == []


def test_who_loses_the_partition_while_writing_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is there, and may be restored from; but the old owner must not rely on it."""
    checkpoints = Checkpoints(store, keep=1)
    checkpoints.claim(key_of(3), "a")
    checkpoints.save(made(1, 0))
    put = store.put

    def loses(name: str, parts: list[Buffer]) -> None:
        put(name, parts)
        checkpoints.claim(key_of(3), "b")

    monkeypatch.setattr(store, "put", loses)
    with pytest.raises(Fenced):
        checkpoints.save(made(1, 1))
    assert store.names("checkpoints/") == [made(1, 0).name, made(1, 1).name]  # nothing swept by who is fenced
    assert same(checkpoints.latest(3), made(1, 1))


@pytest.mark.slow
def test_old_epochs_are_removed_and_never_won_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(store)
    for epoch in range(1, EPOCHS_KEPT + 10):
        assert checkpoints.claim("p00003", "me") == epoch
    assert len(store.names("epochs/")) == EPOCHS_KEPT
    look, stale = Checkpoints.current, [0]  # what it saw before it stood still: epoch 1 is free again
    monkeypatch.setattr(Checkpoints, "current", lambda self, key: stale.pop() if stale else look(self, key))
    assert checkpoints.claim("p00003", "late") == EPOCHS_KEPT + 10


def test_a_sweep_that_fails_is_told_and_left_to_the_next(store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "keystone.checkpoint")
    checkpoints = Checkpoints(store, keep=1)
    epoch = checkpoints.claim(key_of(3), "me")
    checkpoints.save(made(epoch, 0))

    def fails(names: list[str]) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", fails)
        assert checkpoints.save(made(epoch, 1)) > 0
    assert len(store.names("checkpoints/")) == 2
    assert [record.getMessage() for record in caplog.records if record.name == "keystone.checkpoint"] != []
    checkpoints.save(made(epoch, 2))
    assert store.names("checkpoints/") == [made(epoch, 2).name]


# --- the seed ---------------------------------------------------------------------------------------------------------
def test_the_seed_is_the_same_for_everybody(store: Store) -> None:
    assert Checkpoints(store).seed() == Checkpoints(store).seed() > 0
    assert Checkpoints(open_store(f"memory://checkpoint-{next(numbers)}")).seed() != Checkpoints(store).seed()


def test_of_seeds_drawn_at_once_one_is_everybodys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put_new, others = store.put_new, []

    def second(name: str, parts: list[Buffer]) -> bool:
        monkeypatch.setattr(store, "put_new", put_new)
        others.append(Checkpoints(store).seed())
        return put_new(name, parts)

    monkeypatch.setattr(store, "put_new", second)
    assert [Checkpoints(store).seed()] == others


@settings(max_examples=examples(200))
@given(at=st.integers(0, 54), flip=st.integers(1, 255))
def test_a_damaged_seed_is_refused(at: int, flip: int) -> None:
    store = open_store("memory://damaged-seed")
    store.delete(["seed"])
    Checkpoints(store).seed()
    content = bytearray(store.get("seed"))
    content[at % len(content)] ^= flip
    store.put("seed", [content])
    with pytest.raises(UsageError, match="seed is damaged"):
        Checkpoints(store).seed()
