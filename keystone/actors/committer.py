"""The committer: takes what sessions' checkpoints say is written, and commits it to the lake. One for each lake.

It owns nothing but an epoch. What it must commit is in the checkpoints, what it did is in the tables, so one that dies is replaced
by another that knows as much, and two at once do no harm (``sinks/iceberg``).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from keystone import logs
from keystone.actors.loop import LoopActor
from keystone.checkpoint import Checkpoint, Checkpoints, key_of
from keystone.clock import Clock, SystemClock
from keystone.config import LakeConfig, LogsConfig
from keystone.errors import LakeDamaged, SinkBusy, StoreUnavailable
from keystone.segments import Segment
from keystone.sinks.plain_lake import PlainLake
from keystone.store import open_store

if TYPE_CHECKING:
    from keystone.sinks.iceberg.tables import LakeTables

COMMITTER: Final = "committer"  # the key of its epochs
SLEEP_MAX_S: Final = 0.25  # so that an order to finish is seen
BUSY_WAIT_MAX_S: Final = 60.0  # between tries while catalog or store do not answer: doubled from the commit interval

_LOG: Final = logs.get(__name__)


class Epochs(Protocol):
    """What of ``Checkpoints`` is needed to tell who owns what."""

    def current(self, key: str) -> int: ...
    def check(self, key: str, epoch: int) -> None: ...


class Committing:
    """``turn`` with the newest checkpoint's header of each partition, read *before* the call: only then is the look at epochs worth something.

    A header that is written after another owner claimed its partition is also read after that, so the claim is seen here, and
    its segments are left alone. A header that passes is the one that the next owner restores, or one of its ancestors.
    """

    def __init__(self, epochs: Epochs, tables: LakeTables, epoch: int, clock: Clock | None = None) -> None:
        self.epoch = epoch
        self.committed: dict[int, int] = {}  # partition -> the sequence behind its last committed segment
        self.commits = 0  # turns that committed anything
        self.segments = 0
        self.files = 0
        self.fenced_writes = 0  # headers of owners that are no longer
        self.commit_ms = 0.0  # of the last one
        self.lag_ms = 0  # log time of the oldest segment that is written and not committed, to now; 0: there is none
        self.age_ms_max = 0  # of an event when it was committed, since its partition was committed before: from accepted to visible for readers
        self.expired = 0  # snapshots
        self.deleted = 0  # files
        self._log_times: dict[int, int] = {}  # how far each partition was committed
        self._epochs = epochs
        self._tables = tables
        self._clock = clock or SystemClock()
        self._since_expiry = 0
        self._swept_ms = self._clock.now_ms()

    def turn(self, headers: Iterable[Checkpoint]) -> dict[int, int]:
        """Commit what the headers' segments add, expire and sweep when due; returns ``committed``.

        Raises ``Fenced`` where another committer took over, ``ChainBroken`` (the others are committed) where segments do not
        begin where the lake ends, ``SinkBusy`` and ``StoreUnavailable`` for the same again later.
        """
        from keystone.sinks.iceberg.tables import refuse

        self._epochs.check(COMMITTER, self.epoch)
        pending = self._pending(headers)
        started = time.monotonic()
        done = self._tables.commit(pending, self.epoch)
        self.committed = {partition: link.next_sequence for partition, link in done.chain.items()}
        self.lag_ms = self._lag_ms(pending)
        now_ms, before = self._clock.now_ms(), self._log_times  # 0: of a partition that was committed before its first record
        self._log_times = {partition: link.log_time_ms for partition, link in done.chain.items()}
        self.age_ms_max = max(self.age_ms_max, *(now_ms - before[p] for p, until_ms in self._log_times.items() if 0 < before.get(p, until_ms) < until_ms), 0)
        if done.segments:
            self.commit_ms = (time.monotonic() - started) * 1_000
            self.commits += 1
            self.segments += done.segments
            self.files += done.files
        refuse(done)
        self._upkeep(bool(done.segments), pending)
        return self.committed

    def _pending(self, headers: Iterable[Checkpoint]) -> list[Segment]:
        pending: list[Segment] = []
        for header in headers:
            if self._epochs.current(key_of(header.partition)) != header.epoch:
                self.fenced_writes += 1
                continue
            pending += header.segments  # those that are in too: they must be the ones that were committed
        return pending

    def _lag_ms(self, pending: Iterable[Segment]) -> int:
        waiting = [s.log_time_ms for s in pending if s.sequence >= self.committed.get(s.partition, 0)]
        return max(0, self._clock.now_ms() - min(waiting)) if waiting else 0

    def _upkeep(self, has_committed: bool, pending: Iterable[Segment]) -> None:  # noqa: FBT001 - private, called once
        from keystone.sinks.iceberg.upkeep import expire, sweep

        config, now_ms = self._tables.config, self._clock.now_ms()
        self._since_expiry += has_committed
        if self._since_expiry >= config.expire_every_commits:
            self._since_expiry = 0
            self.expired += expire(self._tables)
        if now_ms - self._swept_ms >= config.sweep_interval_ms:
            self._swept_ms = now_ms
            self.deleted += sweep(self._tables, now_ms, pending=[file.path for segment in pending for file in segment.files]).deleted


class Publishing:
    """The same for a lake of plain files: what is named by a checkpoint of the present owner is put into place."""

    def __init__(self, epochs: Epochs, lake: PlainLake, epoch: int) -> None:
        self.epoch = epoch
        self.committed: dict[int, int] = {}
        self.commits = self.segments = self.files = self.fenced_writes = self.lag_ms = self.age_ms_max = self.expired = self.deleted = 0
        self.commit_ms = 0.0
        self._epochs = epochs
        self._lake = lake

    def turn(self, headers: Iterable[Checkpoint]) -> dict[int, int]:
        """Raises ``Fenced``, ``LakeDamaged`` where a file is nowhere, ``SinkBusy`` and ``StoreUnavailable`` for the same again later."""
        self._epochs.check(COMMITTER, self.epoch)
        started = time.monotonic()
        for header in headers:
            if self._epochs.current(key_of(header.partition)) != header.epoch:
                self.fenced_writes += 1
                continue
            new = [segment for segment in header.segments if segment.sequence >= self.committed.get(header.partition, 0)]
            self.committed |= self._lake.publish(new)
            self.segments += len(new)
        self.files = self._lake.files
        self.commit_ms = (time.monotonic() - started) * 1_000
        self.commits += 1
        return self.committed


class Compacting:
    """Joins small files after every so many turns. What it costs the commits is time: a share of that between them."""

    def __init__(self) -> None:
        self.files = 0  # that are no more
        self._turns = 0
        self._is_off = False

    def turn(self, tables: LakeTables) -> None:
        """Raises ``SinkBusy`` where the lake does not answer. What it finds damaged it leaves to a person, and the commits go on."""
        from keystone.sinks.iceberg.compaction import compact_ripe

        config = tables.config
        self._turns += 1
        if self._turns < config.expire_every_commits or not config.compact_time_share or self._is_off:
            return
        self._turns = 0
        try:
            done = compact_ripe(tables, config.compact_time_share * config.expire_every_commits * config.commit_interval_ms / 1_000)
            self.files += done.files_before - done.files_after
        except LakeDamaged as error:
            _LOG.error("small files are not joined any more: say keystone lake verify", reason=str(error))
            self._is_off = True
        except OSError as error:
            raise SinkBusy(f"files of the lake cannot be read: {error!s:.200}") from error


@dataclass(frozen=True, slots=True)
class CommitterSpec:
    """What a committer actor needs to know. Strings travel. ``is_plain``: no tables, files put into place."""

    lake: str
    checkpoints: str  # URL of the store
    work_dir: str
    config: LakeConfig
    name: str = COMMITTER
    is_plain: bool = False
    patience_s: float = 0.0  # for store and catalog, while it is built


class CommitterActor(LoopActor):
    """A turn every ``lake.commit_interval_ms``; ``finish`` makes one more, for what the sessions' last checkpoints say."""

    def __init__(self, spec: CommitterSpec, logs_config: LogsConfig | None = None) -> None:
        super().__init__(spec.name, spec.work_dir, logs_config)
        self._spec = spec
        self._checkpoints: Checkpoints | None = None
        self._tables: LakeTables | None = None
        self._committing: Committing | Publishing | None = None
        self._next_s = 0.0
        self._is_last_done = False
        self._compacting = Compacting()
        self._busy_turns = 0  # in a row
        self._busy: str | None = None
        self._commit_cpu_s = 0.0  # of all turns: the process itself spends seconds on its start

    def _build(self) -> None:
        from keystone.sinks.iceberg.tables import LakeTables

        spec = self._spec
        checkpoints = self._checkpoints = self._patiently(lambda: Checkpoints(open_store(spec.checkpoints)), spec.patience_s)
        if not spec.is_plain:
            self._tables = self._patiently(lambda: LakeTables.open(spec.lake, spec.config), spec.patience_s)
        epoch = self._patiently(lambda: checkpoints.claim(COMMITTER, self._incarnation), spec.patience_s)
        self._committing = Publishing(checkpoints, PlainLake(Path(spec.lake)), epoch) if self._tables is None else Committing(checkpoints, self._tables, epoch)

    def _turn(self) -> float:
        is_last = self._finish_asked.is_set()
        if time.monotonic() < self._next_s and not (is_last and self._busy is None):
            return SLEEP_MAX_S
        interval_s = self._spec.config.commit_interval_ms / 1_000
        used_s = time.process_time()  # of all threads: manifests are read and written by several
        try:
            self._commit()
            self._busy_turns, self._busy = 0, None
            self._is_last_done = is_last
            if self._tables is not None and not is_last:
                self._compacting.turn(self._tables)
        except (SinkBusy, StoreUnavailable) as error:
            self._busy_turns, self._busy = self._busy_turns + 1, str(error)
            _LOG.warning("nothing is committed to the lake for now", reason=str(error))
            interval_s = min(BUSY_WAIT_MAX_S, interval_s * 2 ** min(self._busy_turns, 10))
        self._commit_cpu_s += time.process_time() - used_s
        self._next_s = time.monotonic() + interval_s
        return SLEEP_MAX_S

    def _commit(self) -> None:
        assert self._checkpoints is not None  # noqa: S101 - built
        assert self._committing is not None  # noqa: S101
        found = [self._checkpoints.header(partition) for partition in self._checkpoints.partitions()]
        self._committing.turn([header for header in found if header is not None])

    def _is_over(self) -> bool:
        return self._is_last_done

    def _close(self) -> dict[str, Any]:
        if self._tables is not None:
            self._tables.close()
        return self._counters()

    def _counters(self) -> dict[str, Any]:
        """``committed``: partition -> sequence; ``busy``: why nothing is committed now, if so."""
        committing = self._committing
        if committing is None:
            return {"committed": {}}
        return {
            "epoch": committing.epoch,
            "committed": dict(committing.committed),
            "commits": committing.commits,
            "segments": committing.segments,
            "files": committing.files,
            "fenced_writes": committing.fenced_writes,
            "commit_ms": committing.commit_ms,
            "commit_cpu_s": self._commit_cpu_s,
            "lag_ms": committing.lag_ms,
            "age_ms_max": committing.age_ms_max,
            "expired": committing.expired,
            "deleted": committing.deleted,
            "compacted": self._compacting.files,
            "busy": self._busy,
        }
