"""A proxy before a server of S3 that does to requests what networks and services do: refuse, cut, lose the answer, wait, forget a condition.

with S3Proxy(server.port) as proxy:
    proxy.add("PUT", r"/lake/state/epochs/", "lost", times=1)      # the server does it, nobody answers
    proxy.add("PUT", r"", "SlowDown", times=3)                     # 503 with that code
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

#: Codes of S3 that can be had by name, with their status.
STATUS = {
    "SlowDown": 503, "InternalError": 500, "ServiceUnavailable": 503, "ExpiredToken": 400, "RequestTimeTooSkewed": 403, "AccessDenied": 403,
    "NoSuchBucket": 404, "InvalidAccessKeyId": 403, "SignatureDoesNotMatch": 403, "ConditionalRequestConflict": 409, "NotImplemented": 501,
    "RequestTimeout": 400,
}  # fmt: skip
#: And what is no answer: "reset" before the server hears of it, "lost" after it has done it, "unconditional": If-None-Match is taken out.
KINDS = {*STATUS, "reset", "lost", "unconditional", "wait"}
_HOP = {"connection", "transfer-encoding", "expect", "keep-alive", "proxy-connection"}


@dataclass
class Rule:
    method: str
    pattern: str
    kind: str
    left: float  # how often still
    wait_s: float = 0.0
    is_conditional: bool = False  # only requests with If-None-Match
    hits: int = 0


@dataclass
class S3Proxy:
    """A context manager. ``url``: what clients take for the endpoint."""

    server_port: int
    rules: list[Rule] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)  # method and path of every request

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, method: str, pattern: str, kind: str, *, times: float = float("inf"), wait_s: float = 0.0) -> Rule:
        """The next ``times`` requests of that method ("": any) whose path with query has ``pattern`` in it."""
        assert kind in KINDS, kind
        rule = Rule(method, pattern, kind, times, wait_s)
        self.rules.append(rule)
        return rule

    def clear(self) -> None:
        self.rules.clear()

    def rule_of(self, method: str, path: str, *, has_condition: bool) -> Rule | None:
        with self._lock:
            self.seen.append((method, path))
            for rule in self.rules:
                if rule.left > 0 and (has_condition or not rule.is_conditional) and rule.method in {"", method} and re.search(rule.pattern, path):
                    rule.left -= 1
                    rule.hits += 1
                    return rule
        return None


class _Handler(BaseHTTPRequestHandler):
    proxy: S3Proxy
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet: without, head and body wait for each other

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def _do(self) -> None:
        body = self._body()
        rule = self.proxy.rule_of(self.command, self.path, has_condition="If-None-Match" in self.headers)
        kind = rule.kind if rule is not None else ""
        if rule is not None and rule.wait_s:
            time.sleep(rule.wait_s)
        if kind == "reset":
            self._cut()
        elif kind in STATUS:
            self._answer(STATUS[kind], [("Content-Type", "application/xml")], _xml(kind))
        else:
            try:
                answer = self._forward(body, unconditional=kind == "unconditional")
            except OSError:
                self._cut()
                return
            if kind == "lost":
                self._cut()
            else:
                self._answer(*answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _do  # noqa: N815 - names that the standard library asks for

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forward(self, body: bytes, *, unconditional: bool) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.server_port, timeout=120)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP | {"content-length"} and not (unconditional and name.lower() == "if-none-match"):
                    connection.putheader(name, value)
            if body or self.command in {"PUT", "POST"}:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, [pair for pair in answer.getheaders() if pair[0].lower() not in _HOP], answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        with contextlib.suppress(OSError):  # who asked has gone
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            elif not any(name.lower() == "content-length" for name, _ in headers):
                self.send_header("Content-Length", "0")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self.wfile.flush()

    def _cut(self) -> None:
        """Reset the connection: no answer, no good-bye."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def _xml(code: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>made for a test</Message>'
        "<AWSAccessKeyId>AKIAHIDDEN</AWSAccessKeyId><RequestId>1</RequestId></Error>"
    ).encode()
