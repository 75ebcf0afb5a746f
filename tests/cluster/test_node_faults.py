"""Nodes that freeze, are cut off, or are the head and die, under a bench or a run that goes on: rules and recovery as on one machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.node_faults import bench_through, cut, freeze, run_again_after_a_head, run_through_a_new_head
from tests.cluster.ray_cluster import ON_HOSTS, RayOnHosts
from tests.cluster.runs import EPS, SECONDS

pytestmark = [*ON_HOSTS, pytest.mark.kafka]


@pytest.mark.parametrize("harm", [freeze, cut])
def test_a_node_that_is_away_for_a_while_is_replaced_and_refused_when_it_comes_back(
    make_ray: Callable[[int], RayOnHosts], shared: Path, harm: Callable[[Hosts], None]
) -> None:
    report = bench_through(make_ray(2), shared, harm)
    assert report["recovery_ms"]["count"] >= 2, report["notes"]  # the partitions that were there
    assert report["fenced_writes"] >= 1, report["notes"]


def test_a_head_that_keeps_its_state_comes_back_to_a_run_that_goes_on(make_hosts: Callable[[int], Hosts], shared: Path) -> None:
    report = run_through_a_new_head(make_hosts(2), shared)
    assert 0 < report["ledger"]["received"] <= EPS * SECONDS * 1.1


def test_a_head_that_forgot_everything_gets_the_run_again_which_goes_on(make_ray: Callable[[int], RayOnHosts], shared: Path) -> None:
    report = run_again_after_a_head(make_ray(2), shared)
    assert 0 < report["ledger"]["received"] < EPS * SECONDS  # the first one's are behind the checkpoint that this one began with
