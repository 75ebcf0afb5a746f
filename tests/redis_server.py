"""A real Redis for a test: in it the head of a Ray cluster can keep what it knows, and be started anew."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.kafka_processes import own_folder, start_bound
from tests.kafka_server import free_port

START_S_MAX = 30.0
NAMES = ("redis-server", "valkey-server")


def program() -> str:
    """Of this machine. CI installs one (.ci/run), and there its absence is an error."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"neither {' nor '.join(NAMES)} on this machine: apt-get install redis-server")
    assert found is not None, f"neither {' nor '.join(NAMES)} here: .ci/run installs it where it may"
    return found


@dataclass(frozen=True)
class RedisServer:
    """One that runs, in memory only."""

    host: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@contextmanager
def redis_server(host: str = "127.0.0.1", within: Sequence[str] = ()) -> Iterator[RedisServer]:
    """On a free port of this machine; killed at the end. ``within``: what starts it, such as nsenter with the network that ``host`` is of."""
    server = RedisServer(host, free_port())
    words = ["--bind", host, "--port", str(server.port), "--save", "", "--appendonly", "no", "--protected-mode", "no"]
    with own_folder("redis-") as folder:
        log = folder / "redis.log"
        process = start_bound([*within, program(), *words], folder, log)
        try:
            deadline = time.monotonic() + START_S_MAX
            while b"Ready to accept connections" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield server
        finally:
            process.kill()
            process.wait()
