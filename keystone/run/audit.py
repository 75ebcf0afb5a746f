"""``keystone audit``: whether log, lake, index and dead letters agree, while the stream runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from keystone.errors import UsageError
from keystone.run.options import CONTEXT, config_options, load_config

if TYPE_CHECKING:
    from keystone.audit.engine import Audit
    from keystone.audit.index_routes import IndexRoutes
    from keystone.config import Config
    from keystone.sinks.letters_read import LetterSource

EXIT_FAIL: Final = 1
WAIT_MARGIN_MS: Final = 10_000  # beyond a checkpoint and a commit: both take their time
NONE: Final = "none"


@click.command("audit", context_settings=CONTEXT)
@click.option("--log", "log", default=None, metavar="URL", help="embedded:DIR, or kafka://HOST[:PORT][,...][/TOPIC].  [default: run.log]")
@click.option("--lake", default=None, metavar="DIR|s3://BUCKET/PREFIX", help="Of a run: Iceberg tables.  [default: run.lake]")
@click.option("--elastic", default=None, metavar="URL", help="Also compare alerts and sessions with this search server's documents.  [default: run.elastic]")
@click.option(
    "--dead-letters", default=None, metavar="URL|DIR|none", help="Where the run's are.  [default: run.dead_letters, else beside the topic or the lake]"
)
@click.option(
    "--state",
    default=None,
    metavar="DIR|URL",
    help="Where the lake's runs keep checkpoints: it tells their dead letters from others'.  [default: run.state, else beside the lake]",
)
@click.option("--from", "begin", default=None, metavar="TIME", help="Appended then or later: ISO 8601 or ms.  [default: the log's beginning]")
@click.option("--to", "end", default=None, metavar="TIME", help="Appended before.  [default: the lake's last commit]")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0), default=None, metavar="SECONDS",
    help="How long an index that differs is looked at again.  [default: a checkpoint, a commit and 10 s]",
)  # fmt: skip
@click.option("--json", "is_json", is_flag=True, help="One object, with every minute.")
@config_options
def audit_command(**given: Any) -> None:
    """Read the log again and compare: each line accepted or dead, each event in the lake, each alert in the index, each dead letter kept.

    Only what the lake's last commit is behind is compared; what is newer is in flight, and told. Exit status 1 where anything differs.
    """
    from keystone import logs

    config = load_config(given["config_file"], given["settings"])
    given["elastic"] = given["elastic"] or config.run.elastic
    with closing(logs.configure(config.logs)):
        found = _audit(given, config)
        if given["is_json"]:
            _print_json(found)
        else:
            from keystone.audit.report import lines

            for line in lines(found, has_letters=given["dead_letters"] != NONE, has_index=given["elastic"] is not None):
                click.echo(line)
    sys.exit(0 if found.is_clean else EXIT_FAIL)


def _print_json(found: Audit) -> None:
    import orjson

    from keystone.audit.report import as_json

    click.echo(orjson.dumps(as_json(found), option=orjson.OPT_APPEND_NEWLINE), nl=False)


def _audit(given: dict[str, Any], config: Config) -> Audit:
    from keystone.audit.engine import Audit, Streams
    from keystone.audit.index_check import IndexCheck
    from keystone.audit.index_side import IndexSide
    from keystone.audit.lake_side import LakeSide
    from keystone.audit.log_side import LogSide
    from keystone.run.places import run_of_lake
    from keystone.sinks.elastic_http import Nodes

    log_url, lake_url = given["log"] or config.run.log, given["lake"] or config.run.lake
    if log_url is None or lake_url is None:
        option, setting = ("--log", "run.log") if log_url is None else ("--lake", "run.lake")
        raise UsageError(f"no {option[2:]} is named: say {option}, or set {setting} in keystone.toml")
    from_ms, until_ms = _moment(given["begin"], "--from"), _moment(given["end"], "--to")
    if from_ms is not None and until_ms is not None and from_ms >= until_ms:
        raise UsageError(f"--from {given['begin']} is not before --to {given['end']}: nothing lies between")
    routes = _index_routes(given, log_url, config)
    settle_ms = config.checkpoint.interval_ms + config.lake.commit_interval_ms + WAIT_MARGIN_MS
    found = Audit()
    with ExitStack() as held:
        nodes = held.enter_context(closing(Nodes(given["elastic"], config.elastic))) if given["elastic"] is not None else None
        lake = held.enter_context(closing(LakeSide(lake_url, config.lake)))  # first: what it says is committed, the log had
        log = held.enter_context(closing(LogSide(log_url, config)))
        letters = _letters(given["dead_letters"], log_url, lake_url, config)
        if letters is not None:
            held.enter_context(closing(letters))
        run = run_of_lake(given["state"] or config.run.state, lake_url, config.lake) if letters is not None else None
        with _progress() as advance:
            Streams(log, lake, letters, from_ms, until_ms, run, advance).into(found)
            if nodes is not None:
                wait_s = settle_ms / 1_000 if given["wait_s"] is None else given["wait_s"]
                IndexCheck(lake, IndexSide(nodes), wait_s, settle_ms, from_ms, until_ms, routes).into(found)
    return found


def _index_routes(given: dict[str, Any], log: str, config: Config) -> IndexRoutes:
    from keystone.audit.index_routes import IndexRoutes
    from keystone.config import origin_of_routes

    if given["elastic"] is None or not config.routes:
        return IndexRoutes()
    return IndexRoutes.of(config, log=log, origin=origin_of_routes(given["config_file"]))


def _moment(text: str | None, option: str) -> int | None:
    from keystone.run.places import moment

    return moment(text, option=option, words=("a day",)) if text is not None else None


def _letters(given: str | None, log: str, lake: str, config: Config) -> LetterSource | None:
    """None where they are not to be compared. A directory that a run makes with its first dead letter need not be there yet."""
    from keystone.run.dead_letters import letters_url
    from keystone.sinks.letters_read import EmptyLetters, open_letters

    if given == NONE or (given is None and config.run.dead_letters == NONE):
        return None
    url = letters_url(given, log, config.model_copy(update={"run": config.run.model_copy(update={"lake": lake})}))
    if given is None and "://" not in url and not Path(url).exists():
        return EmptyLetters(url)
    return open_letters(url, config.kafka)


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Events so far, on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = SpinnerColumn(), TextColumn("auditing"), TextColumn("{task.completed:,} events"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("auditing", total=None)
        yield lambda events: progress.advance(task, events)
