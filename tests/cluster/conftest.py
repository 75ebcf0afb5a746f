"""Hosts on this machine, for tests of more than one: as root only, and then for certain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.node_venv import make_venv
from tests.cluster.ray_cluster import RayOnHosts


@pytest.fixture
def make_hosts(tmp_path) -> Iterator[Callable[[int], Hosts]]:
    """Starts so many, which the test may break."""
    venv = make_venv(tmp_path / "venv")
    with ExitStack() as entered:
        yield lambda count: entered.enter_context(Hosts(count, venv))


@pytest.fixture
def make_ray(make_hosts) -> Callable[[int], RayOnHosts]:
    """Starts a Ray over so many hosts, the head among them."""

    def make(count: int) -> RayOnHosts:
        ray = RayOnHosts(make_hosts(count))
        ray.up()
        return ray

    return make


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that all hosts see, as one that they mount."""
    return tmp_path / "venv" / "shared"
