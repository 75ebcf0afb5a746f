"""``keystone elastic setup|retain|check``: the indices of a search server."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from keystone.run.options import CONTEXT, config_options, load_config

if TYPE_CHECKING:
    from keystone.sinks.elastic_http import Nodes

EXIT_FAIL: Final = 1
ELASTIC: Final = click.option(
    "--elastic", "elastic", default=None, metavar="URL", help="http[s]://HOST[:9200]; several nodes with commas between.  [default: run.elastic]"
)


@click.group("elastic", context_settings=CONTEXT)
def elastic_command() -> None:
    """Make the indices' templates, delete old days, or look whether all is well."""


@elastic_command.command("setup", context_settings=CONTEXT)
@ELASTIC
@config_options
def setup_command(**given: Any) -> None:
    """Install or update the templates of keystone-alerts-*, -sessions-* and -cohorts-*. Again, it changes nothing."""
    from keystone.sinks.elastic_admin import setup

    with connected(given) as nodes:
        for line in setup(nodes):
            click.echo(line)


@elastic_command.command("retain", context_settings=CONTEXT)
@ELASTIC
@click.option("--days", type=click.IntRange(1, 36_500), required=True, help="Days before today (UTC) that are kept.")
@config_options
def retain_command(**given: Any) -> None:
    """Delete the indices of older days, each by its name."""
    from keystone.sinks.elastic_admin import retain

    with connected(given) as nodes:
        deleted = 0
        for line in retain(nodes, given["days"], dt.datetime.now(dt.UTC).date()):
            deleted += 1
            click.echo(line)
        if not deleted:
            click.echo("nothing is that old")


@elastic_command.command("check", context_settings=CONTEXT)
@ELASTIC
@config_options
def check_command(**given: Any) -> None:
    """Say, line by line, how the cluster, the templates and the indices are. Exit status 1 if anything hurts."""
    from keystone.sinks.elastic_admin import HURTS, check

    with connected(given) as nodes:
        findings = list(check(nodes))
    for grade, line in findings:
        click.echo(f"{grade}  {line}")
    sys.exit(EXIT_FAIL if any(grade == HURTS for grade, _ in findings) else 0)


@contextmanager
def connected(given: dict[str, Any]) -> Iterator[Nodes]:
    """The nodes of ``--elastic`` or ``run.elastic``, with the configuration's login and TLS."""
    from keystone.errors import UsageError
    from keystone.sinks.elastic_http import Nodes

    config = load_config(given["config_file"], given["settings"])
    url = given["elastic"] or config.run.elastic
    if url is None:
        raise UsageError("no search server is named: say --elastic URL, or set run.elastic in keystone.toml")
    with closing(Nodes(url, config.elastic)) as nodes:
        yield nodes
