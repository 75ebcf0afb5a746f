"""From settings to what a connection needs: TLS, SASL, tokens. Secrets are read from files, commands and the environment only."""

from __future__ import annotations

import ipaddress
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from keystone.config import KafkaConfig
from keystone.errors import UsageError

TOKEN_COMMAND_WAIT_S: Final = 5.0
TOKEN_BYTES_MAX: Final = 64 << 10
TOKEN_KEPT_S: Final = 30.0  # of one that does not say how long it is good for
_SECRET_BYTES_MAX: Final = 64 << 10


def is_loopback(server: str) -> bool:
    """Whether ``host:port`` is this machine, without asking a name server."""
    host = server.rpartition(":")[0].strip("[]")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def connection_options(config: KafkaConfig, servers: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments of kafka-python. ``UsageError`` for settings that do not go together, or files that cannot be used."""
    _check_plaintext(config, servers)
    options: dict[str, Any] = {"security_protocol": config.security_protocol}
    if config.security_protocol.endswith("SSL"):
        options["ssl_context"] = _tls(config)
    elif config.tls_ca_file or config.tls_cert_file:
        raise UsageError(f"kafka.tls_ca_file is set, but kafka.security_protocol = {config.security_protocol}: set it to SSL or SASL_SSL")
    if config.security_protocol.startswith("SASL"):
        options |= _sasl(config)
    elif config.sasl_username or config.sasl_password or config.sasl_password_file:
        raise UsageError(f"kafka.sasl_username or a password is set, but kafka.security_protocol = {config.security_protocol}: set it to SASL_SSL")
    return options


def _check_plaintext(config: KafkaConfig, servers: Iterable[str]) -> None:
    outside = [server for server in servers if not is_loopback(server)]
    if outside and "SSL" not in config.security_protocol and not config.allow_plaintext:
        raise UsageError(
            f"{outside[0]} is not this machine, and kafka.security_protocol = {config.security_protocol} sends everything readable:"
            " set it to SSL or SASL_SSL, or set kafka.allow_plaintext = true"
        )


def _tls(config: KafkaConfig) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.tls_ca_file:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load("kafka.tls_ca_file", config.tls_ca_file, lambda path: context.load_verify_locations(path))
    if config.tls_cert_file:
        password = read_secret("kafka.tls_key_password_file", config.tls_key_password_file) if config.tls_key_password_file else ""
        key = config.tls_key_file or config.tls_cert_file
        # A function, or OpenSSL asks at the terminal for a password that is missing.
        _load("kafka.tls_cert_file", config.tls_cert_file, lambda path: context.load_cert_chain(path, key, lambda: password))
    return context


def _load(setting: str, path: str, load: Any) -> None:
    try:
        load(path)
    except OSError as error:  # ssl.SSLError is such too
        why = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "it is not PEM, or key and certificate do not fit"
        raise UsageError(f"{setting} = {path}: cannot be used: {why}") from None


def read_secret(setting: str, path: str) -> str:
    """The content of a small file, without the line feed at its end. ``UsageError`` names the setting, never the content."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{setting} = {path}: cannot be read: {error.strerror}") from None
    if len(content) > _SECRET_BYTES_MAX or not content.strip():
        raise UsageError(f"{setting} = {path}: holds no secret, or over {_SECRET_BYTES_MAX} bytes: write the secret alone into it")
    try:
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError(f"{setting} = {path}: is not UTF-8 text") from None


def _sasl(config: KafkaConfig) -> dict[str, Any]:
    if config.sasl_mechanism == "OAUTHBEARER":
        if not config.oauth_token_command:
            raise UsageError('kafka.sasl_mechanism = OAUTHBEARER needs kafka.oauth_token_command, such as ["get-token", "--audience", "kafka"]')
        return {"sasl_mechanism": config.sasl_mechanism, "sasl_oauth_token_provider": token_provider(config.oauth_token_command)}
    if config.sasl_password_file:
        password = read_secret("kafka.sasl_password_file", config.sasl_password_file)
    elif config.sasl_password:
        password = config.sasl_password.get_secret_value()
    else:
        raise UsageError(
            f"kafka.sasl_mechanism = {config.sasl_mechanism} needs a password: name a file by kafka.sasl_password_file, or set KEYSTONE_KAFKA__SASL_PASSWORD"
        )
    if not config.sasl_username:
        raise UsageError(f"kafka.sasl_mechanism = {config.sasl_mechanism} needs kafka.sasl_username")
    return {"sasl_mechanism": config.sasl_mechanism, "sasl_plain_username": config.sasl_username, "sasl_plain_password": password}


def token_provider(command: tuple[str, ...]) -> Any:
    """What kafka-python asks for a token: runs ``command`` when the last token is no longer good."""
    from kafka.net.sasl.oauth import AbstractTokenProvider

    class CommandTokens(AbstractTokenProvider):  # type: ignore[misc]
        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._token, self._good_until_s = "", 0.0

        def token(self) -> str:
            with self._lock:
                if time.monotonic() >= self._good_until_s:
                    self._token, seconds = run_token_command(command)
                    self._good_until_s = time.monotonic() + seconds
                return self._token

    return CommandTokens()


def run_token_command(command: tuple[str, ...]) -> tuple[str, float]:
    """The token a command prints and how many seconds to keep it. ``UsageError`` never shows what it printed."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TOKEN_COMMAND_WAIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise UsageError(f"kafka.oauth_token_command: {command[0]} has not answered within {TOKEN_COMMAND_WAIT_S:.0f} s") from None
    except OSError as error:
        raise UsageError(f"kafka.oauth_token_command: {command[0]} cannot be run: {error.strerror}") from None
    text = done.stdout[: TOKEN_BYTES_MAX + 1].decode("utf-8", "replace").strip()
    if done.returncode != 0 or not text or len(text) > TOKEN_BYTES_MAX:
        raise UsageError(f"kafka.oauth_token_command: {command[0]} gave no token (exit status {done.returncode}): run it by hand")
    return _token_in(text, command[0])


def _token_in(text: str, name: str) -> tuple[str, float]:
    if not text.startswith("{"):
        if len(text.split()) != 1:
            raise UsageError(f"kafka.oauth_token_command: {name} must print the token alone, or JSON with token and expires_in_s")
        return text, TOKEN_KEPT_S
    try:
        found = json.loads(text)
        seconds = float(found.get("expires_in_s", found.get("expires_in", TOKEN_KEPT_S)))
        return str(found.get("token") or found["access_token"]), seconds * 0.8  # renewed before it is refused
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"kafka.oauth_token_command: {name} must print the token alone, or JSON with token and expires_in_s") from None
