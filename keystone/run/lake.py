"""``keystone lake verify|compact|expire|files|adopt``: the lake's tables, looked at, kept small, and found again."""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from keystone.errors import UsageError
from keystone.run.options import CONTEXT, config_options, load_config

if TYPE_CHECKING:
    from keystone.sinks.iceberg.tables import LakeTables
    from keystone.sinks.iceberg.verify import Verdict

EXIT_FAIL: Final = 1
GIVE_WAY: Final = 15  # of 19 steps of niceness: compaction takes a whole core while it reads and writes, and the stream's alerts do not wait for it
TABLES: Final = ("events", "sessions", "alerts")
_LAKE: Final = click.option("--lake", default=None, metavar="DIR|s3://BUCKET/PREFIX", help="Of a run.  [default: run.lake of keystone.toml]")


@click.group("lake", context_settings=CONTEXT)
def lake_command() -> None:
    """Look at a lake's tables, prove what they hold, and keep them small."""


@lake_command.command("verify", context_settings=CONTEXT)
@_LAKE
@click.option("--log", "log_url", default=None, metavar="URL", help="Also compare with what this log's records give.")
@config_options
def verify_command(**given: Any) -> None:
    """Read every file again: each event once, in its place, as many as were committed. Exit status 1 if anything is wrong."""
    from keystone.run.lake_log import LogAgain
    from keystone.sinks.iceberg.verify import verify

    config = load_config(given["config_file"], given["settings"])
    is_clean = True
    with _opened(given, config) as tables, _progress("reading") as advance:
        log = LogAgain(given["log_url"], config) if given["log_url"] is not None else None
        try:
            for verdict in verify(tables, log, lambda file: advance(file.rows)):
                click.echo(_verdict_line(verdict))
                is_clean &= not verdict.faults
        finally:
            if log is not None:
                log.close()
        for gap in log.gaps if log is not None else ():
            click.echo(f"note   the log has a gap: {gap}")
    sys.exit(0 if is_clean else EXIT_FAIL)


def _verdict_line(verdict: Verdict) -> str:
    if verdict.partition is None:
        what = f"tables: {verdict.rows:,} rows"
    else:
        what = f"partition {verdict.partition}: offsets {verdict.first_offset:,} to {verdict.next_offset:,}, {verdict.rows:,} rows, {verdict.files:,} files"
        if verdict.compared_from is not None and verdict.compared_from < verdict.next_offset:
            what += f", compared with the log from {verdict.compared_from:,}"
        elif verdict.compared_from is not None:
            what += ", the log has none of them any more"
    return f"WRONG  {what}: {'; '.join(verdict.faults)}" if verdict.faults else f"ok     {what}"


@lake_command.command("files", context_settings=CONTEXT)
@_LAKE
@click.option("--table", type=click.Choice(TABLES), default="events")
@click.option("--summary", is_flag=True, help="Only how many files of which size each day has.")
@config_options
def files_command(**given: Any) -> None:
    """List the data files of a table: partition, offsets, rows, bytes, path; then, on standard error, how many of which size each day has."""
    from keystone.sinks.iceberg.files import date_of, listed, parse_name

    config = load_config(given["config_file"], given["settings"])
    with _opened(given, config) as tables:
        rows = size = count = 0
        sizes: dict[str, list[int]] = {}
        for file in sorted(listed(tables.load(given["table"]), tables.place), key=lambda file: file.path):
            named = parse_name(file.path)
            partition = _range(file.partitions) if file.partitions else str(named[0]) if named else "-"
            offsets = _range(file.offsets) if file.offsets else f"{named[1]}-{named[2]}" if named else "-"
            if not given["summary"]:
                click.echo(f"{partition}\t{offsets}\t{file.rows}\t{file.bytes}\t{file.path}")
            rows, size, count = rows + file.rows, size + file.bytes, count + 1
            sizes.setdefault(date_of(file.event_date), []).append(file.bytes)
        for day, found in sorted(sizes.items()):
            click.echo(f"{day or 'all days'}: {size_line(found)}", err=True)
        click.echo(f"{count:,} files, {rows:,} rows, {size:,} bytes", err=True)


def size_line(sizes: list[int]) -> str:
    """How many files, their median, and how many of each size."""
    bins = ("under 1 MiB", 0, 1 << 20), ("to 16 MiB", 1 << 20, 16 << 20), ("to 96 MiB", 16 << 20, 96 << 20), ("larger", 96 << 20, 1 << 62)
    counts = ", ".join(f"{count:,} {name}" for name, low, high in bins if (count := sum(low <= size < high for size in sizes)))
    return f"{len(sizes):,} files, {sum(sizes):,} bytes, median {sorted(sizes)[len(sizes) // 2]:,}: {counts}"


def _range(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}-{pair[1]}"


@lake_command.command("compact", context_settings=CONTEXT)
@_LAKE
@click.option("--date", default=None, metavar="YYYY-MM-DD", help="Of this day's events only.  [default: everything]")
@config_options
def compact_command(**given: Any) -> None:
    """Join small files into large ones. The stream may go on, and comes first where they share a machine."""
    os.nice(GIVE_WAY)
    from keystone.sinks.iceberg.compaction import compact

    config = load_config(given["config_file"], given["settings"])
    day = _day(given["date"])
    with _opened(given, config) as tables, _progress("compacting") as advance:
        done = compact(tables, day=day, on_group=lambda group: advance(group.rows))
        click.echo(f"{done.files_before:,} files became {done.files_after:,}: {done.rows:,} rows, {done.bytes:,} bytes")
        if done.lost:
            click.echo(f"{done.lost:,} groups were changed by somebody else meanwhile and stay as they are: say it again")


def _day(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return (dt.date.fromisoformat(text) - dt.date(1970, 1, 1)).days
    except ValueError:
        raise UsageError(f"--date {text}: write it as a day, such as 2026-09-21") from None


@lake_command.command("expire", context_settings=CONTEXT)
@_LAKE
@click.option("--keep", type=click.IntRange(1, 1_000), default=None, help="Snapshots of each table.  [default: lake.snapshots_kept]")
@config_options
def expire_command(**given: Any) -> None:
    """Expire snapshots, and delete files that have been in none for lake.orphan_age_ms. Say it again after that time to delete what it finds now."""
    from keystone.sinks.iceberg.upkeep import expire, sweep

    config = load_config(given["config_file"], given["settings"])
    with _opened(given, config) as tables:
        expired = expire(tables, keep=given["keep"])
        swept = sweep(tables, time.time_ns() // 1_000_000)
        click.echo(f"{expired:,} snapshots expired; {swept.deleted:,} files deleted, {swept.bytes:,} bytes; {swept.waiting:,} wait until they are old enough")
        if swept.left:
            click.echo(f"{swept.left:,} files are in no snapshot and not known to be useless: left alone")


@lake_command.command("adopt", context_settings=CONTEXT)
@_LAKE
@config_options
def adopt_command(**given: Any) -> None:
    """Register the tables anew where their catalog was lost: the newest metadata file of each. While no run writes there."""
    from keystone import logs
    from keystone.sinks.iceberg.adoption import adopt

    config = load_config(given["config_file"], given["settings"])
    lake = _named(given, config)
    with closing(logs.configure(config.logs)):
        for found in adopt(lake, config.lake, TABLES):
            if found.metadata is None:
                click.echo(f"{found.table}: the catalog knows it already")
            else:
                click.echo(f"{found.table}: {found.metadata}, {found.rows:,} rows, {found.snapshots:,} snapshots")
    click.echo(f"now say keystone lake verify --lake {lake}")


def _named(given: dict[str, Any], config: Any) -> str:
    lake: str | None = given["lake"] or config.run.lake
    if lake is None:
        raise UsageError("no lake is named: say --lake DIR or s3://BUCKET/PREFIX, or set run.lake in keystone.toml")
    return lake


@contextmanager
def _opened(given: dict[str, Any], config: Any) -> Iterator[LakeTables]:
    from keystone import logs
    from keystone.sinks.iceberg.tables import LakeTables

    lake = _named(given, config)
    with closing(logs.configure(config.logs)), closing(LakeTables.open(lake, config.lake, is_made=False)) as tables:
        yield tables


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int], None]]:
    """Rows so far, on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with Progress(SpinnerColumn(), TextColumn(what), TextColumn("{task.completed:,} rows"), TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda rows: progress.advance(task, rows)
