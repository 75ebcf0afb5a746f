"""Processes that share the tests: groups stay whole, and what runs alone does."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from tests.sharing import group_of

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest
from tests.sharing import at_its_time

def pytest_configure(config):
    config.addinivalue_line("markers", "alone")

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    with at_its_time(item):
        return (yield)
"""
TESTS = """
import time
from pathlib import Path
import pytest

TIMES = Path(__file__).with_name("times")

def spend(kind, seconds):
    began = time.monotonic_ns()
    time.sleep(seconds)
    with TIMES.open("a") as told:
        told.write(f"{began} {time.monotonic_ns()} {kind}\\n")

@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number):
    spend("alone", 0.1)

@pytest.mark.parametrize("number", range(30))
def test_beside(number):
    spend("beside", 0.02)
"""


@pytest.mark.slow
def test_what_runs_alone_has_no_test_beside_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for number in range(3):
        (tmp_path / f"test_{number}.py").write_text(TESTS)
    options = ["-q", "-p", "no:cacheprovider", "-n", "3", "--dist", "loadscope", "--no-loadscope-reorder", "--rootdir", str(tmp_path)]
    ended = subprocess.run([sys.executable, "-m", "pytest", *options, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    told = sorted((int(began), int(ended), kind) for began, ended, kind in map(str.split, (tmp_path / "times").read_text().splitlines()))
    assert len(told) == 3 * 33
    pairs = [(one, other) for one, other in combinations(told, 2) if other[0] < one[1]]
    assert {"beside"} == {kind for pair in pairs for _, _, kind in pair}, "these ran at the same time"


@pytest.mark.slow
def test_a_file_stays_in_one_process() -> None:
    """As the tests of this repository are shared."""
    chosen = ["tests/unit/test_ports.py", "tests/unit/test_circuit.py", "tests/unit/test_partition.py"]
    options = ["-v", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadscope", "--no-loadscope-reorder"]
    ended = subprocess.run([sys.executable, "-m", "pytest", *options, *chosen], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    ran = re.findall(r"^\[(gw\d)\] .*PASSED (tests/unit/\w+\.py)::", ended.stdout, re.MULTILINE)
    assert {file for _, file in ran} == set(chosen)
    assert len(set(ran)) == len(chosen), "each file in one process"
    assert len({worker for worker, _ in ran}) == 2


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/unit/test_loop.py::TestLoop::test_it[a-b]", "tests/unit/test_loop.py"),
        ("tests/services/test_elastic.py::test_it[opensearch-delay-429-2]", "opensearch"),
        ("tests/conformance/test_sinks.py::TestElasticRows::test_it[elasticsearch8]", "elasticsearch8"),
        ("tests/conformance/test_sinks.py::TestFileRows::test_it[0]", "tests/conformance/test_sinks.py"),
        ("tests/simulation/test_simulation.py::test_it[3]", "tests/simulation/test_simulation.py::test_it[3]"),
        ("tests/faults/test_kafka_faults.py::test_it", "tests/faults/test_kafka_faults.py::test_it"),
    ],
)
def test_groups(nodeid: str, group: str) -> None:
    assert group_of(nodeid) == group
