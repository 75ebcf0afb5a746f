"""Dead letters mended and put back on a log: each checked by the decoder first, its history kept, none sent twice unasked."""

from __future__ import annotations

import runpy
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from keystone.config import KafkaConfig
from keystone.errors import KeystoneError, LogInUse, RecordTooLarge, UsageError
from keystone.log.embedded import EmbeddedLog
from keystone.log.kafka import KafkaLog
from keystone.log.kafka.lanes import ACKNOWLEDGED, FAILED, UNKNOWN, Outcome
from keystone.log.kafka.writer import KafkaWriter
from keystone.log.partition import EmbeddedWriter, writer_pid
from keystone.partition import partition_of
from keystone.run.letters_check import look_at
from keystone.run.letters_expr import CannotMend, Program
from keystone.run.letters_journal import Ending, History, Journal, Ready
from keystone.run.letters_view import escaped, fault_of
from keystone.sinks.letters_read import Letter, Place

BATCH_LETTERS: Final = 500  # between two looks at the disk; as many are in doubt at most after a crash
BATCH_BYTES: Final = 8 << 20
SHOWN_MAX: Final = 5  # of those that cannot be sent; the rest is counted
SHOWN_WIDTH: Final = 120
PROGRESS_S: Final = 2.0
FLUSH_SPARE_S: Final = 30.0  # beyond kafka.delivery_timeout_ms every answer is there
CUT: Final = "cut at 64 KiB"
FAILS: Final = "mend() fails"

Mend = Callable[[Letter], bytes | None]


# --- what mends -----------------------------------------------------------------------------------------------------------
def mender(expr: str | None, python: str | None) -> Mend:
    """By an expression, by a file of Python, or not at all. ``UsageError`` says what is wrong with either."""
    if expr is not None and python is not None:
        raise UsageError("--expr and --python exclude each other: say one of them")
    if expr is not None:
        program = Program(expr)
        return lambda letter: program(letter.raw)
    return _python(Path(python)) if python is not None else lambda letter: letter.raw


def _python(path: Path) -> Mend:
    try:
        mend = runpy.run_path(str(path)).get("mend")
    except OSError as error:
        raise UsageError(f"--python {path}: cannot be read ({error.strerror})") from error
    except SyntaxError as error:
        raise UsageError(f"--python {path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise UsageError(f"--python {path}: fails when it is loaded: {_told(error)}") from error
    if not callable(mend):
        raise UsageError(f"--python {path}: has no function mend(line: bytes, letter: dict) -> bytes | None: add one")
    function: Callable[[bytes, dict[str, Any]], object] = mend

    def call(letter: Letter) -> bytes | None:
        about = {**letter.place._asdict(), "reason": letter.reason, "length": letter.length, "said_ms": letter.said_ms, "source": letter.source}
        try:
            line = function(letter.raw, about)
        except Exception as error:
            raise CannotMend(f"{FAILS}: {_told(error)}") from error
        if line is None or isinstance(line, bytes):
            return line
        raise CannotMend(f"{FAILS}: it gave {type(line).__name__}, not bytes or None")

    return call


def _told(error: Exception) -> str:
    return escaped(f"{type(error).__name__}: {error}", width=SHOWN_WIDTH, is_ascii=True)


# --- where it goes --------------------------------------------------------------------------------------------------------
class Target:
    """A log that lines are put on: of each device its own partition."""

    def __init__(self, log: EmbeddedLog | KafkaLog, config: KafkaConfig) -> None:
        self.log = log
        self._flush_s = config.delivery_timeout_ms / 1_000 + FLUSH_SPARE_S
        self._writers: dict[int, EmbeddedWriter | KafkaWriter] = {}

    def claim(self) -> None:
        """Be the writer of an embedded log's partitions. ``UsageError`` where another is."""
        for partition in range(self.log.partitions if isinstance(self.log, EmbeddedLog) else 0):
            try:
                self._writers[partition] = self.log.writer(partition)
            except LogInUse as error:
                pid = writer_pid(self.log.shape.folder(partition)) if isinstance(self.log, EmbeddedLog) else 0
                raise UsageError(
                    f"--log {self.log.url}: process {pid} writes to partition {partition}, and an embedded log has one writer: stop it, replay, start it again"
                ) from error

    def send(self, batch: list[Ready], endings: list[Ending]) -> None:
        """Each line as one record. ``endings`` is right at any time, also where this raises."""
        used: set[int] = set()
        try:
            for at, one in enumerate(batch):
                writer = self._writers.get(one.partition) or self._writers.setdefault(one.partition, self.log.writer(one.partition))
                used.add(one.partition)
                endings[at] = Ending(UNKNOWN, -1)
                try:
                    _hand_over(writer, one, endings, at)
                except RecordTooLarge:
                    endings[at] = Ending(FAILED, -1)
                except KeystoneError:
                    endings[at] = Ending(FAILED, -1)
                    raise
        finally:
            for partition in used:
                self._writers[partition].flush(wait_s=self._flush_s)


def _hand_over(writer: EmbeddedWriter | KafkaWriter, one: Ready, endings: list[Ending], at: int) -> None:
    if isinstance(writer, EmbeddedWriter):
        endings[at] = Ending(ACKNOWLEDGED, writer.append(one.line).offset)
        return

    def note(found: Outcome) -> None:
        endings[at] = Ending(found.state, found.offset)

    headers = (("keystone-replayed-from", str(one.letter.place).encode()), ("keystone-reason", one.letter.reason.encode()))
    writer.send(one.line, key=one.device_id, headers=headers, on_outcome=note)


# --- the replay -----------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Tally:
    """What became of the letters. ``unsent``: by why; ``doubtful``: begun earlier, or now, and no outcome is known."""

    looked_at: int = 0
    sent: Counter[int] = field(default_factory=Counter)  # by the new partition
    unsent: Counter[str] = field(default_factory=Counter)
    left_out: int = 0  # by mend()
    earlier: int = 0
    doubtful: int = 0
    shown: int = 0

    @property
    def is_whole(self) -> bool:
        return not self.unsent and not self.doubtful


class Replay:
    """One pass over letters. ``journal``: None for a look only, which shows each before and after."""

    def __init__(self, mend: Mend, target: Target, history: History, journal: Journal | None, *, again: bool) -> None:
        self.tally = Tally()
        self._mend, self._target, self._history, self._journal, self._again = mend, target, history, journal, again
        self._seen: set[Place] = set()  # a topic or a bucket may give a letter twice
        self._batch: list[Ready] = []
        self._bytes = 0
        self._told_s = time.monotonic()

    def run(self, letters: Iterable[Letter], limit: int) -> None:
        """Up to ``limit`` of those that were not sent before; 0: all."""
        for letter in letters:
            if not self._is_due(letter.place):
                continue
            self.tally.looked_at += 1
            ready = self._ready(letter)
            if ready is not None:
                self._take(ready)
            if limit and self.tally.looked_at >= limit:
                break
            self._progress()
        self._send()

    def _is_due(self, place: Place) -> bool:
        if place in self._seen:
            return False
        self._seen.add(place)
        if self._again:
            return True
        self.tally.doubtful += (is_open := place in self._history.open)
        self.tally.earlier += (is_sent := not is_open and place in self._history.sent)
        return not (is_open or is_sent)

    def _ready(self, letter: Letter) -> Ready | None:
        """Mended and found good; None where it is not sent, counted and shown."""
        if not letter.is_whole:
            self._refuse(letter, CUT, f"{letter.length:,} bytes, and {len(letter.raw):,} are kept")
            return None
        try:
            line = self._mend(letter)
        except CannotMend as error:
            self._refuse(letter, "cannot be mended", str(error))
            return None
        if line is None:
            self.tally.left_out += 1
            return None
        look = look_at(line)
        if look.reason is not None:
            fault = fault_of(Letter(letter.place, look.reason, len(line), line, None, ""))
            self._refuse(letter, look.reason, f"{fault.what}: {escaped(line, width=SHOWN_WIDTH, is_ascii=True)}".removeprefix(": "))
            return None
        if look.lines != 1 or look.device_id is None:
            self._refuse(letter, "not one event", f"{look.lines} lines")
            return None
        return Ready(letter, line, look.device_id, partition_of(look.device_id, self._target.log.partitions))

    def _refuse(self, letter: Letter, why: str, what: str) -> None:
        self.tally.unsent[why] += 1
        if self.tally.shown < SHOWN_MAX:
            self.tally.shown += 1
            click.echo(f"{letter.place}  not sent, {why}: {escaped(what, is_ascii=True) if not what.isascii() else what}", err=True)

    def _take(self, ready: Ready) -> None:
        if self._journal is None:
            before, after = (escaped(line, is_ascii=True) for line in (ready.letter.raw, ready.line))
            click.echo(f"{ready.letter.place}  {escaped(ready.letter.reason, is_ascii=True)}\n  before  {before}\n  after   {after}")
            self.tally.sent[ready.partition] += 1
            return
        self._batch.append(ready)
        self._bytes += len(ready.line)
        if len(self._batch) >= BATCH_LETTERS or self._bytes >= BATCH_BYTES:
            self._send()

    def _send(self) -> None:
        if self._journal is None or not self._batch:
            return
        batch, self._batch, self._bytes = self._batch, [], 0
        endings = [Ending(FAILED, -1)] * len(batch)
        self._journal.intend(batch)
        try:
            self._target.send(batch, endings)
        finally:
            self._journal.end(batch, endings := list(endings))
            for one, ending in zip(batch, endings, strict=True):
                self.tally.sent[one.partition] += ending.state == ACKNOWLEDGED
                self.tally.doubtful += ending.state == UNKNOWN
                self.tally.unsent["not taken by the log"] += ending.state == FAILED
            self.tally.unsent += Counter()  # without those of nothing

    def _progress(self) -> None:
        if self._journal is not None and time.monotonic() - self._told_s >= PROGRESS_S:
            self._told_s = time.monotonic()
            click.echo(f"{self.tally.looked_at:,} looked at, {self.tally.sent.total():,} sent", err=True)


def summary(tally: Tally, *, is_dry: bool) -> list[str]:
    """For people; what was not sent and why is told apart."""
    where = ", ".join(f"partition {partition}: {count:,}" for partition, count in sorted(tally.sent.items()) if count)
    lines = [f"{tally.sent.total():,} {'would be sent' if is_dry else 'sent'}{f' ({where})' if where else ''}"]
    if tally.unsent:
        why = ", ".join(f"{escaped(reason, is_ascii=True)} {count:,}" for reason, count in sorted(tally.unsent.items()))
        lines.append(f"{tally.unsent.total():,} not sent: {why}")
    if tally.left_out:
        lines.append(f"{tally.left_out:,} left out by mend()")
    if tally.earlier:
        lines.append(f"{tally.earlier:,} sent before: passed over (--again sends them once more)")
    if tally.doubtful:
        lines.append(f"{tally.doubtful:,} begun and of unknown outcome: look whether they are in the log; if not, --again sends them")
    return lines


def replay(letters: Iterable[Letter], mend: Mend, target: Target, path: Path, *, limit: int, again: bool, is_dry: bool) -> Tally:
    """Everything together; the log is closed by whoever opened it."""
    from keystone.run.letters_journal import history_of

    if is_dry:
        look = Replay(mend, target, history_of(path, target.log.log_id), None, again=again)
        look.run(letters, limit)
        return look.tally
    target.claim()
    with closing(Journal(path, target.log.log_id)) as journal:
        pass_ = Replay(mend, target, journal.history, journal, again=again)
        try:
            pass_.run(letters, limit)
        except KeystoneError:
            for line in summary(pass_.tally, is_dry=False):
                click.echo(line)
            raise
        return pass_.tally
