"""``keystone dead-letters list|show|count|replay``: what could not be used, looked at, counted, and put back once it is mended."""

from __future__ import annotations

import heapq
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import orjson

from keystone.config import Config
from keystone.errors import UsageError
from keystone.log.url import KafkaUrl, parse_log_url
from keystone.run.options import CONTEXT, config_options, load_config

if TYPE_CHECKING:
    from keystone.run.letters_times import LogTimes
    from keystone.sinks.letters_read import Letter, LetterSource

EXIT_FAIL: Final = 1
WIDTH_MIN: Final = 40
WIDTH_ELSEWHERE: Final = 160  # where no terminal says how wide it is
ALL_RUNS: Final = "all"
RUNS_SHOWN_MAX: Final = 5
LIMIT: Final = 100  # of lines listed where nobody says


@click.group("dead-letters", context_settings=CONTEXT)
def dead_letters_command() -> None:
    """Look at lines that could not be used, count them, put them back on the log."""


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the letters are, and which of them."""
    for option in (
        click.option("--until", "until", default=None, metavar="TIME", help="Appended before: ISO 8601 (UTC where it names no zone) or ms."),
        click.option("--since", "since", default=None, metavar="TIME", help="Appended then or later."),
        click.option("--partition", "partition", type=click.IntRange(0), default=None, help="Of the log."),
        click.option("--run", "run", default=None, metavar="NAME|all", help="Of runs over the same state, where several put theirs in one place."),
        click.option("--reason", "reasons", multiple=True, help="Only these; may be repeated."),
        click.option("--log", "log", default=None, metavar="URL", help="The log they come from: files tell no time, the log does.  [default: run.log]"),
        click.option(
            "--from", "source", default=None, metavar="URL|DIR",
            help="What the run's --dead-letters named.  [default: run.dead_letters, else beside the topic or the lake]",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@dead_letters_command.command("list", context_settings=CONTEXT)
@source_options
@click.option("--newest", is_flag=True, help="The last ones first.  [default: in the order of partition, offset, line]")
@click.option("--limit", type=click.IntRange(0), default=LIMIT, help="How many; 0: all, which --newest cannot.")
@click.option("--json", "is_json", is_flag=True, help="As in the files: one object a line, the bytes in base64.")
@config_options
def list_command(**given: Any) -> None:
    """One line each: place, reason, bytes, and as much of them as fits, escaped."""
    if given["newest"] and not given["limit"]:
        raise UsageError("--limit 0 with --newest would hold all of them in memory: name a number")
    with opened(given) as found:
        letters: Iterator[Letter] | list[Letter] = found.letters()
        if given["newest"]:
            letters = heapq.nlargest(given["limit"], letters, key=lambda letter: (letter.said_ms or 0, letter.place.offset, letter.place))
        elif given["limit"]:
            letters = islice(letters, given["limit"])
        width = _width()
        for letter in letters:
            click.echo(letter.as_json() if given["is_json"] else _line(letter, width), nl=not given["is_json"])
        found.end()


def _line(letter: Letter, width: int) -> str:
    from keystone.run.letters_view import escaped

    head = f"{letter.place!s:<20} {escaped(letter.reason, is_ascii=True):<14} {letter.length:>9,}  "
    return head + escaped(letter.raw, width=max(WIDTH_MIN, width) - len(head), is_ascii=not _takes_unicode())


@dead_letters_command.command("count", context_settings=CONTEXT)
@source_options
@click.option("--by", "by", type=click.Choice(["minute"]), default=None, help="Also by the minute (UTC) of the append.")
@click.option("--json", "is_json", is_flag=True, help="One object a line.")
@config_options
def count_command(**given: Any) -> None:
    """How many by reason and partition."""
    with opened(given) as found:
        counts: Counter[tuple[int, str, int]] = Counter()
        bytes_: Counter[tuple[int, str, int]] = Counter()
        for letter in found.letters():
            minute = found.minute_of(letter) if given["by"] else None
            key = -1 if minute is None else minute, letter.reason, letter.place.partition
            counts[key] += 1
            bytes_[key] += letter.length
        for key in sorted(counts):
            minute, reason, partition = key
            if given["is_json"]:
                row: dict[str, object] = {"reason": reason, "partition": partition, "letters": counts[key], "bytes": bytes_[key]}
                if given["by"]:
                    row["minute"] = None if minute < 0 else _minute_text(minute)
                click.echo(orjson.dumps(row))
                continue
            when = f"{'-' if minute < 0 else _minute_text(minute):<18}" if given["by"] else ""
            click.echo(f"{when}{_plain(reason):<14} partition {partition:<5} {counts[key]:>12,}  {bytes_[key]:>15,} bytes")
        if not given["is_json"]:
            click.echo(f"{sum(counts.values()):,} dead letters")
        found.end()


def _plain(text: str) -> str:
    from keystone.run.letters_view import escaped

    return escaped(text, is_ascii=True)


def _minute_text(minute: int) -> str:
    return f"{datetime.fromtimestamp(minute * 60, UTC):%Y-%m-%dT%H:%MZ}"


@dead_letters_command.command("show", context_settings=CONTEXT)
@click.argument("place", metavar="PARTITION:OFFSET:LINE")
@source_options
@click.option("--json", "is_json", is_flag=True, help="As in the files: one object a line, the bytes in base64.")
@config_options
def show_command(**given: Any) -> None:
    """Everything about one, escaped, and where in it the error is."""
    place = _place(given["place"])
    with opened(given, partition=place[0]) as found:
        shown = 0
        for letter in found.letters():
            if letter.place == place:
                shown += 1
                click.echo(letter.as_json() if given["is_json"] else _all_of(letter, found), nl=not given["is_json"])
        if not shown:
            raise UsageError(f"{found.source.url}: no dead letter is of {given['place']}: keystone dead-letters list says which there are")


@dead_letters_command.command("replay", context_settings=CONTEXT)
@source_options
@click.option("--expr", default=None, metavar="EXPRESSION", help="Mend fields: '.ts = tonumber(.timestamp) | del(.timestamp)' (docs/dead_letters.md).")
@click.option("--python", "python", default=None, metavar="FILE", help="Mend by its mend(line: bytes, letter: dict) -> bytes | None (leave it out).")
@click.option("--dry-run", "is_dry", is_flag=True, help="Show each before and after; send nothing.")
@click.option("--again", is_flag=True, help="Also those that were sent before, or may have been.")
@click.option("--limit", type=click.IntRange(0), default=0, help="How many that were not sent before; 0: all.")
@click.option(
    "--journal", default=None, metavar="FILE", help="What was sent.  [default: replays.ndjson beside the letters, else in ~/.local/share/keystone/replays]"
)
@config_options
def replay_command(**given: Any) -> None:
    """Put letters back on --log, mended. Exit status: 0, or 1 where some could not be sent."""
    from keystone.log.opening import open_log
    from keystone.run.letters_journal import journal_path
    from keystone.run.letters_replay import Target, mender, replay, summary

    mend = mender(given["expr"], given["python"])
    with opened(given, needs_log=True) as found, closing(open_log(given["log"] or str(found.config.run.log), found.config.kafka)) as log:
        found.check_run()
        target, path = Target(log, found.config.kafka), journal_path(given["journal"], found.source.url)
        tally = replay(found.letters(), mend, target, path, limit=given["limit"], again=given["again"], is_dry=given["is_dry"])
        for line in summary(tally, is_dry=given["is_dry"]):
            click.echo(line)
        found.end()
    if not tally.is_whole:
        sys.exit(EXIT_FAIL)


def _place(text: str) -> tuple[int, int, int]:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() and part.isascii() for part in parts):
        raise UsageError(f"{text}: write it as PARTITION:OFFSET:LINE, as keystone dead-letters list shows it")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _all_of(letter: Letter, found: Found) -> str:
    from keystone.run.letters_view import escaped, fault_of

    fault = fault_of(letter)
    minute = found.minute_of(letter)
    kept = "" if letter.is_whole else f", the first {len(letter.raw):,} of them kept: it cannot be replayed"
    lines = [
        f"place     {letter.place}",
        f"reason    {_plain(letter.reason)}",
        f"error     {'place unknown' if fault.at is None else f'at byte {fault.at:,}'}{f': {_plain(fault.what)}' if fault.what else ''}",
        f"length    {letter.length:,} bytes{kept}",
        f"appended  {'unknown: name the log by --log' if minute is None else _minute_text(minute)}",
        f"found in  {_plain(letter.source)}{f', of run {_plain(letter.run)}' if letter.run is not None else ''}",
    ]
    is_ascii = not _takes_unicode()
    if fault.at is None:
        return "\n".join([*lines, "bytes", escaped(letter.raw, is_ascii=is_ascii)])
    before, after = letter.raw[: fault.at], letter.raw[fault.at :]
    return "\n".join([*lines, "bytes up to the error", escaped(before, is_ascii=is_ascii), "and from there on", escaped(after, is_ascii=is_ascii)])


def _width() -> int:
    return shutil.get_terminal_size((WIDTH_ELSEWHERE, 24)).columns


def _takes_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


# --- where they are -----------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Found:
    """A source and what is asked of it. ``times``: of the log, where one is named and needed."""

    source: LetterSource
    config: Config
    reasons: frozenset[str]
    partition: int | None
    since_ms: int | None
    until_ms: int | None
    times: LogTimes | None
    run: str | None = None
    not_kept: int = 0

    def letters(self) -> Iterator[Letter]:
        """Those that were asked for."""
        from keystone.sinks.ndjson import NOT_KEPT

        for letter in self.source.letters(self.partition):
            if self.run not in {None, ALL_RUNS} and letter.run not in {None, self.run}:
                continue
            if letter.reason == NOT_KEPT and letter.length == 0:
                self.not_kept += 1
            elif (not self.reasons or letter.reason in self.reasons) and self._is_within(letter):
                yield letter

    def check_run(self) -> None:
        """``UsageError`` where letters of several runs are there and nobody said whose: they may be of several logs, at the same places."""
        if self.run is not None:
            return
        names = sorted({letter.run for letter in self.source.letters(self.partition) if letter.run is not None})
        self.source.torn = 0  # they are read again
        if len(names) > 1:
            shown = ", ".join(_plain(name) for name in names[:RUNS_SHOWN_MAX])
            raise UsageError(f"{self.source.url} has letters of several runs ({shown}): choose one by --run, or --run {ALL_RUNS} if all are of this log")

    def _is_within(self, letter: Letter) -> bool:
        if self.since_ms is None and self.until_ms is None:
            return True
        if self.times is not None:
            is_early = self.since_ms is not None and self.times.is_before(letter.place, self.since_ms)
            return not is_early and (self.until_ms is None or self.times.is_before(letter.place, self.until_ms))
        if letter.said_ms is None:
            raise UsageError("--since, --until: these letters tell no time: name the log they come from by --log")
        return (self.since_ms is None or letter.said_ms >= self.since_ms) and (self.until_ms is None or letter.said_ms < self.until_ms)

    def minute_of(self, letter: Letter) -> int | None:
        """Of the append, as far as it is known."""
        from keystone.run.letters_times import minute_of

        return minute_of(letter, self.times)

    def end(self) -> None:
        """Say what a person should know beside the letters."""
        if self.source.torn:
            click.echo(f"{self.source.torn:,} lines are no dead letters: passed over", err=True)
        if self.not_kept:
            click.echo("more were counted and not kept (dead_letters.bytes_max)", err=True)


@contextmanager
def opened(given: dict[str, Any], *, partition: int | None = None, needs_log: bool = False) -> Iterator[Found]:
    """The letters of ``--from``, with the filters of the command line. ``UsageError`` says what to change."""
    from keystone import logs
    from keystone.run.letters_times import LogTimes
    from keystone.run.places import moment
    from keystone.sinks.letters_read import open_letters

    config = load_config(given["config_file"], given["settings"])
    since, until = (moment(given[name], option=f"--{name}", words=("a day",)) if given[name] is not None else None for name in ("since", "until"))
    log = given["log"] or config.run.log
    if needs_log and log is None:
        raise UsageError("no log is named: say --log URL, or set run.log in keystone.toml")
    with closing(logs.configure(config.logs)), closing(open_letters(letters_url(given["source"], log, config), config.kafka)) as source:
        needs_times = since is not None or until is not None or bool(given.get("by")) or "place" in given
        times = LogTimes(log, config) if log is not None and needs_times else None
        number = partition if partition is not None else given["partition"]
        try:
            yield Found(source, config, frozenset(given["reasons"]), number, since, until, times, given["run"])
        finally:
            if times is not None:
                times.close()


def letters_url(given: str | None, log: str | None, config: Config) -> str:
    """Where a run with this configuration puts dead letters. ``UsageError`` where that cannot be told."""
    from keystone.run.places import letters_beside

    chosen = given or config.run.dead_letters
    if chosen == "none":
        raise UsageError("run.dead_letters = none keeps none: name where letters are by --from")
    if chosen is not None:
        return chosen
    if log is not None and isinstance(url := parse_log_url(log), KafkaUrl):
        return str(url.beside(config.kafka.dead_letters_topic))
    if config.run.lake is None:
        raise UsageError("no dead letters are named: say --from DIR, s3://BUCKET/PREFIX or kafka://HOST/keystone-dead-letters, or set run.dead_letters")
    lake = config.run.lake
    return str(letters_beside(lake.rstrip("/") if "://" in lake else Path(lake).absolute()))
