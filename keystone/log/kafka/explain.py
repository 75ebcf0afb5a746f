"""One line for whatever a broker, a socket or a name server says: what is wrong, and what to change.

kafka-python hides causes behind "Unable to bootstrap" and logs them; ``connections`` keeps them, with the step that failed.
What a broker says about a login is never repeated: nobody knows what it puts there.
"""

from __future__ import annotations

import re
import socket
import ssl
from typing import Final, Literal, NamedTuple, get_args

from kafka import errors

from keystone.config import KafkaConfig
from keystone.errors import KeystoneError, UsageError

Step = Literal["name", "connect", "tls", "versions", "login", "metadata"]  # towards a broker, in this order
_STEPS: Final = get_args(Step)

LINE_LETTERS_MAX: Final = 300  # of what a broker says itself
_WRONG_NAME: Final = frozenset({62, 63, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, _EMAIL_, _IP_ADDRESS_
_OUT_OF_TIME: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "BAD_RECORD_TYPE")
_OLD_TLS: Final = ("UNSUPPORTED_PROTOCOL", "PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE", "NO_SHARED_CIPHER")


class StepFailed(errors.KafkaConnectionError):  # type: ignore[misc]
    """A step towards a broker was not possible. The same may be tried again: brokers come back, passwords are corrected."""

    def __init__(self, step: Step, cause: BaseException, waited_s: float | None = None) -> None:
        super().__init__(f"{step}: {type(cause).__name__}: {_plain(cause)}")
        self.step = step
        self.cause = cause
        self.waited_s = waited_s  # since the first step


class NotABroker(errors.UnsupportedVersionError):  # type: ignore[misc]
    """It speaks Kafka's protocol, but takes no records."""


class Reason(NamedTuple):
    """Why a broker cannot be used, and what to change."""

    what: str
    cure: str


def progress(error: BaseException) -> int:
    """How far towards a broker it came."""
    return _STEPS.index(error.step) if isinstance(error, StepFailed) else len(_STEPS)


def explain(error: BaseException, server: str, config: KafkaConfig) -> UsageError:
    """Why ``server`` (host:port) cannot be used, as one line."""
    if isinstance(error, StepFailed) and isinstance(error.cause, UsageError):
        return error.cause
    if isinstance(error, UsageError):
        return error
    reason = reason_of(error, server, config)
    return _line(f"{server}: {reason.what}: {reason.cure}")


def _line(text: str) -> UsageError:
    return UsageError(re.sub(r"\s+", " ", text))


def reason_of(error: BaseException, server: str, config: KafkaConfig) -> Reason:  # noqa: C901, PLR0911 - a list of cases
    """The same in two parts."""
    step, cause = (error.step, _innermost(error.cause)) if isinstance(error, StepFailed) else (None, _innermost(error))
    waited = f" within {max(1, round(error.waited_s))} s" if isinstance(error, StepFailed) and error.waited_s else ""
    if isinstance(cause, (errors.IncompatibleBrokerVersion, errors.UnsupportedVersionError)):
        return _of_versions(cause)
    if step == "name":
        return _of_name(cause, server)
    if isinstance(cause, ssl.SSLError):
        return _of_tls(step, cause, server, config)
    if step == "connect":
        return _of_connecting(cause, waited)
    if isinstance(cause, errors.InvalidReceiveError):
        return _of_bytes(cause, config)
    if step == "login" and (found := _of_login(cause, config)):
        return found
    if isinstance(cause, errors.ClusterAuthorizationFailedError):
        return Reason(f"{_who(config)} may not use this cluster", "allow it by ACL")
    if _is_timeout(cause):
        return _of_silence(step, waited)
    if isinstance(cause, (errors.KafkaConnectionError, OSError)):
        return _of_hanging_up(step, config)
    if isinstance(cause, errors.KafkaProtocolError):
        return Reason(f"answers, but not as a Kafka broker does ({_plain(cause)})", "correct the port")
    return Reason(f"cannot be used as a Kafka broker ({_plain(cause) or type(cause).__name__})", "look at the broker's log")


def _innermost(error: BaseException) -> BaseException:
    """kafka-python wraps errors of sockets as arguments of its own."""
    while isinstance(error, errors.KafkaError) and error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return error


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, (TimeoutError, errors.KafkaTimeoutError, errors.RequestTimedOutError))


def _plain(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:LINE_LETTERS_MAX]


def _who(config: KafkaConfig) -> str:
    if config.security_protocol.startswith("SASL"):
        return "the owner of the token" if config.sasl_mechanism == "OAUTHBEARER" else f"user {config.sasl_username!r}"
    return "this client (by its certificate)" if config.tls_cert_file else "this client, which does not log in,"


# --- one step each ----------------------------------------------------------------------------------------------------------
def _of_name(cause: BaseException, server: str) -> Reason:
    host = server.rpartition(":")[0]
    if _is_timeout(cause) or (isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN):
        return Reason(f"no name server answers for {host!r}", "look at the network, or write an address instead of the name")
    return Reason(f"the host name {host!r} is unknown", "correct it, or make it known here (DNS, /etc/hosts)")


def _of_connecting(cause: BaseException, waited: str) -> Reason:
    if isinstance(cause, ConnectionRefusedError):
        return Reason("nothing listens there", "start the broker, or correct host and port")
    if _is_timeout(cause):
        return Reason(f"does not answer{waited}", "correct host and port, or let the firewall pass it")
    what = cause.strerror if isinstance(cause, OSError) and cause.strerror else _plain(cause)
    return Reason(f"cannot be reached ({what})", "correct host and port, or look at the network")


def _of_tls(step: Step | None, cause: ssl.SSLError, server: str, config: KafkaConfig) -> Reason:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _of_certificate(cause, server, config)
    why = str(getattr(cause, "reason", None) or _plain(cause))
    if any(word in why for word in _NOT_TLS):
        return _not_tls("does not speak TLS", config)
    if any(word in why for word in _OLD_TLS):
        return Reason(f"agrees on no version or cipher of TLS ({why})", "let the broker offer TLS 1.2 or 1.3 (ssl.enabled.protocols)")
    if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        return _of_hanging_up(step, config)
    if config.tls_cert_file:
        return Reason(f"refuses the certificate of kafka.tls_cert_file = {config.tls_cert_file} ({why})", "use one that the brokers' authority signed")
    return Reason(f"wants a certificate of this client ({why})", "set kafka.tls_cert_file and kafka.tls_key_file")


def _of_certificate(cause: ssl.SSLCertVerificationError, server: str, config: KafkaConfig) -> Reason:
    host = server.rpartition(":")[0]
    if cause.verify_code in _WRONG_NAME:
        return Reason(f"its certificate is not for {host!r}", "use a host name that the certificate holds, or give the broker a certificate for this one")
    if cause.verify_code in _OUT_OF_TIME:
        return Reason(f"its certificate is out of date ({cause.verify_message})", "renew it at the broker, or correct this machine's clock")
    if config.tls_ca_file:
        return Reason(
            f"its certificate is not of an authority in kafka.tls_ca_file = {config.tls_ca_file} ({cause.verify_message})", "name the CA file of these brokers"
        )
    what = f"its certificate is of no authority that this system trusts ({cause.verify_message})"
    return Reason(what, "name the CA file of these brokers by kafka.tls_ca_file")


def _not_tls(what: str, config: KafkaConfig) -> Reason:
    plain = "SASL_PLAINTEXT" if config.security_protocol.startswith("SASL") else "PLAINTEXT"
    return Reason(what, f"name the broker's TLS port, or set kafka.security_protocol = {plain} for this one")


def _of_versions(cause: BaseException) -> Reason:
    if isinstance(cause, NotABroker):
        return Reason(_said(cause), "name a broker's address, not a controller's")
    return Reason(f"speaks another version of Kafka's protocol ({_said(cause)})", "use brokers of Kafka 2.1 or newer that this program's kafka-python knows")


def _said(cause: BaseException) -> str:
    """Without kafka-python's prefix, which names the class."""
    words = cause.args[0] if cause.args and isinstance(cause.args[0], str) else ""
    return re.sub(r"\s+", " ", words).strip()[:LINE_LETTERS_MAX] or type(cause).__name__


def _of_bytes(cause: BaseException, config: KafkaConfig) -> Reason:
    """What was taken for the length of an answer tells what the other side speaks."""
    number = re.search(r"-?[0-9]+$", _said(cause))
    start = (int(number[0]) & 0xFFFFFFFF).to_bytes(4, "big") if number else b""
    if start[:2] == b"\x15\x03":  # a TLS alert
        return Reason("speaks TLS on this port", f"set kafka.security_protocol = {_with_tls(config)}, or name the port without TLS")
    if start == b"HTTP":
        return Reason("speaks HTTP, not Kafka's protocol", "correct the port")
    shown = f" (its answer begins with {start.decode()!r})" if start.isascii() and start.decode().isprintable() and start else ""
    return Reason(f"answers, but not as a Kafka broker does{shown}", "correct the port")


def _with_tls(config: KafkaConfig) -> str:
    return "SASL_SSL" if config.security_protocol.startswith("SASL") else "SSL or SASL_SSL"


def _of_login(cause: BaseException, config: KafkaConfig) -> Reason | None:
    name = config.sasl_mechanism
    if isinstance(cause, errors.UnsupportedSaslMechanismError):
        return Reason(f"does not offer kafka.sasl_mechanism = {name}", f"set it to one of what it offers: {_said(cause)}")
    if isinstance(cause, errors.IllegalSaslStateError):
        plain = config.security_protocol.removeprefix("SASL_")
        return Reason("asks for no login on this port", f"set kafka.security_protocol = {plain}, or name the port that asks for one")
    if isinstance(cause, errors.SaslAuthenticationFailedError):
        if name == "OAUTHBEARER":
            return Reason("refuses the token of kafka.oauth_token_command", "look at what it is issued for: subject, audience, issuer, time")
        return Reason(f"refuses user {config.sasl_username!r} or the password ({name})", f"correct kafka.sasl_username, or {_password_place(config)}")
    if isinstance(cause, (errors.KafkaError, OSError)):
        return None
    return Reason(f"does not log in as {name} demands, and may not be the broker that it is taken for", "correct host and port")


def _password_place(config: KafkaConfig) -> str:
    return f"the password in kafka.sasl_password_file = {config.sasl_password_file}" if config.sasl_password_file else "KEYSTONE_KAFKA__SASL_PASSWORD"


def _of_silence(step: Step | None, waited: str) -> Reason:
    if step == "tls":
        return Reason(f"takes the connection, but does not answer the TLS handshake{waited}", "correct the port, or look at the broker")
    if step == "login":
        return Reason(f"does not answer the login{waited}", "look at the broker")
    if step == "versions":
        return Reason(f"takes the connection, but does not answer{waited}", "correct the port (or kafka.security_protocol), or look at the broker")
    if step == "metadata":
        return Reason(f"takes the connection, but does not answer the first request{waited}", "look at the broker")
    return Reason("does not answer in time", "look at the broker, or at the network")


def _of_hanging_up(step: Step | None, config: KafkaConfig) -> Reason:  # noqa: PLR0911 - a list of cases
    has_tls, logs_in = config.security_protocol.endswith("SSL"), config.security_protocol.startswith("SASL")
    if step == "tls":
        return _not_tls("hangs up during the TLS handshake, as ports without TLS do", config)
    if step == "login" and config.sasl_mechanism == "OAUTHBEARER":
        return Reason("refuses the token of kafka.oauth_token_command by hanging up", "look at what it prints: a token as this broker wants it")
    if step == "login":
        return Reason(f"hangs up during the login ({config.sasl_mechanism})", "look at the broker's log, or choose another kafka.sasl_mechanism")
    if step == "metadata" and not logs_in:
        wanted = "SASL_SSL" if has_tls else "SASL_PLAINTEXT"
        return Reason("hangs up at the first request, as ports with a login do", f"set kafka.security_protocol = {wanted}, or name the port without a login")
    if step == "versions" and not has_tls:
        return Reason("hangs up before it answers", f"if it wants TLS there, set kafka.security_protocol = {_with_tls(config)}; else correct the port")
    if step == "versions":
        wanted = (
            f"use a certificate that it accepts (kafka.tls_cert_file = {config.tls_cert_file})"
            if config.tls_cert_file
            else ("if it wants a certificate of this client, set kafka.tls_cert_file and kafka.tls_key_file")
        )
        return Reason("hangs up after the TLS handshake", f"{wanted}; else correct the port")
    return Reason("hangs up", "look at the broker's log")


# --- other lines ------------------------------------------------------------------------------------------------------------
def advertised(error: BaseException, server: str, broker: int, address: str, config: KafkaConfig) -> UsageError:
    """``server`` can be used, but not the address it gives for ``broker``, where everything else is to be sent."""
    if isinstance(error, StepFailed) and isinstance(error.cause, UsageError):
        return UsageError(f"{server}: answers, but its advertised.listeners sends clients elsewhere: {error.cause}")
    reason = reason_of(error, address, config)
    cure = reason.cure if isinstance(error, StepFailed) and error.step not in ("name", "connect") else f"make {address} reachable from here"
    what = f"answers, but its advertised.listeners sends clients to {address} (broker {broker}), and that {_claim(reason.what)}"
    return _line(f"{server}: {what}: correct advertised.listeners at the broker, or {cure}")


def _claim(what: str) -> str:
    """A claim about an address, after its name."""
    return {"nothing listens there": "is a port where nothing listens"}.get(what, f"cannot be used: {what}" if what[:4] in ("the ", "no n", "its ") else what)


def not_there(topic: str, server: str) -> UsageError:
    """The topic does not exist."""
    return UsageError(f"topic {topic!r} is not at {server}: make it by: keystone topics create --log kafka://{server}/{topic}")


_RIGHTS: Final = {
    "read": "READ and DESCRIBE on the topic",
    "write": "WRITE and DESCRIBE on the topic",
    "see": "DESCRIBE on the topic, and READ to run or WRITE to simulate",
    "create": "CREATE on the topic, or on the cluster",
    "delete": "DELETE on the topic",
}


def not_allowed(action: str, topic: str, config: KafkaConfig) -> UsageError:
    """The topic may not be read, written, created or seen by this user."""
    where = ", if there is one" if action == "see" else ""
    return UsageError(f"{_who(config)} may not {action} topic {topic!r}{where}: allow by ACL: {_RIGHTS.get(action, action.upper())}")


def as_ours(error: BaseException, what: str) -> KeystoneError:
    """A foreign error during a request that no rule above speaks of."""
    if isinstance(error, KeystoneError):
        return error
    return UsageError(f"{what}: {type(error).__name__}: {_plain(error)}")
