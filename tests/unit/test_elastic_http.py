"""URLs, logins and nodes: what is refused in one line, what is passed over, and that no secret is ever said."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from pydantic import SecretStr

from keystone.cli import cli
from keystone.config import ElasticConfig, load
from keystone.errors import SinkBusy, UsageError
from keystone.sinks.base import Outcome
from keystone.sinks.elastic import answer_of
from keystone.sinks.elastic_http import Nodes, Reply, parse_urls, trouble_of

PASSWORD = ElasticConfig(username="u", password=SecretStr("secret-pass"))


def test_urls_are_read_with_the_usual_port() -> None:
    assert parse_urls("http://a, https://b:1/es/,http://[::1]") == ("http://a:9200", "https://b:1/es", "http://[::1]:9200")


@pytest.mark.parametrize("url", ["", "a:9200", "ftp://a", "http://", "http://a:x", "http://a?b=c", "http://a,,http://b"])
def test_urls_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--elastic"):
        parse_urls(url)


def test_a_login_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="KEYSTONE_ELASTIC__PASSWORD") as caught:
        parse_urls("https://u:secret-pass@a")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "cure"),
    [
        (ElasticConfig(username="u"), "KEYSTONE_ELASTIC__PASSWORD"),
        (ElasticConfig(password=SecretStr("p")), "elastic.username"),
        (ElasticConfig(username="u", password=SecretStr("p"), api_key=SecretStr("k")), "two logins"),
        (ElasticConfig(api_key=SecretStr("secret\nkey")), "elastic.api_key holds"),
        (ElasticConfig(api_key=SecretStr("sécret-key")), "elastic.api_key holds"),
        (ElasticConfig(username="u:v", password=SecretStr("secret")), "elastic.username holds a colon"),
        (ElasticConfig(api_key_file="/no/such/file"), "name another file"),
        (ElasticConfig(tls_ca_file="/no/such/file"), "elastic.tls_ca_file"),
    ],
)
def test_logins_and_files_that_cannot_be_used_are_refused(config: ElasticConfig, cure: str) -> None:
    with pytest.raises(UsageError, match=cure) as caught:
        Nodes("https://127.0.0.1", config)
    assert not any(part in str(caught.value) for part in ("secret", "sécret", "u:v"))


def test_a_login_leaves_this_machine_by_tls_only() -> None:
    with pytest.raises(UsageError, match="use https") as caught:
        Nodes("http://search.example", PASSWORD)
    assert "secret" not in str(caught.value)
    Nodes("http://search.example", PASSWORD.model_copy(update={"allow_plaintext": True})).close()
    Nodes("http://localhost", PASSWORD).close()


@pytest.mark.parametrize("name", ["password", "api_key"])
def test_secrets_come_from_the_environment_alone_and_are_shown_nowhere(name: str) -> None:
    config = load(None, {f"KEYSTONE_ELASTIC__{name.upper()}": "secret-pass"})
    assert "secret-pass" not in repr(config)
    with pytest.raises(UsageError, match="is a secret") as caught:
        load(None, {}, {f"elastic.{name}": "secret-pass"})
    assert "secret-pass" not in str(caught.value)


def test_a_node_that_is_away_is_one_line() -> None:
    with pytest.raises(SinkBusy, match=r"http://127.0.0.1:9 cannot be reached: .*refused"):
        Nodes("http://127.0.0.1:9", ElasticConfig()).request("GET", "/")


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, Outcome.DONE), (201, Outcome.DONE), (409, Outcome.DONE), (429, Outcome.AGAIN), (500, Outcome.AGAIN), (503, Outcome.AGAIN), (403, Outcome.AGAIN),
     (404, Outcome.AGAIN), (400, Outcome.REFUSED), (413, Outcome.REFUSED)],
)  # fmt: skip
def test_each_status_of_an_item_has_its_outcome(status: int, outcome: Outcome) -> None:
    assert answer_of({"create": {"status": status, "error": {"type": "t", "reason": "r"}}}).outcome is outcome


def test_statuses_of_whole_requests_say_what_to_do() -> None:
    assert "refuses the login" in str(trouble_of(Reply(401, {}, b"{}")))
    assert trouble_of(Reply(503, {"Retry-After": "100000"}, b"")).wait_ms == 60_000
    assert trouble_of(Reply(503, {"Retry-After": "Wed, 21 Oct"}, b"")).wait_ms == 0
    assert "look at what listens" in str(trouble_of(Reply(404, {}, b"<html>")))


def test_a_gateways_bad_request_says_nothing_of_a_document() -> None:
    assert Reply(400, {}, b'{"error":{"type":"t","reason":"r"}}').is_servers_own()
    assert not any(Reply(400, {}, body).is_servers_own() for body in (b"<html>plain HTTP sent to HTTPS port", b'{"error":"x"}', b"[]", b""))


@contextmanager
def tls_server(tmp_path: Path, seen: list[str]) -> Iterator[str]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_tls_is_verified_and_the_login_sent(tmp_path: Path) -> None:
    seen: list[str] = []
    with tls_server(tmp_path, seen) as url:
        ca = str(tmp_path / "ca.pem")
        assert Nodes(url, ElasticConfig(tls_ca_file=ca, api_key=SecretStr("key"))).request("GET", "/").json() == {}
        assert Nodes(url, PASSWORD.model_copy(update={"tls_ca_file": ca})).request("GET", "/").status == 200
        with pytest.raises(SinkBusy, match="certificate"):
            Nodes(url, PASSWORD).request("GET", "/")
        Nodes(url, ElasticConfig(tls_verify=False)).request("GET", "/")
    assert seen == ["ApiKey key", "Basic dTpzZWNyZXQtcGFzcw==", None]


def test_a_search_server_is_named_by_option_or_setting() -> None:
    run = CliRunner()
    for words in (("elastic", "check"), ("top", "--once")):
        missing = run.invoke(cli, words)
        assert isinstance(missing.exception, UsageError)
        assert "say --elastic URL, or set run.elastic" in str(missing.exception)
    said = run.invoke(cli, ["elastic", "check", "--set", "run.elastic=http://127.0.0.1:9"])
    assert "http://127.0.0.1:9 cannot be reached" in said.output
    assert said.exit_code == 1
