"""Ports of the tests' servers: one for each, also where several processes test beside each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.kafka_processes import claim_port
from tests.kafka_server import PORTS, free_port

ROOT = Path(__file__).parents[2]
CLAIMING = "import sys; from tests.kafka_server import free_port; print(free_port(), flush=True); sys.stdin.read()"


def test_a_port_is_claimed_once() -> None:
    port = free_port()
    assert port in PORTS
    assert not claim_port(port)


def test_a_port_belongs_to_the_process_that_claimed_it_until_its_end() -> None:
    other = subprocess.Popen([sys.executable, "-c", CLAIMING], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    port = int(other.stdout.readline())
    assert not claim_port(port)
    other.kill()
    other.communicate()
    assert claim_port(port)
