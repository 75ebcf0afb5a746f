"""A real server of the S3 API for tests, benchmarks and people: start, stop, kill, pause, restart, on 127.0.0.1.

with S3Server() as s3:
    s3.make_bucket("lake"); run("--lake", "s3://lake/x", env=s3.env())

``moto`` comes from PyPI, keeps objects in memory (a killed one forgets them) and believes any signature. ``versitygw`` is a gateway over
plain files that checks signatures and keeps what it has acknowledged over ``kill -9``; it is used where it is found: on the PATH, or built by
``go install`` into ``KEYSTONE_TEST_CACHE``, which ``python -m tests.s3_server --build`` does (minutes, once).

python -m tests.s3_server --bucket lake      # prints the variables to export, and runs until Ctrl-C or SIGTERM
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.kafka_processes import CACHE, own_folder, start_bound
from tests.kafka_server import free_port

__all__ = ["ACCESS_KEY", "REGION", "SECRET_KEY", "S3Server", "gateway"]

Kind = Literal["moto", "versitygw"]

ACCESS_KEY, SECRET_KEY, REGION = "test-access-key", "test-secret-key-0123456789", "us-east-1"
GATEWAY_VERSION = "v1.8.0"
GATEWAY_PACKAGE = f"github.com/versity/versitygw/cmd/versitygw@{GATEWAY_VERSION}"
READY_S_MAX = 60.0  # moto took 9 s beside twelve busy processes on two cores
STOP_S_MAX = 10.0


def gateway() -> Path | None:
    """The gateway's binary, where there is one."""
    built = CACHE / f"versitygw-{GATEWAY_VERSION}" / "versitygw"
    found = shutil.which("versitygw")
    return built if built.is_file() else Path(found) if found else None


def build_gateway() -> Path:
    """Build it, unless there is one. Raises ``RuntimeError`` without a Go toolchain."""
    if (found := gateway()) is not None:
        return found
    if shutil.which("go") is None:
        raise RuntimeError("versitygw needs a Go toolchain to be built")
    folder = CACHE / f"versitygw-{GATEWAY_VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["go", "install", "-ldflags=-s -w", GATEWAY_PACKAGE], env={**os.environ, "GOBIN": str(folder)}, check=True)
    return folder / "versitygw"


class S3Server:
    """One server, a context manager. ``kill`` and ``start`` again keep its port, and with versitygw its objects.

    Leaving kills it and removes its folder; so does the death of this process.
    """

    def __init__(self, kind: Kind = "moto", port: int | None = None) -> None:
        self.kind = kind
        self.port = free_port() if port is None else port
        self._held = ExitStack()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def env(self, url: str | None = None) -> dict[str, str]:
        """The variables of a client. ``url``: of a proxy before the server."""
        return {
            "AWS_ENDPOINT_URL_S3": url or self.url, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    # --- its life -----------------------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        try:
            self._folder = self._held.enter_context(own_folder("keystone-s3-"))
            self.start()
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        self._held.close()

    def start(self) -> None:
        """Start it, which must not run, and wait until it answers."""
        assert not self.is_running(), "it runs already"
        assert self._folder is not None, "the server is not entered"
        self._process = start_bound(self._command(self._folder), self._folder, self._folder / "server.log", self._own_env())
        deadline = time.monotonic() + READY_S_MAX
        while not self._answers():
            if not self.is_running() or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.kind} is not ready:\n{(self._folder / 'server.log').read_text(errors='replace')[-4000:]}")
            time.sleep(0.02)

    def is_running(self) -> bool:
        """True also of a paused one."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """As a crash would (SIGKILL); a paused one too."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """It keeps its connections, takes new ones and answers nothing (SIGSTOP)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    # --- what tests do with it ----------------------------------------------------------------------------------------
    def store(self, bucket: str):
        """A client that is not ours: obstore's, by its own settings."""
        import obstore

        return obstore.store.S3Store(
            bucket, endpoint=self.url, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY, region=REGION, client_options={"allow_http": True}
        )  # fmt: skip

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Of all objects that begin so."""
        import obstore

        found = obstore.list(self.store(bucket)).collect()
        return sorted(item["path"] for item in found if item["path"].startswith(prefix))

    def make_bucket(self, name: str) -> str:
        """Make it; its name."""
        assert self._signed("PUT", f"/{name}") == 200
        return name

    def remove_bucket(self, name: str) -> None:
        """With everything in it."""
        import obstore

        store = self.store(name)
        for page in obstore.list(store):
            obstore.delete(store, [item["path"] for item in page])
        assert self._signed("DELETE", f"/{name}") == 204

    # --- how it is done -----------------------------------------------------------------------------------------------
    def _command(self, folder: Path) -> list[str]:
        if self.kind == "moto":
            return [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        binary = gateway()
        assert binary is not None, "there is no versitygw: python -m tests.s3_server --build"
        for name in ("data", "meta"):  # metadata beside the files: not every file system has attributes
            (folder / name).mkdir(exist_ok=True)
        return [str(binary), "--port", f"127.0.0.1:{self.port}", "--keep-alive", "--quiet", "posix", "--sidecar", str(folder / "meta"), str(folder / "data")]

    def _own_env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return {**kept, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            return False
        finally:
            connection.close()
        return True

    def _signed(self, method: str, path: str) -> int:
        """A request without a body, by the fourth version of the signature; its status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, headers=signature(method, f"127.0.0.1:{self.port}", path))
            return connection.getresponse().status
        finally:
            connection.close()


def signature(method: str, host: str, path: str) -> dict[str, str]:
    """Headers of a request without body and query. https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html"""
    import hmac

    empty = hashlib.sha256(b"").hexdigest()
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    names = "host;x-amz-content-sha256;x-amz-date"
    asked = "\n".join([method, path, "", f"host:{host}", f"x-amz-content-sha256:{empty}", f"x-amz-date:{now}", "", names, empty])
    told = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(asked.encode()).hexdigest()])
    key = f"AWS4{SECRET_KEY}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signed = hmac.digest(key, told.encode(), "sha256").hex()
    return {
        "Host": host, "x-amz-date": now, "x-amz-content-sha256": empty,
        "Authorization": f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={signed}",
    }  # fmt: skip


def main() -> int:
    """Run one until told to end."""
    parser = argparse.ArgumentParser(description="A server of the S3 API on 127.0.0.1.")
    parser.add_argument("--kind", choices=["moto", "versitygw"], default="versitygw" if gateway() else "moto")
    parser.add_argument("--bucket", action="append", default=[], help="made at the start; may be repeated")
    parser.add_argument("--port", type=int, default=None)
    parser.add_argument("--build", action="store_true", help="build versitygw by go install, and end")
    given = parser.parse_args()
    if given.build:
        sys.stdout.write(f"{build_gateway()}\n")
        return 0
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    with S3Server(given.kind, given.port) as server:
        for bucket in given.bucket:
            server.make_bucket(bucket)
        for name, value in server.env().items():
            sys.stdout.write(f"export {name}={value}\n")
        sys.stdout.flush()
        try:
            while server.is_running():
                time.sleep(0.2)
        except KeyboardInterrupt:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
