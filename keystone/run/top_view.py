"""What ``keystone top`` shows: tables as many and as long as the terminal has room for, or plain lines."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from keystone.run.top_query import RATIOS, Seen

if TYPE_CHECKING:
    from rich.console import RenderableType

    from keystone.run.top_query import Row

COLUMNS: Final = ("alerts", "rebuffering", "EBVS", "VSF", "VPF", "attempts")
HEAD_LINES: Final = 3  # what is told, the columns' names, all sessions
GROUP_LINES: Final = 2  # of a dimension beside its rows: a blank, its name
VALUE_CHARS: Final = 20  # so that all of it fits 80 columns
LINE_CHARS: Final = 40  # of a value in plain lines
DAY_S: Final = 86_400
BAD: Final = 0.03  # of the time stalled, or of the attempts failed: red; a third of it: yellow
STALE_MS: Final = 15_000  # windows come up to 10 s late: beyond, the stream stands still


def screen(seen: Seen, rows_max: int, *, height: int) -> RenderableType:
    """One table for all, in at most ``height`` lines where a row of each dimension fits in."""
    room = max(1, (height - HEAD_LINES) // max(1, len(seen.tables)) - GROUP_LINES)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", min_width=VALUE_CHARS, no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", min_width=7, no_wrap=True)
    table.add_row("all sessions", *_styled(seen.all))
    for name, rows in seen.tables.items():
        if rows:
            shown = min(rows_max, room)
            more = f" ({len(rows) - shown:,} more)" if len(rows) > shown else ""
            table.add_row("")
            table.add_row(Text(f"{name}{more}", style="bold"))
            for row in rows[:shown]:
                table.add_row(Text(_value(row, VALUE_CHARS)), *_styled(row))
    return Group(Text(_told(seen), style="bold red" if _is_stale(seen) else "bold"), table)


def lines(seen: Seen, rows_max: int) -> RenderableType:
    said = [_line("all", seen.all), *(_line(name, row) for name, rows in seen.tables.items() for row in rows[:rows_max])]
    return Text("\n".join([_told(seen), *said]) if any(seen.tables.values()) else _told(seen))


def _told(seen: Seen) -> str:
    if seen.newest_ms is None:
        return "nothing in the index yet: is keystone run started with --elastic?"
    behind_s = max(0, seen.now_ms - seen.newest_ms) // 1_000
    day = "%Y-%m-%d " if behind_s >= DAY_S else ""
    clock = dt.datetime.fromtimestamp(seen.newest_ms / 1_000, dt.UTC).strftime(f"{day}%H:%M:%S")
    playing = "" if seen.concurrent_plays is None else f", {seen.concurrent_plays:,} playing"
    return f"last {seen.seconds} s to {clock} UTC, {behind_s:,} s ago" + (": the stream stands still" if _is_stale(seen) else playing)


def _is_stale(seen: Seen) -> bool:
    return seen.newest_ms is None or seen.now_ms - seen.newest_ms > STALE_MS


def _cells(row: Row) -> list[str]:
    shown = ["-" if row[name] is None else f"{100 * row[name]:.2f}%" for name in RATIOS]
    return [f"{row['alerts']:,}", *shown, "-" if row["attempts"] is None else f"{row['attempts']:,}"]


def _styled(row: Row) -> list[Text]:
    colours = ["red" if (row[name] or 0.0) >= BAD else "yellow" if (row[name] or 0.0) >= BAD / 3 else "" for name in RATIOS]
    return [Text(cell, style=colour) for cell, colour in zip(_cells(row), ["", *colours, ""], strict=True)]


def _value(row: Row, chars_max: int) -> str:
    """Devices choose it; a terminal obeys control characters."""
    shown = "".join(sign if sign.isprintable() else "?" for sign in row["value"])
    return (shown if len(shown) <= chars_max else f"{shown[: chars_max - 1]}…") or '""'


def _line(name: str, row: Row) -> str:
    return " ".join([name, _value(row, LINE_CHARS), *(f"{column}={cell}" for column, cell in zip(COLUMNS, _cells(row), strict=True))])
