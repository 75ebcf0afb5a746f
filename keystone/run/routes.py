"""``keystone routes check|explain|sample``: what goes where, and what of it, before it does."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from keystone.errors import UsageError
from keystone.run.options import CONTEXT, config_options, load_config

if TYPE_CHECKING:
    from keystone.config import Config
    from keystone.routes import Route, Routes

ROWS_MAX: Final = 1_000_000
SECONDS_MAX: Final = 3_600.0


@click.group("routes", context_settings=CONTEXT)
def routes_command() -> None:
    """Check the routes of keystone.toml, see what they mean, and what they would send."""


def _sink_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of ``run`` that say which sinks there are; None: as keystone.toml has it."""
    for option in ("dead-letters", "actions", "elastic", "lake", "log"):
        command = click.option(f"--{option}", default=None, metavar="URL", help="As of keystone run.")(command)
    return command


@routes_command.command("check", context_settings=CONTEXT)
@_sink_options
@config_options
def check_command(**given: Any) -> None:
    """Compile every route, and say which are active in a run with these options. Exit status 2 where one of them is wrong."""
    config = load_config(given["config_file"], given["settings"])
    routes = _compiled(given, config, _available(given, config))
    for route in routes.active:
        click.echo(f"active    {route.name}: {route.source} -> {route.sink}{' (by default)' if route.is_default else ''}")
    for default, why in routes.inactive:
        click.echo(f"inactive  {default.name}: {default.source} -> {default.sink}: {why}")


@routes_command.command("explain", context_settings=CONTEXT)
@click.argument("name", required=False)
@_sink_options
@config_options
def explain_command(**given: Any) -> None:
    """Show each route, or the one NAMEd: its rows, columns, sink, whether it is active, and what Polars makes of it."""
    from keystone.sinks.route_sinks import MISSING

    config = load_config(given["config_file"], given["settings"])
    available = _available(given, config)
    routes = _compiled(given, config, frozenset(MISSING))
    for route in [_named(routes, given["name"])] if given["name"] is not None else routes.active:
        why = MISSING[route.sink.kind] if route.sink.kind in MISSING and route.sink.kind not in available else ""
        click.echo("\n".join(_explained(route, why)))


def _explained(route: Route, why: str) -> Iterator[str]:
    yield f"{route.name}{' (by default)' if route.is_default else ''}"
    yield f"  from     {route.source}"
    yield f"  where    {_one_line(route.config.where) or 'every row'}"
    yield f"  select   {_one_line(route.config.select) or 'every column'}"
    yield f"  sink     {route.sink}"
    yield f"  state    {f'inactive: {why}' if why else 'active'}"
    columns = [f"{name} {dtype}" for name, dtype in route.schema.items()]
    yield f"  columns  {', '.join(columns)}"
    for number, line in enumerate(route.plan().splitlines()):
        yield f"  {'plan' if number == 0 else '':7}  {line}"


def _one_line(sql: str | None) -> str:
    return " ".join(sql.split()) if sql is not None else ""


@routes_command.command("sample", context_settings=CONTEXT)
@click.argument("name", metavar="ROUTE")
@click.option("--from", "file", default=None, metavar="FILE", help="A file of events, one a line, packed or not; - for standard input.")
@click.option("--log", default=None, metavar="URL", help="Instead: embedded:DIR, or kafka://HOST[:PORT][,...][/TOPIC].  [default: run.log of keystone.toml]")
@click.option("--rows", type=click.IntRange(1, ROWS_MAX), default=10, help="End after so many.")
@click.option("--seconds", type=click.FloatRange(0.1, SECONDS_MAX), default=5.0, help="End after that time.")
@config_options
def sample_command(**given: Any) -> None:
    """Print what ROUTE would send, as lines of JSON, from a file or from a log. Nothing is sent, and who reads the log does not notice.

    Of a log: from a minute before now on, or, where nothing is that young, from its earliest record. Cohorts come at the end.
    """
    from keystone.kernels import warm
    from keystone.run.route_sample import Sample, limited, sample_file, sample_log
    from keystone.sinks.route_sinks import MISSING

    config = load_config(given["config_file"], given["settings"])
    log = given["log"] if given["log"] is not None or given["file"] is not None else config.run.log
    if (log is None) == (given["file"] is None):
        raise UsageError("name a file of events by --from FILE, or a log by --log URL: one of both")
    route = _named(_compiled(given, config, frozenset(MISSING)), given["name"])
    if route.source == "cohorts" and not config.cohorts.enabled:
        raise UsageError(f"{route.name}: cohorts.enabled = false: there are no cohorts to sample")
    click.echo("reading; the first run on a machine compiles for about a minute", err=True)
    warm()
    sample = Sample(route, config, has_log_time=log is not None)
    started_s = time.monotonic()
    lines = sample_log(sample, log, given["seconds"]) if log is not None else sample_file(sample, given["file"], given["seconds"])
    shown = 0
    for line in limited(lines, given["rows"]):
        click.echo(line)
        shown += 1
    seconds = time.monotonic() - started_s
    failed = "".join(f"; {part} failed on {count:,} rows ({route.last_error})" for part, count in route.errors.items())
    click.echo(
        f"{sample.received:,} events read in {seconds:.1f} s: {sample.rows:,} rows of {route.source},"
        f" {sample.routed:,} through the route, {shown:,} shown{failed}",
        err=True,
    )


def _available(given: dict[str, Any], config: Config) -> frozenset[str]:
    from keystone.sinks.route_sinks import sinks_of_run

    names = ("log", "lake", "elastic", "actions", "dead_letters")
    return sinks_of_run(**{name: given[name] if given[name] is not None else getattr(config.run, name, None) for name in names})


def _compiled(given: dict[str, Any], config: Config, available: frozenset[str]) -> Routes:
    """``UsageError`` for the first mistake, with where it was made."""
    from keystone.config import origin_of_routes
    from keystone.routes import compile_routes
    from keystone.sinks.route_sinks import sink_rules

    by_hand = any(text.partition("=")[0].strip() == "routes" for text in given["settings"])
    origin = "command line" if by_hand else origin_of_routes(given["config_file"])
    log = given["log"] if given["log"] is not None else config.run.log
    return compile_routes(config.routes, sink_rules(available, log=log), dimensions=config.cohorts.dimensions, origin=origin)


def _named(routes: Routes, name: str) -> Route:
    known = {route.name: route for route in routes.active}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    raise UsageError(f"there is no route {name!r}: {f'did you mean {close[0]}?' if close else 'choose among ' + ', '.join(known)}")
