"""Fixtures that start real search servers, once they are asked for; tests that ask carry the mark ``search`` by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.search_server import FLAVORS, SearchServer, can_run

STARTING = {"search", "search_server"}
#: OpenSearch needs nothing; the others are there where their Java is (.ci/run installs one for Elasticsearch 8).
RUNNABLE = tuple(flavor for flavor in FLAVORS if can_run(flavor))


def mark_search(items: list[pytest.Item]) -> None:
    """``make test-fast`` starts no server, even if somebody forgets the mark."""
    for item in items:
        if isinstance(item, pytest.Function) and STARTING & set(item.fixturenames):
            item.add_marker(pytest.mark.search)


@pytest.fixture(scope="session", params=RUNNABLE)
def search(request: pytest.FixtureRequest) -> Iterator[SearchServer]:
    """One server of each kind that runs here, for all tests: they leave it running, and empty."""
    with SearchServer(request.param) as server:
        yield server


@pytest.fixture
def search_server() -> Iterator[Callable[..., SearchServer]]:
    """Starts a server of the test's own, which it may break, as ``SearchServer`` takes it."""
    with ExitStack() as servers:
        yield lambda *args, **options: servers.enter_context(SearchServer(*args, **options))
