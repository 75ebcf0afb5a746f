"""``keystone top``: the worst regions, devices and CDNs now, from the index."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from keystone.errors import SinkBusy
from keystone.run.elastic import ELASTIC, connected
from keystone.run.options import CONTEXT, config_options

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from keystone.sinks.elastic_http import Nodes


UNBOUNDED: Final = 10_000  # lines that scroll by


@click.command("top", context_settings=CONTEXT)
@ELASTIC
@click.option("--seconds", type=click.IntRange(1, 86_400), default=60, help="How far back 'now' reaches, in log time.")
@click.option("--rows", type=click.IntRange(1, 100), default=8, help="Of each dimension, as far as the terminal has room.")
@click.option("--every", "every_s", type=click.FloatRange(0.2), default=2.0, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Look once, print, and end.")
@config_options
def top_command(**given: Any) -> None:
    """Show what is worst now: alerts, rebuffering and failures by region, device type and CDN.

    The worst have most of their time stalled, where ten minutes of everybody's playing are added to each: a handful of viewers is no
    emergency. Plain lines off a terminal.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    with connected(given) as nodes:
        if given["once"]:
            console.print(_looked(nodes, given, console))
            return
        _watch(nodes, given, console)


def _looked(nodes: Nodes, given: dict[str, Any], console: Console) -> RenderableType:
    from keystone.run.top_query import look
    from keystone.run.top_view import lines, screen

    seen = look(nodes, int(time.time() * 1_000), given["seconds"])
    if not console.is_terminal:
        return lines(seen, given["rows"])
    return screen(seen, given["rows"], height=console.height if not given["once"] else UNBOUNDED)


def _watch(nodes: Nodes, given: dict[str, Any], console: Console) -> None:
    """Until Ctrl-C. A server that does not answer is said, and asked again."""
    from rich.live import Live
    from rich.text import Text

    live = Live(console=console, auto_refresh=False, screen=True) if console.is_terminal else None
    if live is not None:
        live.start()
    try:
        while True:
            try:
                shown = _looked(nodes, given, console)
            except SinkBusy as error:
                shown = Text(str(error))
            if live is not None:
                live.update(shown, refresh=True)
            else:
                console.print(shown)
            time.sleep(given["every_s"])
    except KeyboardInterrupt:
        return
    finally:
        if live is not None:
            live.stop()
