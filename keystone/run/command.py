"""``keystone run``: session actors over a log until Ctrl-C, with alerts as actions and a story for people."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from keystone.errors import UsageError
from keystone.run.options import ADDRESS, CONTEXT, ActorCount, check_target, config_options, load_config
from keystone.run.places import CHECKPOINT, CONSOLE, ICEBERG, NONE, PARQUET

EXIT_FAIL = 1


@click.command("run", context_settings=CONTEXT)
@click.option("--log", "log", default=None, metavar="URL", help="embedded:DIR, or kafka://HOST[:PORT][,...][/TOPIC].  [default: this user's embedded log]")
@click.option("--lake", default=None, metavar="DIR|s3://BUCKET/PREFIX", help="Write every accepted event, session and alert there.  [default: nowhere]")
@click.option("--lake-format", type=click.Choice([ICEBERG, PARQUET]), default=None, help="Iceberg tables, or plain files in folders.  [default: iceberg]")
@click.option(
    "--state", default=None, metavar="DIR|URL", help="Keep checkpoints there and go on from them.  [default: beside the lake; without one, only while it runs]"
)
@click.option("--actions", default=None, metavar="URL|console|none", help="Where alerts go.  [default: keystone-actions beside a topic, else console]")
@click.option(
    "--dead-letters",
    default=None,
    metavar="URL|DIR|s3://...|none",
    help="Where unusable lines go.  [default: keystone-dead-letters beside a topic, else beside the lake]",
)
@click.option(
    "--elastic", default=None, metavar="URL", help="Alerts, sessions and cohorts go to that search server's indices: http[s]://HOST[:9200].  [default: nowhere]"
)
@click.option(
    "--session-actors",
    type=ActorCount(),
    default=None,
    metavar="auto|N",
    help="Processes that own partitions; auto: what the cores, or the nodes of a cluster, are for.  [default: auto]",
)
@click.option(
    "--address",
    default=None,
    metavar=ADDRESS,
    help="Run on that Ray cluster, from Kafka, with state and lake where all nodes reach them; ray:// with --detach only."
    "  [default: a Ray of our own; in a job of ray job submit: auto]",
)
@click.option(
    "--from",
    "begin",
    default=CHECKPOINT,
    metavar="checkpoint|earliest|latest|TIME",
    help="Where to begin; without a checkpoint, at the earliest record. TIME: of the append, ISO 8601 or ms.",
)
@click.option(
    "--until-idle", type=click.FloatRange(0.1), default=None, metavar="SECONDS", help="End after this long without a record (30 s at least before the first)."
)
@click.option("--story/--no-story", "story", default=None, help="Show sessions as they go.  [default: on a terminal, or with --actions console]")
@click.option("--detach", default=None, metavar="NAME", help="Begin it on the cluster and leave: it goes on by itself (keystone status, keystone stop NAME).")
@click.option("--report", type=click.Path(dir_okay=False), default=None, help="Write what the run did here, as JSON.")
@config_options
def run_command(**given: Any) -> None:
    """Read a log, find buffering loops, send bitrate downgrades; until Ctrl-C.

    Exit status: 0, or 1 where a sum does not balance, records had to be passed over or an actor was lost, or 2 where something must be changed.
    """
    from keystone import logs
    from keystone.actors.stopping import StopSignal

    config = load_config(given["config_file"], given["settings"])
    with closing(logs.configure(config.logs)), StopSignal() as stop:
        sys.exit(_run(given, config, stop))


def _run(given: dict[str, Any], config: Any, stop: Any) -> int:
    if given["detach"] is not None:
        from keystone.run.detached import detach

        return detach(given, config)
    return _attended(given, config, stop)


def _attended(given: dict[str, Any], config: Any, stop: Any) -> int:
    from keystone.actors.joining import is_outside
    from keystone.actors.runtime import cluster_address
    from keystone.run.places import resolve
    from keystone.run.results import options_of, report_of
    from keystone.run.screen import StoryScreen
    from keystone.run.service import Service

    address = cluster_address(given["address"])
    if is_outside(address):
        raise UsageError(
            "--address ray://...: who watches a run must be on a node, where its actors' files are: say --detach NAME, and the cluster watches it by itself;"
            " or submit it (ray job submit -- python -m keystone run ...)"
        )
    check_target("--report", given["report"])
    places = resolve(options_of(given, config), config)
    has_story = given["story"] if given["story"] is not None else (sys.stdout.isatty() or places.actions == CONSOLE) and places.actions != NONE
    service = Service(
        places, config, session_actors=given["session_actors"], has_story=has_story, until_idle_s=given["until_idle"],
        address=address,
    )  # fmt: skip
    with StoryScreen(shows_story=has_story) as screen:
        for remark in places.remarks:
            screen.say(remark, "yellow")
        screen.say("starting: the first run on a machine compiles for about a minute")
        result = service.run(screen, stop.is_asked, stop.install)
    if given["report"] is not None:
        _write_report(Path(given["report"]), report_of(result, places, config))
    return _print(result)


def _print(result: Any) -> int:
    """The end in a few lines; the exit status."""
    from keystone.run.service import failures

    ledger = result.ledger
    dead = ", ".join(f"{reason} {count:,}" for reason, count in sorted(result.dead_letters.items()))
    click.echo(
        f"{ledger.received:,} events received in {result.seconds:.0f} s = accepted {ledger.accepted:,}"
        f" (applied {ledger.applied:,}, duplicates {ledger.duplicates:,}) + dead letters {ledger.dead_lettered:,}{f' ({dead})' if dead else ''}"
    )
    if result.dead_letters_not_kept:
        past = ", ".join(f"{reason} {count:,}" for reason, count in sorted(result.dead_letters_not_kept.items()))
        click.echo(f"dead letters counted and not kept {sum(result.dead_letters_not_kept.values()):,} ({past}): dead_letters.bytes_max is reached")
    lake = f", lake rows {result.lake_rows:,}" if result.lake_rows is not None else ""
    click.echo(f"sessions {result.sessions:,}, alerts {result.alerts:,}{lake}; late {ledger.late:,}, empty records {ledger.empty_records:,}")
    found = failures(result)
    for failure in found:
        click.echo(f"FAILED: {failure}", err=True)
    return EXIT_FAIL if found else 0


def _write_report(path: Path, report: dict[str, Any]) -> None:
    import orjson

    path.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS))
