"""The Ray that actors live in: one of this machine, private to a program, started quietly and stopped whole; or a cluster that is there.

A private one never touches another Ray: its address is ``local`` whatever RAY_ADDRESS says, its files are in a directory of its
own, and it ends only processes that it started (never ``ray stop``, which ends every Ray of the machine). A cluster is joined only
when its address is named, or by a program that the cluster itself was given to run (``ray job submit``); how, says ``joining``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import psutil

from keystone import logs
from keystone.actors.head_watch import HeadWatch, end_process
from keystone.actors.joining import AUTO, NAMESPACE, is_outside, join
from keystone.errors import UsageError

if TYPE_CHECKING:
    from types import TracebackType

OBJECT_STORE_BYTES = 80 << 20  # Ray's least; no event passes through it
PROBE_WAIT_S = 60.0
STOP_WAIT_S = 5.0  # for Ray's processes to end by themselves before they are ended
HEAD_LOOK_S = 0.5  # between two looks whether Ray's head process lives
HEAD = "gcs_server"
INSIDE: Final = "inside"  # the Ray whose actor this process is: joined already, and not left
JOB_MARK: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in the environment of what `ray job submit` runs
#: Of the variables below, those that actors need wherever they are; a cluster's own processes have their settings from who started them.
OF_ACTORS: Final = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "PYTHONUNBUFFERED")
TEMP_DIR_LETTERS_MAX = 40  # of a socket's 107: Ray appends /session_<date>_<pid>/sockets/plasma_store

#: What Ray and its workers inherit. One thread a library: parallelism is the number of actors, and a pool of
#: threads for each of them would fight for the same cores.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its absence is warned about on every start
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_prestart_worker_first_driver": "0",  # idle workers cost 45 MiB and 1 % of a core each
    "RAY_enable_worker_prestart": "0",
    "RAY_timeout_ms_task_wait_for_death_info": "50",  # instead of 1,000, by which a death was known later, for a cause that nobody reads
    "RAY_task_events_report_interval_ms": "0",  # nobody looks at Ray's own task log
    "RAY_worker_niceness": "0",  # instead of 15, by which whoever computes beside a run leaves its actors 3 % of a core
    "POLARS_MAX_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


def cluster_address(given: str | None) -> str | None:
    """The cluster to join: the one that was named, or that runs us as a job; None for a private Ray."""
    return given if given is not None else AUTO if JOB_MARK in os.environ else None


class RayRuntime:
    """One private Ray, or with ``address`` a cluster. ``with RayRuntime() as runtime``, or ``start`` and ``stop``; ``stop`` may be repeated.

    A cluster is left as it is found: only the actors that this program made end with it.

    Without its head process nothing can be asked or stopped any more: every call waits for 60 s, and then Ray ends the process
    with words of its own. So when that one dies this program says so, ends what it started, and exits with 1. ``scratch``: a
    directory that is removed then, for who made it cannot.
    """

    def __init__(self, scratch: Path | None = None, address: str | None = None) -> None:
        self._scratch = scratch
        self._address = address
        self._temp_dir: Path | None = None
        self._own_pids: list[psutil.Process] = []
        self._stopping = threading.Event()
        self._head: HeadWatch | None = None  # of a cluster

    @property
    def temp_dir(self) -> Path | None:
        """Ray's files, while it runs."""
        return self._temp_dir

    def start(self) -> None:
        """Start Ray: 2-4 s and about 10 CPU s on two cores. Raises ``UsageError`` where the process already uses a Ray."""
        import ray

        if self._address == INSIDE:
            return
        if ray.is_initialized():
            raise UsageError("this process already uses a Ray: call ray.shutdown() first")
        if self._address is not None:
            join(self._address, {name: _ENVIRONMENT[name] for name in OF_ACTORS})
            if not is_outside(self._address):
                self._head = HeadWatch(ray.get_runtime_context().gcs_address, self._end_without_head)
                self._head.start()
            return
        before = {p.pid for p in psutil.Process().children(recursive=True)}
        self._temp_dir = Path(tempfile.mkdtemp(prefix="ks", dir=_short_temp_dir()))
        logs.adopt("ray")
        logging.getLogger("ray").setLevel(logging.ERROR)
        with _environment(_ENVIRONMENT):
            ray.init(
                address="local",
                num_cpus=0,  # actors ask for none: how many there are is decided by us, from the cores we find
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
                namespace=NAMESPACE,
                _temp_dir=str(self._temp_dir),
            )
        # Ray writes of dead workers to this process's stdout, whatever it is told; the supervisor says it in a line.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None  # noqa: SLF001 - there is no public way
        self._own_pids = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        self._stopping.clear()
        for head in self._own_pids:
            if head.name() == HEAD:
                threading.Thread(target=self._watch, args=(head,), name="ray-head", daemon=True).start()

    def _watch(self, head: psutil.Process) -> None:
        while _lives(head):
            if self._stopping.wait(HEAD_LOOK_S):
                return
        if self._stopping.is_set():
            return
        line = f"Error: Ray's head process ({HEAD}, {head.pid}) died, for want of memory perhaps: start again (a run goes on where its state says)"
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
        self._kill_all()
        os._exit(1)  # other threads wait for Ray, and it answers nobody

    def _end_without_head(self, line: str) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        end_process(line)

    def _kill_all(self) -> None:
        processes = [p for parent in self._own_pids for p in (parent, *_descendants(parent))]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=STOP_WAIT_S)
        for directory in (self._temp_dir, self._scratch):
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)

    def stop(self) -> None:
        """Stop Ray, end what of it is still there after a while, and remove its files."""
        import ray

        if self._address == INSIDE:
            return
        self._stopping.set()
        if self._head is not None:
            self._head.stop()
            self._head = None
        if ray.is_initialized():
            # Workers started since, and everything below them: known only while their parents still live.
            known = {p.pid for p in self._own_pids}
            self._own_pids += [p for parent in list(self._own_pids) for p in _descendants(parent) if p.pid not in known]
            ray.shutdown()
        _, alive = psutil.wait_procs(self._own_pids, timeout=STOP_WAIT_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._own_pids = []
        if self._temp_dir is not None:
            shutil.rmtree(self._temp_dir, ignore_errors=True)
            self._temp_dir = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class _Probe:
    def pid(self) -> int:
        return os.getpid()


def probe() -> int:
    """Start a Ray, ask an actor for its process id, and stop it: whether that works at all."""
    import ray

    with RayRuntime():
        pid: int = ray.get(remote_class(_Probe).remote().pid.remote(), timeout=PROBE_WAIT_S)
    return pid


def remote_class(cls: type, **options: Any) -> Any:
    """``cls`` as a Ray actor class that needs no CPU reservation, unless ``options`` say otherwise."""
    import ray

    return ray.remote(**{"num_cpus": 0, **options})(cls)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def _short_temp_dir() -> str:
    """The temporary directory, unless its name is too long for a socket's path."""
    usual = tempfile.gettempdir()
    if len(usual) <= TEMP_DIR_LETTERS_MAX or not os.access("/tmp", os.W_OK):  # noqa: S108 - mkdtemp makes it private
        return usual
    return "/tmp"  # noqa: S108


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """``variables`` set for children started inside, and as before afterwards. RAY_ADDRESS is hidden."""
    hidden = [*variables, "RAY_ADDRESS"]
    before = {name: os.environ.get(name) for name in hidden}
    os.environ.update(variables)
    os.environ.pop("RAY_ADDRESS", None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
