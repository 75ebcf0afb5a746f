"""The store in memory passes the suite."""

from __future__ import annotations

import itertools

import pytest

from keystone.store import Store, open_store
from tests.conformance.store_suite import StoreSuite

numbers = itertools.count()


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def store(self) -> Store:
        self.url = f"memory://conformance-{next(numbers)}/below"
        return open_store(self.url)

    def again(self, store: Store) -> Store:
        return open_store(self.url)


def test_prefixes_are_stores_of_their_own() -> None:
    outer, inner, beside = (open_store(f"memory://prefixes{prefix}") for prefix in ("", "/a", "/ab"))
    inner.put("x", [b"1"])
    beside.put("x", [b"2"])
    assert (outer.names(""), inner.names(""), beside.names("")) == (["a/x", "ab/x"], ["x"], ["x"])
    assert open_store("memory://others").names("") == []
