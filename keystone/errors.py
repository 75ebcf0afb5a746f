"""Every error the program raises on purpose.

KeystoneError
├── UsageError             the user changes something (config, flags, files) and tries again; exit 2
├── LedgerError            the sums do not balance: a defect; the run is worth nothing
├── SessionsFull           more sessions are active than session.sessions_max: raise it, or take more partitions
├── LogError
│   ├── LogFull            the log is full and its readers lag: wait, or give it more room
│   ├── RecordTooLarge     never as it is: split it
│   ├── LogInUse           another run writes here: choose another directory
│   ├── LogClosed          the reader or writer was closed
│   ├── LogUnreachable     no broker answers: wait, or look at the brokers; the same may be asked again
│   ├── OffsetOutOfRange   retention overtook the reader, or the offset was never written: seek
│   │   └── LogRecreated   the topic was deleted and made anew: the old offsets mean other records now
│   └── LogCorrupt         a record that had been complete no longer matches its checksum
├── SinkError
│   ├── SinkBusy           the same batch again, later
│   ├── SinkRefused        never as it is: to the dead letters
│   ├── ChainBroken        what the lake holds and what it is given leave a hole or overlap: stop, a person looks
│   └── LakeDamaged        a file of the lake is missing, or not what was written: stop, a person looks
├── Fenced                 another owner took over: end yourself, write nothing more
├── StoreUnavailable       the store of checkpoints does not answer, or is full: the same again, later
└── CheckpointDamaged      a checkpoint's bytes are not those that were written: take the one before

Errors are named by what the caller does next. Bad *events* raise nothing: they become dead letters.
"""

from __future__ import annotations

from collections.abc import Mapping


class KeystoneError(Exception):
    """The root."""


class UsageError(KeystoneError):
    """One line that says what to change."""


class LedgerError(KeystoneError):
    """The sums of the ledger do not balance."""


class SessionsFull(KeystoneError):
    """More sessions are active in one partition than its table may hold."""


class LogError(KeystoneError):
    """The log cannot do what was asked."""


class LogFull(LogError):
    """No room, and nothing may be dropped yet."""


class RecordTooLarge(LogError):
    """A value is larger than the log takes in one record."""


class LogInUse(LogError):
    """Another writer holds the partition or directory."""


class LogClosed(LogError):
    """Used after close."""


class OffsetOutOfRange(LogError):
    """The offset is not, or no longer, in the log."""


class LogRecreated(OffsetOutOfRange):
    """Another log has the name of the one that was read."""


class LogUnreachable(LogError):
    """Nobody answers for the log."""


class LogCorrupt(LogError):
    """A complete record does not match its checksum."""


class SinkError(KeystoneError):
    """A sink did not take a batch."""


class SinkBusy(SinkError):
    """Try the same batch again later, and not before ``wait_ms`` have passed."""

    def __init__(self, *arguments: object, wait_ms: int = 0) -> None:
        super().__init__(*arguments)
        self.wait_ms = wait_ms


class SinkRefused(SinkError):
    """Will never be taken as it is."""


class ChainBroken(SinkError):
    """Segments of some partitions were not committed: they do not begin where the lake ends. ``refused``: why, by partition."""

    def __init__(self, refused: Mapping[int, str]) -> None:
        first = min(refused)
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        super().__init__(f"not committed to the lake: partition {first}{more}: {refused[first]}")
        self.refused = dict(refused)

    def __reduce__(self) -> tuple[type[ChainBroken], tuple[dict[int, str]]]:
        return type(self), (self.refused,)


class LakeDamaged(SinkError):
    """A file of the lake is not there, or not the one that was written."""


class Fenced(KeystoneError):
    """Another owner claimed what this one held: it may write nothing more."""

    def __init__(self, key: str, epoch: int, current: int) -> None:
        super().__init__(f"{key} belongs to epoch {current} now, this was its owner in epoch {epoch}")
        self.key, self.epoch, self.current = key, epoch, current

    def __reduce__(self) -> tuple[type[Fenced], tuple[str, int, int]]:
        return type(self), (self.key, self.epoch, self.current)


class StoreUnavailable(KeystoneError):
    """The store did not do what was asked of it, and may do so later."""


class CheckpointDamaged(KeystoneError):
    """Not the bytes of a checkpoint, or not all of them."""
