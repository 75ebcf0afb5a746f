"""The hosts that tests of clusters stand on: apart from each other and from this machine, and gone without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.hosts import ROOT, Hosts
from tests.rdkafka import create_topic

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces with networks; CI is root")
pytestmark = [pytest.mark.cluster, pytest.mark.slow, needs_root]
REACH = "timeout 5 bash -c '</dev/tcp/{}/22'"


def left_behind(hosts: Hosts, spaces: set[Path]) -> list[str]:
    """Processes of these namespaces, mounts and files of these hosts."""
    processes = [f"process {pid}" for pid in map(str, pids()) if spaces & namespaces(pid)]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "keystone-hosts-" in line]
    links = [
        line for line in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout.splitlines() if " br0" in line or " v1@" in line
    ]
    return processes + mounts + links


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def namespaces(pid: object) -> set[Path]:
    """Those of a process that are not ours."""
    try:
        return {path.readlink() for path in Path(f"/proc/{pid}/ns").iterdir()} - {path.readlink() for path in Path("/proc/self/ns").iterdir()}
    except OSError:  # it just ended
        return set()


@pytest.fixture
def hosts(tmp_path):
    (tmp_path / "venv").mkdir()
    with Hosts(2, tmp_path / "venv") as hosts:
        yield hosts


def test_each_has_its_own(hosts):
    for n, address in enumerate(hosts.addresses, 1):
        hosts.run(n, f"hostname > /tmp/name; hostname > /dev/shm/name; hostname > ~/name; touch /tmp/of-{n}")
        said = hosts.launcher(f"ssh -o StrictHostKeyChecking=no -i {hosts.key} root@{address} 'cat /tmp/name /dev/shm/name name; ls /tmp/of-*; ps -e | wc -l'")
        assert said.splitlines()[-5:-1] == [f"host{n}"] * 3 + [f"/tmp/of-{n}"]
        assert int(said.splitlines()[-1]) < 12  # none of this machine's
        assert hosts.path(n, "~/name").read_text() == f"host{n}\n"
    assert not Path("/tmp/of-1").exists()


def test_a_host_is_cut_off_and_reached_again(hosts):
    hosts.run(1, REACH.format(hosts.addresses[1]))
    hosts.cut(2)
    with pytest.raises(subprocess.CalledProcessError):
        hosts.run(1, REACH.format(hosts.addresses[1]))
    hosts.join(2)
    hosts.run(1, REACH.format(hosts.addresses[1]))


def test_a_frozen_host_stands_still_and_goes_on(hosts):
    process = subprocess.Popen(["nsenter", "--target", str(hosts._first[2]), "--mount", "--pid", "sh", "-c", "while sleep 0.05; do date +%N > /tmp/beat; done"])
    beat = hosts.path(2, "/tmp/beat")
    wait(beat.exists)
    hosts.freeze(2)
    seen = beat.read_bytes()
    assert {(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split())[0] for pid in hosts.processes(2)} == {"T"}
    time.sleep(0.5)
    assert beat.read_bytes() == seen
    hosts.thaw(2)
    wait(lambda: beat.read_bytes() not in {seen, b""})
    hosts.kill(2, "sleep")
    process.wait()


@pytest.mark.kafka
def test_all_hosts_reach_a_broker_and_nobody_else_does(hosts, topic_name):
    with hosts.kafka() as kafka:
        with hosts.network():
            create_topic(kafka.servers, topic_name, 2)
        ask = f"from tests.rdkafka import leaders; print(leaders({kafka.servers!r}, {topic_name!r}))"
        for n in (1, 2):
            assert hosts.run(n, f'cd {ROOT}; {sys.executable} -c "{ask}"') == "{0: 0, 1: 0}\n"
        port = f":{int(kafka.servers[0].rpartition(':')[2]):04X} "
        listening = [path.read_text() for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))]
        with hosts.network():
            there = [Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6")]
        assert port in "".join(there)
        assert port not in "".join(listening)  # of this machine's own network


def test_nothing_is_left(tmp_path):
    with Hosts(1, tmp_path) as hosts:
        spaces = set().union(*(namespaces(first) for first in hosts._first))
        assert len(spaces) >= 10
        folder = hosts.folder
        assert left_behind(hosts, spaces) != []  # it can be seen
        hosts.run(1, "setsid sleep 1000 < /dev/null > /dev/null 2>&1 &")
    assert left_behind(hosts, spaces) == []
    assert not folder.exists()


def test_nothing_is_left_when_the_tests_are_killed(tmp_path):
    entered = f"with Hosts(1, Path({str(tmp_path)!r})) as h: print(*h._first, flush=True); time.sleep(1000)"
    script = f"import time\nfrom pathlib import Path\nfrom tests.cluster.hosts import Hosts\n{entered}"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    first = process.stdout.readline().split()
    spaces = set().union(*(namespaces(pid) for pid in first))
    assert len(spaces) >= 10
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    wait(lambda: not any(spaces & namespaces(pid) for pid in pids()))


def wait(claim):
    deadline = time.monotonic() + 30
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)
