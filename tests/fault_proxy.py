"""An HTTP proxy that breaks what passes through it: late, reset, cut off, answered after it was applied and lost, refused as a whole or by item.

with FaultProxy(server.url) as proxy:
    proxy.faults.append(Fault("lost"))          # of the next request that it fits
    proxy.lasting = Fault("status", status=503) # of all, until it is None again
"""

from __future__ import annotations

import gzip
import http.client
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import orjson

#: reset: the connection is reset before anything is passed on. cut: half of the answer, then the connection ends.
#: lost: passed on and applied, then reset. status: answered by us. items: answered by us for some items, the others are passed on.
KINDS = ("delay", "reset", "cut", "lost", "status", "items")
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "host"}


@dataclass(frozen=True)
class Fault:
    """``fits``: which paths it is for. ``status``: of kinds status and items. ``every``: of items, each so-manieth is answered by us."""

    kind: str
    delay_s: float = 0.0
    status: int = 429
    every: int = 2
    headers: tuple[tuple[str, str], ...] = ()
    fits: str = "/_bulk"

    def __post_init__(self) -> None:
        assert self.kind in KINDS


class FaultProxy:
    """Listens on 127.0.0.1 and passes on to ``upstream``. ``requests``: (method, path, body) of all so far, unpacked."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.faults: deque[Fault] = deque()
        self.lasting: Fault | None = None
        self.requests: list[tuple[str, str, bytes]] = []
        self.struck: list[str] = []  # kinds of faults, as they happened
        self.headers: list[dict[str, str]] = []
        self._under_way = 0
        self._lock = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fault-proxy", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What is late arrives before this returns, not in the next test."""
        with self._lock:
            self._lock.wait_for(lambda: self._under_way == 0, 60)
        self._server.shutdown()
        self._server.server_close()

    def choose(self, path: str) -> Fault | None:
        with self._lock:
            fault = next((one for one in self.faults if path.startswith(one.fits)), None)
            if fault is not None:
                self.faults.remove(fault)
            elif self.lasting is not None and path.startswith(self.lasting.fits):
                fault = self.lasting
            if fault is not None:
                self.struck.append(fault.kind)
            return fault

    def _handler(proxy: FaultProxy) -> Callable[..., BaseHTTPRequestHandler]:  # noqa: N805 - the handler's own self is another
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                with suppress(OSError):  # whoever asked went away
                    super().handle()

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                plain = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                with proxy._lock:
                    proxy.requests.append((self.command, self.path, plain))
                    proxy.headers.append({name.lower(): value for name, value in self.headers.items()})
                    proxy._under_way += 1
                fault = proxy.choose(self.path)
                try:
                    proxy.break_(self, fault, plain) if fault is not None else self.reply(*proxy.pass_on(self, plain))
                finally:
                    with proxy._lock:
                        proxy._under_way -= 1
                        proxy._lock.notify_all()

            def reply(self, status: int, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> None:
                self.send_response(status)
                for name, value in (("Content-Type", "application/json"), *headers):
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do  # noqa: N815 - names of the library

        return Handler

    def pass_on(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in {*HOP_BY_HOP, "accept-encoding", "content-encoding"}}
        connection = http.client.HTTPConnection(str(self.upstream.hostname), self.upstream.port or 80, timeout=120)
        try:
            connection.request(handler.command, handler.path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 502, b'{"error":{"type":"bad_gateway","reason":"the server is away"}}'
        finally:
            connection.close()

    def break_(self, handler: Any, fault: Fault, body: bytes) -> None:
        time.sleep(fault.delay_s)
        if fault.kind == "delay":
            handler.reply(*self.pass_on(handler, body))
        elif fault.kind == "status":
            handler.reply(fault.status, orjson.dumps({"error": {"type": "made_up", "reason": "by the proxy"}, "status": fault.status}), fault.headers)
        elif fault.kind == "items":
            handler.reply(*self._some_items(handler, fault, body))
        elif fault.kind == "cut":
            status, text = self.pass_on(handler, body)
            handler.wfile.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n" % (status, len(text)) + text[: len(text) // 2])
            handler.close_connection = True
        else:
            if fault.kind == "lost":
                self.pass_on(handler, body)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing sends a reset
            handler.connection.close()
            handler.close_connection = True

    def _some_items(self, handler: BaseHTTPRequestHandler, fault: Fault, body: bytes) -> tuple[int, bytes]:
        lines = body.split(b"\n")[:-1]
        pairs = list(zip(lines[::2], lines[1::2], strict=True))
        passed = [pair for number, pair in enumerate(pairs) if number % fault.every]
        items: list[Any] = []
        if passed:
            status, text = self.pass_on(handler, b"".join(line + b"\n" for pair in passed for line in pair))
            if status != 200:
                return status, text
            items = orjson.loads(text)["items"]
        told = iter(items)
        ours = {"status": fault.status, "error": {"type": "made_up", "reason": "this item, by the proxy"}}
        merged = [next(told) if number % fault.every else {next(iter(orjson.loads(pair[0]))): ours} for number, pair in enumerate(pairs)]
        return 200, orjson.dumps({"errors": True, "items": merged})
