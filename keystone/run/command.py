"""``keystone run``: session actors over a log until Ctrl-C, with alerts as actions and a story for people."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from keystone.run.options import CONTEXT, check_target, config_options, load_config
from keystone.run.places import CHECKPOINT, CONSOLE, ICEBERG, NONE, PARQUET

EXIT_FAIL = 1
PROMISE_MS = 3_000.0  # from append to visible here: when devices meant to send is not known to a run


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
@click.option("--session-actors", type=click.IntRange(1, 1_024), default=None, help="Processes that own partitions.  [default: by cores]")
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
    from keystone.bench.machine import usable_cores
    from keystone.config import origin_of_routes
    from keystone.run.places import Options, resolve
    from keystone.run.screen import StoryScreen
    from keystone.run.service import Service

    check_target("--report", given["report"])
    names = ("log", "lake", "actions", "dead_letters", "state", "lake_format", "elastic")
    options = Options(
        **{name: given[name] if given[name] is not None else getattr(config.run, name) for name in names},
        begin=given["begin"],
        origin=origin_of_routes(given["config_file"]),
    )
    places = resolve(options, config)
    actors = min(places.partitions, given["session_actors"] or max(1, usable_cores() - 1))
    has_story = given["story"] if given["story"] is not None else (sys.stdout.isatty() or places.actions == CONSOLE) and places.actions != NONE
    service = Service(places, config, session_actors=actors, has_story=has_story, until_idle_s=given["until_idle"])
    with StoryScreen(shows_story=has_story) as screen:
        for remark in places.remarks:
            screen.say(remark, "yellow")
        screen.say("starting: the first run on a machine compiles for about a minute")
        result = service.run(screen, stop.is_asked, stop.install)
    if given["report"] is not None:
        _write_report(Path(given["report"]), result, places, config)
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


def _write_report(path: Path, result: Any, places: Any, config: Any) -> None:
    import orjson

    from keystone.run.service import failures

    report = {
        "log": str(places.log),
        "actions": places.actions,
        "partitions": places.partitions,
        "start_offsets": places.start_offsets,
        "next_offsets": result.next_offsets,
        "seconds": round(result.seconds, 3),
        "ledger": result.ledger.as_dict(),
        "alerts": result.alerts,
        "sessions": result.sessions,
        "session_rows": result.session_rows,
        "lake_rows": result.lake_rows,
        "dead_letters": result.dead_letters,
        "dead_letters_run": places.output.run or None,
        "dead_letters_not_kept": result.dead_letters_not_kept,
        "gaps": result.gaps,
        "gap_list": result.gap_list,
        "latency_ms": {"detect": result.detect.summary()},
        "within_3s": result.detect.share_within(PROMISE_MS),
        "log_metrics": result.log_metrics,
        "restarts": result.restarts,
        "fenced_writes": result.fenced_writes,
        "recoveries": result.recoveries,
        "checkpoints": result.checkpoints,
        "commits": result.commits,
        "routing": result.routing,
        "cohorts": result.cohorts,
        "failures": failures(result),
        "config": config.model_dump(mode="json"),
    }
    path.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS))
