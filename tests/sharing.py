"""How the processes of ``make test`` share the tests (``pytest -n``): what stays together in one of them, and what has the machine to itself."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.search_server import FLAVORS

ALONE = "alone"
APART = ("tests/simulation/", "tests/faults/test_kafka_faults.py")  # nothing is shared in them, and each test takes half a minute and more
ON_SERVER = re.compile(rf"[\[-]({'|'.join(FLAVORS)})[]-]")


def group_of(nodeid: str) -> str:
    """What one process takes: a file, whose fixtures are made once so; all that ask for one kind of search server, whose start costs 10 s and half a GB.

    Long tests that share nothing with their neighbours go to whoever is free.
    """
    path, _, name = nodeid.partition("::")
    if path.startswith(APART):
        return nodeid
    server = ON_SERVER.search(name)
    return server[1] if server else path


class Sharing(LoadScopeScheduling):
    """Groups in the order of their files: unit tests, the smallest, come last, so that nobody waits for another at the end."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker(ALONE) is not None


@contextmanager
def at_its_time(item: pytest.Item) -> Iterator[None]:
    """Wait until a test may run: beside any others, or alone. Only the processes of one ``pytest -n`` wait for each other.

    Whoever waits to be alone holds the door, so that nobody enters meanwhile. The kernel opens both locks when a process dies.
    """
    if not hasattr(item.config, "workerinput"):  # there is one process only
        yield
        return
    shared = item.config._tmp_path_factory.getbasetemp().parent  # type: ignore[attr-defined]
    with ExitStack() as held:
        with _locked(shared / "door", fcntl.LOCK_EX):
            held.enter_context(_locked(shared / "room", fcntl.LOCK_EX if is_alone(item) else fcntl.LOCK_SH))
        yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("ab") as lock:
        fcntl.flock(lock, how)
        yield
