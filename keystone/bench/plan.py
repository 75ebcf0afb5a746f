"""What a run will be: options resolved to numbers that suit the machine, and checked against what it has. Pure but for `check`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from keystone.bench.machine import Machine, free_bytes
from keystone.errors import UsageError
from keystone.log.embedded import URL_SCHEME
from keystone.log.url import KAFKA_SCHEME, KafkaUrl, parse_log_url

EVENTS_PER_S_OF_A_SESSION_ACTOR = 1_000_000  # decode, sessions, lake: 0.5-0.8 us an event
EVENTS_PER_S_OF_A_FLEET_ACTOR = 2_500_000  # device model, encoding, append: 0.25-0.35 us an event
DEVICE_SECONDS = 5  # a device sends about every 5 s
DEVICES_MAX = 10_000_000
DEVICES_MIN = 100
BYTES_PER_DEVICE = 400  # of fleet and session state together, with their slack: for the memory check only
BYTES_PER_EVENT = 270  # in the log
BYTES_PER_LAKE_ROW = 60
#: Of events that the log can hold. Records stay until a durable checkpoint is behind them, and one is due every 10 s, or when half of a
#: partition's room is read: with room for two intervals and 4 s to write it is time that decides, not room. Less room makes checkpoints
#: more frequent (at 4 s, one every 2 s: a fifth of a core for 5 million sessions).
LOG_SECONDS = 24
#: ... of a run with faults: nobody reads while a driver is started anew (30 s at most, or the run fails), a checkpoint's age before that,
#: and what is written meanwhile must not wait.
CHAOS_LOG_SECONDS = 48
LOG_SECONDS_MIN = 4  # where memory is small: who lags longer has broken the promise
LOG_SHARE = 0.25  # of the memory that is available, at most
LOG_BYTES_MIN = 128 << 20
SEGMENTS = 16  # of a partition's ring
SEGMENT_BYTES_MIN = 1 << 20  # a frame must fit twice
MEMORY_BASE_BYTES = 2 << 30  # Ray, the interpreters, batches
MEMORY_SHARE = 0.8  # of what is available
SEARCH_PROBE_S = 12
BENCH_TOPIC = "keystone-bench"
OWN_FILE = "report.json"  # what makes a directory recognisably a run's output


@dataclass(frozen=True, slots=True)
class Options:
    """The command line as given; None means: choose."""

    eps: float = 1_000_000.0
    seconds: int | None = None
    devices: int | None = None
    seed: int = 1
    partitions: int | None = None
    fleet_actors: int | None = None
    session_actors: int | None = None
    log: str | None = None
    lake: bool = True
    out: str = "bench-out"
    bad_paths: float | None = None
    epoch_ms: int | None = None
    keep_log: bool = False
    chaos: str | None = None
    elastic: str | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """A run's numbers, all chosen."""

    eps: float
    seconds: int
    devices: int
    seed: int
    partitions: int
    fleet_actors: int
    session_actors: int
    segment_bytes: int  # of the log; a partition holds SEGMENTS of them
    lake: bool
    bad_paths: float | None
    epoch_ms: int | None
    log_seconds: int = LOG_SECONDS
    log_bytes_max: int = 1 << 62
    elastic: str | None = None  # URL of a search server
    devices_max: int | None = None  # that fit, where devices go by the rate; None: their number was given

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def log_bytes(self) -> int:
        """What the log may hold, all partitions together."""
        return self.segment_bytes * SEGMENTS * self.partitions

    def at(self, eps: float, *, seconds: int) -> BenchPlan:
        """The same at another rate and length.

        Devices go by the rate, unless their number was given: what a search finds must not depend on where it begins, and five million devices at a
        quarter of their rate are another load (sessions that have only just opened).
        """
        devices = self.devices if self.devices_max is None else _devices(eps, self.devices_max)
        segment_bytes = _segment_bytes(eps, self.partitions, self.log_seconds, self.log_bytes_max)
        return replace(self, eps=eps, seconds=seconds, devices=devices, segment_bytes=segment_bytes)


def resolve(options: Options, machine: Machine) -> BenchPlan:
    """Choose what was left open. Raises ``UsageError`` for values that cannot be."""
    _refuse_nonsense(options)
    sessions = options.session_actors or max(1, min(machine.cores - 1, math.ceil(options.eps / EVENTS_PER_S_OF_A_SESSION_ACTOR * 2)))
    fleets = options.fleet_actors or max(1, min(machine.cores // 3, math.ceil(options.eps / EVENTS_PER_S_OF_A_FLEET_ACTOR)))
    partitions = options.partitions or max(4, 2 * sessions, fleets)
    if sessions > partitions or fleets > partitions:
        raise UsageError(f"--partitions {partitions} must be at least --session-actors {sessions} and --fleet-actors {fleets}")
    available = machine.memory_available_mib << 20
    fits = max(DEVICES_MIN, int((available * MEMORY_SHARE - MEMORY_BASE_BYTES) / 2 / BYTES_PER_DEVICE))
    log_seconds = LOG_SECONDS if options.chaos is None else CHAOS_LOG_SECONDS
    log_bytes_max = int(available * LOG_SHARE)
    return BenchPlan(
        eps=options.eps,
        seconds=options.seconds or 30,
        devices=options.devices or _devices(options.eps, fits),
        seed=options.seed,
        partitions=partitions,
        fleet_actors=fleets,
        session_actors=sessions,
        segment_bytes=_segment_bytes(options.eps, partitions, log_seconds, log_bytes_max),
        lake=options.lake,
        bad_paths=options.bad_paths,
        epoch_ms=options.epoch_ms,
        log_seconds=log_seconds,
        log_bytes_max=log_bytes_max,
        elastic=options.elastic,
        devices_max=None if options.devices else fits,
    )


def _devices(eps: float, fits: int) -> int:
    """Devices for a rate, where their number is not given: each sends an event in so many seconds."""
    return int(max(DEVICES_MIN, min(DEVICES_MAX, eps * DEVICE_SECONDS, fits)))


def _segment_bytes(eps: float, partitions: int, log_seconds: int, log_bytes_max: int) -> int:
    least, most = (int(eps * seconds * BYTES_PER_EVENT) for seconds in (LOG_SECONDS_MIN, log_seconds))
    wanted = max(LOG_BYTES_MIN, least, min(most, log_bytes_max)) // (SEGMENTS * partitions)
    return max(SEGMENT_BYTES_MIN, wanted >> 16 << 16)


def _refuse_nonsense(o: Options) -> None:
    limits: list[tuple[str, float | None, float, float]] = [
        ("--eps", o.eps, 1, 1e9),
        ("--seconds", o.seconds, 1, 86_400),
        ("--devices", o.devices, 1, DEVICES_MAX),
        ("--partitions", o.partitions, 1, 4_096),
        ("--fleet-actors", o.fleet_actors, 1, 1_024),
        ("--session-actors", o.session_actors, 1, 1_024),
        ("--bad-paths", o.bad_paths, 0, 1),
        ("--seed", o.seed, 0, 2**63 - 1),
    ]
    for name, value, low, high in limits:
        if value is not None and not low <= value <= high:
            raise UsageError(f"{name} {value:,.10g} must be between {low:,.10g} and {high:,.10g}")


def kafka_url(options: Options) -> KafkaUrl | None:
    """The topic of a bench over Kafka; None for the embedded log."""
    if options.log is None or not options.log.startswith(KAFKA_SCHEME):
        return None
    url = parse_log_url(options.log, topic=BENCH_TOPIC)
    return url if isinstance(url, KafkaUrl) else None


def check_room(plan: BenchPlan, machine: Machine, out: Path, log_home: Path | None) -> None:
    """Refuse a run that the machine cannot hold, before it starts, with one line that says what to change. No ``log_home``: it is elsewhere."""
    log_needs = int(plan.log_bytes * 1.2) if log_home is not None else 0
    if log_home is not None and (free := free_bytes(log_home)) < log_needs:
        raise UsageError(f"the log needs {log_needs >> 20:,} MiB, {log_home} has {free >> 20:,} free: choose another place by --log, or a lower --eps")
    lake_needs = int(plan.eps * plan.seconds * BYTES_PER_LAKE_ROW) if plan.lake else 0
    if (free := free_bytes(out)) < lake_needs:
        raise UsageError(f"the lake needs about {lake_needs >> 20:,} MiB, {out} has {free >> 20:,} free: another --out, fewer --seconds, or --no-lake")
    needs = MEMORY_BASE_BYTES + plan.devices * BYTES_PER_DEVICE + (log_needs if str(log_home).startswith("/dev/shm") else 0)  # noqa: S108
    if machine.memory_available_mib << 20 < needs:
        raise UsageError(f"the run needs about {needs >> 20:,} MiB of memory, {machine.memory_available_mib:,} are free: fewer --devices or a lower --eps")


def log_home(options: Options, plan: BenchPlan, fallback: Path) -> tuple[Path, str | None]:
    """Where the log goes, and a line to say where that is not the obvious place (memory)."""
    if options.log is not None:
        return Path(options.log.removeprefix(URL_SCHEME)), None
    memory = Path("/dev/shm")  # noqa: S108
    if memory.is_dir() and free_bytes(memory) >= plan.log_bytes * 1.2:
        return memory, None
    return fallback, f"{memory} is too small for the log ({int(plan.log_bytes * 1.2) >> 20:,} MiB): using {fallback}"
