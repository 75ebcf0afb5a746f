"""Servers on this machine that are not quite Kafka brokers: silent, hanging up, speaking something else, or a broker of a few answers."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from kafka import errors
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, MetadataResponse
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse

Answer = Callable[[socket.socket], None]
OFFERED = {0: 12, 1: 16, 2: 7, 3: 12, 17: 1, 18: 4, 36: 2}  # requests and their newest version, as Kafka 3.9 has them
ANCIENT = {0: 2, 1: 3, 2: 1, 3: 2, 18: 0}  # Kafka 0.10.1


@contextmanager
def server(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Listens on this machine, as ``host:port``, and gives each connection to ``answer``, after a TLS handshake where there is a context."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    taken: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                taken.append(connection)
                threading.Thread(target=guarded, args=(connection,), daemon=True).start()

    def guarded(connection: socket.socket) -> None:
        with suppress(OSError, struct.error), connection:
            if context is None:
                answer(connection)
            else:
                with context.wrap_socket(connection, server_side=True) as secure:
                    answer(secure)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()
        for connection in taken:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@contextmanager
def black_hole() -> Iterator[str]:
    """A port whose packets are dropped: nobody takes what its queue of one holds, so the kernel answers no further connection."""
    with socket.socket() as listening, socket.socket() as first:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        first.connect(listening.getsockname())
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def closed_port() -> str:
    """Nothing listens there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


def silent(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def hanging_up(connection: socket.socket) -> None:
    """At the first thing it hears."""
    connection.recv(1)


def gone(_connection: socket.socket) -> None:
    """Hangs up at once."""


def http(connection: socket.socket) -> None:
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def ssh(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    silent(connection)


def alert(code: int) -> Answer:
    """Answers any TLS handshake by a fatal alert."""

    def answer(connection: socket.socket) -> None:
        connection.recv(1 << 14)
        connection.sendall(bytes((0x15, 0x03, 0x03, 0x00, 0x02, 0x02, code)))

    return answer


def receive(connection: socket.socket) -> tuple[int, int, int, bytes]:
    """The next request: its key, version and correlation id, and all its bytes."""
    size = struct.unpack(">i", exactly(connection, 4))[0]
    request = exactly(connection, size)
    return *struct.unpack(">hhi", request[:8]), request


def exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            raise ConnectionResetError
        found += piece
    return found


@dataclass
class Broker:
    """Takes connections, logins and requests for metadata, as far as it is told to; ``with broker.listening() as server``.

    ``offered``: newest version of each request. ``is_confused``: says UNSUPPORTED_VERSION to every request for versions.
    ``mechanisms``: of logins; ``login`` answers the messages of one: (error code, bytes).
    ``advertised``: where it sends clients. ``behaves``: what it does with any other request, and with metadata from ``well`` requests on.
    """

    offered: dict[int, int] = field(default_factory=lambda: OFFERED)
    is_confused: bool = False
    mechanisms: tuple[str, ...] = ()
    login: Callable[[int, bytes], tuple[int, bytes]] = lambda _turn, _message: (0, b"")
    advertised: str | None = None
    well: int = 1 << 30
    behaves: Answer = gone
    asked: list[int] = field(default_factory=list)  # keys of requests
    address: str = ""

    @contextmanager
    def listening(self, context: ssl.SSLContext | None = None) -> Iterator[str]:
        with server(self.answer, context) as self.address:
            yield self.address

    def answer(self, connection: socket.socket) -> None:
        turn = 0
        while True:
            key, version, correlation, request = receive(connection)
            self.asked.append(key)
            if key == ApiVersionsRequest.API_KEY:
                answer = self._versions(version)
            elif key == SaslHandshakeRequest.API_KEY:
                refused = errors.UnsupportedSaslMechanismError.errno if self.mechanisms else errors.IllegalSaslStateError.errno
                is_offered = any(name.encode() == request[-len(name) :] for name in self.mechanisms)
                answer = SaslHandshakeResponse(version=version, error_code=0 if is_offered else refused, mechanisms=list(self.mechanisms))
            elif key == SaslAuthenticateRequest.API_KEY:
                code, said = self.login(turn, request)
                turn += 1
                answer = SaslAuthenticateResponse(
                    version=version, error_code=code, error_message="the password is canary-said", auth_bytes=said, session_lifetime_ms=0
                )
            elif key == MetadataRequest.API_KEY and self.asked.count(key) <= self.well:
                answer = self._metadata(version)
            else:
                self.behaves(connection)
                return
            answer.with_header(correlation_id=correlation)
            connection.sendall(bytes(answer.encode(framed=True, header=True)))

    def _versions(self, version: int) -> Any:
        newest = self.offered[ApiVersionsRequest.API_KEY]
        is_known = version <= newest and not self.is_confused
        entries = self.offered if is_known else {ApiVersionsRequest.API_KEY: newest}
        keys = [ApiVersionsResponse.ApiVersion(api_key=key, min_version=0, max_version=most) for key, most in entries.items()]
        code = 0 if is_known else errors.UnsupportedVersionError.errno
        return ApiVersionsResponse(version=version if is_known else 0, error_code=code, api_keys=keys, throttle_time_ms=0)

    def _metadata(self, version: int) -> Any:
        host, _, port = (self.advertised or self.address).rpartition(":")
        brokers = [MetadataResponse.MetadataResponseBroker(node_id=0, host=host, port=int(port), rack=None)]
        return MetadataResponse(version=version, throttle_time_ms=0, brokers=brokers, cluster_id="fake", controller_id=0, topics=[])
