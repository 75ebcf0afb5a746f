"""The charts of the latency report: figures in, Altair charts out. Colours are the theme's (``theme.py``), widths the page's.

Every latency axis is logarithmic, so that 10 ms and the 3 s of the promise can be read in one picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import altair as alt
import polars as pl

from keystone.bench.latency import PROMISE_MS
from keystone.bench.verdict import SEND_DELAY_P99_MAX_MS
from keystone.report import figures
from keystone.report.figures import LEAST_MS
from keystone.report.runs import Run
from keystone.report.theme import HEIGHT, STYLES_OF_DEPTH

Chart = alt.Chart | alt.LayerChart

#: A duration in ms as people write it: 20 ms, 1.5 s.
DURATION: Final = "datum.value >= 1000 ? format(datum.value / 1000, '~g') + ' s' : format(datum.value, '~g') + ' ms'"
NINES: Final = {0.30103: "50 %", 1.0: "90 %", 2.0: "99 %", 3.0: "99.9 %", 4.0: "99.99 %", 5.0: "99.999 %", 6.0: "99.9999 %"}
TICKS_MS: Final = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
WIDE: Final = "container"


def finished(chart: Any, text: str, subtitle: str, *, height: float = HEIGHT) -> Chart:
    """As wide as the page, with a title in words."""
    return cast("Chart", chart.properties(width=WIDE, height=height, title=alt.TitleParams(text, subtitle=subtitle)))


@dataclass(frozen=True, slots=True)
class LogRange:
    """A logarithmic axis of durations, ms, from ``low`` to ``high``; values outside stand at its ends."""

    low: float
    high: float

    @classmethod
    def of(cls, table: pl.DataFrame, low: str, high: str, *, at_least: float = PROMISE_MS) -> LogRange:
        """From just below a table's lowest value to ``at_least``, the promise where nothing else is said, or past its highest."""
        lowest, highest = (float(v) if isinstance(v, (int, float)) else None for v in (table[low].min(), table[high].max()))
        top = max(at_least * 1.35, (highest or 0.0) * 1.15)
        return cls(max(LEAST_MS, min((lowest or LEAST_MS) * 0.7, top / 12)), top)  # a decade at least: two labels to measure by

    @property
    def ticks(self) -> list[float]:
        ticks = TICKS_MS if self.high / self.low > 60 else sorted({*TICKS_MS, *(2 * t for t in TICKS_MS[::2]), *(5 * t for t in TICKS_MS[::2])})
        return [tick for tick in ticks if self.low <= tick <= self.high]

    @property
    def scale(self) -> alt.Scale:
        return alt.Scale(type="log", domain=[self.low, self.high], clamp=True, nice=False)

    def axis(self, name: str | None = None) -> alt.Axis:
        return alt.Axis(title=name, labelExpr=DURATION, values=self.ticks)

    def x(self, field: str, name: str | None = None) -> alt.X:
        return alt.X(field, scale=self.scale, axis=self.axis(name))

    def y(self, field: str = "ms:Q") -> alt.Y:
        return alt.Y(field, scale=self.scale, axis=self.axis())


def _series(runs: Sequence[Run]) -> alt.Color:
    """A colour for each run, in their order; without a legend where there is one only."""
    names = [run.name for run in runs]
    return alt.Color("run:N", title=None, scale=alt.Scale(domain=names), sort=names, legend=alt.Legend() if len(names) > 1 else None)


def _falling(names: Sequence[str], areas: list[float]) -> alt.Size:
    """Points that get smaller from name to name; the subtitle says so, a legend would not fit a phone."""
    return alt.Size("percentile:N", sort=list(names), scale=alt.Scale(domain=list(names), range=areas), legend=None)


def promise(*, is_vertical: bool) -> Chart:
    """The 3 s line, said in words beside it."""
    at = pl.DataFrame({"ms": [PROMISE_MS], "words": ["3 s promise"]})
    place: dict[str, Any] = {"x": "ms:Q"} if is_vertical else {"y": "ms:Q"}
    shift: dict[str, Any] = (
        {"align": "right", "dx": -5, "dy": -6, "y": alt.value(12)} if is_vertical else {"align": "left", "dx": 4, "dy": -7, "x": alt.value(0)}
    )
    where = {key: shift.pop(key) for key in ("x", "y") if key in shift}
    base = alt.Chart(at)
    words: Chart = base.mark_text(style="promise-label", **shift).encode(**place, **where, text="words:N")
    return cast("Chart", alt.layer(base.mark_rule(style="promise").encode(**place), words))


def stages(runs: Sequence[Run]) -> Chart:
    """Each stage's p50, p90, p99 and maximum as points on a line: where the time goes, and where its tail comes from."""
    table = figures.percentiles(runs).drop_nulls("p50")
    long = table.unpivot(index=["run", "name"], on=list(STYLES_OF_DEPTH), variable_name="percentile", value_name="ms").with_columns(pl.col("ms").clip(LEAST_MS))
    y: dict[str, Any] = {"y": alt.Y("name:N", sort=list(figures.STAGE_NAMES.values()), title=None, axis=alt.Axis(labelLimit=240, labelFontSize=12))}
    if len(runs) > 1:
        y["yOffset"] = alt.YOffset("run:N", sort=[run.name for run in runs])
    x = LogRange.of(long, "ms", "ms").x("ms:Q", "latency, logarithmic")
    tooltip = [alt.Tooltip("run:N"), alt.Tooltip("name:N", title="stage"), alt.Tooltip("percentile:N"), alt.Tooltip("ms:Q", format=",.1f")]
    track = alt.Chart(long).mark_line(style="track").encode(x=x, detail=["run:N", "name:N"], **y)
    points = alt.Chart(long).mark_point(filled=True, opacity=1).encode(
        x=x, color=_series(runs), size=_falling(STYLES_OF_DEPTH, [190, 120, 70, 30]), tooltip=tooltip, **y,
    )  # fmt: skip
    chart = alt.layer(track, points, promise(is_vertical=True))
    return finished(chart, "Percentiles by stage", "large to small: p50, p90, p99, maximum", height=max(230, 38 * 6 * max(1, len(runs) * 0.62)))


def distribution(runs: Sequence[Run]) -> Chart:
    """How many alerts took how long. Two runs are laid over each other as outlines, so that neither hides the other."""
    table = figures.histogram(runs)
    x = LogRange.of(table, "low_ms", "high_ms").x("low_ms:Q", "end to end, logarithmic")
    y = alt.Y("share:Q", axis=alt.Axis(format=".0%", title="share of alerts", tickCount=5))
    tooltip = [alt.Tooltip("run:N"), alt.Tooltip("low_ms:Q", title="from ms", format=",.1f"), alt.Tooltip("high_ms:Q", title="to ms", format=",.1f")]
    bars = alt.Chart(table).mark_bar(opacity=0.85 if len(runs) == 1 else 0.45, strokeWidth=0, binSpacing=0).encode(
        x=x, x2="high_ms:Q", y=y.stack(None), y2=alt.datum(0), color=_series(runs), tooltip=[*tooltip, alt.Tooltip("alerts:Q", format=",")]
    )  # fmt: skip
    chart = alt.layer(bars, promise(is_vertical=True))
    return finished(chart, "How long alerts took", "from when the device should have sent to when the alert can be seen", height=HEIGHT)


def percentile_curve(runs: Sequence[Run]) -> Chart:
    """The distribution with its tail stretched: each step to the right is a tenth of the alerts that the one before left over."""
    table = figures.tail(runs).with_columns(pl.col("ms").clip(LEAST_MS))
    ticks = [nines for nines in NINES if nines <= float(table["nines"].max() or 3.0)]  # type: ignore[arg-type]
    labels = " : ".join(f"abs(datum.value - {nines}) < 0.01 ? '{label}'" for nines, label in NINES.items()) + " : ''"
    x = alt.X(
        "nines:Q",
        scale=alt.Scale(nice=False, domainMin=0),
        axis=alt.Axis(values=ticks, labelExpr=labels, labelOverlap=False, title="share of alerts that took no longer, tail stretched"),
    )
    y = LogRange.of(table, "ms", "ms").y()
    tooltip = [alt.Tooltip("run:N"), alt.Tooltip("share:Q", format=".4%", title="of alerts"), alt.Tooltip("ms:Q", format=",.1f")]
    line = alt.Chart(table).mark_line(strokeWidth=2.5, interpolate="monotone").encode(x=x, y=y, color=_series(runs))
    touch = alt.Chart(table).mark_point(size=120, opacity=0).encode(x=x, y=y, tooltip=tooltip)
    marks = _marks_on_curve(runs)
    dots = alt.Chart(marks).mark_point(filled=True, size=55, opacity=1).encode(x=x, y=y, color=_series(runs))
    told = marks.filter(pl.col("run") == runs[-1].name)
    words = [
        alt.Chart(told.head(-1)).mark_text(style="strong", align="left", dx=6, dy=13).encode(x=x, y=y, text="words:N"),
        alt.Chart(told.tail(1)).mark_text(style="strong", align="right", dx=4, dy=16).encode(x=x, y=y, text="words:N"),
    ]
    chart = alt.layer(line, dots, *words, promise(is_vertical=False), touch)
    return finished(chart, "Percentiles, the tail stretched", "read: 99 % of the alerts took no longer than the line's height there", height=HEIGHT)


def _marks_on_curve(runs: Sequence[Run]) -> pl.DataFrame:
    """p50, p90, p99 and the maximum of each run, with words."""
    at = {"p50": 0.30103, "p90": 1.0, "p99": 2.0}
    rows: list[tuple[str, float, float, str]] = []
    for row in figures.percentiles(runs).filter(pl.col("stage") == "end_to_end").drop_nulls("p50").iter_rows(named=True):
        last = float(figures.tail([run for run in runs if run.name == row["run"]])["nines"].max())  # type: ignore[arg-type]
        rows += [(row["run"], nines, max(LEAST_MS, row[name]), f"{name} {duration(row[name])}") for name, nines in at.items() if nines < last]
        rows.append((row["run"], last, max(LEAST_MS, row["max"]), f"max {duration(row['max'])}"))
    return pl.DataFrame(rows, schema={"run": pl.String, "nines": pl.Float64, "ms": pl.Float64, "words": pl.String}, orient="row")


def duration(ms: float | None) -> str:
    """A duration for people: three digits, in ms or s; - for none."""
    if ms is None:
        return "-"
    if abs(ms) >= 999.5:
        return f"{ms / 1_000:.2f} s" if abs(ms) < 9_995 else f"{ms / 1_000:,.1f} s"
    return f"{ms:.1f} ms" if abs(ms) < 99.95 else f"{ms:.0f} ms"


def time_axis(run: Run, *, grid: bool = True) -> alt.X:
    """Of the whole run: alerts are due until shortly after the schedule's end, because silence raises some."""
    return alt.X("at_s:Q", scale=alt.Scale(domain=[0, run.span_s], nice=False), axis=alt.Axis(title="seconds since the schedule's start", grid=grid))


def schedule_end(run: Run) -> list[Chart]:
    """A line where the last event was sent, where alerts came after it."""
    if run.span_s <= run.seconds:
        return []
    end = alt.Chart(pl.DataFrame({"at_s": [run.seconds], "words": ["schedule ends"]}))
    x = time_axis(run)
    return [end.mark_rule(style="limit").encode(x=x), end.mark_text(style="limit-label", align="left", dx=5).encode(x=x, y=alt.value(8), text="words:N")]


def fault_marks(run: Run) -> list[Chart]:
    """Windows shaded, moments as lines, numbers above: the table of faults says what they are. Nothing without faults."""
    table = figures.faults(run)
    if table.is_empty():
        return []
    base, x = alt.Chart(table), time_axis(run)
    tooltip = [alt.Tooltip("label:N", title="fault"), alt.Tooltip("slowest_ms:Q", title="slowest recovery, ms", format=",.0f")]
    return [
        base.mark_rect(style="fault-window", clip=True).encode(x=alt.X("from_s:Q", scale=x["scale"], axis=x["axis"]), x2="to_s:Q", tooltip=tooltip),
        base.mark_rule(style="fault-moment").encode(x=x, tooltip=tooltip),
        base.mark_text(style="fault-label", align="left", dx=4).encode(x=x, y=alt.value(8), text="number:O", tooltip=tooltip),
    ]


def latency_over_time(run: Run) -> Chart:
    """End to end, by when it was due: median, 90th, 99th percentile and maximum of each window, labelled where they end."""
    window_s = figures.window_of(run.span_s)
    wide = figures.over_time(run, window_s=window_s).with_columns(pl.col(*STYLES_OF_DEPTH).clip(LEAST_MS))
    y = LogRange.of(wide, "p50", "max").y()
    layers = [*fault_marks(run), *schedule_end(run)]
    for name in STYLES_OF_DEPTH:
        line = wide.select("at_s", pl.col(name).alias("ms"))
        width = 1.2 if name == "max" else 2.2
        layers.append(alt.Chart(line).mark_line(style=name, strokeWidth=width, interpolate="monotone").encode(x=time_axis(run), y=y))
    layers += [_end_labels(run, wide, y), promise(is_vertical=False), _hover(run, wide)]
    words = f"windows of {window_s:g} s, by when the triggering event was due{'; shaded: fault windows' if run.faults else ''}"
    return finished(alt.layer(*layers), f"Latency over the run · {run.name}", words, height=HEIGHT + 20)


def _end_labels(run: Run, wide: pl.DataFrame, y: alt.Y) -> Chart:
    """Each line's name at its last window; names that would lie on each other are said together."""
    ends = wide.tail(1).unpivot(index="at_s", on=list(STYLES_OF_DEPTH), variable_name="name", value_name="ms").sort("ms")
    kept: list[tuple[float, float, str]] = []
    for row in ends.iter_rows(named=True):
        if kept and row["ms"] < kept[-1][1] * 1.25:  # closer than a line of text: said together
            kept[-1] = (kept[-1][0], kept[-1][1], f"{kept[-1][2]}, {row['name']}")
        else:
            kept.append((row["at_s"], row["ms"], row["name"]))
    table = pl.DataFrame(kept, schema={"at_s": pl.Float64, "ms": pl.Float64, "name": pl.String}, orient="row")
    words: Chart = alt.Chart(table).mark_text(style="strong", align="left", dx=6, clip=False).encode(x=time_axis(run), y=y, text="name:N")
    return words


def _hover(run: Run, wide: pl.DataFrame) -> Chart:
    """A rule that follows the pointer and tells the window's figures."""
    near = alt.selection_point(nearest=True, on="pointerover", fields=["at_s"], empty=False)
    tooltip = [
        alt.Tooltip("at_s:Q", title="at s", format=",.2f"),
        *(alt.Tooltip(f"{name}:Q", title=f"{name} ms", format=",.1f") for name in STYLES_OF_DEPTH),
        alt.Tooltip("alerts:Q", format=","),
    ]
    shown = alt.condition(near, alt.value(0.8), alt.value(0))
    rule: Chart = alt.Chart(wide).mark_rule(style="hover", strokeWidth=1.5).encode(x=time_axis(run), opacity=shown, tooltip=tooltip).add_params(near)
    return rule


def parts_over_time(run: Run) -> Chart:
    """The mean of each stage, stacked: their sum is the mean end to end."""
    table = figures.parts_over_time(run)
    names = [figures.STAGE_NAMES[part] for part in figures.PARTS]
    order = pl.Series("order", [figures.PARTS.index(part) for part in table["part"]], pl.Int64)
    area = alt.Chart(table.with_columns(order)).mark_area(opacity=0.85, interpolate="monotone").encode(
        x=time_axis(run), y=alt.Y("ms:Q", stack="zero", axis=alt.Axis(title=None, labelExpr=DURATION, tickCount=5)),
        color=alt.Color("name:N", sort=names, scale=alt.Scale(domain=names), title=None, legend=alt.Legend(columns=2)), order="order:Q",
        tooltip=[alt.Tooltip("name:N", title="stage"), alt.Tooltip("at_s:Q", title="at s"), alt.Tooltip("ms:Q", title="mean ms", format=",.1f")],
    )  # fmt: skip
    words = f"mean of each stage in windows of {figures.window_of(run.span_s):g} s; stacked, they are the mean end to end"
    return finished(alt.layer(area, *fault_marks(run), *schedule_end(run)), f"Where the time went · {run.name}", words, height=HEIGHT)


def send_delay(run: Run) -> Chart:
    """How late the generator was over the run, of the events that raised an alert, and what would make the run invalid."""
    wide = figures.over_time(run, "send").with_columns(pl.col(*STYLES_OF_DEPTH).clip(LEAST_MS))
    y = LogRange.of(wide, "p50", "max", at_least=SEND_DELAY_P99_MAX_MS).y()
    layers = [*fault_marks(run), *schedule_end(run)]
    for name in ("p50", "p99", "max"):
        line = wide.select("at_s", pl.col(name).alias("ms"))
        layers.append(alt.Chart(line).mark_line(style=name, strokeWidth=2.0, interpolate="monotone").encode(x=time_axis(run), y=y))
    limit = alt.Chart(pl.DataFrame({"ms": [SEND_DELAY_P99_MAX_MS], "words": [f"p99 above {SEND_DELAY_P99_MAX_MS:.0f} ms: run invalid"]}))
    layers += [
        limit.mark_rule(style="limit").encode(y=y),
        limit.mark_text(style="limit-label", align="right", dx=-4, dy=-7).encode(y=y, x=alt.value("width"), text="words:N"),
        _end_labels(run, wide.drop("p90").with_columns(p90=pl.col("p99")), y),
        _hover(run, wide),
    ]
    return finished(alt.layer(*layers), f"How late the generator was · {run.name}", "from when an event was due to when it was in the log", height=HEIGHT - 40)


def partition_shares(run: Run) -> Chart:
    """How many alerts each partition raised, beside an equal share."""
    table = figures.by_partition(run)
    x = alt.X("partition:O", axis=alt.Axis(title="partition", labelAngle=0))
    tooltip = [alt.Tooltip("partition:O"), alt.Tooltip("alerts:Q", format=","), alt.Tooltip("share:Q", format=".2%")]
    bars = (
        alt.Chart(table)
        .mark_bar(opacity=0.85)
        .encode(x=x, y=alt.Y("share:Q", axis=alt.Axis(format=".0%", title="share of alerts", tickCount=5)), tooltip=tooltip)
    )
    fair = alt.Chart(table.head(1).with_columns(words=pl.lit("equal share")))
    line = fair.mark_rule(style="limit").encode(y="fair:Q")
    label = fair.mark_text(style="limit-label", align="right", dx=-4, dy=-7).encode(y="fair:Q", x=alt.value("width"), text="words:N")
    return finished(alt.layer(bars, line, label), f"Alerts by partition · {run.name}", "partition = murmur2 of the device's id", height=HEIGHT - 40)


def partition_latency(run: Run) -> Chart:
    """Whether one partition is slower than the others."""
    table = figures.by_partition(run).drop_nulls("p50")
    keys = ["p50", "p99", "max"]
    long = table.unpivot(index="partition", on=keys, variable_name="percentile", value_name="ms").with_columns(pl.col("ms").clip(LEAST_MS))
    x, y = alt.X("partition:O", axis=alt.Axis(title="partition", labelAngle=0)), LogRange.of(long, "ms", "ms").y()
    tooltip = [alt.Tooltip("partition:O"), alt.Tooltip("percentile:N"), alt.Tooltip("ms:Q", format=",.1f")]
    track = alt.Chart(long).mark_line(style="track").encode(x=x, y=y, detail="partition:O")
    size = _falling(keys, [190, 90, 35])
    points = alt.Chart(long).mark_point(filled=True, opacity=1).encode(x=x, y=y, size=size, tooltip=tooltip)
    return finished(
        alt.layer(track, points, promise(is_vertical=False)), f"Latency by partition · {run.name}", "large to small: p50, p99, maximum", height=HEIGHT - 40
    )


def heat(run: Run, dimension: str = "region") -> Chart:
    """p99 of each value of a dimension over time: one row that glows is a place, one column a moment."""
    window_s = figures.window_of(run.span_s, figures.HEAT_WINDOWS_MAX)
    table = figures.by_dimension(run, dimension, window_s).with_columns((pl.col("at_s") + window_s).alias("to_s"), pl.col("p99").clip(LEAST_MS))
    shades = LogRange.of(table, "p99", "p99", at_least=PROMISE_MS / 1.35)
    color = alt.Color("p99:Q", title="p99", scale=shades.scale, legend=alt.Legend(labelExpr=DURATION, values=shades.ticks))
    tooltip = [
        alt.Tooltip("value:N", title=dimension),
        alt.Tooltip("at_s:Q", title="at s"),
        alt.Tooltip("p99:Q", title="p99 ms", format=",.0f"),
        alt.Tooltip("alerts:Q", format=","),
    ]
    cells = (
        alt.Chart(table)
        .mark_rect(clip=True)
        .encode(x=time_axis(run, grid=False), x2="to_s:Q", y=alt.Y("value:N", title=None, axis=alt.Axis(labelFontSize=12)), color=color, tooltip=tooltip)
    )
    rows = max(3, table["value"].n_unique())
    return finished(cells, f"p99 by {dimension.replace('_', ' ')} · {run.name}", f"windows of {window_s:g} s", height=26 * rows)


def recoveries(run: Run) -> Chart:
    """From each fault to the next alert of each partition that it hit; of what raises no alerts, to the first sign of work."""
    table = figures.recoveries(run).with_columns(pl.col("ms").clip(LEAST_MS))
    order = figures.faults(run)["label"].to_list()
    y = alt.Y("label:N", sort=order, scale=alt.Scale(domain=order), title=None, axis=alt.Axis(labelLimit=320, labelFontSize=12))
    x = LogRange.of(table, "ms", "ms", at_least=10_000.0).x("ms:Q", "after the fault, logarithmic")
    worst = table.group_by("label").agg(pl.col("ms").max()).with_columns(words=pl.col("ms").map_elements(duration, return_dtype=pl.String))
    points = (
        alt.Chart(table)
        .mark_point(filled=True, size=110, opacity=0.9, style="fault-point")
        .encode(x=x, y=y, tooltip=[alt.Tooltip("label:N", title="fault"), alt.Tooltip("ms:Q", format=",.0f")])
    )
    words = alt.Chart(worst).mark_text(style="strong", align="left", dx=9).encode(x=x, y=y, text="words:N")
    return finished(
        alt.layer(points, words),
        f"Back at work after faults · {run.name}",
        "each point a partition (or process); the slowest in words",
        height=max(110, 34 * len(order)),
    )


def change(before: Run, after: Run) -> Chart:
    """After against before, by stage and percentile: left of 1 is quicker. A ratio's axis is logarithmic: half and double are equally far."""
    table = figures.comparison(before, after).drop_nulls("change").with_columns((pl.col("change") + 1).clip(0.001).alias("ratio"))
    names, keys = list(figures.STAGE_NAMES.values()), ["p50", "p90", "p99", "p999", "max"]
    spread = max(2.0, *(max(r, 1 / r) for r in table["ratio"])) * 1.1 if not table.is_empty() else 2.0
    label = "format(datum.value, '~g') + ' ×'"  # noqa: RUF001 - the sign that people write
    x = alt.X(
        "ratio:Q",
        scale=alt.Scale(type="log", domain=[1 / spread, spread], nice=False),
        axis=alt.Axis(title=f"{after.name} / {before.name}", labelExpr=label, values=[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]),
    )
    y = alt.Y("name:N", sort=names, title=None, axis=alt.Axis(labelLimit=240, labelFontSize=12))
    tooltip = [
        alt.Tooltip("name:N", title="stage"),
        alt.Tooltip("percentile:N"),
        *(alt.Tooltip(f"{c}:Q", format=",.1f", title=f"{c} ms") for c in ("before", "after")),
        alt.Tooltip("change:Q", format="+.1%"),
    ]
    points = (
        alt.Chart(table)
        .mark_point(filled=True, size=110, opacity=1)
        .encode(
            x=x,
            y=y,
            yOffset=alt.YOffset("percentile:N", sort=keys),
            color=alt.Color("percentile:N", sort=keys, scale=alt.Scale(domain=keys), title=None),
            tooltip=tooltip,
        )
    )
    even = alt.Chart(pl.DataFrame({"ratio": [1.0]})).mark_rule(style="limit").encode(x="ratio:Q")
    return finished(alt.layer(even, points), "What changed", f"left of 1: {after.name} is quicker than {before.name}", height=46 * len(names))
