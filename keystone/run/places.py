"""Where a run reads and writes: the command line as given, resolved and looked at before anything is started."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from keystone.actors.outputs import OutputSpec
from keystone.config import Config
from keystone.errors import UsageError
from keystone.log.embedded import EmbeddedLog
from keystone.log.kafka import KafkaLog
from keystone.log.url import EmbeddedUrl, KafkaUrl, LogUrl, default_log_url, open_embedded, parse_log_url
from keystone.sinks.lake import offsets_of

EARLIEST, LATEST = "earliest", "latest"
CONSOLE, NONE = "console", "none"
_ACTIONS_EXAMPLE: Final = "console, none, or kafka://HOST[:PORT]/keystone-actions"


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of ``run``. None: chosen by what the log is."""

    log: str | None = None
    lake: str | None = None
    actions: str | None = None
    dead_letters: str | None = None
    sessions: str | None = None
    begin: str = EARLIEST


@dataclass(frozen=True, slots=True)
class Places:
    """Everything resolved. ``remarks``: lines a person should read."""

    log: LogUrl
    partitions: int
    start_offsets: dict[int, int]
    output: OutputSpec
    lake_dir: Path | None
    sessions_dir: Path | None
    actions: str  # for people
    remarks: tuple[str, ...] = ()


def resolve(options: Options, config: Config) -> Places:
    """Choose what was left open, open what must be there, and see where to begin. ``UsageError`` says what to change."""
    log = parse_log_url(options.log) if options.log is not None else default_log_url()
    remarks: list[str] = []
    partitions, starts = _beginning(log, config, options.begin, remarks)
    lake_dir = Path(options.lake).absolute() if options.lake is not None else None
    if lake_dir is not None:
        check_lake(lake_dir, starts)
    sessions_dir = Path(options.sessions).absolute() if options.sessions is not None else _beside(lake_dir, "sessions")
    actions = _actions(options.actions, log, config)
    letters, letters_dir = _dead_letters(options.dead_letters, log, config, lake_dir)
    output = OutputSpec(actions=actions, dead_letters=letters, trail=False, dead_letters_dir=str(letters_dir) if letters_dir is not None else None)
    output = _looked_at(output, config)
    named = str(actions) if actions is not None else (options.actions or CONSOLE)
    return Places(log, partitions, starts, output, lake_dir, sessions_dir, named, tuple(remarks))


def _beginning(log: LogUrl, config: Config, begin: str, remarks: list[str]) -> tuple[int, dict[int, int]]:
    """How many partitions there are, and the offset of each to begin at."""
    if isinstance(log, EmbeddedUrl):
        with closing(open_embedded(log, is_made=True)) as opened:
            return opened.partitions, _embedded_offsets(opened, begin)
    with closing(KafkaLog.open(log, config.kafka, action="read", role="run")) as topic:
        if not topic.has_append_time:
            remarks.append(
                f"topic {topic.topic!r} keeps its producers' times (message.timestamp.type = CreateTime): log time is held between the last record"
                " and this machine's clock; keystone topics check says more"
            )
        return topic.partitions, topic.start_offsets() if begin == EARLIEST else topic.end_offsets()


def _embedded_offsets(log: EmbeddedLog, begin: str) -> dict[int, int]:
    stats = [log.stats(p) for p in range(log.partitions)]
    return {s.partition: s.start_offset if begin == EARLIEST else s.end_offset for s in stats}


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


def _dead_letters(given: str | None, log: LogUrl, config: Config, lake_dir: Path | None) -> tuple[KafkaUrl | None, Path | None]:
    """A topic, or a directory, or neither: then they are counted by reason only."""
    if given is None:
        if isinstance(log, KafkaUrl):
            return log.beside(config.kafka.dead_letters_topic), None
        return None, _beside(lake_dir, "dead-letters")
    if given == NONE:
        return None, None
    if "://" in given:
        return _topic("--dead-letters", given, config.kafka.dead_letters_topic), None
    return None, Path(given).absolute()


def _looked_at(output: OutputSpec, config: Config) -> OutputSpec:
    """See that the topics are there and may be written, and where the actions end now."""
    if output.dead_letters is not None:
        KafkaLog.open(output.dead_letters, config.kafka, action="write", role="run").close()
    if output.actions is None:
        return output
    with closing(KafkaLog.open(output.actions, config.kafka, action="write", role="run")) as topic:
        return replace(output, actions_from=tuple(sorted(topic.end_offsets().items())))


def check_lake(lake_dir: Path, starts: dict[int, int]) -> None:
    """Refuse a lake that holds events from where the run begins on: they would be in it twice."""
    try:
        lake_dir.mkdir(parents=True, exist_ok=True)
        files = sorted(lake_dir.glob("event_date=*/p*.parquet"))
    except OSError as error:
        raise UsageError(f"--lake {lake_dir}: cannot be used: {error.strerror}: name another directory") from error
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
