"""How charts look. A mark names a *style* or a range, never a colour: so one chart serves a light and a dark page, and its text stays readable.

Altair writes the light theme into a notebook's charts (on white, so that they can be read on any notebook's own background). The page
takes it out again and puts in the theme of whoever looks (``page.js``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
HEIGHT: Final = 280  # px; a width is the page's matter
PICTURE_WIDTH: Final = 860  # px, of charts that no page widens
VEGALITE: Final = "application/vnd.vegalite.v6+json"


@dataclass(frozen=True, slots=True)
class Colours:
    """Of one theme. ``runs`` tell series apart (also for people who see few colours), ``heat`` rises, ``depth`` goes from median to maximum."""

    ink: str
    muted: str
    grid: str
    surface: str
    promise: str
    fault: str
    runs: tuple[str, ...]
    heat: tuple[str, ...]
    depth: tuple[str, str, str, str]


LIGHT: Final = Colours(
    ink="#0f172a",
    muted="#526077",
    grid="#e4e9f0",
    surface="#ffffff",
    promise="#c8102e",
    fault="#b45309",
    runs=("#1f6feb", "#d9730d", "#0f8a7e", "#9333c9", "#64748b", "#b4234a"),
    heat=("#fdf1cf", "#fcc368", "#f3813f", "#cf3347", "#6f1150"),
    depth=("#9cc3fb", "#4f94f5", "#1b5fd0", "#0d2f75"),
)
DARK: Final = Colours(
    ink="#e8edf5",
    muted="#9aa8bd",
    grid="#253045",
    surface="#111927",
    promise="#ff6b78",
    fault="#f5a742",
    runs=("#5aa2ff", "#f7a04b", "#35c9b6", "#c58bf5", "#94a3b8", "#fb7893"),
    heat=("#1c2a44", "#5b2d6e", "#b03a63", "#ef7d43", "#fbe08b"),
    depth=("#3f74c6", "#4f94f5", "#93bfff", "#e3eeff"),
)
STYLES_OF_DEPTH: Final = ("p50", "p90", "p99", "max")


def config(colours: Colours) -> dict[str, Any]:
    """Vega-Lite's ``config`` of one theme."""
    depth = {name: {"color": colour} for name, colour in zip(STYLES_OF_DEPTH, colours.depth, strict=True)}
    return {
        "background": "transparent",
        "font": FONT,
        "padding": 4,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "view": {"stroke": None, "continuousHeight": HEIGHT, "discreteHeight": HEIGHT},
        "title": {
            "anchor": "start", "frame": "bounds", "color": colours.ink, "fontSize": 15, "fontWeight": 650, "offset": 14,
            "subtitleColor": colours.muted, "subtitleFontSize": 12, "subtitlePadding": 5,
        },
        "axis": {
            "labelColor": colours.muted, "titleColor": colours.muted, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": 500, "titlePadding": 8,
            "gridColor": colours.grid, "domainColor": colours.grid, "tickColor": colours.grid, "labelPadding": 5, "domain": False, "ticks": False,
        },
        "axisBand": {"grid": False},
        "legend": {
            "labelColor": colours.ink, "titleColor": colours.muted, "labelFontSize": 11.5, "titleFontSize": 11, "titleFontWeight": 500, "orient": "top",
            "symbolType": "circle", "symbolSize": 90,
            "symbolBaseFillColor": colours.muted, "symbolBaseStrokeColor": colours.muted, "gradientLength": 320, "gradientThickness": 10,
        },
        "range": {"category": list(colours.runs), "heatmap": list(colours.heat), "ramp": list(colours.heat)},
        "mark": {"color": colours.runs[0]},
        "rect": {"stroke": colours.surface, "strokeWidth": 1},
        "text": {"color": colours.ink, "fontSize": 11},
        "style": {
            "promise": {"color": colours.promise, "strokeWidth": 1.5, "strokeDash": [5, 4]},
            "promise-label": {"color": colours.promise, "fontWeight": 600, "fontSize": 11},
            "limit": {"color": colours.muted, "strokeWidth": 1.2, "strokeDash": [3, 3]},
            "limit-label": {"color": colours.muted, "fontSize": 11},
            "fault-window": {"color": colours.fault, "opacity": 0.16, "stroke": None},
            "fault-moment": {"color": colours.fault, "strokeWidth": 1.5},
            "fault-label": {"color": colours.fault, "fontWeight": 700, "fontSize": 12},
            "fault-point": {"color": colours.fault},
            "track": {"color": colours.muted, "strokeOpacity": 0.35, "strokeWidth": 2},
            "strong": {"color": colours.ink, "fontSize": 11.5, "fontWeight": 600},
            "hover": {"color": colours.muted, "strokeWidth": 1},
            "playing": {"color": colours.runs[2], "opacity": 0.55, "stroke": None},
            "waiting": {"color": colours.muted, "opacity": 0.4, "stroke": None},
            "stalled": {"color": colours.promise, "stroke": None},
            **depth,
        },
    }  # fmt: skip


def enable(*, pictures: bool) -> None:
    """For a notebook: charts in the light theme on white, handed over as Vega-Lite and, with ``pictures``, also as SVG.

    Altair's own default would load Vega from a network. A program that draws no Vega-Lite 6 shows the picture, which costs 0.3 s a chart.
    """
    import altair as alt

    @alt.theme.register("keystone", enable=True)
    def _theme() -> alt.theme.ThemeConfig:
        return {"config": {**config(LIGHT), "background": LIGHT.surface}}  # type: ignore[typeddict-item]

    def shown(spec: dict[str, Any], **_: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = {VEGALITE: spec, "text/plain": "a chart"}
        if pictures:
            import vl_convert

            bundle["image/svg+xml"] = vl_convert.vegalite_to_svg({**spec, "width": PICTURE_WIDTH}, vl_version=alt.SCHEMA_VERSION.rpartition(".")[0])
        return bundle

    alt.renderers.register("keystone", shown)
    alt.renderers.enable("keystone")
