"""Checkpoints: all of a partition at a step boundary in one object; and the epochs that fence those who own it.

In a store::

    seed                                        of the decoders' hashing, the same for all owners
    epochs/p00003/00000008                      the eighth owner of partition 3; "committer" has epochs too
    checkpoints/p00003/e00000008-00000012       its checkpoint 12

To own is to have made the highest epoch. An owner looks whether it still does before a checkpoint and *after* it: a new owner
claims first and lists checkpoints then, so either it sees that checkpoint, or the old owner sees that it has lost the
partition, before anything (the log, the lake) relies on it.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Final

import orjson
from crc32c import crc32c

from keystone import logs
from keystone.checkpoint_format import Arrays, Head, decode, decode_head, encode
from keystone.errors import CheckpointDamaged, Fenced, StoreUnavailable, UsageError
from keystone.metrics import Ledger
from keystone.segments import Segment
from keystone.session_snapshot import SCHEMA, from_schema_1
from keystone.store import Buffer, Store, open_store

EPOCHS_KEPT: Final = 256  # of a key, and of those who were refused; the others are removed
_REFUSED: Final = "refused/"
LOOKS_MAX: Final = 16  # for the newest checkpoint, while an owner sweeps those that were just listed
_LOG: Final = logs.get(__name__)
_KEY: Final = re.compile(r"[a-z][a-z0-9-]*")
_NAME: Final = re.compile(r"checkpoints/p(\d{5,})/e(\d{8,})-(\d{8,})")
_SEED: Final = re.compile(rb"keystone seed ([0-9a-f]{32}) ([0-9a-f]{8})\n")

#: From the schema of the key to the next higher one: fields (a header's JSON) and arrays (none where only the header is read).
Migration = Callable[[dict[str, Any], Arrays], tuple[dict[str, Any], Arrays]]
MIGRATIONS: Final[dict[int, Migration]] = {1: from_schema_1}


def key_of(partition: int) -> str:
    """The key under which a partition is owned: "p00003"."""
    return f"p{partition:05}"


@dataclass(slots=True)
class Checkpoint:
    """All of one partition at a step boundary.

    ``sequence``: of the epoch's checkpoints, from 0. ``ledger``: of the partition since its first record. ``segments``:
    those not known to be committed, in order; ``committed``: the sequence behind the last one that is. ``counters``: JSON.
    ``log_id``: the log it belongs to. ``arrays``: of the session table and the dictionaries; read ones cannot be written.
    """

    partition: int
    epoch: int
    sequence: int
    next_offset: int
    log_time_ms: int
    ledger: Ledger
    segments: tuple[Segment, ...] = ()
    committed: int = 0
    counters: dict[str, Any] = field(default_factory=dict)
    log_id: str = ""
    arrays: Arrays = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"checkpoints/{key_of(self.partition)}/e{self.epoch:08}-{self.sequence:08}"

    def require_log(self, log_id: str) -> None:
        """Raise ``UsageError`` where this belongs to another log: its offsets mean other records there."""
        if self.log_id != log_id:
            raise UsageError(f"{self.name} belongs to the log {self.log_id}, not to {log_id}: name that log, or another directory of checkpoints")

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        numbers = {name: getattr(self, name) for name in (*_NUMBERS, "counters", "log_id")}
        return numbers | {"ledger": self.ledger.as_dict(), "segments": [segment.to_json() for segment in self.segments]}

    @classmethod
    def from_json(cls, found: dict[str, Any], arrays: Arrays) -> Checkpoint:
        """Raises ``CheckpointDamaged`` for anything that ``to_json`` does not give."""
        known = {part.name for part in fields(cls)} - {"arrays"}
        if set(found) != known or not isinstance(found["counters"], dict) or not isinstance(found["log_id"], str):
            raise CheckpointDamaged(f"its fields are not {', '.join(sorted(known))}")
        if any(type(found[name]) is not int or found[name] < 0 for name in _NUMBERS):
            raise CheckpointDamaged(f"a number among its {', '.join(_NUMBERS)} is none")
        ledger, segments = found["ledger"], found["segments"]
        names = {part.name for part in fields(Ledger)}
        if not isinstance(ledger, dict) or set(ledger) != names or any(type(count) is not int for count in ledger.values()):
            raise CheckpointDamaged("its ledger is none")
        if not isinstance(segments, list):
            raise CheckpointDamaged("its segments are none")
        return cls(**(found | {"ledger": Ledger(**ledger), "segments": tuple(Segment.from_json(segment) for segment in segments), "arrays": arrays}))


_NUMBERS: Final = ("partition", "epoch", "sequence", "next_offset", "log_time_ms", "committed")


def refused_in(state: str | None) -> set[str]:
    """Names of those that left word in the store ``state`` of having been refused (``Checkpoints.refused``); none where nobody can say."""
    if state is None:
        return set()
    try:
        return Checkpoints(open_store(state)).refused()
    except StoreUnavailable:
        return set()


class Checkpoints:
    """The checkpoints and epochs in a store. Threads may share it. Whatever it does may raise ``StoreUnavailable``."""

    def __init__(self, store: Store, *, keep: int = 3) -> None:
        self._store = store
        self._keep = keep
        self._told: set[str] = set()

    def seed(self) -> int:
        """Made once, the same for everybody: decoders of all owners hash alike. Raises ``UsageError`` where it is damaged."""
        try:
            content = self._store.get("seed")
        except KeyError:
            drawn = secrets.token_hex(16).encode()
            self._store.put_new("seed", [b"keystone seed %b %08x\n" % (drawn, crc32c(drawn))])
            content = self._store.get("seed")  # another's, where one was quicker
        return self._seed_in(content)

    def seed_there(self) -> int | None:
        """The same, and None where none was made yet: this makes none."""
        try:
            return self._seed_in(self._store.get("seed"))
        except KeyError:
            return None

    @staticmethod
    def _seed_in(content: Buffer) -> int:
        found = _SEED.fullmatch(bytes(content))
        if not found or int(found[2], 16) != crc32c(found[1]):
            raise UsageError("the checkpoints' seed is damaged: bring it back from a backup, or start with another directory of checkpoints")
        return int(found[1], 16)

    # --- epochs -------------------------------------------------------------------------------------------------
    def claim(self, key: str, owner: str) -> int:
        """Own ``key`` (``key_of`` a partition, or "committer") from now on: the new epoch, which nobody else ever has.

        ``owner`` is for people. Whoever owned it before is fenced from this on.
        """
        while True:
            epoch = self.current(key) + 1
            if not self._store.put_new(f"epochs/{key}/{epoch:08}", [orjson.dumps({"owner": owner, "token": secrets.token_hex(8)})]):
                continue
            epochs = self._epochs(key)
            # Who stood still while others claimed hundreds of times can win an epoch that was won, and removed, before.
            if max(epochs, default=epoch) - epoch < EPOCHS_KEPT // 2:
                self._store.delete(f"epochs/{key}/{old:08}" for old in epochs[:-EPOCHS_KEPT])
                return epoch

    def current(self, key: str) -> int:
        """The epoch of the last claim; 0 where nobody ever claimed."""
        return max(self._epochs(key), default=0)

    def check(self, key: str, epoch: int) -> None:
        """Raise ``Fenced`` where another claimed since."""
        current = self.current(key)
        if current != epoch:
            raise Fenced(key, epoch, current)

    # --- who was refused ----------------------------------------------------------------------------------------
    def note_refused(self, owner: str, error: Fenced, wall_ms: int) -> None:
        """Leave word that ``owner`` came back and was refused, ``wall_ms`` its clock: on a node that was given up nobody can ask it."""
        content = {"owner": owner, "reason": str(error)}
        self._store.put_new(f"{_REFUSED}{wall_ms:015}-{owner}", [orjson.dumps(content)])
        self._store.delete(sorted(self.refused())[:-EPOCHS_KEPT])

    def refused(self) -> set[str]:
        """A name for each that left word, of any run; the oldest are removed."""
        return set(self._store.names(_REFUSED))

    def _epochs(self, key: str) -> list[int]:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key")
        prefix = f"epochs/{key}/"
        return sorted(int(number) for name in self._store.names(prefix) if (number := name.removeprefix(prefix)).isdecimal())

    # --- checkpoints --------------------------------------------------------------------------------------------
    def save(self, checkpoint: Checkpoint) -> int:
        """Write it, and remove the oldest beyond ``keep``; returns its bytes.

        When this returns it is durable, and no other owner had claimed the partition by then. Raises ``Fenced`` where one
        had: nothing may rely on the checkpoint. After ``StoreUnavailable`` the same may be saved again.
        """
        key = key_of(checkpoint.partition)
        self.check(key, checkpoint.epoch)
        parts = encode(checkpoint.to_json(), checkpoint.arrays, schema=SCHEMA)
        self._store.put(checkpoint.name, parts)
        self.check(key, checkpoint.epoch)
        self._sweep(checkpoint.partition)
        return sum(len(part) for part in parts)

    def latest(self, partition: int) -> Checkpoint | None:
        """The newest readable one: of the highest epoch, and of that the highest sequence. None where there is none at all.

        One warning for each damaged one passed over. Raises ``UsageError`` for one of a newer version, and where all are damaged.
        """
        return self._newest(partition, self._read)

    def is_newest(self, checkpoint: Checkpoint) -> bool:
        """False where ``latest`` had to pass over damaged ones to find it."""
        return self._names(checkpoint.partition)[:1] == [checkpoint.name]

    def header(self, partition: int) -> Checkpoint | None:
        """The same without arrays, reading a few KB. Arrays are not checked: ``latest`` may pass over what this returns."""
        return self._newest(partition, self._read_head)

    def partitions(self) -> list[int]:
        """The partitions that have checkpoints, in order."""
        return sorted({int(found[1]) for name in self._store.names("checkpoints/") if (found := _NAME.fullmatch(name))})

    def _sweep(self, partition: int) -> None:
        try:
            self._store.delete(self._names(partition)[self._keep :])
        except StoreUnavailable as error:
            _LOG.warning("old checkpoints stay until the next one", partition=partition, reason=str(error))

    def _names(self, partition: int) -> list[str]:
        """Newest first."""
        found = (_NAME.fullmatch(name) for name in self._store.names(f"checkpoints/{key_of(partition)}/"))
        return [match[0] for match in sorted((match for match in found if match), key=lambda match: (int(match[2]), int(match[3])), reverse=True)]

    def _newest(self, partition: int, read: Callable[[str], Checkpoint]) -> Checkpoint | None:
        for _ in range(LOOKS_MAX):
            names = self._names(partition)
            try:
                found = next((checkpoint for name in names if (checkpoint := self._readable(name, read))), None)
            except KeyError:  # swept meanwhile, so there are newer ones
                continue
            if not found and names:
                raise UsageError(f"{', '.join(names)}: all damaged: bring one back from a backup, or remove them to begin anew")
            return found
        raise StoreUnavailable(f"the checkpoints of partition {partition} change faster than they can be read")

    def _readable(self, name: str, read: Callable[[str], Checkpoint]) -> Checkpoint | None:
        try:
            return read(name)
        except CheckpointDamaged as error:
            if name not in self._told:
                self._told.add(name)
                _LOG.warning("a damaged checkpoint is passed over", name=name, reason=str(error))
            return None

    def _read(self, name: str) -> Checkpoint:
        content = self._store.get(name)
        with _named(name):
            return _checkpoint_of(name, *decode(content))

    def _read_head(self, name: str) -> Checkpoint:
        with _named(name):
            return _checkpoint_of(name, decode_head(lambda start, size: self._store.get_range(name, start, size)), {})


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """What the user has to change is told of that checkpoint."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"the checkpoint {name}: {error}") from error


def _checkpoint_of(name: str, head: Head, arrays: Arrays) -> Checkpoint:
    """Migrated to this version's schema where it is an older one."""
    found, schema = head.fields, head.schema
    if schema > SCHEMA:
        raise UsageError(f"it was written by a newer version (schema {schema}, this one reads {SCHEMA}): use that version, or another directory of checkpoints")
    while schema < SCHEMA:
        if schema not in MIGRATIONS:
            raise UsageError(
                f"it was written by an older version (schema {schema}, this one reads {SCHEMA}): use that version, or another directory of checkpoints"
            )
        found, arrays = MIGRATIONS[schema](found, arrays)
        schema += 1
    checkpoint = Checkpoint.from_json(found, arrays)
    if checkpoint.name != name:
        raise CheckpointDamaged(f"it is {checkpoint.name} under another name")
    return checkpoint
