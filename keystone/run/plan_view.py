"""A plan on a terminal: a table a section; plain lines off one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keystone.capacity.lines import UNITS

if TYPE_CHECKING:
    from keystone.capacity.lines import Line, Plan, Section


def as_json(plan: Plan) -> bytes:
    """The plan, for machines."""
    return orjson.dumps(plan.as_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def show(plan: Plan, console: Console | None = None) -> None:
    """To standard output. Off a terminal, a line has four fields between tabs: section, name, figure with unit, reason."""
    console = console or Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        click.echo("\n".join(plain(plan)))  # rich would turn tabs into spaces
        return
    for section in plan.sections:
        console.print(_table(section))
        console.print()
    for title, lines in (("Notes", plan.notes), ("Assumptions", plan.assumptions)):
        console.print(Text(title, style="bold"))
        for line in lines:
            console.print(Text(f"  {line}"))


def plain(plan: Plan) -> list[str]:
    """The lines off a terminal."""
    lines = [f"{section.title}\t{line.name}\t{figure(line)}\t{line.why}".rstrip() for section in plan.sections for line in section]
    return [*lines, *(f"note\t{note}" for note in plan.notes), *(f"assumption\t{line}" for line in plan.assumptions)]


def figure(line: Line) -> str:
    """The value as it is rounded, and its unit."""
    return f"{line.value:,.{UNITS[line.unit]}f} {line.unit}"


def _table(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False)
    table.add_column(min_width=30)
    table.add_column(justify="right", min_width=22, no_wrap=True)
    table.add_column(style="dim")
    for line in section:
        style = "bold" if line.parts else ""
        table.add_row(Text(line.name, style=style), Text(figure(line), style=style), Text(line.why))
    return table
