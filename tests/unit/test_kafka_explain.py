"""Servers that are not what a client hopes for: each is one line that says what to change, in time."""

from __future__ import annotations

import datetime as dt
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trustme

from keystone.cli import main
from keystone.config import KafkaConfig
from keystone.errors import UsageError
from keystone.log.kafka import KafkaLog
from keystone.log.kafka.client import KafkaClient
from keystone.log.kafka.explain import StepFailed, explain
from keystone.log.url import KafkaUrl
from tests.kafka_fakes import ANCIENT, OFFERED, Answer, Broker, alert, black_hole, closed_port, hanging_up, http, server, silent, ssh

TOLD_WITHIN_S = 10.0
QUICK_MS = 700  # of tests of what is silent


def refusal(places: str | tuple[str, ...], **settings: Any) -> str:
    """The one line that opening the log gives, in time."""
    servers = (places,) if isinstance(places, str) else places
    began_s = time.monotonic()
    with pytest.raises(UsageError) as raised:
        KafkaLog.open(KafkaUrl(servers, "keystone-telemetry"), KafkaConfig(**settings), action="read")
    assert time.monotonic() - began_s < TOLD_WITHIN_S
    line = str(raised.value)
    assert "\n" not in line
    assert any(place in line for place in servers)
    return line.replace(servers[-1], "SERVER")


# --- other programs -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (silent, "SERVER: takes the connection, but does not answer within 1 s: correct the port (or kafka.security_protocol), or look at the broker"),
        (hanging_up, "SERVER: hangs up before it answers: if it wants TLS there, set kafka.security_protocol = SSL or SASL_SSL; else correct the port"),
        (http, "SERVER: speaks HTTP, not Kafka's protocol: correct the port"),
        (ssh, "SERVER: answers, but not as a Kafka broker does (its answer begins with 'SSH-'): correct the port"),
        (alert(80), "SERVER: speaks TLS on this port: set kafka.security_protocol = SSL or SASL_SSL, or name the port without TLS"),
    ],
    ids=["silent", "hanging up", "http", "ssh", "tls"],
)
def test_a_server_that_is_no_broker(answer: Answer, line: str) -> None:
    with server(answer) as place:
        assert refusal(place, connect_timeout_ms=QUICK_MS) == line


OLD_TLS = "let the broker offer TLS 1.2 or 1.3 (ssl.enabled.protocols)"
OTHER_PORT = "name the broker's TLS port, or set kafka.security_protocol = PLAINTEXT for this one"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (silent, "SERVER: takes the connection, but does not answer the TLS handshake within 1 s: correct the port, or look at the broker"),
        (hanging_up, f"SERVER: hangs up during the TLS handshake, as ports without TLS do: {OTHER_PORT}"),
        (http, f"SERVER: does not speak TLS: {OTHER_PORT}"),
        (ssh, f"SERVER: does not speak TLS: {OTHER_PORT}"),
        (alert(70), f"SERVER: agrees on no version or cipher of TLS (TLSV1_ALERT_PROTOCOL_VERSION): {OLD_TLS}"),
        (alert(40), "SERVER: wants a certificate of this client (SSLV3_ALERT_HANDSHAKE_FAILURE): set kafka.tls_cert_file and kafka.tls_key_file"),
    ],
    ids=["silent", "hanging up", "http", "ssh", "old tls", "handshake failure"],
)  # fmt: skip
def test_a_server_that_is_spoken_to_by_tls(answer: Answer, line: str) -> None:
    with server(answer) as place:
        assert refusal(place, security_protocol="SSL", connect_timeout_ms=QUICK_MS) == line


HANGS_UP = "SERVER: hangs up at the first request, as ports with a login do: set kafka.security_protocol = {}, or name the port without a login"
OTHER_VERSION = "SERVER: speaks another version of Kafka's protocol ({}): use brokers of Kafka 2.1 or newer that this program's kafka-python knows"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broker", "line"),
    [
        (Broker(is_confused=True), OTHER_VERSION.format("it knows no version of the first request")),
        (Broker(offered=ANCIENT), OTHER_VERSION.format("Produce up to version 2, and 7 is needed")),
        (Broker(offered={1: 16, 18: 4}), "SERVER: takes no Produce requests, as controllers do not: name a broker's address, not a controller's"),
        (Broker(well=0), HANGS_UP.format("SASL_PLAINTEXT")),
        (Broker(well=0, behaves=silent), "SERVER: takes the connection, but does not answer the first request within 1 s: look at the broker"),
    ],
    ids=["confused", "ancient", "controller", "hangs up", "silent"],
)
def test_a_broker_that_is_none_for_us(broker: Broker, line: str) -> None:
    with broker.listening() as place:
        assert refusal(place, connect_timeout_ms=QUICK_MS) == line
    assert broker.asked.count(18) <= 2  # asks once more in the version that it is told, and not on and on


def test_an_older_broker_is_asked_in_its_own_version() -> None:
    broker = Broker(offered=OFFERED | {18: 3}, well=0)
    with broker.listening() as place:
        assert "hangs up at the first request" in refusal(place)
    assert broker.asked[:3] == [18, 18, 3]


# --- the network ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_silent_server_is_told_of_in_time_by_default() -> None:
    with server(silent) as place:
        assert "does not answer within 8 s" in refusal(place)


def test_a_port_where_nothing_listens() -> None:
    assert refusal(closed_port()) == "SERVER: nothing listens there: start the broker, or correct host and port"


@pytest.mark.slow
def test_an_address_whose_packets_are_dropped() -> None:
    with black_hole() as place:
        line = refusal(place, connect_timeout_ms=QUICK_MS)
    assert line == "SERVER: does not answer within 1 s: correct host and port, or let the firewall pass it"


def test_an_unknown_host() -> None:
    line = refusal("no-such-host.invalid:9092", allow_plaintext=True)
    assert re.fullmatch(r"SERVER: (the host name 'no-such-host\.invalid' is unknown|no name server answers for 'no-such-host\.invalid'): .*", line)


@pytest.fixture
def silent_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A name server that answers nobody as long as the test lasts; whom it was asked for."""
    over = threading.Event()
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any) -> Any:
        if not host.endswith(".invalid"):
            return real(host, *arguments)
        asked.append(host)
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    over.set()


@pytest.mark.slow
def test_a_name_server_that_does_not_answer_is_not_waited_for(silent_names: list[str]) -> None:
    line = refusal("slow.invalid:9092", allow_plaintext=True, connect_timeout_ms=QUICK_MS)
    assert line == "SERVER: no name server answers for 'slow.invalid': look at the network, or write an address instead of the name"
    assert silent_names == ["slow.invalid"]


@pytest.mark.slow
def test_what_comes_furthest_is_told_of_several_servers(silent_names: list[str]) -> None:
    with server(http) as place, black_hole() as hole:
        servers = (closed_port(), hole, "slow.invalid:9092", place)
        assert refusal(servers, allow_plaintext=True, connect_timeout_ms=QUICK_MS) == "SERVER: speaks HTTP, not Kafka's protocol: correct the port"
        assert "SERVER: nothing listens there" in refusal((closed_port(),))


def test_of_several_servers_one_is_enough(silent_names: list[str]) -> None:
    with Broker().listening() as place, black_hole() as hole:
        client = KafkaClient([hole, "slow.invalid:9092", closed_port(), place], KafkaConfig(allow_plaintext=True))
        with closing(client):
            client.connect()
    assert silent_names == ["slow.invalid"]


def test_plaintext_to_another_machine_is_refused_before_anything_is_sent() -> None:
    assert refusal("192.0.2.1:9092") == (
        "SERVER is not this machine, and kafka.security_protocol = PLAINTEXT sends everything readable:"
        " set it to SSL or SASL_SSL, or set kafka.allow_plaintext = true"
    )
    line = refusal("broker.example:9092", security_protocol="SASL_PLAINTEXT", sasl_username="u", sasl_password="p")
    assert "set it to SASL_SSL, or set kafka.allow_plaintext = true" in line


# --- where brokers send clients -----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_addresses_that_a_broker_advertises_in_vain() -> None:
    port = closed_port()
    with Broker(advertised=port).listening() as place:
        assert refusal(place) == (
            f"SERVER: answers, but its advertised.listeners sends clients to {port} (broker 0), and that is a port where nothing listens:"
            f" correct advertised.listeners at the broker, or make {port} reachable from here"
        )
    with black_hole() as hole, Broker(advertised=hole).listening() as place:
        line = refusal(place, connect_timeout_ms=QUICK_MS)
        assert f"sends clients to {hole} (broker 0), and that does not answer within 1 s: correct advertised.listeners" in line
    with Broker(advertised="no-such-host.invalid:9092").listening() as place:
        line = refusal(place, allow_plaintext=True)
        assert "sends clients to no-such-host.invalid:9092 (broker 0), and that cannot be used: " in line
    with Broker(advertised="192.0.2.1:9092").listening() as place:
        assert "its advertised.listeners sends clients elsewhere: 192.0.2.1:9092 is not this machine" in refusal(place)


# --- certificates ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, str]:
    made = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    made.cert_pem.write_to_path(str(path))
    return made, str(path)


def tls_server(
    certificate: trustme.LeafCert, *, client_authority: trustme.CA | None = None, versions: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = versions
    certificate.configure_cert(context)
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        client_authority.configure_trust(context)
    return context


def test_a_certificate_of_another_host(authority: tuple[trustme.CA, str]) -> None:
    ca, path = authority
    with Broker().listening(tls_server(ca.issue_cert("broker.test"))) as place:
        line = refusal(place, security_protocol="SSL", tls_ca_file=path)
        assert line == (
            "SERVER: its certificate is not for '127.0.0.1': use a host name that the certificate holds, or give the broker a certificate for this one"
        )
        assert "its certificate is not for 'localhost'" in refusal(place.replace("127.0.0.1", "localhost"), security_protocol="SSL", tls_ca_file=path)


def test_a_certificate_that_is_out_of_date(authority: tuple[trustme.CA, str]) -> None:
    ca, path = authority
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    with Broker().listening(tls_server(ca.issue_cert("127.0.0.1", not_after=past))) as place:
        assert refusal(place, security_protocol="SSL", tls_ca_file=path) == (
            "SERVER: its certificate is out of date (certificate has expired): renew it at the broker, or correct this machine's clock"
        )


def test_a_certificate_of_another_authority(authority: tuple[trustme.CA, str]) -> None:
    with Broker().listening(tls_server(trustme.CA().issue_cert("127.0.0.1"))) as place:
        assert refusal(place, security_protocol="SSL", tls_ca_file=authority[1]) == (
            f"SERVER: its certificate is not of an authority in kafka.tls_ca_file = {authority[1]} (unable to get local issuer certificate):"
            " name the CA file of these brokers"
        )
        assert refusal(place, security_protocol="SSL").endswith(
            "is of no authority that this system trusts (unable to get local issuer certificate): name the CA file of these brokers by kafka.tls_ca_file"
        )


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_certificate_of_the_client_that_is_missing_or_of_another_authority(
    authority: tuple[trustme.CA, str], tmp_path: Path, version: ssl.TLSVersion
) -> None:
    ca, path = authority
    trustme.CA().issue_cert("client.test").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "other.pem"))
    with Broker().listening(tls_server(ca.issue_cert("127.0.0.1"), client_authority=ca, versions=version)) as place:
        missing = refusal(place, security_protocol="SSL", tls_ca_file=path)
        other = refusal(place, security_protocol="SSL", tls_ca_file=path, tls_cert_file=str(tmp_path / "other.pem"))
    assert re.fullmatch(r"SERVER: wants a certificate of this client \([A-Z0-9_]+\): set kafka\.tls_cert_file and kafka\.tls_key_file", missing)
    assert re.fullmatch(rf"SERVER: refuses the certificate of kafka\.tls_cert_file = {tmp_path}/other\.pem \([A-Z0-9_]+\): use one that .*", other)


# --- commands -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", [["run", "--actions", "none"], ["simulate", "--seconds", "1"], ["topics", "check"]])
def test_commands_end_with_one_line_and_status_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    place = closed_port()
    with pytest.raises(SystemExit) as ended:
        main([*command, "--log", f"kafka://{place}/t"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.err == f"keystone: {place}: nothing listens there: start the broker, or correct host and port\n"


# --- whatever else ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("step", ["name", "connect", "tls", "versions", "login", "metadata", None])
@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
def test_any_error_at_any_step_is_one_line(step: Any, protocol: Any) -> None:
    from kafka import errors

    makers: list[Callable[[], BaseException]] = [
        lambda: TimeoutError("a\nb"), lambda: OSError("a\nb"), lambda: ConnectionResetError(104, "reset\nby peer"), lambda: ValueError("\r\n" * 500),
        lambda: ssl.SSLError("x\ny"), lambda: ssl.SSLEOFError(8, "eof\n"), lambda: errors.KafkaConnectionError(ConnectionResetError("a\nb")),
        lambda: errors.InvalidReceiveError("Invalid frame length: -1"), lambda: errors.InvalidReceiveError("x\n"), errors.SaslAuthenticationFailedError,
        errors.KafkaTimeoutError, errors.RequestTimedOutError, errors.CorrelationIdError, errors.ClusterAuthorizationFailedError, errors.UnknownError,
        KeyError, RuntimeError,
    ]  # fmt: skip
    for make in makers:
        error = make() if step is None else StepFailed(step, make())
        line = str(explain(error, "broker:9092", KafkaConfig(security_protocol=protocol, sasl_username="u")))
        assert re.fullmatch(r"broker:9092: [^\n\r]{8,400}: [^\n\r]{8,200}", line), line
