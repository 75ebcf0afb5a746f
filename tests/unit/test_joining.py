"""What a cluster's address may be, and what is said where none can be joined. How it is joined: tests/cluster."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from keystone.actors import joining
from keystone.actors.joining import is_outside, join, named, reason_of, refusal
from keystone.bench.__main__ import bench_command
from keystone.cli import cli
from keystone.config import Config
from keystone.errors import UsageError
from keystone.run.detached import line_of, placed

OUTSIDE = "ray://10.0.0.1:10001"


@pytest.fixture
def port() -> Iterator[int]:
    """Somebody listens there, who never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def _no_ray_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


# --- addresses ----------------------------------------------------------------------------------------------------------
def test_auto_is_what_ray_would_make_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (named("auto"), is_outside("auto"), is_outside(None)) == ("auto", False, False)
    assert (is_outside("10.0.0.1:6379"), is_outside(OUTSIDE)) == (False, True)
    monkeypatch.setenv("RAY_ADDRESS", OUTSIDE)
    assert (named("auto"), is_outside("auto"), is_outside(None)) == (OUTSIDE, True, False)
    assert named("10.0.0.1:6379") == "10.0.0.1:6379"


@pytest.mark.parametrize("address", ["10.0.0.1", "ray://10.0.0.1", "http://10.0.0.1:8265", "ray://10.0.0.1:10001/", "10.0.0.1:port", "local", ""])
def test_what_is_no_address_is_told_how_to_write_it(address: str) -> None:
    with pytest.raises(UsageError, match=rf"^--address {re.escape(address)}: write it as auto, HOST:PORT .* or ray://HOST:10001"):
        join(address, {})


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nobody_there_is_one_line(scheme: str) -> None:
    with pytest.raises(UsageError, match=r"^--address .*127\.0\.0\.1:1: nothing answers there \(.*refused\): start a cluster \(ray up cluster\.yaml\)"):
        join(f"{scheme}127.0.0.1:1", {})


def test_the_package_that_a_client_needs_is_named(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)  # as if it were not installed
    with pytest.raises(UsageError, match=r"^--address ray://127\.0\.0\.1:\d+: Ray's client needs grpcio, .*: pip install 'keystone\[cluster\]'$"):
        join(f"ray://127.0.0.1:{port}", {})


# --- refusals -----------------------------------------------------------------------------------------------------------
def test_whoever_has_no_token_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("UNAUTHENTICATED", "Invalid or missing").startswith("the cluster lets nobody in without its token: set RAY_AUTH_MODE=token, and put a copy")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert refusal("UNAUTHENTICATED", "Invalid or missing").startswith("the token given here is not the cluster's, or none is: put a copy")


def test_another_server_at_that_port_is_told_from_a_client_server() -> None:
    assert refusal("UNIMPLEMENTED", "no such\nmethod").startswith("no Ray client server answers there (no such method): a head that has ray[default] serves it")
    assert refusal("DEADLINE_EXCEEDED", "").startswith("no Ray client server answers there (deadline exceeded): ")


def test_what_ray_says_becomes_one_line() -> None:
    mismatch = "Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\nThis process on Ray Client was started with:\n"
    assert reason_of(RuntimeError(mismatch)).startswith("Version mismatch: The cluster was started with: Ray: 2.60.0 Python: 3.12.1 This process")
    theirs = 'Initialization failure from server:\nTraceback (most recent call last):\n  File "x", line 1\nRuntimeError: no room\n'
    assert reason_of(ConnectionError(theirs)) == "RuntimeError: no room"
    assert reason_of(TimeoutError()) == "TimeoutError"


def test_another_python_is_one_line_that_says_what_to_use(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    import ray

    def refuse(**_: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Python: 3.12.1\n")

    monkeypatch.setattr(joining, "has_raylet", lambda: True)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UsageError, match=r"\(Version mismatch: .* Python: 3\.12\.1\): use the same Python and Ray as the cluster$"):
        join(f"127.0.0.1:{port}", {})


def test_who_is_no_node_is_told_how_to_join_all_the_same(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(joining, "has_raylet", lambda: False)
    with pytest.raises(
        UsageError, match=rf"this machine is no node of a cluster: say ray://127\.0\.0\.1:10001, or make it one \(ray start --address=127\.0\.0\.1:{port}\)"
    ):
        join(f"127.0.0.1:{port}", {})


# --- what is done from outside ------------------------------------------------------------------------------------------
def test_who_watches_a_run_must_be_on_a_node() -> None:
    done = CliRunner().invoke(cli, ["run", "--address", OUTSIDE, "--log", "kafka://127.0.0.1:1"])
    assert isinstance(done.exception, UsageError)
    assert re.match(r"--address ray://\.\.\.: who watches a run must be on a node.*: say --detach NAME, .* or submit it \(ray job submit", str(done.exception))


def test_the_judge_of_a_bench_must_be_on_a_node() -> None:
    done = CliRunner().invoke(bench_command, ["--address", OUTSIDE, "--log", "kafka://127.0.0.1:1"])
    assert done.exit_code == 2
    assert re.match(r"keystone bench: --address ray://\.\.\.: the judge of a bench must be on a node.*: submit it \(ray job submit", done.output)
    assert len(done.output.splitlines()) == 1


def given(**options: Any) -> dict[str, Any]:
    return {"detach": "viewing", "log": "kafka://b:9092", "lake": None, "state": None, "dead_letters": None, "report": None} | options


def config(**run: Any) -> Any:
    return Config.model_validate({"run": run})


def test_directories_of_a_detached_run_are_found_from_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    found = placed(given(lake="lake", state="s3://b/state", dead_letters="none"), config(), is_outside=False)
    assert [found[name] for name in ("lake", "state", "dead_letters")] == [str(tmp_path / "lake"), "s3://b/state", "none"]
    assert placed(given(), config(lake="lake"), is_outside=False)["lake"] == str(tmp_path / "lake")


def test_from_outside_a_directory_is_one_of_the_nodes() -> None:
    found = placed(given(lake="/shared/lake", state="s3://b/state"), config(), is_outside=True)
    assert (found["lake"], found["state"]) == ("/shared/lake", "s3://b/state")
    for option, word in (("lake", "--lake"), ("dead_letters", "--dead-letters")):
        with pytest.raises(UsageError, match=rf"^{word} here: seen from outside of a cluster, a directory is one of its nodes: .* such as /shared/here$"):
            placed(given(**{"state": "/shared/state", option: "here"}), config(), is_outside=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"goes on from its state: say --state"),
        ({"lake": "/lake", "log": None}, r"the log of this machine is not the cluster's: say --log kafka://HOST:PORT"),
        ({"lake": "/lake", "report": "r.json"}, r"leave out --report here, and say keystone stop viewing --report FILE then"),
    ],
)
def test_what_a_detached_run_cannot_do_without(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"^--detach viewing: .*{message}"):
        placed(given(**options), config(), is_outside=True)


def test_settings_say_where_a_detached_run_reads() -> None:
    settings = SimpleNamespace(run=SimpleNamespace(log="kafka://b:9092", lake="/lake", state=None, dead_letters=None))
    assert placed(given(log=None), settings, is_outside=True)["log"] == "kafka://b:9092"  # type: ignore[arg-type]


def test_a_detached_run_is_told_in_a_line() -> None:
    seen = {"events_per_s": 1_200.0, "sessions": 5, "alerts": 1, "detect_p99_ms": None, "lag_events": 0, "dead_lettered": 0, "scenes_per_s": 0, "told_per_s": 0}
    told = {"name": "viewing", "state": "running", "began_s": time.time() - 3_700, "seen": seen, "lines": ["reading"], "error": None}
    assert line_of(told) == "viewing  running, begun 1 h 1 min ago  1,200 events/s  5 sessions  1 alerts  p99 -  lag 0"
    assert line_of(told | {"state": "failed", "error": "no broker"}) == "viewing  failed, begun 1 h 1 min ago  no broker"
    assert line_of(told | {"state": "starting", "seen": {}}) == "viewing  starting, begun 1 h 1 min ago  reading"
