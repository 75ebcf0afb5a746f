"""``keystone top``: the worst regions, devices and CDNs now, from the index."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click
import orjson

from keystone.errors import SinkBusy
from keystone.run.elastic import ELASTIC, connected
from keystone.run.options import CONTEXT, config_options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from keystone.sinks.elastic_http import Nodes

DIMENSIONS: Final = ("region", "device_type", "cdn")
SUMS: Final = ("stall_ms", "played_ms", "attempts", "ebvs", "vsf", "vpf", "ended")
COLUMNS: Final = ("", "alerts", "rebuffering", "EBVS", "VSF", "VPF", "attempts")
VALUES_MAX: Final = 200  # of a dimension that are looked at; the worst of them are shown
WINDOW_MS: Final = 1_000  # of cohort rows that are added up

Row = dict[str, Any]


@click.command("top", context_settings=CONTEXT)
@ELASTIC
@click.option("--seconds", type=click.IntRange(1, 86_400), default=60, help="How far back 'now' reaches, in log time.")
@click.option("--rows", type=click.IntRange(1, 100), default=8, help="Of each dimension.")
@click.option("--every", "every_s", type=click.FloatRange(0.2), default=2.0, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Look once, print, and end.")
@config_options
def top_command(**given: Any) -> None:
    """Show what is worst now: alerts, rebuffering and failures by region, device type and CDN. Plain lines off a terminal."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    with connected(given) as nodes:
        if given["once"]:
            console.print(_shown(worst(nodes, int(time.time() * 1_000), given["seconds"]), given["rows"], is_plain=not console.is_terminal))
            return
        _watch(nodes, given, console)


def _watch(nodes: Nodes, given: Row, console: Any) -> None:
    """Until Ctrl-C. A server that does not answer is said, and asked again."""
    from rich.live import Live

    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if live is not None:
        live.start()
    try:
        while True:
            try:
                shown = _shown(worst(nodes, int(time.time() * 1_000), given["seconds"]), given["rows"], is_plain=live is None)
            except SinkBusy as error:
                shown = str(error)
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


def worst(nodes: Nodes, now_ms: int, seconds: int) -> dict[str, list[Row]]:
    """By dimension: a row a value, ``value alerts rebuffering_ratio ebvs_ratio vsf_ratio vpf_ratio attempts``, the worst first.

    Ratios are of sums over the windows of the last ``seconds``; None where nothing happened. ``SinkBusy`` where no answer comes.
    """
    from keystone.sinks.documents import ratios

    since = {"range": {"@timestamp": {"gte": now_ms - 1_000 * seconds, "lte": now_ms + 60_000}}}
    alerts = _asked(nodes, "alerts", since, {name: _terms(name, {}) for name in DIMENSIONS})
    sums = {name: {"sum": {"field": name}} for name in SUMS}
    filters = [since, {"term": {"window_ms": WINDOW_MS}}, {"terms": {"cohort": list(DIMENSIONS)}}]
    cohorts = _asked(nodes, "cohorts", {"bool": {"filter": filters}}, {name: _only(name, _terms(name, sums)) for name in DIMENSIONS})
    tables = {}
    for name in DIMENSIONS:
        counted = {bucket["key"]: bucket["doc_count"] for bucket in alerts.get(name, {}).get("buckets", [])}
        summed = {bucket["key"]: {of: int(bucket[of]["value"]) for of in SUMS} for bucket in cohorts.get(name, {}).get("by", {}).get("buckets", [])}
        rows = []
        for value in counted.keys() | summed.keys():
            own = summed.get(value, {})
            shown = ratios(own)
            figures = {ratio: shown.get(ratio) for ratio in ("rebuffering_ratio", "ebvs_ratio", "vsf_ratio", "vpf_ratio")}
            rows.append({"value": value, "alerts": counted.get(value, 0), **figures, "attempts": own.get("attempts")})
        tables[name] = sorted(rows, key=lambda row: (-(row["rebuffering_ratio"] or 0.0), -row["alerts"], row["value"]))
    return tables


def _terms(name: str, sums: Row) -> Row:
    return {"terms": {"field": name, "size": VALUES_MAX}, **({"aggs": sums} if sums else {})}


def _only(name: str, by: Row) -> Row:
    """Of rows whose cohort is of this dimension alone: those of pairs would count twice."""
    return {"filter": {"term": {"cohort": name}}, "aggs": {"by": by}}


def _asked(nodes: Nodes, kind: str, query: Row, aggs: Row) -> Row:
    from keystone.sinks.elastic_http import trouble_of

    body = orjson.dumps({"size": 0, "query": query, "aggs": aggs})
    reply = nodes.request("POST", f"/keystone-{kind}-*/_search?ignore_unavailable=true&filter_path=aggregations", body)
    if reply.status != 200:
        raise trouble_of(reply)
    return dict(reply.json().get("aggregations", {}))


def _shown(tables: dict[str, list[Row]], rows_max: int, *, is_plain: bool) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if is_plain:
        return Text("\n".join(f"{name} {line}" for name, rows in tables.items() for line in map(_line, rows[:rows_max])) or "nothing in the index yet")
    groups = []
    for name, rows in tables.items():
        table = Table(title=f"worst by {name}", title_justify="left")
        for place, column in enumerate(COLUMNS):
            table.add_column(column or name, justify="right" if place else "left")
        for row in rows[:rows_max]:
            table.add_row(*map(Text, _cells(row)))
        groups.append(table)
    return Group(*groups)


def _cells(row: Row) -> list[str]:
    figures = [row[name] for name in ("rebuffering_ratio", "ebvs_ratio", "vsf_ratio", "vpf_ratio")]
    shown = ["-" if figure is None else f"{100 * figure:.2f}%" for figure in figures]
    value = "".join(sign if sign.isprintable() else "?" for sign in row["value"])  # devices choose it; a terminal obeys control characters
    return [value[:40], f"{row['alerts']:,}", *shown, "-" if row["attempts"] is None else f"{row['attempts']:,}"]


def _line(row: Row) -> str:
    value, *figures = _cells(row)
    return " ".join([value, *(f"{name}={figure}" for name, figure in zip(COLUMNS[1:], figures, strict=True))])
