"""From settings to what a connection needs: TLS, SASL, tokens. Secrets are read from files, commands and the environment only.

No error from here shows what a file or a command holds, and ``hide_secrets`` keeps it out of what kafka-python logs at debug.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import os
import re
import select
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kafka.net.sasl import get_sasl_mechanism
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslAuthenticateResponse, SaslBytesRequest

from keystone.config import KafkaConfig, variable_of
from keystone.errors import UsageError

TOKEN_COMMAND_WAIT_S: Final = 5.0  # of the 8 s that a first connection has
TOKEN_BYTES_MAX: Final = 64 << 10
TOKEN_KEPT_S: Final = 30.0  # of one that does not say how long it is good for
TOKEN_RENEWED_AT: Final = 0.8  # of its life: brokers end a session by 0.85 to 0.95 of it
TOKEN_FAILED_S: Final = 1.0  # between two runs of a command that failed, however many connections want a token
_SECRET_BYTES_MAX: Final = 64 << 10
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750; anything else could end the message that it is sent in
_TLS_SETTINGS: Final = ("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_key_password_file")
_LOGIN_SETTINGS: Final = ("sasl_username", "sasl_password", "sasl_password_file", "oauth_token_command")
_PASSWORD_VARIABLE: Final = variable_of("kafka.sasl_password")


def connection_options(config: KafkaConfig, servers: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments of kafka-python, without secrets. ``UsageError`` for settings that do not go together, or files that cannot be used."""
    check_plaintext(config, servers)
    _check_together(config)
    options: dict[str, Any] = {"security_protocol": config.security_protocol}
    if config.security_protocol.endswith("SSL"):
        options["ssl_context"] = _tls(config)
    if config.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = config.sasl_mechanism
    return options


def is_loopback(server: str) -> bool:
    """Whether ``host:port`` is this machine, without asking a name server."""
    host = server.rpartition(":")[0].strip("[]")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_plaintext(config: KafkaConfig, servers: Iterable[str]) -> None:
    """``UsageError`` where something would go readable over a network that nobody has allowed it for."""
    if config.security_protocol.endswith("SSL") or config.allow_plaintext:
        return
    for server in servers:
        if not is_loopback(server):
            raise UsageError(
                f"{server} is not this machine, and kafka.security_protocol = {config.security_protocol} sends everything readable:"
                f" set it to {'SASL_SSL' if config.security_protocol.startswith('SASL') else 'SSL or SASL_SSL'}, or set kafka.allow_plaintext = true"
            )


def _check_together(config: KafkaConfig) -> None:
    protocol = config.security_protocol
    has_login = any(getattr(config, name) for name in _LOGIN_SETTINGS)
    for name in _TLS_SETTINGS:
        if getattr(config, name) and not protocol.endswith("SSL"):
            right = "SASL_SSL" if has_login or protocol.startswith("SASL") else "SSL"
            raise UsageError(f"kafka.{name} is set, but kafka.security_protocol = {protocol} has no TLS: set it to {right}")
    for name in _LOGIN_SETTINGS:
        if getattr(config, name) and not protocol.startswith("SASL"):
            shown = _PASSWORD_VARIABLE if name == "sasl_password" else f"kafka.{name}"
            raise UsageError(f"{shown} is set, but kafka.security_protocol = {protocol} has no login: set it to SASL_SSL")
    for name in ("tls_key_file", "tls_key_password_file"):
        if getattr(config, name) and not config.tls_cert_file:
            raise UsageError(f"kafka.{name} is set, but no certificate: name its file by kafka.tls_cert_file")


# --- TLS --------------------------------------------------------------------------------------------------------------------
def _tls(config: KafkaConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # asks for a certificate that is right, and for this host
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.tls_ca_file:
        _check_readable("kafka.tls_ca_file", config.tls_ca_file)
        try:
            context.load_verify_locations(config.tls_ca_file)
        except (OSError, ValueError):
            raise UsageError(f"kafka.tls_ca_file = {config.tls_ca_file}: holds no certificate in PEM form: name the CA file of the brokers") from None
    else:
        context.load_default_certs()
    if config.tls_cert_file:
        _load_certificate(context, config, config.tls_cert_file)
    return context


def _load_certificate(context: ssl.SSLContext, config: KafkaConfig, certificate: str) -> None:
    _check_readable("kafka.tls_cert_file", certificate)
    key, key_setting = (config.tls_key_file, "kafka.tls_key_file") if config.tls_key_file else (certificate, "kafka.tls_cert_file")
    _check_readable(key_setting, key)
    password = read_secret("kafka.tls_key_password_file", config.tls_key_password_file) if config.tls_key_password_file else ""
    asked: list[bool] = []

    def tell() -> str:  # a function, or OpenSSL asks at the terminal for a password that is missing
        asked.append(True)
        return password

    try:
        context.load_cert_chain(certificate, key, tell)
    except (OSError, ValueError) as error:  # ssl.SSLError is the former
        if asked and not password:
            why = f"{key_setting} = {key}: the key is encrypted: name the file with its password by kafka.tls_key_password_file"
        elif asked:
            why = f"kafka.tls_key_password_file = {config.tls_key_password_file}: is not the password of the key in {key}: correct it"
        elif getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            why = f"{key_setting} = {key}: the key does not belong to the certificate in {certificate}: name the pair"
        else:
            why = f"kafka.tls_cert_file = {certificate}: certificate or key ({key}) are not in PEM form, or not there: name the key by kafka.tls_key_file"
        raise UsageError(why) from None


def _check_readable(setting: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except (OSError, ValueError) as error:
        raise UsageError(f"{setting} = {path}: cannot be read: {_why(error)}: correct it") from None


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "it is no file's name"


def read_secret(setting: str, path: str) -> str:
    """The content of a small file, without the line feed at its end. ``UsageError`` names the setting, never the content."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_SECRET_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{setting} = {path}: cannot be read: {_why(error)}: correct it") from None
    if len(content) > _SECRET_BYTES_MAX or not content.strip():
        raise UsageError(f"{setting} = {path}: holds no secret, or over {_SECRET_BYTES_MAX} bytes: write the secret alone into it")
    try:
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError(f"{setting} = {path}: is not UTF-8 text: write the secret alone into it") from None


# --- logins -----------------------------------------------------------------------------------------------------------------
class Login:
    """How this client proves who it is. Thread-safe.

    Files and commands are read at each login, not once: a password that was changed or a token that was renewed is used by itself.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self.mechanism: str = config.sasl_mechanism
        self._config = config
        self._tokens = Tokens(config.oauth_token_command) if self.mechanism == "OAUTHBEARER" else None
        self._check()

    def _check(self) -> None:
        config, name = self._config, f"kafka.sasl_mechanism = {self.mechanism}"
        if self._tokens is not None:
            if not config.oauth_token_command:
                raise UsageError(f'{name} needs kafka.oauth_token_command, such as ["get-token", "--audience", "kafka"]')
            return
        if config.oauth_token_command:
            raise UsageError(f"kafka.oauth_token_command is set, but {name}: set that to OAUTHBEARER")
        if not config.sasl_username:
            raise UsageError(f"{name} needs kafka.sasl_username")
        if config.sasl_password and config.sasl_password_file:
            raise UsageError(f"both {_PASSWORD_VARIABLE} and kafka.sasl_password_file are set: remove one of them")
        self._password()

    def _password(self) -> str:
        if self._config.sasl_password_file:
            return read_secret("kafka.sasl_password_file", self._config.sasl_password_file)
        if not self._config.sasl_password:
            needs = f"kafka.sasl_mechanism = {self.mechanism} needs a password"
            raise UsageError(f"{needs}: name a file by kafka.sasl_password_file, or set {_PASSWORD_VARIABLE}")
        password = self._config.sasl_password.get_secret_value()
        if not password.isprintable() and any(0xD800 <= ord(letter) < 0xE000 for letter in password):  # bytes that are no UTF-8
            raise UsageError(f"{_PASSWORD_VARIABLE} is not UTF-8 text: correct it, or write the password into a file (kafka.sasl_password_file)")
        return password

    def begin(self, host: str) -> Any:
        """One login as kafka-python runs it. May read files and wait for a command. ``UsageError`` as at first."""
        options = {"host": host, "security_protocol": self._config.security_protocol, "sasl_mechanism": self.mechanism}
        if self._tokens is not None:
            return get_sasl_mechanism(self.mechanism)(**options, sasl_oauth_token_provider=_OneToken(self._tokens.token()))
        user = self._config.sasl_username or ""
        if self.mechanism.startswith("SCRAM"):
            user = user.replace("=", "=3D").replace(",", "=2C")  # RFC 5802
        return get_sasl_mechanism(self.mechanism)(**options, sasl_plain_username=user, sasl_plain_password=self._password())

    def was_refused(self) -> None:
        """Whatever was kept of it is not good."""
        if self._tokens is not None:
            self._tokens.forget()


class _OneToken(AbstractTokenProvider):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def token(self) -> str:
        return self._token


class Tokens:
    """The token that a command gives, for all connections that want one. Thread-safe; whoever asks may wait for the command."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._token = ""
        self._good_until_s = 0.0  # monotonic
        self._failed: UsageError | None = None
        self._failed_at_s = 0.0

    def token(self) -> str:
        """A good token. ``UsageError`` where the command gives none; within TOKEN_FAILED_S the same one, without another run."""
        with self._lock:
            now_s = time.monotonic()
            if now_s < self._good_until_s:
                return self._token
            if self._failed is not None and now_s < self._failed_at_s + TOKEN_FAILED_S:
                raise UsageError(str(self._failed))
            try:
                self._token, seconds = run_token_command(self._command)
            except UsageError as error:
                self._failed, self._failed_at_s = error, time.monotonic()
                raise
            self._failed = None
            self._good_until_s = time.monotonic() + seconds * TOKEN_RENEWED_AT
            return self._token

    def forget(self) -> None:
        """The broker refused it: run the command for the next login."""
        with self._lock:
            self._good_until_s = 0.0


def run_token_command(command: tuple[str, ...]) -> tuple[str, float]:
    """The token a command prints and how many seconds it is good for. ``UsageError`` never shows what it printed."""
    name = f"kafka.oauth_token_command: {command[0]}"
    try:
        output, status = _run(command, time.monotonic() + TOKEN_COMMAND_WAIT_S)
    except TimeoutError:
        raise UsageError(f"{name} gave no token within {TOKEN_COMMAND_WAIT_S:.0f} s and was ended: run it by hand to see why") from None
    except OSError as error:
        raise UsageError(f"{name} cannot be run: {error.strerror}: correct it") from None
    except ValueError:
        raise UsageError(f"{name} cannot be run: it holds a letter that no command may have: correct it") from None
    if status:
        raise UsageError(f"{name} failed (exit status {status}): run it by hand to see why")
    if len(output) > TOKEN_BYTES_MAX:
        raise UsageError(f"{name} printed over {TOKEN_BYTES_MAX >> 10} KiB: it must print a token alone")
    return _token_in(output.decode("utf-8", "replace").strip(), name)


def _run(command: tuple[str, ...], until: float) -> tuple[bytes, int]:
    """What it printed (up to a little over TOKEN_BYTES_MAX) and its exit status. Where it is too slow or prints too much, it ends, with all it started."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as process:  # noqa: S603 - the user's own
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            output = _read(process.stdout.fileno(), until)
            if len(output) <= TOKEN_BYTES_MAX:
                return output, process.wait(max(0.0, until - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            _end(process)
            raise TimeoutError from None
        _end(process)
        return output, 0


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read(pipe: int, until: float) -> bytes:
    content = b""
    poll = select.poll()  # select takes no descriptor from 1024 on, and a process with many partitions has as many
    poll.register(pipe, select.POLLIN)
    while len(content) <= TOKEN_BYTES_MAX:
        left_s = until - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1_000):
            raise TimeoutError
        found = os.read(pipe, 1 << 16)
        if not found:
            break
        content += found
    return content


def _token_in(text: str, name: str) -> tuple[str, float]:
    form = f'{name} printed no token: it must print the token alone, or {{"token": ..., "expires_in_s": ...}}'
    token, seconds = text, None
    if text.startswith("{"):
        try:
            found = json.loads(text)
            token = found.get("token") or found["access_token"]
            told = found.get("expires_in_s", found.get("expires_in"))
            seconds = None if told is None else float(told)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UsageError(form) from None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token) or (seconds is not None and not -1e9 < seconds < 1e9):  # nor NaN
        raise UsageError(form)
    if seconds is None:
        seconds = _life_s(token)
    return token, max(0.0, seconds)


def _life_s(token: str) -> float:
    """How long a token is good for by what it says itself (RFC 7519, ``exp``), by our clock."""
    parts = token.split(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"]) - time.time()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return TOKEN_KEPT_S


# --- logs -------------------------------------------------------------------------------------------------------------------
_LOGGERS: Final = ("kafka.net.connection", "kafka.protocol.parser")
_SECRET: Final = (SaslAuthenticateRequest, SaslAuthenticateResponse, SaslBytesRequest)


class _Hiding(logging.Filter):
    """kafka-python writes requests at debug, those of logins too, as objects and as the bytes that they become."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_shown(argument) for argument in record.args)
        return True


def _shown(argument: object) -> object:
    if isinstance(argument, (bytes, bytearray, memoryview)):
        return f"<{len(argument)} bytes>"
    return f"<{type(argument).__name__}>" if isinstance(argument, _SECRET) else argument


_hiding: Final = _Hiding()


def hide_secrets() -> None:
    """Keep what logins consist of out of kafka-python's log, at every level. May be repeated."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_hiding)
