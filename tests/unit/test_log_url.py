"""A log's URL: what it means, and what is told where it is wrong."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from keystone.config import KafkaConfig
from keystone.errors import UsageError
from keystone.log.opening import open_log
from keystone.log.url import EmbeddedUrl, KafkaUrl, default_log_url, is_this_machine, parse_log_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("kafka://broker", KafkaUrl(("broker:9092",), "keystone-telemetry")),
        ("kafka://broker:9093/", KafkaUrl(("broker:9093",), "keystone-telemetry")),
        ("kafka://a:1,b,a:1/t.x_-9", KafkaUrl(("a:1", "b:9092"), "t.x_-9")),
        ("kafka://[::1]:9092/t", KafkaUrl(("[::1]:9092",), "t")),
        ("embedded:/some/where", EmbeddedUrl(Path("/some/where"))),
    ],
)
def test_what_a_url_means(text: str, url: object) -> None:
    assert parse_log_url(text) == url
    assert parse_log_url(str(url)) == url


@pytest.mark.parametrize(
    "text", ["", "kafka", "kafka://", "kafka://a:0", "kafka://a:99999", "kafka://a:b", "kafka://a,,b", "kafka://a/t/u", "kafka://a/ü", "kafka://a/..",
             "embedded:", "http://a/t", "/some/where", "kafka://::1/t"],
)  # fmt: skip
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_log_url(text)
    assert "\n" not in str(raised.value)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="sasl_password_file") as raised:
        parse_log_url("kafka://user:canary@broker/t")
    assert "canary" not in str(raised.value)


def test_the_default_place_is_the_same_for_every_process(tmp_path: Path) -> None:
    assert default_log_url(memory=tmp_path) == default_log_url(memory=tmp_path)
    there = default_log_url(memory=tmp_path / "none")
    assert there.directory.name == "telemetry"


@pytest.mark.slow
def test_an_embedded_log_is_made_once_by_many_who_come_at_once(tmp_path: Path) -> None:
    url = f"embedded:{tmp_path / 'deep' / 'log'}"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(partitions_of, [url] * 3) == [4, 4, 4]


def partitions_of(url: str) -> int:
    log = open_log(url, KafkaConfig(), is_made=True)
    log.close()
    return log.partitions


def test_without_being_asked_no_log_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        open_log(f"embedded:{tmp_path / 'log'}", KafkaConfig())
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(("host", "is_here"), [("localhost", True), ("127.0.0.9", True), ("[::1]", True), ("192.0.2.1", False), ("broker.example", False)])
def test_what_is_this_machine(host: str, is_here: bool) -> None:
    assert is_this_machine(host) == is_here
