"""Fixtures that start real servers of the S3 API, once they are asked for; tests that ask carry the mark ``s3`` by themselves."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.s3_faults import S3Proxy
from tests.s3_server import S3Server, gateway

STARTING = {"s3", "own_s3", "bucket", "proxied"}
KINDS = ("moto", "versitygw") if gateway() else ("moto",)  # the second where it can be had: .ci/run builds it


def mark_s3(items: list[pytest.Item]) -> None:
    """``make test-fast`` starts no server, even if somebody forgets the mark."""
    for item in items:
        if isinstance(item, pytest.Function) and STARTING & set(item.fixturenames):
            item.add_marker(pytest.mark.s3)


@pytest.fixture(scope="session", params=KINDS)
def s3(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    """One server of each kind for all tests; they share it, so they leave it running and use buckets of their own."""
    with S3Server(request.param) as server:
        yield server


@pytest.fixture
def own_s3() -> Iterator[S3Server]:
    """A server of the test's own, which it may freeze and kill; where there is one that keeps objects over that, such a one."""
    with S3Server(KINDS[-1]) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket of ``s3``, the variables that lead there, and a home for lakes in it that no other test has."""
    set_variables(monkeypatch, s3.env())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("home")))
    return s3.make_bucket(f"test-{uuid.uuid4().hex[:16]}")


@pytest.fixture
def proxied(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """A proxy before ``s3``, which the variables lead to; the bucket is there."""
    with S3Proxy(s3.port) as proxy:
        set_variables(monkeypatch, s3.env(proxy.url))
        yield proxy


def set_variables(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    """These, and no others of AWS."""
    for name in tuple(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
