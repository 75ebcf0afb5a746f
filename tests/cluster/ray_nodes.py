"""A Ray cluster of several nodes on this machine: each by ``ray start`` in a process group of its own, all with one file system and one clock."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.kafka_server import free_port

OBJECT_STORE_BYTES = 80 << 20
START_S_MAX = 120.0
AGENTS = ("ray::Dashboard", "ray::RuntimeEnv")  # of a node: named as workers are, and none
#: More patient than deploy/ray.env: beside other tests a healthy node may get no CPU for seconds. What is asserted is no speed of ours.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "8",
}


@dataclass(slots=True)
class Started:
    """One node: ``ray start --block``, and everything below it."""

    process: subprocess.Popen[bytes]
    log: Path
    seen: list[psutil.Process] = field(default_factory=list)

    def family(self) -> list[psutil.Process]:
        """Its processes, by what each call finds: those of a dead parent are known from before."""
        if self.process.poll() is None:
            known = {process.pid for process in self.seen}
            below = psutil.Process(self.process.pid).children(recursive=True)
            self.seen += [process for process in below if process.pid not in known]
        return self.seen

    def rays_own(self) -> list[psutil.Process]:
        """Those of Ray itself: without its workers, which are whoever uses it."""
        return [process for process in self.family() if not _name(process).startswith("ray::") or _name(process).startswith(AGENTS)]

    def raylet(self) -> psutil.Process:
        (found,) = (process for process in self.family() if _name(process) == "raylet")
        return found

    def node_id(self) -> str:
        """As the head knows it."""
        (found,) = (word.partition("=")[2] for word in self.raylet().cmdline() if word.startswith("--node_id="))
        return found

    def leave(self) -> None:
        """As ``ray stop`` has it: its raylet is asked to end, tells the head so, and takes its workers with it. Then what is left is killed."""
        raylet = self.raylet()
        raylet.send_signal(signal.SIGTERM)
        psutil.wait_procs([raylet], timeout=START_S_MAX)
        self.kill()

    def kill(self) -> None:
        """As a machine dies: all of it at once."""
        for process in [*self.family(), psutil.Process(self.process.pid)] if self.process.poll() is None else self.family():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        psutil.wait_procs(self.seen, timeout=10)


class RayNodes:
    """``with RayNodes({...}) as nodes: second = nodes.add({...})``; ``nodes.kill(second)``. ``address`` is the head's, ``env`` what a client needs.

    Without the token in it nobody is let in.
    """

    def __init__(self, head: Mapping[str, float]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="kc", dir="/tmp"))  # a short name: sockets lie below it
        self._nodes: list[Started] = []
        port = free_port()
        self.env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.address = f"127.0.0.1:{port}"
        words = ["--head", f"--port={port}", f"--temp-dir={self._folder}", "--include-dashboard=false"]
        try:
            self._start(head, *words)
        except BaseException:
            self._end()
            raise

    def add(self, resources: Mapping[str, float]) -> Started:
        """One more node, once the head knows it."""
        return self._start(resources, f"--address={self.address}")

    def kill(self, node: Started) -> None:
        node.kill()
        self._nodes.remove(node)

    def leave(self, node: Started) -> None:
        node.leave()
        self._nodes.remove(node)

    def drain(self, node: Started) -> None:
        """Tell the head that it will be taken away: what is on it goes on meanwhile, and nothing new comes to it."""
        node_id = node.node_id()
        words = ["drain-node", f"--address={self.address}", f"--node-id={node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"]
        command = [sys.executable, "-m", "ray.scripts.scripts", *words, "--deadline-remaining-seconds=600"]
        subprocess.run(command, check=True, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=START_S_MAX)

    def rays_own(self) -> tuple[float, int]:
        """CPU seconds so far and bytes of memory now of Ray itself, on all nodes: control, logs, stores; not of the actors."""
        used_s, rss = 0.0, 0
        for process in [process for node in self._nodes for process in node.rays_own()]:
            with suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                used_s, rss = used_s + times.user + times.system, rss + process.memory_info().rss
        return used_s, rss

    def _start(self, resources: Mapping[str, float], *words: str) -> Started:
        log = self._folder.with_suffix(f".{len(self._nodes)}")
        others = {name: amount for name, amount in resources.items() if name != "CPU"}
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", *words, "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats",
            f"--num-cpus={int(resources.get('CPU', 2))}", f"--resources={json.dumps(others)}", f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0", "--include-log-monitor=false",
        ]  # fmt: skip
        env = {**self.env, **HEALTH, "RAY_DISABLE_IMPORT_WARNING": "1"}
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        node = Started(process, log)
        self._nodes.append(node)
        deadline = time.monotonic() + START_S_MAX
        while b"--block" not in log.read_bytes():  # said when it is up, and waits
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.1)
        return node

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for node in reversed(self._nodes):
            node.kill()
            node.log.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""
