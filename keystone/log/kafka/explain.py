"""One line for whatever a broker, a socket or a name server says: what is wrong, and what to change.

kafka-python hides causes behind "Unable to bootstrap" and logs them; here the connection's own error is asked for.
"""

from __future__ import annotations

import re
from typing import Final

import kafka.errors as errors

from keystone.config import KafkaConfig
from keystone.errors import KeystoneError, UsageError

LINE_LETTERS_MAX: Final = 300  # of what a broker says itself


def explain(error: BaseException, server: str, config: KafkaConfig) -> UsageError:
    """Why ``server`` (host:port) cannot be used, as one line."""
    if isinstance(error, UsageError):
        return error
    text = _plain(error)
    for found, line in _RULES:
        if found(error, text):
            return UsageError(line.format(server=server, what=text, user=config.sasl_username, mechanism=config.sasl_mechanism, ca=_ca(config)))
    if "socket disconnected" in text or "Connection closed" in text or isinstance(error, errors.RequestTimedOutError):
        return UsageError(_hung_up(error, server, config))
    return UsageError(f"{server}: cannot be used as a Kafka broker: {text or type(error).__name__}")


def _plain(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:LINE_LETTERS_MAX]


def _ca(config: KafkaConfig) -> str:
    return f"kafka.tls_ca_file = {config.tls_ca_file}" if config.tls_ca_file else "kafka.tls_ca_file (not set: the system's authorities)"


def _is(*kinds: type[BaseException]):  # type: ignore[no-untyped-def]  # noqa: ANN202
    return lambda error, text: isinstance(error, kinds)  # noqa: ARG005


def _says(*words: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    return lambda error, text: any(word in text for word in words)  # noqa: ARG005


_RULES: Final = (
    (_says("UNSUPPORTED_SASL_MECHANISM", "does not support"), "{server}: does not offer kafka.sasl_mechanism = {mechanism}: {what}"),
    (_is(errors.UnsupportedSaslMechanismError), "{server}: does not offer kafka.sasl_mechanism = {mechanism}: choose one that it does"),
    (_is(errors.IllegalSaslStateError), "{server}: asks for no password on this port: set kafka.security_protocol without SASL, or another port"),
    (
        _is(errors.SaslAuthenticationFailedError),
        "{server}: refuses user {user!r} or the password ({mechanism}): correct kafka.sasl_username, or what kafka.sasl_password_file holds",
    ),
    (_says("CERTIFICATE_VERIFY_FAILED", "Hostname mismatch") , "{server}: its certificate is not trusted ({what}): correct {ca}, or the host's name"),
    (_says("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "record layer failure", "wrong version number", "PACKET_LENGTH_TOO_LONG"),
     "{server}: does not speak TLS on this port: set kafka.security_protocol = PLAINTEXT (or SASL_PLAINTEXT), or name the TLS port"),
    (_says("CERTIFICATE_REQUIRED", "certificate required", "BAD_CERTIFICATE", "HANDSHAKE_FAILURE", "alert"),
     "{server}: wants a certificate of this client ({what}): set kafka.tls_cert_file and kafka.tls_key_file"),
    (_says("ECONNREFUSED"), "{server}: nothing listens there: start the broker, or correct the address"),
    (_says("EHOSTUNREACH", "ENETUNREACH"), "{server}: there is no way to this host: correct the address, or the network"),
    (_says("DNS"), "{server}: the host's name is unknown: correct it"),
    (_says("timed out", "Timeout"), "{server}: does not answer: start the broker, or correct the address (or a firewall drops the packets)"),
    (_is(errors.IncompatibleBrokerVersion, errors.UnsupportedVersionError), "{server}: speaks another version of Kafka's protocol ({what}): use brokers of Kafka 2.1 or newer"),
    (_is(errors.InvalidReceiveError, errors.KafkaProtocolError, errors.CorrelationIdError),
     "{server}: answers, but not as a Kafka broker ({what}): correct the port"),
    (_is(errors.ClusterAuthorizationFailedError), "{server}: the user {user!r} may not use this cluster: allow it by ACL"),
)  # fmt: skip


def _hung_up(error: BaseException, server: str, config: KafkaConfig) -> str:
    how = "does not answer" if isinstance(error, errors.RequestTimedOutError) else "hangs up"
    if config.security_protocol == "PLAINTEXT":
        return f"{server}: {how} when spoken to: if it wants TLS or a password there, set kafka.security_protocol to SSL or SASL_SSL; else correct the port"
    return f"{server}: {how} when spoken to by {config.security_protocol}: correct kafka.security_protocol, kafka.sasl_mechanism, or the port"


def not_there(topic: str, server: str) -> UsageError:
    """The topic does not exist."""
    return UsageError(f"topic {topic!r} is not at {server}: make it by: keystone topics create --log kafka://{server}/{topic}")


def not_allowed(action: str, topic: str, config: KafkaConfig) -> UsageError:
    """The topic may not be read, written or seen by this user."""
    who = f"user {config.sasl_username!r}" if config.sasl_username else "this client"
    return UsageError(f"{who} may not {action} topic {topic!r}: allow it by ACL (READ to run, WRITE to simulate; DESCRIBE for both)")


def as_ours(error: BaseException, what: str) -> KeystoneError:
    """A foreign error during a request that no rule above speaks of."""
    if isinstance(error, KeystoneError):
        return error
    return UsageError(f"{what}: {type(error).__name__}: {_plain(error)}")
