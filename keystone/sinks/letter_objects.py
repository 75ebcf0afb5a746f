"""Dead letters as objects of a bucket: NDJSON, some seconds of one partition in each.

    PREFIX/0f3a91c2-p00003-e00000008-00000000000000009812-00000001.ndjson

named by run state, partition, epoch of the owner, and the offset and line of the *last* letter in it. Letters of a partition come and are
uploaded in the order of their places, so the names alone tell who takes over what is there already.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from keystone.errors import StoreUnavailable, UsageError
from keystone.letter_batch import LetterBatch
from keystone.logs import get
from keystone.sinks.letters_limit import LettersLimit
from keystone.sinks.ndjson import letter_lines
from keystone.store import Store

AGE_MAX_S: Final = 5.0  # of the oldest letter of an object when it is uploaded; a checkpoint waits for it
OBJECT_BYTES_MAX: Final = 4 << 20
HELD_BYTES_MAX: Final = 64 << 20  # not uploaded yet, of a process: ~150,000 letters; then whoever brings more waits
LOOK_EVERY_S: Final = 0.25
RETRY_EVERY_S: Final = 1.0
_PLACE: Final = re.compile(r".*-p\d{5,}-e\d{8,}-(\d{20})-(\d{8,})\.ndjson")

log = get(__name__)


@dataclass(slots=True)
class Ticket:
    """Of the object that letters will be in."""

    is_done: bool = False


@dataclass(slots=True)
class _Draft:
    partition: int
    epoch: int
    began_s: float
    lines: list[bytes] = field(default_factory=list)
    bytes: int = 0
    last: tuple[int, int] = (-1, -1)
    ticket: Ticket = field(default_factory=Ticket)


class LetterObjects:
    """One thread calls it, one of its own uploads. ``files``: what names begin with."""

    def __init__(self, store: Store, url: str, files: str, limit: LettersLimit | None = None) -> None:
        """``limit``: of what this process uploads; None keeps all."""
        self._store, self._url, self._files, self._limit = store, url, files, limit
        self._epochs: dict[int, int] = {}
        self._last: dict[int, tuple[int, int]] = {}  # of what earlier owners wrote
        self._drafts: dict[int, _Draft] = {}
        self._ready: deque[_Draft] = deque()
        self._held_bytes = 0
        self._is_away = self._is_stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="letters", daemon=True)
        self._thread.start()

    def own(self, partition: int, epoch: int) -> None:
        """Raises ``StoreUnavailable`` where what is there cannot be listed."""
        places = [_PLACE.fullmatch(name) for name in self._store.names(f"{self._files}p{partition:05d}-")]
        self._last[partition] = max(((int(found[1]), int(found[2])) for found in places if found), default=(-1, -1))
        self._epochs[partition] = epoch
        if self._limit is not None:
            self._limit.own(partition, 0)

    def disown(self, partition: int) -> None:
        """What was not uploaded is for the next owner, who finds it in the log."""
        if self._limit is not None:
            self._limit.disown(partition)
        with self._changed:
            gone = [draft for draft in (*self._ready, *self._drafts.values()) if draft.partition == partition]
            self._drafts.pop(partition, None)
            self._ready = deque(draft for draft in self._ready if draft.partition != partition)
            self._held_bytes -= sum(draft.bytes for draft in gone)
            for draft in gone:
                draft.ticket.is_done = True  # nobody waits for it any more
            self._changed.notify_all()

    def write(self, partition: int, letters: LetterBatch) -> Ticket | None:
        """Take those that are not there yet; the ticket of the last one. None: all are there. Waits while too much is held."""
        fresh = letters.behind(*self._last[partition])
        if self._limit is not None:
            fresh = self._limit.kept(partition, fresh)
        if not fresh:
            return None
        with self._changed:
            self._changed.wait_for(lambda: self._held_bytes < HELD_BYTES_MAX or self._is_stopping)
            for line, offset, place in zip(letter_lines(fresh, per_line=False), fresh.offsets.tolist(), fresh.lines.tolist(), strict=True):
                draft = self._drafts.get(partition)
                if draft is None:
                    draft = self._drafts[partition] = _Draft(partition, self._epochs[partition], time.monotonic())
                draft.lines.append(line)
                draft.bytes += len(line)
                draft.last = offset, place
                self._held_bytes += len(line)
                ticket = draft.ticket
                if draft.bytes >= OBJECT_BYTES_MAX:
                    self._ready.append(self._drafts.pop(partition))
                    self._changed.notify_all()
        return ticket

    def flush(self, wait_s: float) -> bool:
        """Upload everything now; False where that takes longer."""
        with self._changed:
            self._ready.extend(self._drafts.values())
            self._drafts.clear()
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._held_bytes == 0, wait_s)

    def close(self) -> None:
        """What is not uploaded by now will not be. May be repeated."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join()

    # --- the thread -------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._is_stopping:
            draft = self._next()
            if draft is None:
                continue
            if not self._is_uploaded(draft):
                with self._changed:
                    self._changed.wait_for(lambda: self._is_stopping, RETRY_EVERY_S)
                continue
            with self._changed:
                if self._ready and self._ready[0] is draft:  # else it was disowned meanwhile
                    self._ready.popleft()
                    self._held_bytes -= draft.bytes
                draft.ticket.is_done = True
                self._changed.notify_all()

    def _next(self) -> _Draft | None:
        """The first one to upload; it stays where it is until it is there: the next one of its partition must not be before it."""
        with self._changed:
            old_s = time.monotonic() - AGE_MAX_S
            for partition in [partition for partition, draft in self._drafts.items() if draft.began_s <= old_s]:
                self._ready.append(self._drafts.pop(partition))
            if not self._ready:
                self._changed.wait(LOOK_EVERY_S)
            return self._ready[0] if self._ready else None

    def _is_uploaded(self, draft: _Draft) -> bool:
        offset, line = draft.last
        name = f"{self._files}p{draft.partition:05d}-e{draft.epoch:08d}-{offset:020d}-{line:08d}.ndjson"
        try:
            self._store.put(name, draft.lines)
        except (StoreUnavailable, UsageError) as error:  # keys and policies change under a run that goes on
            if not self._is_away:
                log.warning("dead letters wait for their upload", reason=str(error))
            self._is_away = True
            return False
        if self._is_away:
            log.warning("dead letters are uploaded again", place=self._url)
        self._is_away = False
        return True
