"""Detached runs begun, asked for and ended by a machine that is no node of the cluster, through the head's client server (``ray://``)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.ray_cluster import ENV, ON_HOSTS, RayOnHosts
from tests.rdkafka import Confluent, create_topic

pytestmark = [*ON_HOSTS, pytest.mark.kafka]
EVENTS = 500


class Outside:
    """Commands of ours on the launcher, which has the token and the packages of ``ray[default]``, and is no node."""

    def __init__(self, ray: RayOnHosts) -> None:
        self._hosts = ray.hosts
        self.address = f"ray://{ray.hosts.addresses[0]}:10001"

    def keystone(self, words: str, **env: str) -> str:
        """What it says, of both kinds; CalledProcessError with that where it fails."""
        return self._hosts.launcher(f"python -m keystone {words} --address {self.address}", **(ENV | {"KEYSTONE_KAFKA__ALLOW_PLAINTEXT": "true"} | env))

    def refused(self, words: str, **env: str) -> str:
        """The one line by which it refuses, with exit status 2."""
        with pytest.raises(subprocess.CalledProcessError) as failed:
            self.keystone(words, **env)
        said: str = failed.value.output
        assert failed.value.returncode == 2, said
        (line,) = said.splitlines()
        return line


def test_a_run_is_begun_asked_for_and_ended_from_outside(make_ray: Callable[[int], RayOnHosts], topic_name: str, tmp_path: Path) -> None:
    ray = make_ray(2)
    shared = tmp_path / "venv" / "shared"  # seen by all hosts, as what they mount
    outside = Outside(ray)
    strangers_are_told_what_they_lack(outside)
    with ray.hosts.kafka() as kafka:
        with ray.hosts.network():
            create_topic(kafka.servers, topic_name, 4)
        run = f"run --log kafka://{kafka.servers[0]}/{topic_name} --lake {shared}/lake --actions none --dead-letters none --session-actors 2"
        assert "who watches a run must be on a node" in outside.refused(run)
        assert "a directory is one of its nodes" in outside.refused(run.replace(f"{shared}/lake", "lake") + " --detach viewing")
        assert "is another directory on the node" in outside.refused(run.replace(f"{shared}/lake", "/tmp/lake") + " --detach viewing")
        said = outside.keystone(f"{run} --detach viewing")
        assert "on 2 nodes" in said
        assert "viewing goes on by itself" in said
        assert "there is a run of that name" in outside.refused(f"{run} --detach viewing")
        with ray.hosts.network():
            Confluent().produce(
                kafka.servers,
                topic_name,
                [(b"d", b'{"event":"Heartbeat","ts":%d,"device_id":"d","session_id":"s","seq":%d}' % (i, i)) for i in range(EVENTS)],
            )
        assert outside.keystone("status").startswith("viewing  running")
        said = outside.keystone(f"stop viewing --report {shared}/report.json")
        ended = json.loads((shared / "report.json").read_bytes())
    assert f"viewing: {EVENTS} events received" in said
    assert [ended["ledger"][name] for name in ("received", "accepted", "lake_rows")] == [EVENTS] * 3
    assert "no detached run of that name there; these are: none" in outside.refused("stop viewing")
    assert outside.keystone("status").startswith("no detached run there")


def strangers_are_told_what_they_lack(outside: Outside) -> None:
    assert "the token given here is not the cluster's" in outside.refused("status", RAY_AUTH_TOKEN="0123456789abcdef" * 4)
    assert "lets nobody in without its token" in outside.refused("status", RAY_AUTH_MODE="disabled")
