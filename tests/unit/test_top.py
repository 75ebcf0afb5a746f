"""What top shows fits the terminal, says when the stream stands still, and ranks a handful of viewers behind a region in trouble."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from keystone.run.top_query import DIMENSIONS, RATIOS, Seen, _ranked
from keystone.run.top_view import lines, screen

NOW_MS = 1_795_000_000_000


def row(value: str, alerts: int = 7, share: float | None = 0.05) -> dict[str, Any]:
    return {"value": value, "alerts": alerts, **dict.fromkeys(RATIOS, share), "attempts": 1_234_567}


def seen(rows: int, *, newest_ms: int | None = NOW_MS - 2_000) -> Seen:
    tables = {name: [row(f"{name} {n}") for n in range(rows)] for name in DIMENSIONS}
    return Seen(NOW_MS, 60, row("all"), tables, 184_233, newest_ms)


def shown(what: Any, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, soft_wrap=True, highlight=False).print(what)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(("height", "rows"), [(24, 5), (40, 8), (12, 1), (5, 1)])
def test_it_fits_the_terminal(height: int, rows: int) -> None:
    text = shown(screen(seen(20), 8, height=height))
    assert len(text) <= max(height, 12)
    assert all(len(line) <= 80 for line in text)
    assert sum(line.startswith("cdn ") and "more" not in line for line in text) == rows
    assert f"cdn ({20 - rows} more)" in [line.rstrip() for line in text]


def test_a_stream_that_stands_still_is_said() -> None:
    assert shown(lines(seen(1), 8))[0].endswith("2 s ago, 184,233 playing")
    assert shown(lines(seen(1, newest_ms=NOW_MS - 600_000), 8))[0].endswith("600 s ago: the stream stands still")
    assert "nothing in the index yet" in shown(screen(seen(0, newest_ms=None), 8, height=24))[0]


def test_what_devices_call_themselves_moves_no_cursor() -> None:
    one = Seen(NOW_MS, 60, row("all"), {"region": [row("a\x1b[2J\n\u202eb"), row(""), row("[red]x"), row("long " * 20)]}, None, NOW_MS)
    for what in (screen(one, 8, height=24), lines(one, 8)):
        text = "\n".join(shown(what))
        assert "a?[2J??b" in text
        assert '""' in text
        assert "[red]x" in text
        assert "\x1b" not in text


def test_a_handful_of_viewers_is_no_emergency() -> None:
    sums = {"attempts": 10, "ebvs": 0, "vsf": 0, "vpf": 0, "ended": 0}

    def bucket(key: str, stall_ms: int, played_ms: int) -> dict[str, Any]:
        said = {**sums, "stall_ms": stall_ms, "played_ms": played_ms}
        return {"key": key, **{name: {"value": float(value)} for name, value in said.items()}}

    buckets = [bucket("tiny", 2_000, 0), bucket("well", 100_000, 50_000_000), bucket("bad", 5_000_000, 95_000_000)]
    everybody = {**sums, "stall_ms": 5_102_000, "played_ms": 145_000_000}
    alerts = {"region": {"buckets": [{"key": "unheard of", "doc_count": 3}]}}
    ranked = _ranked("region", alerts, {"region": {"by": {"buckets": buckets}}}, everybody)
    assert [one["value"] for one in ranked] == ["bad", "tiny", "unheard of", "well"]
    assert [one["rebuffering_ratio"] for one in ranked] == [0.05, 1.0, None, pytest.approx(0.001996, abs=1e-6)]
