"""Connections that know which step towards a broker failed, give up in time, and try again however often that was wrong before.

kafka-python's own look up names and ask for tokens on the one thread of input and output, wait for a TLS handshake for ever, tell
causes to their log only, and after a login that failed they try again without a pause. What is overridden here is private to it,
which is why its version is pinned to a minor one (``pyproject.toml``).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from kafka import errors
from kafka.future import Future
from kafka.net.connection import KafkaConnection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.protocol.broker_version_data import BrokerVersionData
from kafka.protocol.metadata import ApiVersionsRequest
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest

from keystone.config import KafkaConfig
from keystone.log.kafka.explain import NotABroker, Step, StepFailed, explain
from keystone.log.kafka.security import Login, check_plaintext

#: Requests that everything here rests on, and the least version of each: Kafka 2.1 (zstd) and newer.
NEEDED: Final = {0: ("Produce", 7), 1: ("Fetch", 10), 2: ("ListOffsets", 1), 3: ("Metadata", 5)}
RECEIVE_BYTES: Final = 256 << 10  # of one system call; kafka-python's 4 KiB make 250 of them for a fetch of 1 MB
LOGIN_RETRY_MAX_S: Final = 10.0  # between two logins that failed: some directories lock a user out who tries too often

log = logging.getLogger("keystone.log.kafka")


class Connection(KafkaConnection):  # type: ignore[misc]
    """One connection. Whatever ends it before it can be used is a ``StepFailed``."""

    step: Step | None = "connect"  # under way; None: in use
    owner: Connections
    began_s = 0.0  # monotonic

    async def initialize(self, timeout_at: float | None = None) -> None:
        """Agree on versions and log in."""
        self.step = "versions"
        await super().initialize(timeout_at)
        if self.connected:
            self.step = None

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is not None and self.step is not None and not isinstance(exc, StepFailed):
            exc = StepFailed(self.step, exc)
        if isinstance(exc, StepFailed):
            exc.waited_s = time.monotonic() - self.began_s
        super().connection_lost(exc)

    async def _get_api_versions(self, timeout_at: float | None = None) -> None:
        """Ask once more, at most, in the version that the broker names; kafka-python would ask on and on."""
        until = self._timeout_at() if timeout_at is None else timeout_at
        answer = await self._ask_versions(ApiVersionsRequest.max_version, until)
        if errors.for_code(answer.error_code) is errors.UnsupportedVersionError:
            offered = [api.max_version for api in answer.api_keys if api.api_key == ApiVersionsRequest.API_KEY]
            answer = await self._ask_versions(min(offered, default=0), until)
        if errors.for_code(answer.error_code) is errors.UnsupportedVersionError:
            raise errors.UnsupportedVersionError("it knows no version of the first request")
        if answer.error_code:
            raise errors.for_code(answer.error_code)
        ranges = {api.api_key: (api.min_version, api.max_version) for api in answer.api_keys}
        check_versions(ranges)
        self.broker_version_data = BrokerVersionData(api_versions=ranges)

    async def _ask_versions(self, version: int, until: float) -> Any:
        request = ApiVersionsRequest(
            version=version, client_software_name=self.config["client_software_name"], client_software_version=self.config["client_software_version"]
        )
        return await self._send_request(request, timeout_at=until)

    async def _sasl_authenticate(self, timeout_at: float | None = None) -> None:
        """Log in, at first and whenever the broker's session ends (KIP-368)."""
        step, self.step = self.step, "login"
        until = self._timeout_at() if timeout_at is None else timeout_at
        login = self.owner.login
        assert login is not None  # noqa: S101 - who has SASL has one
        answer = await self._send_request(SaslHandshakeRequest(mechanism=login.mechanism, min_version=1, max_version=1), timeout_at=until)
        error = errors.for_code(answer.error_code)
        if error is errors.UnsupportedSaslMechanismError:
            raise error(", ".join(answer.mechanisms))
        if error is not errors.NoError:
            raise error
        session = await self.owner.in_thread(partial(login.begin, self.transport.host), until)
        while not session.is_done():
            answer = await self._send_request(SaslAuthenticateRequest(session.auth_bytes()), timeout_at=until)
            if answer.error_code:
                login.was_refused()
                raise errors.SaslAuthenticationFailedError(errors.for_code(answer.error_code).__name__)
            session.receive(answer.auth_bytes)
        if not session.is_authenticated():
            raise errors.SaslAuthenticationFailedError
        self._reauth.session_updated(answer.session_lifetime_ms)
        self.step = step


def check_versions(ranges: dict[int, tuple[int, int]]) -> None:
    """``UnsupportedVersionError`` where a broker takes no version of a request that is needed."""
    for key, (name, least) in NEEDED.items():
        if key not in ranges:
            raise NotABroker(f"takes no {name} requests, as controllers do not")
        if ranges[key][1] < least:
            raise errors.UnsupportedVersionError(f"{name} up to version {ranges[key][1]}, and {least} is needed")


class _Receiving:
    """Takes what there is in large pieces, and hands over what came before a hang-up, which kafka-python's own drops: often the reason."""

    _net: Any
    _sock: Any

    async def _write_to_sock(self) -> None:
        """Send at once, and wait for room only where there is none: kafka-python waits first, which costs a round of its selector a request."""
        _, error = self._sock_send()
        if error:
            self._writing = False
            self.abort(error=error)  # type: ignore[attr-defined]
            return
        self.last_write = time.monotonic()
        await super()._write_to_sock()  # type: ignore[misc]  # what is left, and what closing wants done

    def _sock_send(self) -> tuple[int, Exception | None]:
        sent, error = super()._sock_send()  # type: ignore[misc]
        if error is not None and self._sock is not None:
            error = self._sock_recv()[1] or error  # such as an alert that came before the hang-up
        return sent, error

    def _sock_recv(self) -> tuple[bytes, Exception | None]:
        received: list[bytes] = []
        while True:
            try:
                piece = self._sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError as error:
                return b"".join(received), None if received else errors.KafkaConnectionError(error)
            if not piece:
                return b"".join(received), None if received else errors.KafkaConnectionError("socket disconnected")
            received.append(piece)
        return b"".join(received), None


class _PlainTransport(_Receiving, KafkaTCPTransport):  # type: ignore[misc]
    """A connection without TLS."""


class _TlsTransport(_Receiving, KafkaSSLTransport):  # type: ignore[misc]
    """A connection with it."""


class Connections(KafkaConnectionManager):  # type: ignore[misc]
    """One connection to each broker that is asked something. On the thread of input and output only."""

    def __init__(self, net: Any, settings: KafkaConfig, login: Login | None, told: set[Any], **options: Any) -> None:
        """``told``: the brokers that a warning was about; one set for all that are of one client."""
        super().__init__(net, **options)
        self.login = login
        self.tells = False  # of brokers that fail: not before the client is connected, which tells itself until then
        self._told = told
        self._complaints: dict[Any, str] = {}  # about brokers whose last attempt failed, a line each; the newest last
        self._settings = settings
        self._lookups: dict[tuple[str, int], Any] = {}  # under way

    def adopt(self, metadata: Any) -> None:
        """Know the cluster by an answer that came from elsewhere, and keep it up to date from now on."""
        self.cluster.update_metadata(metadata)
        self._bootstrap_future = Future().success(True)  # noqa: FBT003 - what kafka-python's own ends with
        self.cluster.start_refresh_loop()

    @property
    def complaint(self) -> str | None:
        """The newest line about a broker whose last attempt failed. From any thread."""
        return next(iter(list(self._complaints.values())[-1:]), None)

    # --- attempts -------------------------------------------------------------------------------------------------------------
    def get_connection(self, node_id: Any, *args: Any, **options: Any) -> Any:
        self._auth_failures.clear()  # or a login that failed once would be refused here for ever
        connection = super().get_connection(node_id, *args, **options)
        if type(connection) is KafkaConnection:  # new: kafka-python's function names its class
            connection.__class__ = Connection
            connection.owner, connection.began_s = self, time.monotonic()
        return connection

    async def _connect(self, node: Any, conn: Any, reset_backoff_on_connect: bool = True, timeout_at: float | None = None) -> None:  # noqa: FBT001, FBT002
        await super()._connect(node, conn, reset_backoff_on_connect=False, timeout_at=timeout_at)
        if conn.connected:
            if reset_backoff_on_connect:
                self.reset_backoff(node.node_id)
            self._complaints.pop(node.node_id, None)
            if node.node_id in self._told:
                self._told.discard(node.node_id)
                log.info("broker %s is reached again at %s:%s", node.node_id, node.host, node.port)
        elif not self.closed and isinstance(failure := conn.init_future.exception, StepFailed):
            self._failed(node, failure)

    def _failed(self, node: Any, failure: StepFailed) -> None:
        if not self.connection_delay(node.node_id):
            self.update_backoff(node.node_id)
        if failure.step == "login":
            failures, _, setup_ms = self._backoff[node.node_id]
            self._backoff[node.node_id] = failures, time.monotonic() + min(LOGIN_RETRY_MAX_S, 0.1 * 2**failures), setup_ms
        if self.cluster.is_bootstrap(node.node_id):
            return  # whoever connects tells
        self._complaints.pop(node.node_id, None)
        self._complaints[node.node_id] = line = str(explain(failure, f"{node.host}:{node.port}", self._settings))
        if self.tells and node.node_id not in self._told:
            self._told.add(node.node_id)
            log.warning("broker %s cannot be used, which is tried on and on: %s", node.node_id, line)

    # --- the way to a transport -------------------------------------------------------------------------------------------------
    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        until = time.monotonic() + self.socket_connection_setup_timeout_ms(node.node_id) / 1_000 if timeout_at is None else timeout_at
        await _step("name", self._check_address, node)
        addresses = await _step("name", self._addresses, node.host, node.port, until)
        sock = await _step("connect", self._reach, addresses, until)
        if not self.ssl_enabled:
            return _PlainTransport(self._net, sock, host=node.host)
        return await _step("tls", self._shake_hands, sock, node.host, until)

    async def _check_address(self, node: Any) -> None:
        """Where brokers send clients, nothing may be said aloud either."""
        check_plaintext(self._settings, [f"{node.host}:{node.port}"])

    async def _addresses(self, host: str, port: int, until: float) -> list[Any]:
        """One lookup for all who ask meanwhile, and in a thread: a name server that is silent may take a minute."""
        place = (host, port)
        if place not in self._lookups:
            self._lookups[place] = self._start(partial(socket.getaddrinfo, host, port, socket.AF_UNSPEC, socket.SOCK_STREAM))
            self._lookups[place].add_both(lambda _: self._lookups.pop(place, None))
        found: list[Any] = await self.wait_for(self._lookups[place], max(0.0, until - time.monotonic()) * 1_000)
        return found

    async def _reach(self, addresses: list[Any], until: float) -> socket.socket:
        """The first address that takes a connection; each has an equal share of the time that is left."""
        failed: Exception = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        for place, address in enumerate(addresses):
            now = time.monotonic()
            try:
                return await self._reach_one(address, now + (until - now) / (len(addresses) - place))
            except (OSError, errors.KafkaTimeoutError) as error:
                failed = error
        raise failed

    async def _reach_one(self, address: Any, until: float) -> socket.socket:
        family, kind, protocol, _, place = address
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)  # noqa: FBT003 - socket's own
            for option in self.config["socket_options"]:
                sock.setsockopt(*option)
            code = sock.connect_ex(place)
            if code == errno.EINPROGRESS:
                await self._net.wait_write(sock, timeout_at=until)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code and sock.getsockname() == sock.getpeername():
                code = errno.ECONNREFUSED  # a port of ours that nobody listens on was given to this very socket
            if code:
                raise OSError(code, os.strerror(code))  # noqa: TRY301 - closed below
        except BaseException:
            sock.close()
            raise
        return sock

    async def _shake_hands(self, sock: socket.socket, host: str, until: float) -> Any:
        transport = _TlsTransport(self._net, sock, host=host, ssl_context=self.config["ssl_context"])
        wrapped = transport._sock  # noqa: SLF001 - its own handshake has no end
        try:
            while True:
                try:
                    wrapped.do_handshake()
                except ssl.SSLWantReadError:
                    await self._net.wait_read(wrapped, timeout_at=until)
                except ssl.SSLWantWriteError:
                    await self._net.wait_write(wrapped, timeout_at=until)
                else:
                    return transport
        except BaseException:
            wrapped.close()
            raise

    # --- what may take long -------------------------------------------------------------------------------------------------------
    async def in_thread(self, work: Callable[[], Any], until: float) -> Any:
        """What ``work`` returns, or ``KafkaTimeoutError``: then it goes on, and its result is dropped."""
        return await self.wait_for(self._start(work), max(0.0, until - time.monotonic()) * 1_000)

    def _start(self, work: Callable[[], Any]) -> Any:
        future = Future()

        def tell(settle: Callable[[Any], Any], outcome: Any) -> None:
            with suppress(Exception):  # the client was closed meanwhile
                self._net.call_soon_threadsafe(lambda: settle(outcome))

        def run() -> None:
            try:
                found = work()
            except Exception as error:  # noqa: BLE001 - for whoever waits
                tell(future.failure, error)
            else:
                tell(future.success, found)

        threading.Thread(target=run, name="keystone-kafka-wait", daemon=True).start()
        return future


async def _step(step: Step, take: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return await take(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the step was not taken
        raise StepFailed(step, error) from None
