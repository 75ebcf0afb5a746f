"""The console script. Light by design: a command's code is imported when it is called, so `--help` takes 0.1 s."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from keystone import __version__
from keystone.errors import KeystoneError, UsageError

#: name -> (where its click command is, one line of help)
COMMANDS = {
    "audit": ("keystone.run.audit:audit_command", "Compare log, lake, index and dead letters, minute by minute."),
    "bench": ("keystone.bench.__main__:bench_command", "Run devices, sessions and lake on this machine, and judge the run."),
    "dead-letters": ("keystone.run.dead_letters:dead_letters_command", "Look at unusable lines, count them, put them back mended."),
    "demo": ("keystone.run.demo:demo_command", "Devices and a run in one terminal: the story within seconds."),
    "doctor": ("keystone.run.doctor:doctor_command", "Look at everything a run needs."),
    "elastic": ("keystone.run.elastic:elastic_command", "Set up, thin out or check the indices of a search server."),
    "lake": ("keystone.run.lake:lake_command", "Look at a lake's tables, prove what they hold, keep them small."),
    "plan": ("keystone.run.plan:plan_command", "How many machines, brokers and dollars a load takes, from a measured model."),
    "replay": ("keystone.replay:replay_command", "Run files of events through the engine as fast as it goes."),
    "report": ("keystone.report.command:report_command", "Pages of finished runs: latencies, or quality from the lake."),
    "routes": ("keystone.run.routes:routes_command", "Check the routes to the sinks, explain them, see what they would send."),
    "run": ("keystone.run.command:run_command", "Read a log, find buffering loops, send bitrate downgrades."),
    "score": ("keystone.run.score:score_command", "Compare a topic's actions with a simulation's truth."),
    "simulate": ("keystone.run.simulate:simulate_command", "Send simulated devices' events to a log."),
    "status": ("keystone.run.detached:status_command", "Tell of the runs that a cluster goes on with by itself."),
    "stop": ("keystone.run.detached:stop_command", "End such a run, and show what it did."),
    "top": ("keystone.run.top:top_command", "The worst regions, devices and CDNs now, from the index."),
    "topics": ("keystone.run.topics:topics_command", "Make or check the topics of a Kafka log."),
}
EXIT_FAIL, EXIT_USAGE = 1, 2


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="keystone")
def cli() -> None:
    """Finds streaming devices caught in buffering loops, while they still are."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; errors of ours become one line, and exit status 2 where the user can change something."""
    try:
        return cli.main(args=arguments, prog_name="keystone")
    except KeystoneError as error:
        click.echo(f"keystone: {error}", err=True)
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAIL)
    except KeyboardInterrupt:
        click.echo("keystone: interrupted", err=True)
        sys.exit(EXIT_FAIL)


if __name__ == "__main__":
    main()
