"""What all tests share: how hypothesis searches, and that no setting of the person who runs them leaks in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.browser import browser, mark_browser
from tests.examples import FAST, FAST_MAX
from tests.kafka_fixtures import kafka, kafka_cluster, mark_kafka, secure_kafka, topic_name
from tests.lake_fixtures import empty_lake, lake, tables
from tests.s3_fixtures import bucket, mark_s3, own_s3, proxied, s3
from tests.search_fixtures import mark_search, search, search_server
from tests.sharing import Sharing, at_its_time

__all__ = [
    "browser", "bucket", "empty_lake", "kafka", "kafka_cluster", "lake", "own_s3", "proxied", "s3", "search", "search_server", "secure_kafka", "tables",
    "topic_name",
]  # fmt: skip

# No deadline: this machine may be busy, and time is judged by the benchmarks. In CI the same examples every time.
settings.register_profile("person", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile(FAST, deadline=None, max_examples=FAST_MAX)  # --hypothesis-profile=fast
settings.load_profile("ci" if os.environ.get("CI") else "person")

# Ray gives its workers a niceness of 15: beside a test that computes they would get 3 % of a core, and a run's actors miss every limit.
os.environ.update(RAY_worker_niceness="0")


@pytest.hookimpl(tryfirst=True)  # before the one that deselects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for a real server is marked so."""
    mark_browser(items)
    mark_kafka(items)
    mark_s3(items)
    mark_search(items)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing | None:
    return Sharing(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the clock of pytest-timeout starts: a test does not answer for its waiting
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with at_its_time(item):
        return (yield)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of tests/simulation: which schedules to run."""
    parser.addoption("--schedules", type=int, default=1_000, help="simulated schedules, by default 1,000")
    parser.addoption("--first-seed", type=int, default=0, help="of the simulated schedules")


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch):
    """Variables that name settings would change what tests see; where kernels are kept is no such thing."""
    for name in tuple(os.environ):
        if name.startswith("KEYSTONE_") and name != "KEYSTONE_CACHE_DIR":
            monkeypatch.delenv(name)
