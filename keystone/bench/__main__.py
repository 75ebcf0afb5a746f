"""``python -m keystone.bench``: one command, a run, a verdict. Exit status: 0 pass, 1 fail or invalid, 2 usage."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from keystone.errors import KeystoneError, UsageError
from keystone.run.options import ActorCount

EXIT_PASS, EXIT_FAIL, EXIT_USAGE = 0, 1, 2


@click.command("bench", context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--eps", type=float, default=1_000_000.0, help="Events a second to send. With --search: where to begin.")
@click.option("--seconds", type=int, default=None, help="Length of the schedule.  [default: 30]")
@click.option("--devices", type=int, default=None, help="Devices playing at once.  [default: 5 x the rate that is run, at most 10 million and what fits]")
@click.option("--seed", type=int, default=1, help="Fixes every byte and intended time of the run.")
@click.option("--partitions", type=int, default=None, help="Partitions of the log.  [default: 4 or more]")
@click.option("--fleet-actors", type=int, default=None, help="Processes that simulate devices.  [default: by cores and eps]")
@click.option(
    "--session-actors",
    type=ActorCount(),
    default=None,
    metavar="auto|N",
    help="Processes that own partitions; auto: by cores and eps, on a cluster what its nodes are for.  [default: auto]",
)
@click.option(
    "--log",
    "log",
    default=None,
    metavar="URL|DIR",
    help="kafka://HOST[:PORT][,...][/TOPIC], or where the embedded log goes.  [default: /dev/shm, where it has room]",
)
@click.option(
    "--address",
    default=None,
    metavar="auto|HOST:PORT",
    help="Run on that Ray cluster, over Kafka, with --out where all its nodes see it.  [default: a Ray of our own; in a job of ray job submit: auto]",
)
@click.option("--elastic", default=None, metavar="URL", help="Alerts, sessions and cohorts go to that search server, too.  [default: nowhere]")
@click.option("--no-lake", is_flag=True, help="Write no Parquet.")
@click.option("--out", type=click.Path(file_okay=False), default="bench-out", help="Where results go; an earlier run's are replaced.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), default=None, help="Write the report here too ('-': stdout, and no screen).")
@click.option("--report", "has_page", is_flag=True, help="Write report.html into --out, too: charts in one file that opens without a network.")
@click.option("--bad-paths", type=float, default=None, help="Share of devices on a bad network path.  [default: the simulator's]")
@click.option("--epoch-ms", type=int, default=None, help="Device time at the schedule's start.  [default: the simulator's]")
@click.option("--config", "config_file", type=click.Path(dir_okay=False), default=None, help="Read this keystone.toml.")
@click.option("--keep-log", is_flag=True, help="Leave the log where it is.")
@click.option(
    "--chaos",
    default=None,
    metavar="FAULTS",
    help="Kill and freeze processes: kill:TARGET@TIME and freeze:TARGET:LENGTH@TIME, by commas, or random:SEED:EVERY."
    " TARGET: session-actor, committer, supervisor, fleet, driver.",
)
@click.option("--search", is_flag=True, help="Find the highest rate that passes, then confirm it in a run of --seconds.")
@click.option(
    "--unit", is_flag=True, help="Print u, this machine's rate of one-thread polars.read_ndjson; with --eps, --seconds or --search: put it into the report."
)
@click.pass_context
def bench_command(context: click.Context, /, **given: Any) -> None:
    """Simulate devices, find their buffering loops, write the lake; judge it by the simulator's truth."""
    try:
        status = _run(context, given)
    except UsageError as error:
        click.echo(f"keystone bench: {error}", err=True)
        status = EXIT_USAGE
    except KeystoneError as error:
        click.echo(f"keystone bench: {error}", err=True)
        status = EXIT_FAIL
    except KeyboardInterrupt:
        click.echo("keystone bench: aborted", err=True)
        status = EXIT_FAIL
    context.exit(status)


def _run(context: click.Context, given: dict[str, Any]) -> int:
    from keystone.bench.plan import Options

    is_set = {name for name in given if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    unit = None
    if given["unit"]:
        from keystone.bench.unit import measure_unit

        unit = measure_unit()
        click.echo(
            f"u = {unit.events_per_s:,.0f} events/s (polars.read_ndjson, one thread, CPU time, {unit.bytes_per_event:.0f} bytes an event)",
            err=given["json_file"] == "-",
        )
        if not is_set & {"eps", "seconds", "search"}:
            return EXIT_PASS
    options = Options(
        **{name: given[name] for name in ("eps", "seconds", "devices", "seed", "partitions", "fleet_actors", "session_actors")},
        log=given["log"],
        lake=not given["no_lake"],
        out=given["out"],
        bad_paths=given["bad_paths"],
        epoch_ms=given["epoch_ms"],
        keep_log=given["keep_log"],
        chaos=given["chaos"],
        elastic=given["elastic"],
        address=given["address"],
    )
    from keystone.bench.command import run_bench

    if given["has_page"]:
        from keystone.report.notebook import check_packages

        check_packages()  # said before the run, not after it
    report = run_bench(options, config_file=given["config_file"], is_search=given["search"], unit_events_per_s=unit.events_per_s if unit else None)
    status = _hand_over(report, given["json_file"])
    return status if not given["has_page"] or _write_page(Path(given["out"])) else EXIT_FAIL


def _write_page(out: Path) -> bool:
    """Make ``report.html`` of the run in ``out``, whatever its verdict. False, and a line, where that fails: results are there all the same."""
    from keystone.report.making import PAGE, make_latency_page

    try:
        make_latency_page([out], out / PAGE)
    except KeystoneError as error:
        click.echo(f"keystone bench: no {PAGE}: {error}", err=True)
        return False
    click.echo(f"report: {out / PAGE}", err=True)
    return True


def _hand_over(report: dict[str, Any], json_file: str | None) -> int:
    from keystone.actors.runtime import JOB_MARK
    from keystone.bench.command import as_json
    from keystone.bench.screen import print_final

    if json_file == "-":
        sys.stdout.buffer.write(as_json(report))
    else:
        if json_file is not None:
            Path(json_file).write_bytes(as_json(report))
        print_final(report)
        if JOB_MARK in os.environ:  # of `ray job submit` only what is said comes back
            click.echo(b"report.json: " + as_json(report, is_pretty=False))
    return EXIT_PASS if report["verdict"] == "pass" else EXIT_FAIL


if __name__ == "__main__":
    bench_command(prog_name="python -m keystone.bench")
