"""What every store promises. A module beside this one subclasses it and gives ``store`` a fixture, and ``again``: the same objects, opened anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keystone.store import Store

RACERS = 8
ROUNDS = 20


class StoreSuite(ABC):
    @abstractmethod
    def again(self, store: Store) -> Store:
        """The same store as another process would open it."""

    def test_an_object_comes_back_byte_for_byte(self, store: Store) -> None:
        store.put("a/b-1/c.2", [b"\0\xff", memoryview(b"abc"), b"", bytearray(b"!")])
        assert bytes(store.get("a/b-1/c.2")) == b"\0\xffabc!"
        assert bytes(self.again(store).get("a/b-1/c.2")) == b"\0\xffabc!"

    def test_an_object_may_be_empty(self, store: Store) -> None:
        store.put("nothing", [])
        store.put("nothing at all".replace(" ", "-"), [b"", b""])
        assert bytes(store.get("nothing")) == bytes(store.get("nothing-at-all")) == b""
        assert bytes(store.get_range("nothing", 0, 10)) == b""

    def test_a_put_replaces(self, store: Store) -> None:
        store.put("x", [b"a longer one"])
        store.put("x", [b"short"])
        assert bytes(store.get("x")) == b"short"
        assert store.names("") == ["x"]

    def test_a_put_new_never_replaces(self, store: Store) -> None:
        assert store.put_new("x", [b"first"])
        assert not store.put_new("x", [b"second"])
        assert not self.again(store).put_new("x", [b"third"])
        assert bytes(store.get("x")) == b"first"
        store.put("x", [b"fourth"])
        assert not store.put_new("x", [b"fifth"])
        store.delete(["x"])
        assert store.put_new("x", [b"sixth"])

    def test_of_many_put_news_one_wins(self, store: Store) -> None:
        stores = [self.again(store) for _ in range(RACERS)]
        with ThreadPoolExecutor(RACERS) as pool:
            for turn in range(ROUNDS):
                won = list(pool.map(lambda racer, turn=turn: stores[racer].put_new(f"epochs/{turn}", [b"%d" % racer]), range(RACERS)))
                assert won.count(True) == 1
                assert bytes(store.get(f"epochs/{turn}")) == b"%d" % won.index(True)

    @pytest.mark.slow
    def test_a_reader_sees_one_whole_object(self, store: Store) -> None:
        """While one writer replaces it again and again."""
        size = 300_000
        store.put("x", [bytes(size)])
        reader = self.again(store)
        with ThreadPoolExecutor(1) as pool:
            writes = pool.submit(lambda: [store.put("x", [bytes([turn]) * (size // 2), bytes([turn]) * (size // 2)]) for turn in range(100)])
            while not writes.done():
                seen = bytes(reader.get("x"))
                assert len(seen) == size
                assert len(set(seen)) == 1
            writes.result()

    def test_a_range_ends_where_the_object_does(self, store: Store) -> None:
        store.put("x", [b"0123456789"])
        assert bytes(store.get_range("x", 0, 4)) == b"0123"
        assert bytes(store.get_range("x", 4, 4)) == b"4567"
        assert bytes(store.get_range("x", 8, 4)) == b"89"
        assert bytes(store.get_range("x", 9, 2)) == b"9"
        assert bytes(store.get_range("x", 10, 1)) == bytes(store.get_range("x", 99, 1)) == b""

    def test_what_is_not_there_is_a_key_error(self, store: Store) -> None:
        store.put("a/b", [b"1"])
        for name in ("b", "a", "a/b/c", "a/c"):
            with pytest.raises(KeyError, match=name):
                store.get(name)
            with pytest.raises(KeyError, match=name):
                store.get_range(name, 0, 1)

    def test_names_are_sorted_and_begin_with_the_prefix(self, store: Store) -> None:
        assert store.names("") == store.names("a/") == []
        for name in ("b/1", "a/20", "a/10", "a/100/x", "ab"):
            store.put(name, [b"1"])
        assert store.names("") == ["a/10", "a/100/x", "a/20", "ab", "b/1"]
        assert store.names("a/") == ["a/10", "a/100/x", "a/20"]
        assert store.names("a/10") == ["a/10", "a/100/x"]
        assert store.names("a") == ["a/10", "a/100/x", "a/20", "ab"]
        assert store.names("c/") == store.names("a/3") == []

    def test_deleting_what_is_not_there_is_no_error(self, store: Store) -> None:
        store.put("a/b", [b"1"])
        store.put("a/c", [b"1"])
        store.delete(["a/b", "a/b", "z/y"])
        store.delete([])
        assert store.names("") == ["a/c"]

    def test_large_objects_of_several_parts(self, store: Store) -> None:
        parts = [np.random.default_rng(turn).integers(0, 256, size, np.uint8) for turn, size in enumerate((100, 20 << 20, 0, 7, 13 << 20))]
        store.put("large", [part.data for part in parts])
        assert np.array_equal(np.frombuffer(store.get("large"), np.uint8), np.concatenate(parts))
        assert bytes(store.get_range("large", 98, 4)) == bytes(np.concatenate(parts)[98:102])

    def test_names_that_are_none_are_refused(self, store: Store) -> None:
        for name in ("", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a/.hidden", "a b", "a\0b", "ä", "a\n"):
            with pytest.raises(ValueError, match="no name"):
                store.put(name, [b"1"])
            with pytest.raises(ValueError, match="no name"):
                store.get(name)
