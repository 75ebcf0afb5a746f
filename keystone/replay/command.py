"""The command: options, progress, the summary, the exit status."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from keystone.errors import UsageError

SUMMARY = "summary.json"
RESULTS = (
    SUMMARY,
    "alerts.ndjson",
    "alerts.parquet",
    "alerts_diff.ndjson",
    "dead_letters.ndjson",
    "sessions.parquet",
    "cohorts.parquet",
    ".cohorts",
    "lake",
    ".lake.writing",
    ".work",
    "standard_input.ndjson",
)
SHOW_EVERY_S = 0.25
EXIT_PASS, EXIT_FAIL = 0, 1


@click.command("replay", context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("files", nargs=-1)
@click.option("--log", default=None, metavar="URL", help="Instead of FILES: embedded:DIR, or kafka://HOST[:PORT][,...][/TOPIC].")
@click.option(
    "--from", "begin", default=None, metavar="earliest|TIME", help="Of a log: where to begin. TIME: of the append, ISO 8601 or ms.  [default: earliest]"
)
@click.option("--to", "end", default=None, metavar="latest|TIME", help="Of a log: where to end, before that time.  [default: latest]")
@click.option("--against", default=None, metavar="LAKE", help="Of a log: compare alerts with those in the lake of a run.")
@click.option("--out", type=click.Path(file_okay=False), required=True, help="Where results go; an earlier replay's are replaced.")
@click.option("--partitions", type=click.IntRange(1, 99_999), default=None, help="Partitions to deal devices to.  [default: 1, with actors one each]")
@click.option("--actors", type=click.IntRange(1, 256), default=None, help="Processes, under Ray.  [default: this process alone, without Ray]")
@click.option("--no-lake", is_flag=True, help="Write no Parquet of the events.")
@click.option("--config", "config_file", type=click.Path(dir_okay=False), default=None, help="Read this keystone.toml.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="One setting, such as detection.loop_threshold=2. May be repeated.")
def replay_command(**given: Any) -> None:
    """Run FILES of events (NDJSON; plain, gzip, zstd, or - for standard input), or a range of a log, through the engine, as fast as it goes.

    Writes alerts.ndjson, sessions.parquet, cohorts.parquet, dead_letters.ndjson, lake/ and summary.json into the directory of --out; of a log
    also alerts.parquet and, with --against, alerts_diff.ndjson. Exit status: 0, or 1 where the ledger does not balance, the replay
    was interrupted, the log has gaps or alerts differ, or 2 where something must be changed.
    """
    from keystone.actors.stopping import StopSignal
    from keystone.bench.screen import Progress
    from keystone.run.options import load_config

    config = load_config(given["config_file"], given["settings"])
    _check_options(given)
    out = Path(given["out"])
    within = None if given["log"] is None else _range(given, config)
    for remark in within.remarks if within is not None else ():
        click.echo(f"note: {remark}", err=True)
    _clear(out)
    with Progress() as progress, StopSignal() as stop:
        summary = _run(_spec(given, config, within), given["actors"], progress, stop)
    if given["against"] is not None and not summary["interrupted"]:
        summary["against"] = _diff(given["against"], config, within, out)
    (out / SUMMARY).write_bytes(_as_json(summary))
    _print(summary, out)
    differs = any(summary.get("against", {}).get(side) for side in ("only_live", "only_replay"))
    if summary["ledger_failures"] or summary["interrupted"] or summary["gaps"] or differs:
        sys.exit(EXIT_FAIL)


def _check_options(given: dict[str, Any]) -> None:
    if (given["log"] is None) == (not given["files"]):
        raise UsageError("name FILES of events, or a log by --log URL: one of both")
    if given["log"] is None:
        for option, name in (("--from", "begin"), ("--to", "end"), ("--against", "against")):
            if given[name] is not None:
                raise UsageError(f"{option} is for a log: name it by --log URL")
    elif given["partitions"] is not None:
        raise UsageError("--partitions is for files: a log has partitions of its own")
    if list(given["files"]).count("-") > 1:
        raise UsageError("- (standard input) can be read once: name it once")


def _range(given: dict[str, Any], config: Any) -> Any:
    from keystone.replay.against import lake_ends
    from keystone.replay.log_range import find_range
    from keystone.run.places import EARLIEST, LATEST

    live = lake_ends(given["against"], config.lake) if given["against"] is not None else None
    return find_range(given["log"], given["begin"] or EARLIEST, given["end"] or LATEST, config, live)


def _spec(given: dict[str, Any], config: Any, within: Any) -> Any:
    from keystone.replay.engine import ReplaySpec

    out, has_lake = str(Path(given["out"]).absolute()), not given["no_lake"]
    if within is None:
        return ReplaySpec(given["files"], out, config, max(given["partitions"] or 1, given["actors"] or 1), has_lake)
    return ReplaySpec((), out, config, 1 + max(span.partition for span in within.spans), has_lake, log=given["log"], spans=within.spans)


def _diff(lake: str, config: Any, within: Any, out: Path) -> dict[str, Any]:
    from keystone.replay import against

    diff = against.compare(against.live_alerts(lake, config.lake, within), against.replayed_alerts(out, within))
    against.write(diff, out)
    return diff.as_dict()


def _clear(out: Path) -> None:
    """Make the directory, or empty it of an earlier replay; refuse one that holds something else."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = {path.name for path in out.iterdir()}
        strange = sorted(name for name in held if name not in RESULTS and not name.startswith((".share-", ".sessions.parquet-", ".cohorts.parquet-")))
        if strange:
            raise UsageError(f"--out {out} holds {strange[0]}, which no replay writes: name an empty or new directory")
        for name in held:
            path = out / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be used: {error.strerror}: name another directory") from error


def _run(spec: Any, actors: int | None, progress: Any, stop: Any) -> dict[str, Any]:
    from keystone.kernels import warm
    from keystone.replay.engine import ReplayTotals

    warmth = warm()
    started = time.monotonic()

    def show(totals: ReplayTotals) -> None:
        seconds = time.monotonic() - started
        rate = totals.lines / seconds if seconds > 0 else 0.0
        progress.show(seconds, {"lines": f"{totals.lines:,}", "MB": f"{totals.bytes / 1e6:,.0f}", "events/s": f"{rate:,.0f}", "alerts": f"{totals.alerts:,}"})

    parts = [_alone(spec, stop, show)] if actors is None else _together(spec, actors, stop, show)
    return _summary(spec, parts, time.monotonic() - started, interrupted=stop.is_asked(), warmth=str(warmth))


def _alone(spec: Any, stop: Any, show: Any) -> Any:
    from keystone.replay.opening import open_replay

    replay = open_replay(spec)
    shown = 0.0
    try:
        while not stop.is_asked() and replay.step():
            if time.monotonic() - shown > SHOW_EVERY_S:
                shown = time.monotonic()
                replay.totals.alerts = replay.alerts
                show(replay.totals)
        return replay.close()
    except BaseException:
        replay.abort()
        raise


def _together(spec: Any, actors: int, stop: Any, show: Any) -> Any:
    from dataclasses import replace

    from keystone.log.files import read_ndjson
    from keystone.replay.actors import replay_with_actors

    if not spec.log:
        read_ndjson(spec.files)  # a missing file is told before Ray starts
    if "-" in spec.files:  # each process reads for itself: standard input must be there more than once
        spool = Path(spec.out_dir) / "standard_input.ndjson"
        with spool.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        spec = replace(spec, files=tuple(str(spool) if name == "-" else name for name in spec.files))
    spec = replace(spec, files=tuple(str(Path(name).absolute()) for name in spec.files))
    try:
        return replay_with_actors(spec, actors, stop.is_asked, show)
    finally:
        (Path(spec.out_dir) / "standard_input.ndjson").unlink(missing_ok=True)
        shutil.rmtree(Path(spec.out_dir) / ".work", ignore_errors=True)


def _summary(spec: Any, parts: list[Any], seconds: float, *, interrupted: bool, warmth: str) -> dict[str, Any]:
    from keystone.metrics import Ledger
    from keystone.replay.cohorts import rows_of

    ledger = Ledger()
    dead_letters: dict[str, int] = {}
    for part in parts:
        ledger += Ledger(**{f.name: part.ledger[f.name] for f in fields(Ledger)})
        for reason, count in part.dead_letters.items():
            dead_letters[reason] = dead_letters.get(reason, 0) + count
    failures = ledger.failures(has_lake=spec.has_lake)
    if not interrupted and not spec.log:
        failures += [f"received = {ledger.received:,} is not lines = {part.lines:,} that a process read" for part in parts if part.lines != ledger.received]
    return {
        "ledger": {name: value for name, value in ledger.as_dict().items() if name not in ("sent", "empty_records")},
        "ledger_failures": failures,
        "sessions": sum(part.sessions for part in parts),
        "alerts": sum(part.alerts for part in parts),
        "cohort_rows": rows_of(Path(spec.out_dir)) if spec.config.cohorts.enabled else 0,
        "cohort_overflows": sum(part.cohort_overflows for part in parts),
        "dead_letters": dead_letters,
        "seconds": round(seconds, 3),
        "events_per_s": round(ledger.accepted / seconds) if seconds > 0 else 0,
        "bytes": sum(part.bytes for part in parts) if spec.log else parts[0].bytes,
        "open_sessions": sum(part.open_sessions for part in parts),
        "gaps": [gap for part in parts for gap in part.gaps],
        "partitions": spec.partitions,
        "actors": len(parts),
        "interrupted": interrupted,
        "kernels": warmth,
        "config": spec.config.model_dump(mode="json"),
    }


def _as_json(summary: dict[str, Any]) -> bytes:
    import orjson

    return orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _print(summary: dict[str, Any], out: Path) -> None:
    ledger = summary["ledger"]
    dead = ", ".join(f"{reason} {count:,}" for reason, count in sorted(summary["dead_letters"].items()))
    click.echo(f"{ledger['accepted']:,} events accepted of {ledger['received']:,} lines in {summary['seconds']:.2f} s: {summary['events_per_s']:,} events/s")
    buried = f"{ledger['dead_lettered']:,}{f' ({dead})' if dead else ''}"
    click.echo(f"applied {ledger['applied']:,} + duplicates {ledger['duplicates']:,}; late {ledger['late']:,}; dead letters {buried}")
    click.echo(f"sessions {summary['sessions']:,}, alerts {summary['alerts']:,}, lake rows {ledger['lake_rows']:,}; results in {out}")
    if "against" in summary:
        diff = summary["against"]
        before = f", {diff['began_before']:,} more of sessions that began before" if diff["began_before"] else ""
        click.echo(f"alerts in both {diff['same']:,}{before}; only live {diff['only_live']:,}, only replayed {diff['only_replay']:,}")
    if summary["cohort_overflows"]:
        click.echo(
            f"note: {summary['cohort_overflows']:,} sessions are counted as other in a cohort: cohorts.values_max or combinations_max was reached", err=True
        )
    for gap in summary["gaps"]:
        click.echo(f"the log has a gap: {gap}", err=True)
    for failure in summary["ledger_failures"]:
        click.echo(f"THE LEDGER DOES NOT BALANCE: {failure}", err=True)
    if summary["interrupted"]:
        click.echo("interrupted: the results are those of the lines read so far", err=True)
