"""``deploy/cluster.local.yaml`` on hosts of this machine: up, used, down."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.hosts import ROOT, Hosts

#: Of tests that use one.
ON_HOSTS = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.alone,  # a node that gets no CPU for a second is given up: that is what the health checks are set to
    pytest.mark.timeout(900),  # seconds; twice up and down took 175 beside others that computed
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces with networks; CI is root"),
]
JOIN_S_MAX = 180.0  # a worker follows the head by 9 to 18 s, where nobody else computes
ENV = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}  # as the guide has a person set it
#: As deploy/README.md has it.
KEEPING = "RAY_REDIS_ADDRESS={} RAY_external_storage_namespace=keystone"
NODES = """
import json, ray
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
print("NODES", json.dumps([{"address": n["NodeManagerAddress"], "resources": n["Resources"]} for n in ray.nodes() if n["Alive"]]))
"""


class RayOnHosts:
    """A Ray over ``hosts``: the first is its head. Only addresses, user and key differ from the file that people are given."""

    def __init__(self, hosts: Hosts, redis: str | None = None) -> None:
        """``redis``: HOST:PORT of one where the head keeps what it knows of nodes and actors."""
        self.hosts = hosts
        self.yaml = hosts.folder / "cluster.yaml"
        cluster = yaml.safe_load((ROOT / "deploy" / "cluster.local.yaml").read_text("utf-8"))
        cluster["provider"] |= {"head_ip": hosts.addresses[0], "worker_ips": hosts.addresses[1:]}
        cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
        self._start_head = cluster["head_start_ray_commands"]
        if redis is not None:
            self._start_head[-1] = self._start_head[-1].replace("; ray start", f"; export {KEEPING.format(redis)}; ray start")
        self.yaml.write_text(yaml.safe_dump(cluster, sort_keys=False))
        token = hosts.path(0, "~/.ray/auth_token")
        token.parent.mkdir(mode=0o700)
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))

    def up(self) -> None:
        """Until the head is up and all workers have joined."""
        self.hosts.launcher(f"ray up --no-config-cache -y {self.yaml}", **ENV)
        self.wait_nodes(len(self.hosts.addresses))

    def head_again(self) -> None:
        """The head alone, after its host was lost: as an operator starts it by hand, or Kubernetes by itself."""
        for command in self._start_head:
            self.head(command)

    def down(self) -> None:
        """As people end it. The head's Ray is gone when this returns; workers miss it and follow."""
        self.hosts.launcher(f"ray down -y {self.yaml}", **ENV)

    def exec(self, command: str) -> str:
        """By ``ray exec``, the way people take; its own messages are among the output."""
        return self.hosts.launcher(f"ray exec {self.yaml} {shlex.quote(f'. ~/ray.env; {command}')}", **ENV)

    def head(self, command: str, timeout_s: float = 300) -> str:
        """The same without ssh and messages, a few seconds faster."""
        return self.on(1, command, timeout_s)

    def on(self, n: int, command: str, timeout_s: float = 300) -> str:
        """The same on another host."""
        return self.hosts.run(n, f". ~/ray.env; {command}", timeout_s)

    def nodes(self) -> list[dict[str, Any]]:
        """Address and resources of each node that Ray holds for alive."""
        return nodes_in(self.head(f"python -c {shlex.quote(NODES)}"))

    def wait_nodes(self, count: int) -> list[dict[str, Any]]:
        """Until so many are alive."""
        deadline = time.monotonic() + JOIN_S_MAX
        while len(nodes := self.nodes()) != count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(nodes)} nodes of {count}: {nodes}\n{self.monitor_log()}")
            time.sleep(1)
        return nodes

    def monitor_log(self) -> str:
        """What the head says of its workers; its end."""
        logs = sorted(self.hosts.path(1, "/tmp/ray").glob("session_2*/logs/monitor.*"))
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in logs if isinstance(path, Path))


def nodes_in(said: str) -> list[dict[str, Any]]:
    """Of a line that ``NODES`` printed."""
    (line,) = (line for line in said.splitlines() if line.startswith("NODES "))
    return json.loads(line.removeprefix("NODES "))
