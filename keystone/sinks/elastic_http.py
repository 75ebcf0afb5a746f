"""Requests to the nodes of a search cluster: plain HTTP by urllib3, so Elasticsearch 8 and 9 and OpenSearch 3 are one.

The product clients refuse each other's servers. Foreign errors end here: whatever is wrong with the way becomes ``SinkBusy``.
"""

from __future__ import annotations

import base64
import gzip
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
import urllib3

from keystone.config import ElasticConfig
from keystone.errors import SinkBusy, UsageError
from keystone.logs import get

DEFAULT_PORT: Final = 9200
GZIP_ABOVE_BYTES: Final = 1_024
GZIP_LEVEL: Final = 1  # 1,000 alerts, alike in most of their fields: to a 36th in 0.9 ms; level 6 to a 41st in 2.0
ANSWER_BYTES_MAX: Final = 32 << 20  # to 1,000 documents, each refused with 10 kB of reasons
READ_BYTES: Final = 256 << 10
POOL_CONNECTIONS: Final = 4  # a node: one a kind, one for whoever looks
JSON_TYPE: Final = "application/json"
TOO_MANY: Final = 429
RETRY_AFTER_MAX_S: Final = 60
FORBIDDEN_WAIT_MS: Final = 30_000  # a login is not mended within seconds, and some servers count failed ones
LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")


log = get(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """``SinkBusy`` where it is none: something between us and the server answered."""
        try:
            return orjson.loads(self.body)
        except ValueError as error:
            raise SinkBusy(f"the answer with status {self.status} is not JSON: {self.body[:100]!r}") from error

    def is_servers_own(self) -> bool:
        """A search server said this, not something between it and us (a gateway's 400 says nothing of a document)."""
        try:
            answer = orjson.loads(self.body)
        except ValueError:
            return False
        return isinstance(answer, dict) and isinstance(answer.get("error"), dict)

    def reason(self) -> str:
        """Why the server did not do it, in its own words."""
        try:
            error = orjson.loads(self.body)["error"]
        except (ValueError, KeyError, TypeError):
            return self.body[:200].decode("utf-8", "replace")
        return f"{error.get('type')}: {error.get('reason')}" if isinstance(error, dict) else str(error)


@dataclass(slots=True)
class _Node:
    url: str
    dead_until_s: float = 0.0


class Nodes:
    """The nodes of ``--elastic URL[,URL...]``: each request goes to the next that is not known to be dead. Any thread may ask."""

    def __init__(self, urls: str, config: ElasticConfig) -> None:
        """``UsageError`` for URLs, files or logins that cannot be used. Connects to nothing."""
        self.urls = parse_urls(urls)
        self._config = config
        self._nodes = [_Node(url) for url in self.urls]
        self._headers = _login(config, self.urls)
        self._lock = threading.Lock()
        self._turn = 0
        tls = _tls(config) if any(url.startswith("https:") for url in self.urls) else None
        self._pool = urllib3.PoolManager(num_pools=len(self._nodes), maxsize=POOL_CONNECTIONS, retries=False, ssl_context=tls)

    def request(self, method: str, path: str, body: bytes = b"", content_type: str = JSON_TYPE, *, timeout_ms: int | None = None) -> Reply:
        """One answer, whatever its status. A node that cannot be connected to is passed over; ``SinkBusy`` where no answer came.

        Then the request may have been carried out all the same.
        """
        headers = dict(self._headers)
        if body:
            headers["Content-Type"] = content_type
        if len(body) > GZIP_ABOVE_BYTES:
            body, headers["Content-Encoding"] = gzip.compress(body, GZIP_LEVEL, mtime=0), "gzip"
        trouble = ""
        for node in self._in_turn():
            try:
                reply = self._ask(node, method, path, body, headers, (timeout_ms or self._config.request_timeout_ms) / 1_000)
            except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
                self._set_aside(node)
                trouble = f"{node.url} cannot be reached: {_brief(error)}"
            except (urllib3.exceptions.HTTPError, OSError) as error:
                self._set_aside(node)
                raise SinkBusy(f"{node.url} gave no answer to {method} {path.partition('?')[0]}: {_brief(error)}") from error
            else:
                node.dead_until_s = 0.0
                return reply
        raise SinkBusy(trouble)

    def close(self) -> None:
        """May be repeated. Connections in use are closed when their request ends."""
        self._pool.clear()

    def _in_turn(self) -> list[_Node]:
        """All nodes, those alive first, beginning with the next one."""
        with self._lock:
            self._turn += 1
            turned = self._nodes[self._turn % len(self._nodes) :] + self._nodes[: self._turn % len(self._nodes)]
        now_s = time.monotonic()
        return sorted(turned, key=lambda node: node.dead_until_s > now_s)

    def _set_aside(self, node: _Node) -> None:
        node.dead_until_s = time.monotonic() + self._config.dead_node_ms / 1_000

    def _ask(self, node: _Node, method: str, path: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Reply:
        until_s = time.monotonic() + timeout_s
        timeout = urllib3.Timeout(connect=self._config.connect_timeout_ms / 1_000, read=timeout_s)
        answer = self._pool.request(
            method, node.url + path, body=body or None, headers=headers, timeout=timeout, preload_content=False, redirect=False, decode_content=True
        )
        try:
            text = b"".join(_parts(answer, until_s))
        except BaseException:
            answer.close()  # what is left of this answer is not the next one's
            raise
        answer.release_conn()
        return Reply(answer.status, answer.headers, text)


def _parts(answer: urllib3.BaseHTTPResponse, until_s: float) -> Iterator[bytes]:
    size = 0
    while part := answer.read(READ_BYTES):
        size += len(part)
        if size > ANSWER_BYTES_MAX or time.monotonic() > until_s:
            raise urllib3.exceptions.HTTPError(f"its answer is longer than {ANSWER_BYTES_MAX} bytes, or took too long")
        yield part


def trouble_of(reply: Reply) -> SinkBusy:
    """What a status other than 200 of a whole request means."""
    if reply.status in {401, 403}:
        return SinkBusy(
            f"the search server refuses the login (status {reply.status}): set elastic.username and KEYSTONE_ELASTIC__PASSWORD, "
            "or KEYSTONE_ELASTIC__API_KEY; it may write keystone-*",
            wait_ms=FORBIDDEN_WAIT_MS,
        )  # fmt: skip
    if reply.status == TOO_MANY or reply.status >= 500:
        after = reply.headers.get("Retry-After", "")
        wait_ms = 1_000 * min(int(after), RETRY_AFTER_MAX_S) if after.isascii() and after.isdigit() else 0
        return SinkBusy(f"the search server is busy (status {reply.status}): {reply.reason()}", wait_ms=wait_ms)
    return SinkBusy(f"status {reply.status} is no answer of a search server: {reply.reason()}; look at what listens at the URL", wait_ms=FORBIDDEN_WAIT_MS)


def parse_urls(text: str) -> tuple[str, ...]:
    """``http[s]://HOST[:PORT][/PREFIX]``, one or several with commas between, without a slash at the end."""
    return tuple(_parse_url(part.strip()) for part in text.split(","))


def _parse_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise UsageError(f"--elastic {text}: {error}: write it as http://HOST:9200 or https://HOST:9200") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "--elastic: a login in a URL is read by more people than need it: set elastic.username and KEYSTONE_ELASTIC__PASSWORD, or KEYSTONE_ELASTIC__API_KEY"
        )
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"--elastic {text}: write it as http://HOST:9200 or https://HOST:9200, several with commas between")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


def _login(config: ElasticConfig, urls: tuple[str, ...]) -> dict[str, str]:
    headers = {"Accept": JSON_TYPE, "Accept-Encoding": "gzip"}
    api_key = _secret(config.api_key.get_secret_value() if config.api_key else None, config.api_key_file, "elastic.api_key")
    password = _secret(config.password.get_secret_value() if config.password else None, config.password_file, "elastic.password")
    if api_key and (password or config.username):
        raise UsageError("elastic.api_key and elastic.username with its password are two logins: remove one")
    # Else a library would repeat it in its error.
    if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise UsageError("elastic.api_key holds characters that no key has: give it as the server showed it, in one line")
    if config.username and ":" in config.username:
        raise UsageError("elastic.username holds a colon, which ends a name in a login: name another user")
    if bool(password) != bool(config.username):
        missing = "elastic.username" if password else "KEYSTONE_ELASTIC__PASSWORD or elastic.password_file"
        raise UsageError(f"elastic: a login needs a name and a password: set {missing}")
    if api_key:
        headers["Authorization"] = f"ApiKey {api_key}"
    elif password:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{config.username}:{password}".encode()).decode()
    if "Authorization" in headers and not config.allow_plaintext:
        for url in urls:
            if url.startswith("http:") and urlsplit(url).hostname not in LOCAL_HOSTS:
                raise UsageError(f"--elastic {url}: would send the login unencrypted: use https, or set elastic.allow_plaintext = true")
    return headers


def _secret(given: str | None, path: str | None, name: str) -> str | None:
    if given is not None or path is None:
        return given
    try:
        secret = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}_file = {path} cannot be read ({getattr(error, 'strerror', 'not UTF-8')}): name another file") from None
    if not secret or "\n" in secret:
        raise UsageError(f"{name}_file = {path} must hold the secret in one line")
    return secret


def _tls(config: ElasticConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.tls_ca_file)
    except (OSError, ssl.SSLError):
        raise UsageError(f"elastic.tls_ca_file = {config.tls_ca_file} cannot be read, or holds no certificate in PEM: name another file") from None
    if not config.tls_verify:
        log.warning("certificates are not verified: elastic.tls_verify is false")
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # said once, by us
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _brief(error: BaseException) -> str:
    """The last of a chain of urllib3's errors says what happened."""
    text = str(error)
    return text.rpartition(": ")[2][:200] or type(error).__name__
