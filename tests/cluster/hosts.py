"""Hosts on one machine: each with an address, an ssh server, a home, ``/tmp``, ``/dev/shm`` and processes of its own. Linux, root.

with Hosts(2) as hosts:
    hosts.launcher("ssh 10.77.0.1 hostname"); hosts.run(1, "ip addr"); hosts.freeze(2); hosts.cut(1)

They are namespaces of the kernel. One outer set of them holds a bridge and is where ``ray up`` runs; in it, each host has a set of its own. When the
outer set's first process ends, and it ends with this process however that dies, the kernel ends every process, link and mount in it. Nothing is ever
killed by name, and a ``ray stop`` in a host sees that host's processes only.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from tests.kafka_processes import CACHE, own_folder, start_bound
from tests.kafka_server import KafkaCluster
from tests.redis_server import RedisServer, redis_server

ROOT = Path(__file__).parents[2]
NETWORK = "10.77.0"  # of nobody else: it is seen within the outer namespaces only
BRIDGE = f"{NETWORK}.254"
TOOLS = ("unshare", "nsenter", "ip", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")
OF_A_HOST = ("sh", "sshd")  # what runs on one of which nobody has asked anything
READY_S_MAX = 60.0  # a host stands within a second on an idle machine
UNSHARE = ("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child")
CLONE_NEWNET = 0x40000000

#: What both kinds share. Arguments: folder of its own, name, folders below /tmp to be seen still. /tmp is made anew; only these are seen through it.
MOUNTS = """
set -eu
own=$1 name=$2; shift 2
mkdir -p "$own/tmp" "$own/home"; chmod 1777 "$own/tmp"
mount --make-rprivate /
for kept in "$@"; do mkdir -p "$own/tmp/${kept#/tmp/}"; mount --bind "$kept" "$own/tmp/${kept#/tmp/}"; done
mount --rbind "$own/tmp" /tmp
mount -t tmpfs -o size=1g tmpfs /dev/shm
hostname "$name"; ip link set lo up
"""
#: The first process of a set has to collect the orphans: a shell that waits does. It has no other task, so its end is the set's.
LAUNCHER = f"""{MOUNTS}
ip link add br0 type bridge; ip addr add {BRIDGE}/24 dev br0; ip link set br0 up
mount --bind "$own/../etc-hosts" /etc/hosts; mount --bind "$own/../etc-passwd" /etc/passwd
touch "$own/ready"; sleep infinity & wait
"""
HOST = f"""{MOUNTS}
address={NETWORK}.${{name#host}}
mkdir -p "$own/../home" "$own/home/.ssh" "$own/home/venv" "$own/home/.cache/keystone"; touch "$own/home/.bashrc"
mount --bind "$VENV" "$own/home/venv"; mount --bind "$KERNELS" "$own/home/.cache/keystone"; mount --rbind "$own/home" "$own/../home"
mount -t tmpfs tmpfs /run; mkdir /run/sshd
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip addr add "$address/24" dev eth0; ip link set eth0 up; ip route add default via {BRIDGE}   # Ray finds its own address by the route to elsewhere
/usr/sbin/sshd -D -f "$own/../sshd_config" -E "$own/sshd.log" -o ListenAddress="$address" &
touch "$own/ready"; wait
"""
SSHD = """HostKey {0}/host_key
AuthorizedKeysFile {0}/key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
MaxStartups 50
"""


class Hosts:
    """Hosts 1..``count``, of the addresses ``10.77.0.N``, and a launcher that reaches them as root by ``key``; a context manager."""

    def __init__(self, count: int, venv: Path) -> None:
        """``venv``: seen as ``~/venv`` of every host."""
        self.addresses = [f"{NETWORK}.{n}" for n in range(1, count + 1)]
        self._venv = venv
        self._held = ExitStack()
        self._folder: Path | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._first: list[int] = []  # the first process of the launcher and of each host, by its pid out here

    # --- what commands and files need ---------------------------------------------------------------------------------------
    @property
    def folder(self) -> Path:
        assert self._folder is not None, "no hosts: they are not entered"
        return self._folder

    @property
    def key(self) -> Path:
        """Lets the launcher in as root."""
        return self.folder / "key"

    def launcher(self, command: str, timeout_s: float = 300, **env: str) -> str:
        """Run a shell's command where the hosts are reached from, in the project's folder; its output. CalledProcessError with it where it fails."""
        return self._run(0, command, timeout_s, {"HOME": str(self.folder / "launcher" / "home"), **env})

    def run(self, n: int, command: str, timeout_s: float = 300) -> str:
        """The same on host ``n``, in its home, without ssh."""
        return self._run(n, command, timeout_s, {"HOME": str(self.folder / "home")})

    def path(self, n: int, where: str) -> Path:
        """A file of host ``n`` as it is reached from here: to copy it, either way. ``~`` is its home. 0 is the launcher."""
        home = str(self.folder / "home") if n else str(self.folder / "launcher" / "home")
        return Path(f"/proc/{self._first[n]}/root{where.replace('~', home, 1) if where.startswith('~') else where}")

    def kafka(self, brokers: int = 1) -> KafkaCluster:
        """Brokers on the bridge's address, which all hosts reach; nobody else does. To be entered."""
        return KafkaCluster(brokers, host=BRIDGE, within=self._networked())

    def redis(self) -> AbstractContextManager[RedisServer]:
        """One there too."""
        return redis_server(BRIDGE, self._networked())

    def _networked(self) -> tuple[str, ...]:
        return (shutil.which("nsenter") or "nsenter", f"--net=/proc/{self._first[0]}/ns/net")

    @contextmanager
    def network(self) -> Iterator[None]:
        """This thread, and those it starts meanwhile, are in the hosts' network: a client of ``kafka`` can be made here."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open("rb") as ours, Path(f"/proc/{self._first[0]}/ns/net").open("rb") as theirs:
            assert libc.setns(theirs.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(ours.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())

    # --- what goes wrong ----------------------------------------------------------------------------------------------------
    def processes(self, n: int) -> dict[int, str]:
        """The pid out here and the name of each process of host ``n``; 0: of the launcher, without those of hosts. Zombies are none."""
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and _same(entry / "ns" / "pid", Path(f"/proc/{self._first[n]}/ns/pid")) and _state(entry) != "Z":
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
        return found

    def kill(self, n: int, name: str) -> None:
        """SIGKILL to all of that name on host ``n``: ``raylet``, ``gcs_server``. There must be one."""
        pids = [pid for pid, each in self.processes(n).items() if each == name]
        assert pids, f"no {name} on host {n}"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def lose(self, n: int) -> None:
        """All that runs on host ``n`` ends at once, as when its power fails; what stays is what a machine that is switched on again has: an ssh server."""
        while ended := [pid for pid, each in self.processes(n).items() if each not in OF_A_HOST]:
            for pid in ended:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def freeze(self, n: int) -> None:
        """Host ``n`` stands still, as a machine whose hypervisor took its cores: none of its processes runs, its connections stay."""
        stopped: set[int] = set()
        while new := self.processes(n).keys() - stopped:  # whoever was about to start another did
            for pid in new:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= new

    def thaw(self, n: int) -> None:
        """It goes on. So does whoever waits for its processes from without: an nsenter stops with what it started."""
        within = self.processes(n)
        for pid in within.keys() | {_parent(pid) for pid in within}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def cut(self, n: int) -> None:
        """Nothing reaches host ``n`` any more, nor comes from it; nobody is told."""
        self._ip("link", "set", f"v{n}", "down")

    def join(self, n: int) -> None:
        """Host ``n`` is reached again."""
        self._ip("link", "set", f"v{n}", "up")

    # --- their lives --------------------------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        missing = [tool for tool in TOOLS if not shutil.which(tool)]
        assert not missing, f"{', '.join(missing)}: missing (apt: openssh-server openssh-client rsync iproute2 util-linux)"
        assert os.geteuid() == 0, "only root makes namespaces with networks"
        try:
            self._folder = self._held.enter_context(own_folder("keystone-hosts-"))
            self._write_files()
            self._start(LAUNCHER, "launcher", ())
            for n in range(1, len(self.addresses) + 1):
                self._start(HOST, f"host{n}", self._entering(0))
                self._ip("link", "add", f"v{n}", "type", "veth", "peer", "name", "eth0", "netns", str(self._first[n]))
                self._ip("link", "set", f"v{n}", "master", "br0", "up")
            for n, address in enumerate(self.addresses, 1):
                self._wait(lambda n=n: (self.folder / f"host{n}" / "ready").exists())  # type: ignore[misc]
                with self.network():
                    self._wait(lambda address=address: _answers(address))  # type: ignore[misc]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the outer set's first process, and all with it; then remove the folder."""
        for process in self._processes:
            process.kill()
        for pid in self._first[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        for pid in self._first:  # the kernel ends those within before the first one is gone
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.01)
        self._held.close()

    # --- how it is done -----------------------------------------------------------------------------------------------------
    def _write_files(self) -> None:
        folder = self.folder
        for name in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        (folder / "home").mkdir()
        (folder / "sshd_config").write_text(SSHD.format(folder))
        names = "".join(f"{address} host{n}\n" for n, address in enumerate(self.addresses, 1))
        (folder / "etc-hosts").write_text(f"127.0.0.1 localhost\n{BRIDGE} launcher\n{names}")
        lines = Path("/etc/passwd").read_text("utf-8").splitlines()
        rest = "".join(f"{line}\n" for line in lines if not line.startswith("root:"))
        (folder / "etc-passwd").write_text(f"root:x:0:0:root:{folder / 'home'}:/bin/bash\n{rest}")

    def _start(self, script: str, name: str, entering: tuple[str, ...]) -> None:
        own = self.folder / name
        own.mkdir()
        kernels = Path(os.environ.get("KEYSTONE_CACHE_DIR") or Path.home() / ".cache" / "keystone")
        kernels.mkdir(parents=True, exist_ok=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        needed = {self.folder, ROOT, Path(sys.prefix), Path(sys.base_prefix), self._venv, kernels, CACHE}
        kept = sorted(str(path) for path in needed if path.is_relative_to("/tmp"))
        kept = [path for path in kept if not any(Path(path) != Path(other) and Path(path).is_relative_to(other) for other in kept)]
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "VENV": str(self._venv), "KERNELS": str(kernels)}
        command = [*entering, *UNSHARE, "sh", "-c", script, name, str(own), name, *kept]
        command[0] = shutil.which(command[0]) or command[0]
        process = start_bound(command, self.folder, self.folder / f"{name}.log", env)
        self._processes.append(process)
        depth = 3 if entering else 2
        self._wait(lambda: _first_of(process.pid, depth) is not None)
        first = _first_of(process.pid, depth)
        assert first is not None
        self._first.append(first)
        if not entering:
            self._wait((own / "ready").exists)

    def _wait(self, claim: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S_MAX
        while not claim():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                said = "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))
                raise RuntimeError(f"a host does not come up:\n{said}")
            time.sleep(0.02)

    def _entering(self, n: int) -> tuple[str, ...]:
        return ("nsenter", "--target", str(self._first[n]), "--net", "--mount", "--pid", "--uts", "--ipc")

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["nsenter", f"--net=/proc/{self._first[0]}/ns/net", "ip", *arguments], check=True)

    def _run(self, n: int, command: str, timeout_s: float, env: dict[str, str]) -> str:
        """Output goes through a file: ssh leaves a child that holds a pipe for ten seconds more."""
        env = {"PATH": f"{self._venv}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "TERM": "dumb", **env}
        folder = str(ROOT) if n == 0 else env["HOME"]
        within = ["env", "--chdir", folder, "timeout", "--kill-after=10", str(timeout_s), "bash", "-c", command]
        with (self.folder / f"said-{time.monotonic_ns()}").open("w+b") as output:
            done = subprocess.run([*self._entering(n), *within], env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False)
            output.seek(0)
            said = output.read().decode("utf-8", errors="replace").replace("\r", "")
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, f"{shlex.quote(command)} on {n}:\n{said[-6000:]}\n", said)
        return said


def _first_of(pid: int, depth: int) -> int | None:
    """The first process of the namespace that is ``depth`` deep, ours the first, among the descendants of ``pid``."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        with suppress(OSError):
            (line,) = (line for line in Path(f"/proc/{child}/status").read_text().splitlines() if line.startswith("NSpid:"))
            pids = line.split()[1:]
            if len(pids) - _OWN_DEPTH + 1 == depth and pids[-1] == "1":
                return child
            if (found := _first_of(child, depth)) is not None:
                return found
    return None


def _depth() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("NSpid:"))
    return len(line.split()) - 1


_OWN_DEPTH = _depth()  # the tests may run in a container


def _same(one: Path, other: Path) -> bool:
    return one.readlink() == other.readlink()


def _state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


def _parent(pid: int) -> int:
    """Ourselves, whom SIGCONT does nothing to, where the process is gone."""
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return os.getpid()


def _answers(address: str) -> bool:
    try:
        socket.create_connection((address, 22), timeout=1).close()
    except OSError:
        return False
    return True
