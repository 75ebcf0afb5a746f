"""deploy/cluster.local.yaml as people use it: up, asked, closed to strangers, down; and again."""

from __future__ import annotations

import shlex
import subprocess
import time

import pytest

from keystone import __version__
from tests.cluster.hosts import OF_A_HOST
from tests.cluster.ray_cluster import NODES, ON_HOSTS, RayOnHosts, nodes_in

pytestmark = ON_HOSTS
LEAVE_S_MAX = 60.0  # an ssh connection that Ray keeps open lasts 10 s more
ASK = """
import sys, ray
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
print("JOINED", len(ray.nodes()))
"""
WHERE = """
import ray
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)

@ray.remote(num_cpus=0)
class Seen:
    def at(self):
        import keystone
        return ray.util.get_node_ip_address(), keystone.__file__

there = [Seen.options(resources={"session": 1}, scheduling_strategy="SPREAD").remote() for _ in range(2)]
print("SEEN", *sorted(ray.get([one.at.remote() for one in there])), ray.get(Seen.options(resources={"fleet": 1}).remote().at.remote()))
"""
STATUS = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen("http://127.0.0.1:8265/api/jobs/").status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_up_and_down_twice(make_hosts):
    ray = RayOnHosts(make_hosts(2))
    ray.up()
    two_nodes_offer_what_actors_ask_for(ray)
    actors_find_their_nodes_and_the_project(ray)
    a_job_is_submitted(ray)
    strangers_are_refused(ray)
    ray.down()
    nothing_runs(ray)
    ray.up()
    two_nodes_offer_what_actors_ask_for(ray)
    ray.down()
    nothing_runs(ray)


def two_nodes_offer_what_actors_ask_for(ray: RayOnHosts) -> None:
    nodes = {node["address"]: node["resources"] for node in nodes_in(ray.exec(f"python -c {shlex.quote(NODES)}"))}
    head, worker = (nodes[address] for address in ray.hosts.addresses)
    cores = int(ray.on(2, "getconf _NPROCESSORS_ONLN"))
    assert len(nodes) == 2
    assert head["head"] > 0
    assert head.get("CPU", 0) == 0
    assert (head["session"], head["fleet"]) == (cores, cores)
    assert (worker["session"], worker["CPU"]) == (cores, cores)
    assert not {"head", "fleet"} & worker.keys()


def actors_find_their_nodes_and_the_project(ray: RayOnHosts) -> None:
    said = ray.head(f"python -c {shlex.quote(WHERE)}")
    head, worker = ray.hosts.addresses
    (line,) = (line for line in said.splitlines() if line.startswith("SEEN"))
    module = f"{ray.hosts.folder}/home/keystone/keystone/__init__.py"  # what was copied, not what the tests run from
    assert line == f"SEEN {(head, module)} {(worker, module)} {(head, module)}"


def a_job_is_submitted(ray: RayOnHosts) -> None:
    said = ray.head("ray job submit --address http://127.0.0.1:8265 -- python -m keystone --version")
    assert "succeeded" in said
    assert __version__ in said
    with pytest.raises(subprocess.CalledProcessError):
        ray.head("ray job submit --address http://127.0.0.1:8265 -- python -m keystone no-such-command")


def strangers_are_refused(ray: RayOnHosts) -> None:
    ask = f"python -c {shlex.quote(ASK)}"
    assert "JOINED 2" in ray.head(ask)
    # With no token where Ray looks for one, and with another one. Each takes Ray some 20 s of trying.
    for n, stranger in ((2, "unset RAY_AUTH_MODE RAY_AUTH_TOKEN_PATH; export HOME=/tmp"), (1, "export RAY_AUTH_TOKEN=0123456789abcdef")):
        with pytest.raises(subprocess.CalledProcessError) as refused:
            ray.on(n, f"{stranger}; {ask}")
        assert "JOINED" not in refused.value.output
        assert "token" in refused.value.output
    assert ray.head(f"python -c {shlex.quote(STATUS)}") == "401\n"
    with pytest.raises(subprocess.CalledProcessError):
        ray.hosts.launcher(f"timeout 5 bash -c '</dev/tcp/{ray.hosts.addresses[0]}/8265'")  # of other machines nobody even gets there
    token = ray.hosts.path(0, "~/.ray/auth_token").read_text()
    for n in (1, 2):
        assert ray.hosts.path(n, "~/.ray/auth_token").stat().st_mode & 0o777 == 0o600
        logs = [path for path in ray.hosts.path(n, "/tmp/ray").glob("session_2*/logs/**/*") if path.is_file()]
        assert len(logs) > 3
        assert not [path for path in logs if token in path.read_text(errors="replace")]


def nothing_runs(ray: RayOnHosts) -> None:
    """``ray down`` stops the head only; the guide says what stops a worker, which else takes a minute, and its log monitor longer."""
    ray.on(2, "ray stop")
    deadline = time.monotonic() + LEAVE_S_MAX
    for n in (1, 2):
        while left := {pid: name for pid, name in ray.hosts.processes(n).items() if name not in OF_A_HOST}:
            assert time.monotonic() < deadline, f"host {n}: {left}"
            time.sleep(0.5)
