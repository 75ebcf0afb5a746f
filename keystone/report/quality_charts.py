"""The charts of a lake: figures of ``quality`` in, Altair charts out. Colours are the theme's."""

from __future__ import annotations

from html import escape
from typing import Any, Final

import altair as alt
import polars as pl

from keystone.report.charts import DURATION, Chart, duration, finished
from keystone.report.quality import PLAYING, SESSIONS_MIN, STALLED, WAITING
from keystone.report.theme import HEIGHT
from keystone.report.words import Html, table

ROW: Final = 26  # px of a bar or cell
_PERCENT: Final = ".2%"


def _tooltips(*, name: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("value:N", title=name),
        alt.Tooltip("sessions:Q", format=","),
        alt.Tooltip("rebuffering:Q", format=_PERCENT),
        alt.Tooltip("waited:Q", title="sessions that waited", format=".1%"),
        alt.Tooltip("startup_ms_p95:Q", title="startup p95, ms", format=",.0f"),
        alt.Tooltip("alerts:Q", format=","),
    ]


def worst(found: pl.DataFrame, name: str) -> Chart:
    """Rebuffering of each value, the worst first."""
    y = alt.Y("value:N", sort=found["value"].to_list(), title=None, axis=alt.Axis(labelFontSize=12, labelLimit=180))
    x = alt.X("rebuffering:Q", axis=alt.Axis(format=".1%", title="rebuffering: stalled / (stalled + played)", tickCount=5))
    base = alt.Chart(found).encode(y=y, x=x, tooltip=_tooltips(name=name))
    words = base.mark_text(style="strong", align="left", dx=6).encode(text=alt.Text("rebuffering:Q", format=_PERCENT))
    bars = base.mark_bar(opacity=0.85, height={"band": 0.68})
    return finished(alt.layer(bars, words), f"Worst by {_plain(name)}", f"values of at least {SESSIONS_MIN} ended sessions", height=_rows(found))


def startup(found: pl.DataFrame, name: str) -> Chart:
    """How long viewers waited for the first picture: median and 95th percentile, in the order of ``worst``."""
    y = alt.Y("value:N", sort=found["value"].to_list(), title=None, axis=alt.Axis(labelFontSize=12, labelLimit=180))
    axis = alt.Axis(labelExpr=DURATION, title="from Start to first Heartbeat", tickCount=5)
    tooltip = _tooltips(name=name)
    base = alt.Chart(found.drop_nulls("startup_ms_p50"))
    track = base.mark_rule(style="track").encode(y=y, x=alt.X("startup_ms_p50:Q", axis=axis), x2="startup_ms_p95:Q")
    points = [
        base.mark_point(filled=True, opacity=1, size=size).encode(y=y, x=alt.X(f"{field}:Q", axis=axis), tooltip=tooltip)
        for field, size in (("startup_ms_p50", 130), ("startup_ms_p95", 55))
    ]
    return finished(alt.layer(track, *points), f"Startup by {_plain(name)}", "large: median, small: p95", height=_rows(found))


def pairs(found: pl.DataFrame, down: str, across: str) -> Chart:
    """Rebuffering of each pair: one cell that glows is a problem of that combination, a whole row or column of that value."""
    color = alt.Color("rebuffering:Q", title="rebuffering", scale=alt.Scale(zero=True), legend=alt.Legend(format=".1%", tickCount=4))
    tooltip = [alt.Tooltip("down:N", title=down), alt.Tooltip("across:N", title=across), *_tooltips(name="")[1:]]
    x, y = alt.X("across:N", title=_plain(across), axis=alt.Axis(labelAngle=0)), alt.Y("down:N", title=None, axis=alt.Axis(labelFontSize=12))
    cells = alt.Chart(found).mark_rect().encode(x=x, y=y, color=color, tooltip=tooltip)
    return finished(cells, f"Rebuffering by {_plain(down)} and {_plain(across)}", "stalled / (stalled + played)", height=ROW * max(3, found["down"].n_unique()))


def stalls_over_time(found: pl.DataFrame, name: str) -> Chart:
    """Which share of a value's events were stalls, over time."""
    end = float(found["to_s"].max() or 1.0)  # type: ignore[arg-type]
    x = alt.X("at_s:Q", scale=alt.Scale(domain=[0, end], nice=False), axis=alt.Axis(title="seconds since the first event", grid=False))
    color = alt.Color("share:Q", title="stalls of all events", scale=alt.Scale(zero=True), legend=alt.Legend(format=".1%", tickCount=4))
    tooltip = [
        alt.Tooltip("value:N", title=name),
        alt.Tooltip("at_s:Q", title="at s"),
        alt.Tooltip("stalls:Q", format=","),
        alt.Tooltip("events:Q", format=","),
        alt.Tooltip("share:Q", format=_PERCENT),
    ]
    cells = (
        alt.Chart(found)
        .mark_rect(clip=True)
        .encode(x=x, x2="to_s:Q", y=alt.Y("value:N", title=None, axis=alt.Axis(labelFontSize=12)), color=color, tooltip=tooltip)
    )
    return finished(
        cells,
        f"Stalls over time by {_plain(name)}",
        "Buffer events that are neither startup nor seek, of all events",
        height=ROW * max(3, found["value"].n_unique()),
    )


def waiting(found: pl.DataFrame) -> Chart:
    """How long viewers waited in all stalls of a session."""
    ticks = [10**power for power in range(8)]
    x = alt.X("low_ms:Q", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(labelExpr=DURATION, values=ticks, title="stalled in one session, logarithmic"))
    tooltip = [
        alt.Tooltip("low_ms:Q", title="from ms", format=",.0f"),
        alt.Tooltip("high_ms:Q", title="to ms", format=",.0f"),
        alt.Tooltip("sessions:Q", format=","),
    ]
    y = alt.Y("share:Q", axis=alt.Axis(format=".0%", title="share of sessions that waited", tickCount=5))
    bars = alt.Chart(found).mark_bar(opacity=0.85, strokeWidth=0, binSpacing=0).encode(x=x, x2="high_ms:Q", y=y, y2=alt.datum(0), tooltip=tooltip)
    return finished(bars, "How long viewers waited", "of the sessions that stalled at all", height=HEIGHT)


def timelines(found: pl.DataFrame) -> Chart:
    """Sessions side by side, from their start: played, stalled, and before the first picture."""
    order = found["session"].unique(maintain_order=True).to_list()
    names = {PLAYING: "playing", STALLED: "stalled", WAITING: "before the first picture"}
    x_of = alt.X("from_s:Q", scale=alt.Scale(nice=False), axis=alt.Axis(title="seconds since the session's start"))
    y = alt.Y("session:N", sort=order, scale=alt.Scale(domain=order), title=None, axis=alt.Axis(labelFont="ui-monospace, monospace", labelLimit=330))
    tooltip = [
        alt.Tooltip("session:N"),
        alt.Tooltip("told:N", title="state"),
        alt.Tooltip("from_s:Q", title="from s", format=",.1f"),
        alt.Tooltip("to_s:Q", title="to s", format=",.1f"),
    ]
    timed = found.with_columns(
        (pl.col("from_ms") / 1_000).alias("from_s"),
        (pl.col("to_ms") / 1_000).alias("to_s"),
        pl.col("state").replace_strict(names, return_dtype=pl.String).alias("told"),
    )
    layers = [
        alt.Chart(timed.filter(pl.col("state") == state)).mark_bar(style=state, height={"band": band}).encode(x=x_of, x2="to_s:Q", y=y, tooltip=tooltip)
        for state, band in ((WAITING, 0.3), (PLAYING, 0.55), (STALLED, 0.9))
        if state in found["state"]
    ]
    return finished(
        alt.layer(*layers),
        "The worst sessions in time",
        "tall and red: stalled; green: playing; thin and grey: before the first picture",
        height=ROW * max(3, len(order)),
    )


def summary(found: dict[str, Any]) -> Html:
    """The lake's own figures, as tiles."""

    def share(name: str) -> str:
        return "-" if found[name] is None else f"{found[name]:.2%}"

    tiles = [
        ("events", f"{found['events']:,}", "accepted, in the lake"),
        ("ended sessions", f"{found['sessions']:,}", f"of {found['devices']:,} devices"),
        ("rebuffering", share("rebuffering"), "stalled / (stalled + played)"),
        ("waited", share("waited"), "of sessions had a stall"),
        ("startup p95", duration(found["startup_ms_p95"]), f"median {duration(found['startup_ms_p50'])}"),
        ("start failures", share("start_failures"), f"left before start: {share('left_before_start')}"),
    ]
    boxes = "".join(f'<div class="tile"><span>{escape(a)}</span><b>{escape(b)}</b><span>{escape(c)}</span></div>' for a, b, c in tiles)
    return Html(f'<div class="tiles">{boxes}</div>', "\n".join(f"{a}: {b} ({c})" for a, b, c in tiles))


def sessions_table(found: pl.DataFrame) -> Html:
    """Who these sessions were."""
    head = ["device", "session", "region", "cdn", "network", "stalled", "played", "stalls", "alerts", "ended by"]
    rows = [
        [
            row["device_id"], row["session_id"], *(row[name] or "unknown" for name in ("region", "cdn", "network")),
            duration(row["stall_ms"]), duration(row["playing_ms"]), f"{row['buffers']:,}", f"{row['alerts']:,}", row["end_reason"],
        ]
        for row in found.iter_rows(named=True)
    ]  # fmt: skip
    return table(head, rows, left=5)


def _rows(found: pl.DataFrame) -> int:
    return ROW * max(3, found.height)


def _plain(name: str) -> str:
    return {"cdn": "CDN", "isp": "provider", "os": "system"}.get(name, name.replace("_", " "))
