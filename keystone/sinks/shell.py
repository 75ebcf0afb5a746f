"""A sink with everything around it that a sink needs; the threads that do what ``keystone.sinks.outbox`` decides.

Each kind has a thread that sends, so a receiver that is slow with sessions holds up no alert; one more thread keeps the disk, so
a receiver that hangs holds up no checkpoint. All are daemons: nobody's end waits for an answer that does not come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from keystone.config import SinksConfig
from keystone.errors import SinkBusy, SinkError, SinkRefused
from keystone.logs import get
from keystone.sinks.base import KINDS, Answer, Document, OnRefused, Outcome, RawSink, Refused, Rows
from keystone.sinks.lanes import Slice
from keystone.sinks.outbox import Outbox
from keystone.sinks.spill import Spill
from keystone.sinks.steps import Encode, Load, Merge, Send, Wait, Write

AFTER_DEFECT_S: Final = 0.2  # five lines of log a second at most
STRETCH_S: Final = 0.002  # of encoding small offers without a pause: the interpreter would let others in only each 5 ms
BREATH_S: Final = 0.001
LEFT_FOR_DISK: Final = 0.3  # of the time to close
ENDING_S: Final = 1.0  # at least, for what a thread has just begun: a file of the spill, a dead letter
REFUSED_LINE_S: Final = 10.0  # one line of log, however many rows are refused

log = get(__name__)


def now_ms() -> int:
    """Of a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000


class BufferedSink:
    """A ``Sink`` around a ``RawSink``, which it owns. ``spill_dir``: where to keep what the receiver does not take; None: nowhere.

    What a dead sink of the same ``name`` left in a directory beside it is sent too: so one directory a process, below one for all of them.

    ``kinds``: those that are offered, a thread for each. ``on_refused`` gets what will never be taken, from any thread of the sink, one
    at a time and none after ``close``; nothing counts as settled before it returns, and where it raises, the row is tried again. Memory:
    ``queue_bytes_max`` of each kind, what one ``offer`` adds, a batch of each kind as it is sent, and a file of the spill of each kind.
    """

    def __init__(
        self, name: str, raw: RawSink, config: SinksConfig, on_refused: OnRefused, spill_dir: Path | str | None = None, *, kinds: Sequence[str] = KINDS
    ) -> None:
        self.name = name
        self._raw, self._on_refused = raw, on_refused
        self._spill = Spill(spill_dir, name) if spill_dir is not None and config.spill_bytes_max else None
        found = list(self._spill.found()) if self._spill is not None else []
        kinds = [kind for kind in KINDS if kind in kinds or any(kind == left for left, _ in found)]  # a kind that is routed elsewhere now is sent all the same
        self._outbox = Outbox(config, has_spill=self._spill is not None, kinds=kinds)
        self._changed = threading.Condition()
        self._telling = threading.Lock()
        self._is_closed = False
        self._left = 0
        self._trouble = ""
        self._cpu_s: dict[str, float] = {}  # by thread
        self._refused_unsaid, self._refused_said_s = 0, -REFUSED_LINE_S
        for kind, segment in found:
            self._outbox.found(kind, segment)
        self._keeper = threading.Thread(target=self._run, args=(self._keep_once, ""), name=f"{name}-spill", daemon=True)
        threads = [threading.Thread(target=self._run, args=(self._send_once, kind), name=f"{name}-{kind}", daemon=True) for kind in kinds]
        for thread in (*threads, self._keeper):
            thread.start()

    # --- for the caller ---------------------------------------------------------------------------------------------------
    def offer(self, rows: Sequence[Rows]) -> None:
        filled = [one for one in rows if one.rows]
        with self._changed:
            if self._is_closed:
                raise SinkError(f"{self.name} was closed")
            for one in filled:
                if one.kind not in self._outbox.lanes:
                    raise SinkError(f"{self.name} was not opened for {one.kind}")
            if filled:
                self._outbox.offer(filled, now_ms())
                self._changed.notify_all()

    def has_room(self) -> bool:
        with self._changed:
            return self._outbox.has_room()

    def mark(self) -> int:
        with self._changed:
            self._changed.notify_all()
            return self._outbox.mark(now_ms())

    def is_kept(self, mark: int) -> bool:
        with self._changed:
            return self._outbox.kept() >= mark

    def flush(self, limit_s: float) -> bool:
        with self._changed:
            self._outbox.is_flushing = True
            self._changed.notify_all()
            try:
                return self._changed.wait_for(self._outbox.is_empty, limit_s)
            finally:
                self._outbox.is_flushing = False

    def close(self, limit_s: float) -> int:
        if self._is_closed:
            return self._left
        self.flush(limit_s * (1 - LEFT_FOR_DISK))
        with self._changed:
            if self._spill is not None:
                mark = self._outbox.mark(0)  # at once
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._outbox.kept() >= mark and not self._outbox.has_deletions(), limit_s * LEFT_FOR_DISK)
            self._is_closed = True
            self._changed.notify_all()
        if self._telling.acquire(timeout=max(ENDING_S, limit_s * LEFT_FOR_DISK)):  # whoever is just told of refused rows is not told later
            self._telling.release()
        self._keeper.join(max(ENDING_S, limit_s * LEFT_FOR_DISK))
        with self._changed:
            self._left = self._outbox.only_in_memory()
        self._raw.close()
        if self._spill is not None and not self._keeper.is_alive():
            self._spill.close()  # else a disk that hangs keeps the directory: what is still being written may not meet another's files
        if self._left:
            log.error("rows were not delivered", sink=self.name, rows=self._left)
        return self._left

    def status(self) -> dict[str, Any]:
        with self._changed:
            return {"sink": self.name, **self._outbox.status(), "trouble": self._trouble, "cpu_s": round(sum(self._cpu_s.copy().values()), 3)}

    # --- the threads ------------------------------------------------------------------------------------------------------
    def _run(self, once: Callable[[str], None], kind: str) -> None:
        while not self._is_closed:
            try:
                once(kind)
            except Exception:  # a defect in one step must not end the delivery of everything else
                log.exception("a sink's thread failed and goes on", sink=self.name, kind=kind)
                time.sleep(AFTER_DEFECT_S)
            self._cpu_s[kind] = time.thread_time()

    def _wait(self, step: Wait) -> None:
        """Under the lock."""
        self._changed.wait(None if step.until_ms is None else max(0.001, (step.until_ms - now_ms()) / 1_000))

    def _send_once(self, kind: str) -> None:
        with self._changed:
            step = self._outbox.next_send(kind, now_ms())
            if isinstance(step, Wait):
                if not self._is_closed:
                    self._wait(step)
                return
        if isinstance(step, Encode):
            self._encode(step)
        elif isinstance(step, Load):
            self._load(step)
        else:
            self._send(step)

    def _keep_once(self, _: str) -> None:
        with self._changed:
            step = self._outbox.next_keep(now_ms())
            if isinstance(step, Wait):
                if not self._is_closed:
                    self._wait(step)
                return
        if isinstance(step, Encode):
            self._encode(step)
        elif isinstance(step, Write):
            self._write(step)
        elif isinstance(step, Merge):
            self._merge(step)
        elif self._spill is not None:
            self._spill.delete(step.kind, step.segment)
            with self._changed:
                self._changed.notify_all()

    def _send(self, send: Send) -> None:
        documents = [held.document for held in send.batch]
        try:
            answers = self._answers(documents)
        except SinkBusy as error:
            self._say_trouble(str(error))
            self._failed(send, error.wait_ms)
            return
        except Exception as error:
            self._failed(send, 0)
            raise SinkError(f"{self.name} failed in a way that it should not") from error
        put_off = [answer.reason for answer in answers if answer.outcome is Outcome.AGAIN]
        self._say_trouble(put_off[0] if 2 * len(put_off) > len(answers) else "")
        with self._changed:
            self._outbox.answered(send, answers, now_ms())
            self._changed.notify_all()

    def _answers(self, documents: Sequence[Document]) -> Sequence[Answer]:
        """What became of each; those refused are told already, or are tried again where nobody could be told."""
        try:
            answers: Sequence[Answer] = self._raw.send_batch(documents)
        except SinkRefused as error:
            answers = [Answer(Outcome.REFUSED, str(error))] * len(documents)
        pairs = list(zip(documents, answers, strict=True))
        refused = [Refused(doc.kind, doc.id, answer.reason, doc.body) for doc, answer in pairs if answer.outcome is Outcome.REFUSED]
        if not refused or (reason := self._refuse(refused)) is None:
            return answers
        return [Answer(Outcome.AGAIN, reason) if answer.outcome is Outcome.REFUSED else answer for answer in answers]

    def _failed(self, send: Send, wait_ms: int) -> None:
        with self._changed:
            self._outbox.failed(send, now_ms(), wait_ms=wait_ms)
            self._changed.notify_all()

    def _encode(self, step: Encode) -> None:
        began_s = time.monotonic()
        for cut in step.slices:
            documents = self._documents(cut)
            with self._changed:
                self._outbox.encoded(cut, documents)
                self._changed.notify_all()
            if time.monotonic() - began_s > STRETCH_S:
                time.sleep(BREATH_S)
                began_s = time.monotonic()

    def _documents(self, cut: Slice) -> list[Document]:
        """A row that cannot be made JSON is refused alone."""
        try:
            return _one_each(cut.rows, cut.start, cut.stop)
        except Exception:  # noqa: BLE001 - whatever is wrong with a row, its neighbours are delivered
            documents: list[Document] = []
        for row in range(cut.start, cut.stop):
            try:
                documents += _one_each(cut.rows, row, row + 1)
            except Exception as error:  # noqa: BLE001
                refused = [Refused(cut.rows.kind, "", f"cannot be made JSON: {error}", b"")]
                while self._refuse(refused) is not None and not self._is_closed:
                    time.sleep(AFTER_DEFECT_S)  # nobody is told yet, so it is owed still
        return documents

    def _load(self, load: Load) -> None:
        assert self._spill is not None  # noqa: S101 - the outbox was told
        try:
            documents = self._spill.read(load.kind, load.segment)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the disk, what else there is goes on
            log.warning("the spill cannot be read", sink=self.name, reason=str(error))
            with self._changed:
                self._outbox.not_loaded(load, now_ms())
                self._changed.notify_all()
            return
        with self._changed:
            self._outbox.loaded(load, documents, now_ms())
            self._changed.notify_all()

    def _write(self, write: Write) -> None:
        assert self._spill is not None  # noqa: S101 - the outbox was told
        try:
            segment = self._spill.write(write.kind, [held.document for held in write.batch])
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the disk, what was to be written is still held
            log.warning("the spill cannot be written", sink=self.name, reason=str(error))
            with self._changed:
                self._outbox.write_failed(write, now_ms())
                self._changed.notify_all()
            return
        with self._changed:
            self._outbox.written(write, segment)
            self._changed.notify_all()

    def _merge(self, merge: Merge) -> None:
        assert self._spill is not None  # noqa: S101 - the outbox was told
        try:
            segment = self._spill.merge(merge.kind, merge.segments)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the disk, the files are there as they were
            log.warning("files of the spill cannot be joined", sink=self.name, reason=str(error))
            with self._changed:
                self._outbox.merge_failed(merge)
                self._changed.notify_all()
            return
        with self._changed:
            self._outbox.merged(merge, segment)
            self._changed.notify_all()

    def _refuse(self, refused: Sequence[Refused]) -> str | None:
        """Tell of them. None where that is done, else why not."""
        with self._telling:
            if self._is_closed:
                return f"{self.name} was closed"
            try:
                self._on_refused(refused)
            except Exception as error:
                log.exception("refused rows cannot be told, and are tried again", sink=self.name, rows=len(refused))
                return f"refused, and that cannot be told: {error}"
            self._refused_unsaid += len(refused)
            if time.monotonic() - self._refused_said_s >= REFUSED_LINE_S:
                log.warning("rows were refused", sink=self.name, kind=refused[0].kind, rows=self._refused_unsaid, reason=refused[0].reason[:200])
                self._refused_unsaid, self._refused_said_s = 0, time.monotonic()
        return None

    def _say_trouble(self, trouble: str) -> None:
        """Once for each change."""
        if trouble and not self._trouble:
            log.warning("a sink is in trouble; it is tried again by itself", sink=self.name, reason=trouble)
        elif self._trouble and not trouble:
            log.info("a sink works again", sink=self.name)
        self._trouble = trouble


def _one_each(rows: Rows, start: int, stop: int) -> list[Document]:
    documents = rows.documents(start, stop)
    if len(documents) != stop - start:
        raise ValueError(f"{stop - start} rows became {len(documents)} documents")
    return documents
