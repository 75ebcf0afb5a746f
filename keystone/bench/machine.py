"""The machine a run happens on: what it is, whether it suffices, and what our processes take of it."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

LIBRARIES = ("keystone", "ray", "numpy", "numba", "llvmlite", "polars", "pyarrow")
MIB = 1 << 20
STOLEN_SHARE_TOLD = 0.03  # of the cores


@dataclass(frozen=True, slots=True)
class Machine:
    """What a result must say about where it was measured."""

    cpu: str
    cores: int  # that this process may use
    memory_mib: int
    memory_available_mib: int
    load_average: tuple[float, float, float]  # before the run: anything above ~0 was not ours
    os: str
    python: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def here(cls) -> Machine:
        memory = psutil.virtual_memory()
        return cls(
            cpu=_cpu_model(),
            cores=usable_cores(),
            memory_mib=memory.total // MIB,
            memory_available_mib=memory.available // MIB,
            load_average=tuple(round(x, 2) for x in os.getloadavg()),  # type: ignore[arg-type]
            os=platform.platform(),
            python=platform.python_version(),
        )


def usable_cores() -> int:
    """Cores this process may run on, the share of a container (cgroup v2) included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


class StealMeter:
    """Cores that this machine had work for and its host gave to others (steal): on a virtual machine a load average does not show them."""

    def __init__(self) -> None:
        self._began = time.monotonic(), self._steal_s()

    def cores(self) -> float:
        """Since the beginning. 0 where the system does not tell."""
        began_s, before_s = self._began
        return max(0.0, (self._steal_s() - before_s) / max(1e-6, time.monotonic() - began_s))

    @staticmethod
    def _steal_s() -> float:
        return float(getattr(psutil.cpu_times(), "steal", 0.0))


def stolen_note(stolen_cores: float, cores: int) -> str | None:
    """What there is to say of it; None where it is next to nothing."""
    if stolen_cores < STOLEN_SHARE_TOLD * cores:
        return None
    return f"the host gave {stolen_cores:.2f} of the {cores} cores to others meanwhile (steal): on a quiet host this machine does more"


def versions() -> dict[str, str]:
    """Versions of the libraries that do the work."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def free_bytes(path: Path) -> int:
    """Free space where ``path`` is, or where its nearest existing parent is."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(slots=True)
class CpuMeter:
    """CPU seconds of the process tree, by part, within a window. ``part_of(pid)`` names a process's part.

    Sampled: a process that lived wholly between two samples is not seen, one that died counts up to its last sample.
    """

    part_of: Callable[[int], str]
    elsewhere: Callable[[], Iterable[tuple[str, str, float, int]]] = lambda: ()  # of processes that are not below us: key, part, CPU s, bytes
    _first: dict[int | str, float] = field(default_factory=dict)
    _last: dict[int | str, float] = field(default_factory=dict)
    _parts: dict[int | str, str] = field(default_factory=dict)
    _is_open: bool = False
    rss_max_bytes: int = 0
    private_max_bytes: int = 0
    rss_by_part_bytes: dict[str, int] = field(default_factory=dict)

    def open(self) -> None:
        """Start the window: what was used until now is not counted."""
        self._first, self._last, self._parts, self._is_open = {}, {}, {}, True
        self.sample(is_first=True)

    def sample(self, *, is_first: bool = False) -> None:
        """Look at every process of the tree: about 30 us each."""
        rss = private = 0
        by_part: dict[str, int] = {}
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied), process.oneshot():
                memory, times = process.memory_info(), process.cpu_times()
                part = self.part_of(process.pid)
                rss += memory.rss
                private += memory.rss - memory.shared
                by_part[part] = by_part.get(part, 0) + memory.rss
                self._note(process.pid, part, times.user + times.system, is_first=is_first)
        for key, part, used_s, rss_bytes in self.elsewhere():
            rss, private = rss + rss_bytes, private + rss_bytes
            by_part[part] = by_part.get(part, 0) + rss_bytes
            self._note(key, part, used_s, is_first=is_first)
        self.rss_max_bytes = max(self.rss_max_bytes, rss)
        self.private_max_bytes = max(self.private_max_bytes, private)
        for part, used in by_part.items():
            self.rss_by_part_bytes[part] = max(self.rss_by_part_bytes.get(part, 0), used)

    def _note(self, key: int | str, part: str, used_s: float, *, is_first: bool) -> None:
        if self._is_open:
            self._first.setdefault(key, used_s if is_first else 0.0)
            self._last[key] = used_s
            self._parts[key] = part

    def close(self) -> dict[str, float]:
        """End the window; CPU seconds by part."""
        used = self.peek()
        self._is_open = False
        return used

    def peek(self) -> dict[str, float]:
        """CPU seconds by part since the window opened."""
        self.sample()
        used: dict[str, float] = {}
        for pid, last in self._last.items():
            part = self._parts[pid]
            used[part] = used.get(part, 0.0) + last - self._first[pid]
        return used


def wall_ms() -> float:
    """Wall time, ms: the clock of the log's append times."""
    return time.time() * 1_000
