"""Servers that are not what a client hopes for: each is one line that says what to change, in time."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from keystone.cli import main
from keystone.config import KafkaConfig, load
from keystone.errors import UsageError
from keystone.log.kafka import KafkaLog
from keystone.log.url import KafkaUrl

TOLD_WITHIN_S = 10.0
API_VERSIONS_FAILED = 35  # UNSUPPORTED_VERSION


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Listens on this machine and gives each connection to ``answer``."""
    listening = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                taken.append(connection)
                threading.Thread(target=guarded, args=(connection,), daemon=True).start()

    def guarded(connection: socket.socket) -> None:
        with suppress(OSError, struct.error):
            answer(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()
        for connection in taken:
            connection.close()


def request_of(connection: socket.socket) -> tuple[int, int]:
    """Version and correlation id of the next request."""
    (size,) = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
    _, version, correlation = struct.unpack(">hhi", connection.recv(size, socket.MSG_WAITALL)[:8])
    return version, correlation


def silent(connection: socket.socket) -> None:
    time.sleep(30)


def hanging_up(connection: socket.socket) -> None:
    request_of(connection)
    connection.close()


def http(connection: socket.socket) -> None:
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    time.sleep(1)


def nonsense(connection: socket.socket) -> None:
    request_of(connection)
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    time.sleep(1)


def ancient(connection: socket.socket) -> None:
    """A broker of long ago: it knows the request for versions in its first form only, and no batch as we send it."""
    while True:
        version, correlation = request_of(connection)
        keys = b"".join(struct.pack(">hhh", key, 0, most) for key, most in ((0, 2), (1, 3), (2, 1), (3, 2), (18, 0)))
        error = API_VERSIONS_FAILED if version else 0
        body = struct.pack(">ihi", correlation, error, 5) + keys
        connection.sendall(struct.pack(">i", len(body)) + body)


def refusal(server_: str, config: KafkaConfig | None = None) -> str:
    began_s = time.monotonic()
    with pytest.raises(UsageError) as raised:
        KafkaLog.open(KafkaUrl((server_,), "keystone-telemetry"), config or KafkaConfig(), action="read")
    assert time.monotonic() - began_s < TOLD_WITHIN_S
    line = str(raised.value)
    assert "\n" not in line
    assert server_ in line or server_.partition(":")[0] in line
    return line


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (silent, "takes the connection, but does not answer"),
        (hanging_up, "hangs up before it answers"),
        (http, "speaks HTTP"),
        (nonsense, "not as a Kafka broker"),
        (ancient, "another version of Kafka's protocol"),
    ],
    ids=["silent", "hanging up", "http", "nonsense", "ancient"],
)
def test_a_server_that_is_no_broker_of_ours(answer: Callable[[socket.socket], None], says: str) -> None:
    with server(answer) as place:
        assert says in refusal(place, KafkaConfig(connect_timeout_ms=2_000))


def test_a_silent_server_is_told_of_in_time_by_default() -> None:
    with server(silent) as place:
        assert "does not answer within 8 s" in refusal(place)


def test_a_port_where_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert "nothing listens there" in refusal(f"127.0.0.1:{port}")


def test_an_unknown_host() -> None:
    line = refusal("no-such-host.invalid:9092", KafkaConfig(allow_plaintext=True))
    assert "no-such-host.invalid" in line


def test_an_address_that_nobody_has() -> None:
    """A firewall that drops packets, or a network that refuses: either is told."""
    line = refusal("192.0.2.1:9092", KafkaConfig(allow_plaintext=True, connect_timeout_ms=2_000))
    assert "does not answer" in line or "cannot be reached" in line or "nothing listens" in line


def test_plaintext_to_another_machine_is_refused_before_anything_is_sent() -> None:
    line = refusal("192.0.2.1:9092")
    assert "kafka.allow_plaintext = true" in line
    assert "SASL_SSL" in line


def test_of_several_servers_one_that_answers_is_enough_to_say_more() -> None:
    with server(http) as place, pytest.raises(UsageError, match=r"HTTP|nothing listens"):
        KafkaLog.open(KafkaUrl(("127.0.0.1:1", place), "t"), KafkaConfig(connect_timeout_ms=3_000))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tls_ca_file": "/no/ca.pem"}, "kafka.tls_ca_file is set, but kafka.security_protocol = PLAINTEXT"),
        ({"security_protocol": "SSL", "tls_ca_file": "/no/ca.pem"}, "kafka.tls_ca_file = /no/ca.pem: cannot be read"),
        ({"security_protocol": "SASL_SSL"}, "kafka.sasl_username"),
        ({"security_protocol": "SASL_SSL", "sasl_username": "u"}, "KEYSTONE_KAFKA__SASL_PASSWORD"),
        ({"security_protocol": "SASL_SSL", "sasl_username": "u", "sasl_password_file": "/no/file"}, "kafka.sasl_password_file = /no/file: cannot be read"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}, "kafka.oauth_token_command"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", "oauth_token_command": ("/no/command",)}, ""),
        ({"sasl_username": "u"}, "has no login: set it to SASL_SSL"),
        ({"security_protocol": "SSL", "tls_key_file": "/no/key"}, "kafka.tls_cert_file"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, object], says: str) -> None:
    with server(hanging_up) as place:
        assert says in refusal_of_settings(place, settings)


def refusal_of_settings(place: str, settings: dict[str, object]) -> str:
    with pytest.raises(UsageError) as raised:
        KafkaLog.open(KafkaUrl((place,), "t"), KafkaConfig(**settings))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- the password's place -----------------------------------------------------------------------------------------------
def test_a_password_comes_by_its_variable_and_is_never_shown() -> None:
    config = load(env={"KEYSTONE_KAFKA__SASL_PASSWORD": '["canary-secret"]'})
    assert config.kafka.sasl_password is not None
    assert config.kafka.sasl_password.get_secret_value() == '["canary-secret"]'
    assert "canary" not in repr(config) + str(config.model_dump(mode="json")) + config.model_dump_json()


def test_a_password_in_a_file_of_settings_or_on_the_command_line_is_refused_and_not_shown(tmp_path) -> None:
    (tmp_path / "keystone.toml").write_text('[kafka]\nsasl_password = "canary-secret"\n')
    for given in ({"path": tmp_path / "keystone.toml"}, {"flags": {"kafka.sasl_password": "canary-secret"}}):
        with pytest.raises(UsageError, match="is a secret: give it by KEYSTONE_KAFKA__SASL_PASSWORD") as raised:
            load(env={}, **given)
        assert "canary" not in str(raised.value)


@pytest.mark.parametrize("command", [["run", "--actions", "none"], ["simulate", "--seconds", "1"], ["topics", "check"]])
def test_commands_end_with_one_line_and_status_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--log", f"kafka://127.0.0.1:{port}/t"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert told.err.startswith(f"keystone: 127.0.0.1:{port}: nothing listens there")
