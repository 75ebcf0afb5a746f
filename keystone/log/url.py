"""The log as a URL: ``embedded:DIR`` (one machine, no server) or ``kafka://host[:port][,host[:port]]/topic``."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from keystone.errors import LogInUse, UsageError
from keystone.log.embedded import DEFAULT_FREE_BYTES, URL_SCHEME, EmbeddedLog, directory_of

KAFKA_SCHEME: Final = "kafka://"
KAFKA_PORT: Final = 9092
TELEMETRY_TOPIC: Final = "keystone-telemetry"
DEFAULT_PARTITIONS: Final = 4
DEFAULT_SEGMENT_BYTES: Final = 4 << 20
DEFAULT_RETENTION_BYTES: Final = 64 << 20  # of a partition: x 4 = 256 MiB, 5 h of what a terminal can show
_MAKING_WAIT_S: Final = 5.0  # for another process that is making the same log
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
EXAMPLE: Final = "embedded:/var/tmp/keystone-log or kafka://broker-1:9092,broker-2:9092/keystone-telemetry"


@dataclass(frozen=True, slots=True)
class KafkaUrl:
    """Where a topic is. ``servers`` are ``host:port``, each once, in the order given."""

    servers: tuple[str, ...]
    topic: str

    def __str__(self) -> str:
        return f"{KAFKA_SCHEME}{','.join(self.servers)}/{self.topic}"

    def beside(self, topic: str) -> KafkaUrl:
        """Another topic of the same brokers."""
        return KafkaUrl(self.servers, topic)


@dataclass(frozen=True, slots=True)
class EmbeddedUrl:
    """Where an embedded log is."""

    directory: Path

    def __str__(self) -> str:
        return f"{URL_SCHEME}{self.directory}"


LogUrl = KafkaUrl | EmbeddedUrl


def parse_log_url(text: str, *, topic: str = TELEMETRY_TOPIC) -> LogUrl:
    """The URL in parts. ``topic`` is the one meant where a Kafka URL names none. ``UsageError`` says what is wrong."""
    if text.startswith(URL_SCHEME):
        return EmbeddedUrl(directory_of(text).absolute())
    if "@" in text.partition("://")[2].partition("/")[0]:
        raise UsageError("a log's URL holds no user and no password: set kafka.sasl_username and kafka.sasl_password_file")
    if not text.startswith(KAFKA_SCHEME):
        raise UsageError(f"log {text!r} is neither embedded: nor kafka://: write it as {EXAMPLE}")
    places, slash, name = text.removeprefix(KAFKA_SCHEME).partition("/")
    servers = tuple(dict.fromkeys(_server(text, place.strip()) for place in places.split(",")))
    chosen = name if slash and name else topic
    if not _TOPIC.fullmatch(chosen) or chosen in {".", ".."}:
        raise UsageError(f"log {text!r}: {chosen!r} is no topic's name: letters, digits, '.', '_' and '-', at most 249")
    return KafkaUrl(servers, chosen)


def _server(url: str, place: str) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+)(?::([0-9]{1,5}))?", place)
    if match is None or not 0 < int(match[2] or KAFKA_PORT) < 65_536:
        raise UsageError(f"log {url!r}: {place!r} is not host or host:port: write it as {EXAMPLE}")
    return f"{match[1]}:{int(match[2] or KAFKA_PORT)}"


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address is one of this machine's, without asking a name server."""
    if host in {"localhost", socket.gethostname()} or host.endswith(".localhost"):
        return True
    with suppress(ValueError):
        address = ipaddress.ip_address(host.strip("[]"))
        if address.is_loopback:
            return True
        return any(place.address == str(address) for places in psutil.net_if_addrs().values() for place in places)
    return False


def default_log_url(*, memory: Path = Path("/dev/shm")) -> EmbeddedUrl:  # noqa: S108 - chosen on purpose
    """The place of this user's log where none is named: the same for every process, in memory where that has room."""
    name = f"keystone-{os.getuid()}"
    places = (memory / name, Path(tempfile.gettempdir()) / name)
    for place in places:
        if (place / "telemetry").exists():
            return EmbeddedUrl(place / "telemetry")
    with suppress(OSError):
        stats = os.statvfs(memory)
        if os.access(memory, os.W_OK) and stats.f_bavail * stats.f_frsize >= DEFAULT_FREE_BYTES:
            return EmbeddedUrl(places[0] / "telemetry")
    return EmbeddedUrl(places[1] / "telemetry")


def open_embedded(url: EmbeddedUrl, *, is_made: bool) -> EmbeddedLog:
    """The log in a directory; with ``is_made``, made there first where there is none. Two processes may do so at once."""
    until = time.monotonic() + _MAKING_WAIT_S
    while True:
        if (url.directory / "log.json").exists() or not is_made:
            return EmbeddedLog.open(url.directory)
        try:
            _make_private(url.directory.parent)
            return EmbeddedLog.create(
                url.directory, partitions=DEFAULT_PARTITIONS, segment_bytes=DEFAULT_SEGMENT_BYTES, retention_bytes=DEFAULT_RETENTION_BYTES
            )
        except (LogInUse, UsageError):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _make_private(directory: Path) -> None:
    with suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
