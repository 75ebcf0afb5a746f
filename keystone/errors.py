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
└── SinkError
    ├── SinkBusy           the same batch again, later
    └── SinkRefused        never as it is: to the dead letters

Errors are named by what the caller does next. Bad *events* raise nothing: they become dead letters.
"""


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
    """Try the same batch again later."""


class SinkRefused(SinkError):
    """Will never be taken as it is."""
