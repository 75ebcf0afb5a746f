"""Where a run reads and writes: the command line as given, resolved and looked at before anything is started."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from keystone.actors.outputs import OutputSpec
from keystone.checkpoint import Checkpoint, Checkpoints
from keystone.config import Config, LakeConfig
from keystone.errors import UsageError
from keystone.log.embedded import EmbeddedLog
from keystone.log.kafka import KafkaLog
from keystone.log.url import EmbeddedUrl, KafkaUrl, LogUrl, default_log_url, open_embedded, parse_log_url
from keystone.routes import ACTIONS, LAKE
from keystone.routes_sources import DEAD_LETTERS
from keystone.sinks.iceberg.places import has_tables, home_of, lost_line, place_of
from keystone.sinks.lake import offsets_of
from keystone.sinks.opening import SinksSpec, look_at_elastic, routes_of
from keystone.store import look_at_bucket, open_bucket, open_store

EARLIEST, LATEST, CHECKPOINT = "earliest", "latest", "checkpoint"
WORDS: Final = (CHECKPOINT, EARLIEST, LATEST)
ICEBERG, PARQUET = "iceberg", "parquet"
CONSOLE, NONE = "console", "none"
CATALOG: Final = "catalog.db"  # of a lake that is tables
LETTERS_DIR: Final = "dead-letters"
STATE, SPOOL, OUTBOX = "state", "spool", "outbox"  # in the home of a lake in a bucket
_ACTIONS_EXAMPLE: Final = "console, none, or kafka://HOST[:PORT]/keystone-actions"


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of ``run``. None: chosen by what the log is."""

    log: str | None = None
    lake: str | None = None
    actions: str | None = None
    dead_letters: str | None = None
    state: str | None = None
    lake_format: str = ICEBERG
    begin: str = CHECKPOINT
    elastic: str | None = None
    origin: str = "keystone.toml"  # of the routes, for messages


@dataclass(frozen=True, slots=True)
class Places:
    """Everything resolved. ``state``: URL of the store of checkpoints; None: it ends with the run. ``remarks``: lines a person should read.

    ``start_offsets``: where a partition without a checkpoint begins. ``before``: the newest checkpoints' heads, by partition.
    """

    log: LogUrl
    partitions: int
    start_offsets: dict[int, int]
    output: OutputSpec
    lake_dir: Path | None  # None also where the lake is in a bucket
    lake_format: str
    state: str | None
    before: dict[int, Checkpoint]
    actions: str  # for people
    remarks: tuple[str, ...] = ()
    lake_url: str | None = None  # of a lake in a bucket
    home_dir: Path | None = None  # of what that keeps on this machine
    sinks: SinksSpec | None = None  # beside actions, dead letters and lake

    @property
    def lake(self) -> str | None:
        """Its directory or URL."""
        return self.lake_url or (str(self.lake_dir) if self.lake_dir is not None else None)


def resolve(options: Options, config: Config) -> Places:
    """Choose what was left open, open what must be there, and see where to begin. ``UsageError`` says what to change."""
    log = parse_log_url(options.log) if options.log is not None else default_log_url()
    remarks: list[str] = []
    if options.begin not in WORDS:
        moment(options.begin)  # or a message, before anything is opened
    lake_url = _bucket(options) if options.lake is not None and "://" in options.lake else None
    lake_dir = Path(options.lake).absolute() if options.lake is not None and lake_url is None else None
    home_dir = home_of(place_of(lake_url), config.lake) if lake_url is not None else None
    if lake_dir is not None:
        _files_of(lake_dir)  # a lake that cannot be made is told of before its state
        _check_catalog_is_there(lake_dir, config.lake)
    state = _state(options.state, lake_dir, home_dir)
    if state is not None:
        look_at_bucket(state, makes_once=True)
    if lake_url is not None:
        look_at_bucket(lake_url, makes_once=False)
    before = _state_before(state, options.begin)
    if options.elastic is not None:
        remarks += look_at_elastic(options.elastic, config)
    partitions, starts, log_id = _beginning(log, config, options.begin, remarks)
    _check_continuation(before, log_id, state)
    if lake_dir is not None:
        check_lake(lake_dir, options.lake_format, {p: before[p].next_offset if p in before else start for p, start in starts.items()}, has_state=bool(before))
    if lake_url is not None:
        check_bucket_lake(lake_url, config.lake, has_state=bool(before))
    if before:
        remarks.append(f"going on where {state} says: {sum(c.ledger.received for c in before.values()):,} events were received before")
    actions = _actions(options.actions, log, config)
    letters, letters_dir = _dead_letters(options.dead_letters, log, config, lake_url or lake_dir)
    run = _id_of(state) if letters_dir is not None or letters is not None else ""
    output = OutputSpec(actions=actions, dead_letters=letters, trail=False, dead_letters_dir=letters_dir, run=run)
    output = _looked_at(output, config)
    named = str(actions) if actions is not None else (options.actions or CONSOLE)
    outbox = home_dir / OUTBOX if home_dir is not None else _beside(lake_dir, OUTBOX) or _outbox(config, f"{log}\0{options.elastic}")
    refused = letters_dir if letters_dir is not None and "://" not in letters_dir else str(outbox / "refused")
    without = tuple(name for name, is_there in (
        (LAKE, options.lake is not None), (ACTIONS, options.actions != NONE), (DEAD_LETTERS, letters is not None or letters_dir is not None),
    ) if not is_there)  # fmt: skip
    sinks = SinksSpec(str(outbox), refused, options.elastic, without, str(log), options.origin)
    routes_of(sinks, config)  # or a message, before anything is started
    return Places(log, partitions, starts, output, lake_dir, options.lake_format, state, before, named, tuple(remarks), lake_url, home_dir, sinks)


def _bucket(options: Options) -> str:
    """The lake's URL, as it is named everywhere."""
    url = (options.lake or "").rstrip("/")
    if not url.startswith("s3://"):
        raise UsageError(f"--lake {url}: write it as a directory, or s3://BUCKET/PREFIX")
    if options.lake_format != ICEBERG:
        raise UsageError(f"--lake {url}: a bucket takes Iceberg tables only: leave out --lake-format {options.lake_format}, or name a directory")
    open_bucket(url)
    return url


def _state(given: str | None, lake_dir: Path | None, home_dir: Path | None) -> str | None:
    if given is not None:
        return given if "://" in given else str(Path(given).absolute())
    if home_dir is not None:
        return str(home_dir / STATE)
    beside = _beside(lake_dir, "state")
    return str(beside) if beside is not None else None


def _outbox(config: Config, what: str) -> Path:
    """Where a run without a lake finds again what waits for its sinks."""
    return Path(config.sinks.home_dir).expanduser() / hashlib.sha256(what.encode()).hexdigest()[:16]


def _id_of(state: str | None) -> str:
    """What dead letters of runs over the same state are named by, and no others."""
    return _id_by(Checkpoints(open_store(state)).seed()) if state is not None else secrets.token_hex(4)


def _id_by(seed: int) -> str:
    return f"{seed & 0xFFFFFFFF:08x}"


def run_of_lake(given: str | None, lake: str, config: LakeConfig) -> str | None:
    """What the dead letters of a lake's runs are named by. ``given``: where their state is, if it is not where ``run`` puts it.

    None where no state is there, which ``UsageError`` tells of one that was named. Makes nothing.
    """
    is_bucket = "://" in lake
    state = _state(given, None if is_bucket else Path(lake).absolute(), home_of(place_of(lake.rstrip("/")), config) if is_bucket else None)
    assert state is not None  # noqa: S101 - beside a lake there is one
    seed = Checkpoints(open_store(state)).seed_there() if "://" in state or Path(state).is_dir() else None
    if seed is None and given is not None:
        raise UsageError(f"--state {given}: no run has kept its state there: name where the checkpoints of this lake's runs are")
    return _id_by(seed) if seed is not None else None


def _state_before(state: str | None, begin: str) -> dict[int, Checkpoint]:
    """What earlier runs left. ``UsageError`` where this one would begin elsewhere."""
    if state is None:
        return {}
    checkpoints = Checkpoints(open_store(state))
    heads = {partition: head for partition in checkpoints.partitions() if (head := checkpoints.header(partition)) is not None}
    if heads and begin != CHECKPOINT:
        raise UsageError(f"--from {begin}: {state} holds the state of an earlier run, which goes on by --from checkpoint: else name another --lake and --state")
    return heads


def _check_continuation(before: dict[int, Checkpoint], log_id: str, state: str | None) -> None:
    for head in before.values():
        if head.log_id != log_id:
            raise UsageError(f"{state} holds the state of another log ({head.log_id}; this is {log_id}): name another --lake and --state")


def _beginning(log: LogUrl, config: Config, begin: str, remarks: list[str]) -> tuple[int, dict[int, int], str]:
    """How many partitions there are, the offset of each to begin at without a checkpoint, and the log's id."""
    if isinstance(log, EmbeddedUrl):
        with closing(open_embedded(log, is_made=True)) as opened:
            return opened.partitions, _offsets(opened, begin, lambda latest: _embedded_offsets(opened, latest=latest)), opened.log_id
    with closing(KafkaLog.open(log, config.kafka, action="read", role="run")) as topic:
        if not topic.has_append_time:
            remarks.append(
                f"topic {topic.topic!r} keeps its producers' times (message.timestamp.type = CreateTime): log time is held between the last record"
                " and this machine's clock; keystone topics check says more"
            )
        return topic.partitions, _offsets(topic, begin, lambda latest: topic.end_offsets() if latest else topic.start_offsets()), topic.log_id


def _offsets(log: EmbeddedLog | KafkaLog, begin: str, ends: Callable[[bool], dict[int, int]]) -> dict[int, int]:
    """Where ``begin`` is: a word, or a time. ``ends``: the log's ends, or (False) its beginnings."""
    if begin in WORDS:
        return ends(begin == LATEST)
    return log.offsets_at(moment(begin))


def _embedded_offsets(log: EmbeddedLog, *, latest: bool) -> dict[int, int]:
    stats = [log.stats(p) for p in range(log.partitions)]
    return {s.partition: s.end_offset if latest else s.start_offset for s in stats}


def moment(text: str, *, option: str = "--from", words: tuple[str, ...] = WORDS) -> int:
    """A time in ms since the epoch: as such a number, or in ISO 8601 (without a zone: UTC). ``words``: what else the option takes, for the message."""
    if text.isdecimal():
        return int(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text}: write {', '.join(words)}, or a time such as 2026-09-21T08:30:00Z, or milliseconds since 1970") from None
    return int((when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp() * 1_000)


def _beside(lake_dir: Path | None, what: str) -> Path | None:
    """Never in the lake: whoever reads it reads every file there."""
    return lake_dir.with_name(f"{lake_dir.name}-{what}") if lake_dir is not None else None


def _actions(given: str | None, log: LogUrl, config: Config) -> KafkaUrl | None:
    if given is None:
        return log.beside(config.kafka.actions_topic) if isinstance(log, KafkaUrl) else None
    if given in {CONSOLE, NONE}:
        return None
    return _topic("--actions", given, config.kafka.actions_topic)


def _topic(option: str, given: str, topic: str) -> KafkaUrl:
    if not given.startswith("kafka://"):
        raise UsageError(f"{option} {given!r}: write it as {_ACTIONS_EXAMPLE}")
    url = parse_log_url(given, topic=topic)
    assert isinstance(url, KafkaUrl)  # noqa: S101 - by its scheme
    return url


def _dead_letters(given: str | None, log: LogUrl, config: Config, lake: Path | str | None) -> tuple[KafkaUrl | None, str | None]:
    """A topic, or a directory or bucket, or neither: then they are counted by reason only."""
    if given is None:
        return (log.beside(config.kafka.dead_letters_topic), None) if isinstance(log, KafkaUrl) else (None, letters_beside(lake))
    if given == NONE:
        return None, None
    if given.startswith("s3://"):
        look_at_bucket(given, makes_once=False)
        return None, given.rstrip("/")
    if "://" in given:
        return _topic("--dead-letters", given, config.kafka.dead_letters_topic), None
    return None, str(Path(given).absolute())


def letters_beside(lake: Path | str | None) -> str | None:
    if isinstance(lake, str):
        prefix = lake.removeprefix("s3://").partition("/")[2]
        return f"{lake}-{LETTERS_DIR}" if prefix else f"{lake}/{LETTERS_DIR}"  # beside data and metadata
    beside = _beside(lake, LETTERS_DIR)
    return str(beside) if beside is not None else None


def _looked_at(output: OutputSpec, config: Config) -> OutputSpec:
    """See that the topics are there and may be written, and where the actions end now."""
    if output.dead_letters is not None:
        KafkaLog.open(output.dead_letters, config.kafka, action="write", role="run").close()
    if output.actions is None:
        return output
    with closing(KafkaLog.open(output.actions, config.kafka, action="write", role="run")) as topic:
        return replace(output, actions_from=tuple(sorted(topic.end_offsets().items())))


def check_lake(lake_dir: Path, lake_format: str, starts: dict[int, int], *, has_state: bool) -> None:
    """Refuse a lake that holds events from where the run begins on: they would be in it twice."""
    files, is_table = _files_of(lake_dir)
    if is_table != (lake_format == ICEBERG) and (is_table or files):
        there = ICEBERG if is_table else PARQUET
        raise UsageError(f"--lake {lake_dir} is of the format {there}: say --lake-format {there}, or name another directory")
    if is_table and not has_state:
        raise UsageError(f"--lake {lake_dir} was written by runs whose state is not where --state says: name that, or another directory for the lake")
    if has_state:
        return  # what the lake has is decided by its own chain
    for path in files:
        try:
            partition, (_, last) = int(path.name[1:6]), offsets_of(path)
        except ValueError:
            continue
        if last >= starts.get(partition, 0):
            raise UsageError(
                f"--lake {lake_dir} holds events of partition {partition} up to offset {last:,}, and this run begins at {starts.get(partition, 0):,}:"
                " name another directory, or say --from latest"
            )


def _check_catalog_is_there(lake_dir: Path, config: LakeConfig) -> None:
    """A table begun anew beside the old one would be empty, and what no snapshot names is deleted after a day."""
    if not config.catalog and not (lake_dir / CATALOG).exists() and has_tables(lake_dir):
        raise UsageError(lost_line(lake_dir))


def check_bucket_lake(lake_url: str, config: LakeConfig, *, has_state: bool) -> None:
    """Open its tables, made where there are none: what is wrong with bucket or catalog is told now. Refuses a lake without the state behind it."""
    from keystone.sinks.iceberg.tables import LakeTables

    with closing(LakeTables.open(lake_url, config)) as tables:
        if not has_state and tables.committed():
            raise UsageError(f"--lake {lake_url} was written by runs whose state is not where --state says: name that, or another prefix for the lake")


def _files_of(lake_dir: Path) -> tuple[list[Path], bool]:
    """Plain files of events in a lake, made where there is none, and whether it has tables."""
    try:
        lake_dir.mkdir(parents=True, exist_ok=True)
        return sorted(lake_dir.glob("event_date=*/p*.parquet")), (lake_dir / CATALOG).exists()
    except OSError as error:
        raise UsageError(f"--lake {lake_dir}: cannot be used: {error.strerror}: name another directory") from error
