"""From a state taken in the loop to a checkpoint in the store, in the background: the stream goes on meanwhile.

A checkpoint is written when everything before it is where it belongs: files of the lake in place, alerts visible, dead letters
delivered. Only when it is durable may the log forget what is before it, and the committer take the files that it names.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keystone.checkpoint import Checkpoint, Checkpoints
from keystone.errors import SinkBusy, SinkError, StoreUnavailable, UsageError
from keystone.events import Alert
from keystone.logs import get
from keystone.mappings import Room
from keystone.segments import DataFile, Segment
from keystone.session_records import SESSION_SCHEMA
from keystone.session_snapshot import packed
from keystone.sinks.iceberg.columns import ALERT_SCHEMA, alert_table
from keystone.sinks.lake import table_file_name
from keystone.sinks.lake_bucket import LakeBucket
from keystone.sinks.lake_thread import NO_ROOM, Cut
from keystone.sinks.session_file import SessionFile, Table

if TYPE_CHECKING:
    import pyarrow as pa

RETRY_EVERY_S: Final = 1.0  # where the store or the disk takes nothing now
REPLAY_BYTES: Final = 192 << 20  # of all that one owns: ~0.8 s of reading until whoever takes over is where the last one was
SAVING_SHARE: Final = 0.05  # of a core, at most, for checkpoints that are taken earlier because of that
BEHIND_MS: Final = 500  # log time against ours, from which no checkpoint is taken earlier: at 1M events/s each stands still for 20-100 ms
CUT_LOOK_S: Final = 0.5  # between two looks whether the lake has failed while we wait for its files

log = get(__name__)


class SideFiles:
    """Where the session records and alerts of segments are written, in the directory of a lake. ``is_synced``: they outlive a power cut there."""

    def __init__(self, lake_dir: Path, *, is_synced: bool = True) -> None:
        self.lake_dir = lake_dir
        self._is_synced = is_synced

    def write(self, table: str, segment: Segment, rows: Sequence[pa.Table]) -> DataFile:
        """A file of that table ("sessions" or "alerts"), whole and on the disk when this returns. Raises ``SinkBusy`` where there is no room for it now."""
        path = self.path(table, segment)
        try:
            file = SessionFile(path, SESSION_SCHEMA if table == "sessions" else ALERT_SCHEMA, is_synced=self._is_synced)
            for part in rows:
                file.write(Table(part))
            count = file.close()
        except (SinkError, UsageError) as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_ROOM:
                raise SinkBusy(f"{path}: {error.__cause__.strerror}") from error
            raise
        return DataFile(table, path.relative_to(self.lake_dir).as_posix(), count, file.size_bytes(), None)

    def path(self, table: str, segment: Segment) -> Path:
        """No two segments, and no two owners, have the same."""
        span = segment.partition, segment.first_offset, max(segment.first_offset, segment.next_offset - 1)
        return self.lake_dir / "data" / table / table_file_name(*span, segment.epoch, segment.sequence, log_number=segment.log_number)


@dataclass(slots=True)
class Taken:
    """A partition at the end of a step. ``checkpoint`` lacks only this step's segment; ``needs``: deliveries that must be done before."""

    checkpoint: Checkpoint
    segment: Segment
    generation: int
    needs: int
    room: Room  # that the state was copied into: free again once it is durable
    room_bytes: Callable[[], int]  # that the next copy may need
    cut: Cut | None = None
    sessions: Sequence[pa.Table] = ()  # closed since the last one
    alerts: Sequence[Alert] = ()
    began_s: float = field(default_factory=time.monotonic)
    pause_s: float = 0.0
    cpu_s: float = 0.0  # of the thread that saved it
    bytes: int = 0
    mark: int = 0  # of what routes were given by then


class Finishing:
    """What becomes of what was taken, without thread and clock: ``complete`` once its cut is in place, then ``save`` until it is saved."""

    def __init__(self, checkpoints: Checkpoints, side_files: SideFiles | None, bucket: LakeBucket | None = None) -> None:
        self._checkpoints = checkpoints
        self._side_files = side_files
        self._bucket = bucket

    def complete(self, taken: Taken) -> None:
        """Put the other files into place, and name all of them in the checkpoint.

        Raises ``SinkBusy`` (no room on the disk) and ``StoreUnavailable`` (of the lake's bucket) for the same again, later.
        """
        files = self._files(taken)
        if self._bucket is not None:
            self._bucket.ship(files)
        segment = replace(taken.segment, files=tuple(files))
        rows = sum(file.rows for file in files if file.table == "events")
        checkpoint = taken.checkpoint
        checkpoint.arrays = packed(checkpoint.arrays)
        checkpoint.segments = (*checkpoint.segments, segment) if self._side_files is not None else ()
        checkpoint.counters["lake_rows"] = checkpoint.counters.get("lake_rows", 0) + rows
        taken.segment = segment

    def save(self, taken: Taken) -> None:
        """Afterwards it is durable, and ours. Raises ``StoreUnavailable`` for the same again, later, and ``Fenced``."""
        taken.bytes = self._checkpoints.save(taken.checkpoint)
        if self._bucket is not None:
            self._bucket.forget(taken.segment.files)

    def _files(self, taken: Taken) -> list[DataFile]:
        side, segment, files = self._side_files, taken.segment, []
        if side is not None and taken.cut is not None:
            of = side.lake_dir
            files += [DataFile("events", w.path.relative_to(of).as_posix(), w.rows, w.bytes, w.day) for w in taken.cut.files]
        if side is not None and taken.sessions:
            files.append(side.write("sessions", segment, taken.sessions))
        if side is not None and taken.alerts:
            files.append(side.write("alerts", segment, [alert_table(taken.alerts)]))
        return files


class CheckpointThread:
    """``put`` what was taken, ask ``finished`` for what is durable. Errors that end the owner are raised by the next call of either."""

    def __init__(self, checkpoints: Checkpoints, side_files: SideFiles | None, check_lake: Callable[[], None], bucket: LakeBucket | None = None) -> None:
        self.cpu_seconds = 0.0
        self._is_waiting = False  # for room
        self._bucket = bucket
        self._finishing = Finishing(checkpoints, side_files, bucket)
        self._check_lake = check_lake
        self._work: deque[Taken] = deque()
        self._done: deque[Taken] = deque()
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._is_stopping = False
        self._is_busy = False
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def put(self, taken: Taken) -> None:
        """At most one of each partition is under way, so what is held is bounded."""
        self._check()
        with self._changed:
            self._work.append(taken)
            self._changed.notify_all()

    def finished(self) -> Iterator[Taken]:
        """Those that have become durable since the last call."""
        self._check()
        while self._done:
            yield self._done.popleft()

    def wait(self, wait_s: float) -> bool:
        """Until everything that was put is durable; False where that takes longer."""
        with self._changed:
            is_idle = self._changed.wait_for(lambda: self._error is not None or not (self._work or self._is_busy), wait_s)
        self._check()
        return is_idle

    def has_room(self) -> bool:
        """False while the disk has none, or the spool of a lake in a bucket: then nothing more should be read."""
        return not self._is_waiting and (self._bucket is None or self._bucket.has_room())

    def close(self) -> None:
        """What is not durable by now will not be. May be repeated."""
        with self._changed:
            self._is_stopping = True
            self._work.clear()
            self._changed.notify_all()
        self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # --- the thread ---------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._work) or self._is_stopping)
                if self._is_stopping:
                    return
                taken = self._work.popleft()
                self._is_busy = True
            try:
                self._finish(taken)
            except Exception as error:  # noqa: BLE001 - it ends the owner, in its own thread
                self._error = error
            self.cpu_seconds = time.thread_time()

    def _finish(self, taken: Taken) -> None:
        began_s = time.thread_time()
        if not self._is_in_place(taken.cut):
            return
        while not self._is_complete(taken):
            if self._is_stopping:
                return
            time.sleep(RETRY_EVERY_S)
        while True:
            try:
                self._finishing.save(taken)
            except StoreUnavailable as error:
                log.warning("a checkpoint cannot be written: trying again", partition=taken.checkpoint.partition, reason=str(error))
                if self._is_stopping:
                    return
                time.sleep(RETRY_EVERY_S)
            else:
                break
        taken.cpu_s = time.thread_time() - began_s
        taken.room.reserve(taken.room_bytes())  # new pages cost 0.2 ms a MB, here where nothing waits for them
        self._done.append(taken)

    def _is_complete(self, taken: Taken) -> bool:
        try:
            self._finishing.complete(taken)
        except SinkBusy as error:
            if not self._is_waiting:
                log.warning("the lake has no room: waiting until there is some", reason=str(error))
            self._is_waiting = True
            return False
        except StoreUnavailable:  # told by the bucket
            return False
        if self._is_waiting:
            log.warning("the lake has room again")
        self._is_waiting = False
        return True

    def _is_in_place(self, cut: Cut | None) -> bool:
        """Wait for the lake's files; False where we are to stop first: then there is no checkpoint."""
        while cut is not None and not cut.wait(CUT_LOOK_S):
            self._check_lake()
            if self._is_stopping:
                return False
        return True


def is_worth_it(replay_bytes: int, since_s: float, cpu_s: float, late_ms: int) -> bool:
    """Whether to take checkpoints before they are due, of all that one owns.

    Who takes over would have ``replay_bytes`` to read before anything new is said, and ``cpu_s`` for all of them is little of ``since_s``.
    Not while we are ourselves ``late_ms`` behind the log.
    """
    return late_ms <= BEHIND_MS and replay_bytes >= REPLAY_BYTES and since_s * SAVING_SHARE >= cpu_s
