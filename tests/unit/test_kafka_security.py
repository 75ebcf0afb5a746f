"""Settings, files and commands that make a connection secure: what is wrong is one line, and no secret is ever in it, or in any log."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import pickle
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from kafka import errors
from pydantic import ValidationError

from keystone.config import Config, KafkaConfig, load
from keystone.errors import UsageError
from keystone.log.kafka import KafkaLog, security
from keystone.log.kafka.client import KafkaClient
from keystone.log.kafka.security import Login, Tokens, connection_options, run_token_command
from keystone.log.url import KafkaUrl
from tests.kafka_fakes import Broker

PASSWORD = "canary-password"
TOKEN = "canary-token"
PYTHON = (sys.executable, "-I", "-S", "-c")


def refusal(place: str = "127.0.0.1:9", **settings: Any) -> str:
    """The one line that opening a log gives."""
    with pytest.raises(UsageError) as raised:
        KafkaLog.open(KafkaUrl((place,), "t"), KafkaConfig(**settings))
    line = str(raised.value)
    assert "\n" not in line
    assert "canary" not in "".join(traceback.format_exception(raised.value))
    return line.replace(place, "SERVER")


# --- settings that do not go together -----------------------------------------------------------------------------------
SASL = {"security_protocol": "SASL_SSL", "sasl_username": "u"}
NO_PASSWORD = "kafka.sasl_mechanism = SCRAM-SHA-512 needs a password: name a file by kafka.sasl_password_file, or set KEYSTONE_KAFKA__SASL_PASSWORD"


NO_TLS = "kafka.{} is set, but kafka.security_protocol = {} has no TLS: set it to {}"
NO_LOGIN = "{} is set, but kafka.security_protocol = {} has no login: set it to SASL_SSL"
NO_CERTIFICATE = "kafka.{} is set, but no certificate: name its file by kafka.tls_cert_file"
NO_COMMAND = 'kafka.sasl_mechanism = OAUTHBEARER needs kafka.oauth_token_command, such as ["get-token", "--audience", "kafka"]'
TWO_PASSWORDS = "both KEYSTONE_KAFKA__SASL_PASSWORD and kafka.sasl_password_file are set: remove one of them"
OTHER_MECHANISM = "kafka.oauth_token_command is set, but kafka.sasl_mechanism = SCRAM-SHA-512: set that to OAUTHBEARER"
NO_UTF8 = "KEYSTONE_KAFKA__SASL_PASSWORD is not UTF-8 text: correct it, or write the password into a file (kafka.sasl_password_file)"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"tls_ca_file": "ca.pem"}, NO_TLS.format("tls_ca_file", "PLAINTEXT", "SSL")),
        ({"tls_ca_file": "ca.pem", "sasl_username": "u"}, NO_TLS.format("tls_ca_file", "PLAINTEXT", "SASL_SSL")),
        ({"security_protocol": "SASL_PLAINTEXT", "tls_cert_file": "c.pem"}, NO_TLS.format("tls_cert_file", "SASL_PLAINTEXT", "SASL_SSL")),
        ({"sasl_username": "u"}, NO_LOGIN.format("kafka.sasl_username", "PLAINTEXT")),
        ({"sasl_password": PASSWORD}, NO_LOGIN.format("KEYSTONE_KAFKA__SASL_PASSWORD", "PLAINTEXT")),
        ({"security_protocol": "SSL", "oauth_token_command": ["x"]}, NO_LOGIN.format("kafka.oauth_token_command", "SSL")),
        ({"security_protocol": "SSL", "tls_key_file": "k"}, NO_CERTIFICATE.format("tls_key_file")),
        ({"security_protocol": "SSL", "tls_key_password_file": "k"}, NO_CERTIFICATE.format("tls_key_password_file")),
        ({"security_protocol": "SASL_SSL"}, "kafka.sasl_mechanism = SCRAM-SHA-512 needs kafka.sasl_username"),
        (SASL, NO_PASSWORD),
        (SASL | {"sasl_password": ""}, NO_PASSWORD),
        (SASL | {"sasl_password": PASSWORD, "sasl_password_file": "f"}, TWO_PASSWORDS),
        (SASL | {"sasl_password": "canary\udcff"}, NO_UTF8),
        (SASL | {"oauth_token_command": ["x"]}, OTHER_MECHANISM),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}, NO_COMMAND),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], line: str) -> None:
    before = set(threading.enumerate())
    assert refusal(**settings) == line
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("server", ["127.0.0.1:9092", "127.8.8.8:1", "localhost:9092", "a.localhost:1", "[::1]:9092"])
def test_plaintext_is_for_this_machine(server: str) -> None:
    assert connection_options(KafkaConfig(), [server]) == {"security_protocol": "PLAINTEXT"}


@pytest.mark.parametrize("server", ["10.0.0.1:9092", "broker:9092", "localhost.example.com:9092", "[::2]:9092", "0.0.0.0:1", "127.0.0.1.example.com:1"])
def test_plaintext_elsewhere_must_be_allowed(server: str) -> None:
    with pytest.raises(UsageError, match=rf"^{re.escape(server)} is not this machine, .* or set kafka\.allow_plaintext = true$"):
        connection_options(KafkaConfig(), ["127.0.0.1:1", server])
    connection_options(KafkaConfig(allow_plaintext=True), [server])
    connection_options(KafkaConfig(security_protocol="SSL"), [server])


# --- files --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued, other = authority.issue_cert("client.test"), authority.issue_cert("other.test")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(PASSWORD.encode()))
    contents = {
        "ca": authority.cert_pem.bytes(),
        "cert": issued.cert_chain_pems[0].bytes(),
        "key": issued.private_key_pem.bytes(),
        "pair": issued.private_key_and_cert_chain_pem.bytes(),
        "other-key": other.private_key_pem.bytes(),
        "encrypted": encrypted,
        "password": PASSWORD.encode() + b"\n",
        "wrong": b"canary-wrong\n",
        "empty": b"\n",
        "bytes": b"canary\xff",
        "long": b"canary" * 20_000,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    return {name: str(folder / name) for name in (*contents, "folder", "absent")}


@pytest.mark.parametrize(
    "names",
    [
        {"tls_ca_file": "ca"},
        {"tls_cert_file": "pair"},
        {"tls_cert_file": "cert", "tls_key_file": "key"},
        {"tls_cert_file": "cert", "tls_key_file": "encrypted", "tls_key_password_file": "password"},
    ],
)
def test_files_that_are_right(files: dict[str, str], names: dict[str, str]) -> None:
    options = connection_options(KafkaConfig(security_protocol="SSL", **{name: files[file] for name, file in names.items()}), ["broker:1"])
    context = options["ssl_context"]
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"
    assert context.minimum_version.name == "TLSv1_2"


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ({"tls_ca_file": "absent"}, "kafka.tls_ca_file = {absent}: cannot be read: No such file or directory: correct it"),
        ({"tls_ca_file": "folder"}, "kafka.tls_ca_file = {folder}: cannot be read: Is a directory: correct it"),
        ({"tls_ca_file": "wrong"}, "kafka.tls_ca_file = {wrong}: holds no certificate in PEM form: name the CA file of the brokers"),
        ({"tls_cert_file": "absent"}, "kafka.tls_cert_file = {absent}: cannot be read: No such file or directory: correct it"),
        ({"tls_cert_file": "cert", "tls_key_file": "absent"}, "kafka.tls_key_file = {absent}: cannot be read: No such file or directory: correct it"),
        (
            {"tls_cert_file": "cert"},
            "kafka.tls_cert_file = {cert}: certificate or key ({cert}) are not in PEM form, or not there: name the key by kafka.tls_key_file",
        ),
        (
            {"tls_cert_file": "cert", "tls_key_file": "other-key"},
            "kafka.tls_key_file = {other-key}: the key does not belong to the certificate in {cert}: name the pair",
        ),
        (
            {"tls_cert_file": "cert", "tls_key_file": "encrypted"},
            "kafka.tls_key_file = {encrypted}: the key is encrypted: name the file with its password by kafka.tls_key_password_file",
        ),
        (
            {"tls_cert_file": "cert", "tls_key_file": "encrypted", "tls_key_password_file": "wrong"},
            "kafka.tls_key_password_file = {wrong}: is not the password of the key in {encrypted}: correct it",
        ),
        (
            {"tls_cert_file": "cert", "tls_key_file": "encrypted", "tls_key_password_file": "long"},
            "kafka.tls_key_password_file = {long}: holds no secret, or over 65536 bytes: write the secret alone into it",
        ),
        ({"sasl_password_file": "absent"}, "kafka.sasl_password_file = {absent}: cannot be read: No such file or directory: correct it"),
        ({"sasl_password_file": "folder"}, "kafka.sasl_password_file = {folder}: cannot be read: Is a directory: correct it"),
        ({"sasl_password_file": "empty"}, "kafka.sasl_password_file = {empty}: holds no secret, or over 65536 bytes: write the secret alone into it"),
        ({"sasl_password_file": "bytes"}, "kafka.sasl_password_file = {bytes}: is not UTF-8 text: write the secret alone into it"),
    ],
)
def test_files_that_are_wrong(files: dict[str, str], names: dict[str, str], line: str) -> None:
    protocol = SASL if "sasl_password_file" in names else {"security_protocol": "SSL"}
    expected = line
    for name, path in files.items():
        expected = expected.replace(f"{{{name}}}", path)
    assert refusal(**protocol, **{name: files[file] for name, file in names.items()}) == expected


# --- logins -------------------------------------------------------------------------------------------------------------
LOGIN = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "alice", "sasl_password": PASSWORD}
TOKENS = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"}


def refused(_turn: int, _message: bytes) -> tuple[int, bytes]:
    return errors.SaslAuthenticationFailedError.errno, b""


def nonsense(_turn: int, _message: bytes) -> tuple[int, bytes]:
    return 0, b"canary-nonsense"


def impostor(turn: int, message: bytes) -> tuple[int, bytes]:
    """Knows how SCRAM goes, but not the password."""
    if turn:
        return 0, b"v=" + base64.b64encode(b"canary-signature")
    nonce = re.search(rb"r=([0-9a-f]+)", message)
    assert nonce is not None
    return 0, b"r=" + nonce[1] + b"more,s=" + base64.b64encode(b"salt") + b",i=4096"


@pytest.mark.parametrize(
    ("broker", "settings", "line"),
    [
        (
            Broker(mechanisms=("SCRAM-SHA-512",), login=refused), LOGIN,
            "SERVER: refuses user 'alice' or the password (SCRAM-SHA-512): correct kafka.sasl_username, or KEYSTONE_KAFKA__SASL_PASSWORD",
        ),
        (
            Broker(mechanisms=("GSSAPI", "PLAIN")), LOGIN,
            "SERVER: does not offer kafka.sasl_mechanism = SCRAM-SHA-512: set it to one of what it offers: GSSAPI, PLAIN",
        ),
        (Broker(), LOGIN, "SERVER: asks for no login on this port: set kafka.security_protocol = PLAINTEXT, or name the port that asks for one"),
        (
            Broker(mechanisms=("SCRAM-SHA-512",), login=nonsense), LOGIN,
            "SERVER: does not log in as SCRAM-SHA-512 demands, and may not be the broker that it is taken for: correct host and port",
        ),
        (
            Broker(mechanisms=("SCRAM-SHA-512",), login=impostor), LOGIN,
            "SERVER: does not log in as SCRAM-SHA-512 demands, and may not be the broker that it is taken for: correct host and port",
        ),
        (
            Broker(mechanisms=("PLAIN",), login=nonsense), LOGIN | {"sasl_mechanism": "PLAIN"},
            "SERVER: refuses user 'alice' or the password (PLAIN): correct kafka.sasl_username, or KEYSTONE_KAFKA__SASL_PASSWORD",
        ),
        (
            Broker(mechanisms=("OAUTHBEARER",), login=refused), TOKENS | {"oauth_token_command": (*PYTHON, "print('canary-token')")},
            "SERVER: refuses the token of kafka.oauth_token_command: look at what it is issued for: subject, audience, issuer, time",
        ),
        (
            Broker(mechanisms=("OAUTHBEARER",)), TOKENS | {"oauth_token_command": ("/no/command", "canary-argument")},
            "kafka.oauth_token_command: /no/command cannot be run: No such file or directory: correct it",
        ),
        (
            Broker(mechanisms=("OAUTHBEARER",)), TOKENS | {"oauth_token_command": (*PYTHON, "print('canary token')")},
            f'kafka.oauth_token_command: {sys.executable} printed no token: it must print the token alone, or {{"token": ..., "expires_in_s": ...}}',
        ),
    ],
)  # fmt: skip
def test_a_login_that_fails(broker: Broker, settings: dict[str, Any], line: str) -> None:
    with broker.listening() as place:
        assert refusal(place, **settings) == line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("waits_s", "line"),
    [
        (0, "SERVER: hangs up during the login (PLAIN): look at the broker's log, or choose another kafka.sasl_mechanism"),
        (5, "SERVER: does not answer the login within 1 s: look at the broker"),
    ],
)
def test_a_broker_that_stops_at_the_login(waits_s: float, line: str) -> None:
    def stop(_turn: int, _message: bytes) -> tuple[int, bytes]:
        time.sleep(waits_s)
        raise OSError

    with Broker(mechanisms=("PLAIN",), login=stop).listening() as place:
        assert refusal(place, **LOGIN, sasl_mechanism="PLAIN", connect_timeout_ms=700) == line


def test_a_password_of_a_file_is_read_for_each_login(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("first \n")
    login = Login(KafkaConfig(**SASL, sasl_mechanism="PLAIN", sasl_password_file=str(secret)))
    assert login.begin("h").auth_bytes() == b"u\0u\0first "
    secret.write_text("second")
    assert login.begin("h").auth_bytes() == b"u\0u\0second"
    secret.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        login.begin("h")


def test_a_name_with_commas_is_spelled_as_scram_wants_it() -> None:
    login = Login(KafkaConfig(security_protocol="SASL_SSL", sasl_username="a,b=c", sasl_password="p"))
    assert login.begin("h").auth_bytes().startswith(b"n,,n=a=2Cb=3Dc,r=")


# --- tokens -------------------------------------------------------------------------------------------------------------
def jwt(seconds: float) -> str:
    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, {"sub": "x", "exp": time.time() + seconds}))
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "."


@pytest.mark.parametrize(
    ("printed", "token", "seconds"),
    [
        ("abc.DEF-_~+/==\n", "abc.DEF-_~+/==", 30),
        ('{"token": "t", "expires_in_s": 90}', "t", 90),
        ('{"access_token": "t", "expires_in": "3600", "token_type": "Bearer"}', "t", 3600),
        ('{"access_token": "t"}', "t", 30),
        ('{"token": "t", "expires_in_s": -5}', "t", 0),
        ("a.b.c", "a.b.c", 30),
    ],
)  # fmt: skip
def test_what_a_token_command_may_print(printed: str, token: str, seconds: float) -> None:
    assert run_token_command((*PYTHON, f"print({printed!r})")) == (token, pytest.approx(seconds))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("seconds", [9_000, -9_000])
def test_a_token_that_says_itself_how_long_it_lives(seconds: float, inside: bool) -> None:
    token = jwt(seconds)
    printed = json.dumps({"token": token}) if inside else token
    found, life_s = run_token_command((*PYTHON, f"print({printed!r})"))
    assert found == token
    assert life_s == pytest.approx(max(0, seconds), abs=1_000)


NO_TOKEN = f'kafka.oauth_token_command: {sys.executable} printed no token: it must print the token alone, or {{"token": ..., "expires_in_s": ...}}'


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("pass", NO_TOKEN),
        ("print('canary token')", NO_TOKEN),
        ("print('canary\\x01auth=x')", NO_TOKEN),
        ("print('{canary')", NO_TOKEN),
        ("print('[\"canary\"]')", NO_TOKEN),
        ("print('{\"tok\": \"canary\"}')", NO_TOKEN),
        ("print('{\"token\": 5}')", NO_TOKEN),
        ("print('{\"token\": \"canary\", \"expires_in_s\": NaN}')", NO_TOKEN),
        ("print('{\"token\": \"canary\", \"expires_in_s\": \"soon\"}')", NO_TOKEN),
        ("print('[' * 60_000)", NO_TOKEN),
        ("import sys; sys.stdout.buffer.write(b'canary\\xff')", NO_TOKEN),
        (
            "import sys; print('canary'); print('canary', file=sys.stderr); sys.exit(3)",
            f"kafka.oauth_token_command: {sys.executable} failed (exit status 3): run it by hand to see why",
        ),
        ("while True: print('canary' * 10_000)", f"kafka.oauth_token_command: {sys.executable} printed over 64 KiB: it must print a token alone"),
    ],
)  # fmt: skip
def test_a_token_command_that_gives_none(program: str, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as raised:
        run_token_command((*PYTHON, program))
    assert str(raised.value) == line
    assert "canary" not in "".join(traceback.format_exception(raised.value))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("command", "why"), [(("/no/such/command",), "No such file or directory"), (("/",), "Permission denied"), (("a\0b",), "it holds a letter")]
)
def test_a_token_command_that_is_none(command: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError, match=why) as raised:
        run_token_command(command)
    assert "\n" not in str(raised.value)


def test_a_token_command_runs_in_a_process_with_many_files_open() -> None:
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    try:
        assert run_token_command((*PYTHON, "print('tok')"))[0] == "tok"
    finally:
        for file in held:
            os.close(file)


@pytest.mark.slow
def test_a_token_command_that_is_slow_is_ended_with_all_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(security, "TOKEN_COMMAND_WAIT_S", 0.7)
    for script in (f"sleep 60 & echo $! > {tmp_path}/child; echo canary; wait", f"sleep 60 & echo $! > {tmp_path}/child; exec >&-; wait"):
        with pytest.raises(UsageError, match=r"^kafka\.oauth_token_command: sh gave no token within 1 s and was ended: run it by hand to see why$"):
            run_token_command(("sh", "-c", script))
        child = int((tmp_path / "child").read_text())
        until = time.monotonic() + 10
        while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_what_a_token_command_left_running_on_purpose_goes_on() -> None:
    """Some keep tokens in a process of their own."""
    token, _ = run_token_command(("sh", "-c", "sleep 60 >&- 2>&- & echo $!"))
    psutil.Process(int(token)).kill()


def counting(tmp_path: Path, life_s: float) -> tuple[str, ...]:
    """A command that prints how often it was run."""
    return ("sh", "-c", f'echo x >> {tmp_path}/runs; printf \'{{"token": "t%d", "expires_in_s": {life_s}}}\' $(wc -l < {tmp_path}/runs)')


@pytest.mark.slow
def test_a_token_is_kept_until_it_is_old_or_refused(tmp_path: Path) -> None:
    tokens = Tokens(counting(tmp_path, 1.0))
    assert [tokens.token(), tokens.token()] == ["t1", "t1"]
    time.sleep(0.85)
    assert [tokens.token(), tokens.token()] == ["t2", "t2"]
    tokens.forget()
    assert tokens.token() == "t3"


def test_connections_that_want_a_token_at_once_wait_for_one_run(tmp_path: Path) -> None:
    tokens = Tokens(counting(tmp_path, 60))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(tokens.token())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["t1"] * 8


def test_a_command_that_failed_is_not_run_for_each_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(("sh", "-c", f"echo x >> {tmp_path}/runs; exit 1"))
    for _ in range(3):
        with pytest.raises(UsageError, match="failed"):
            tokens.token()
    assert (tmp_path / "runs").read_text() == "x\n"
    monkeypatch.setattr(security, "TOKEN_FAILED_S", 0.0)
    with pytest.raises(UsageError, match="failed"):
        tokens.token()
    assert (tmp_path / "runs").read_text() == "x\nx\n"


# --- where secrets must not be ------------------------------------------------------------------------------------------
@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    """All that any logger says at any level, with tracebacks."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)r"))
    before = logging.root.level, logging.getLogger("kafka").level
    logging.root.addHandler(handler)
    logging.root.setLevel(1)
    logging.getLogger("kafka").setLevel(1)
    yield text
    logging.root.removeHandler(handler)
    logging.root.setLevel(before[0])
    logging.getLogger("kafka").setLevel(before[1])


@pytest.mark.parametrize(
    ("mechanism", "login"),
    [
        ("PLAIN", refused),
        ("PLAIN", nonsense),
        ("PLAIN", None),
        ("SCRAM-SHA-256", refused),
        ("SCRAM-SHA-512", impostor),
        ("OAUTHBEARER", refused),
        ("OAUTHBEARER", None),
    ],
)
def test_no_logger_writes_what_a_login_is_made_of(everything_logged: io.StringIO, mechanism: str, login: Any) -> None:
    settings: dict[str, Any] = {"sasl_username": "alice", "sasl_password": PASSWORD}
    if mechanism == "OAUTHBEARER":
        settings = {"oauth_token_command": ("echo", TOKEN)}
    settings |= {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": mechanism}
    line = ""
    if login is None:
        with Broker(mechanisms=(mechanism,)).listening() as place, closing(KafkaClient([place], KafkaConfig(**settings))) as client:
            client.connect()
    else:
        with Broker(mechanisms=(mechanism,), login=login).listening() as place:
            line = refusal(place, **settings)
    logged = everything_logged.getvalue()
    assert "SaslAuthenticateRequest" in logged
    assert "kafka.protocol.parser" in logged
    assert "canary" not in logged.replace("echo canary-token", "") + line
    assert not re.search(r",p=|r=[0-9a-f]{32}", logged)  # what SCRAM proves its knowledge by
    for form in (base64.b64encode(PASSWORD.encode()).decode()[:-4], PASSWORD.encode().hex()):
        assert form not in logged


def test_a_password_is_in_no_rendering_of_the_configuration() -> None:
    config = load(env={"KEYSTONE_KAFKA__SASL_PASSWORD": '["canary-secret"]'})
    assert config.kafka.sasl_password is not None
    assert config.kafka.sasl_password.get_secret_value() == '["canary-secret"]'
    shown = [
        repr(config),
        str(config),
        config.model_dump_json(),
        str(config.model_dump()),
        str(config.model_dump(mode="json")),
        str(vars(config)),
        f"{config.kafka!r}",
    ]
    assert "canary" not in "".join(shown)
    again = pickle.loads(pickle.dumps(config))  # as it goes to actors
    assert again.kafka.sasl_password.get_secret_value() == '["canary-secret"]'


def test_a_password_is_in_no_error_about_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "keystone.toml").write_text('[kafka]\nsasl_password = "canary-secret"\n')
    (tmp_path / "table.toml").write_text('[kafka.sasl_password]\ncanary = "canary-secret"\n')
    (tmp_path / "typo.toml").write_text('[kafka]\nsasl_pasword = "canary-secret"\n')
    (tmp_path / "broken.toml").write_text('[kafka]\nsasl_password = "canary-secret\n')
    for given in (
        *({"path": tmp_path / f"{name}.toml"} for name in ("keystone", "table", "typo", "broken")),
        {"flags": {"kafka.sasl_password": "canary-secret"}},
        {"env": {"KEYSTONE_KAFKA__SASL_PASWORD": "canary-secret"}},
    ):
        with pytest.raises(UsageError) as raised:
            load(**{"env": {}, **given})
        assert "\n" not in str(raised.value)
        assert "canary" not in "".join(traceback.format_exception(raised.value))
    for build in (lambda: KafkaConfig(sasl_password=["canary"]), lambda: Config(kafka={"sasl_password": ["canary"]}), lambda: KafkaConfig(typo="canary")):
        with pytest.raises(ValidationError) as invalid:
            build()
        assert "canary" not in str(invalid.value)
