"""Both notebooks executed by the command, their figures compared with an obvious computation, their pages opened without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from keystone.bench.latency import PROMISE_MS
from tests.reference import reference_file
from tests.report_runs import (
    ALERTS,
    PARTITIONS,
    charts_of,
    known_alerts,
    loads_of,
    partition_by_reference,
    quick_rank,
    rows_of,
    stage_of,
    words_of,
    write_run,
)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
EVENTS = 60_000


def keystone(*arguments) -> str:
    answer = subprocess.run([sys.executable, "-m", "keystone", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def latency_page(tmp_path_factory) -> Path:
    """Two runs: a calm one that passed, and one with faults that did not."""
    home = tmp_path_factory.mktemp("latency")
    calm = write_run(home / "calm", known_alerts(1), faults=())
    struck = write_run(home / "struck", known_alerts(2, 2.0), verdict="fail", reasons=("end-to-end latency up to 3,050 ms > 3,000 ms",))
    keystone("report", calm, struck, "--out", home / "page.html")
    return home / "page.html"


@pytest.fixture(scope="module")
def replayed(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("qoe")
    simulator = [sys.executable, "-m", "keystone.sim.write", "--events", str(EVENTS), "--out", str(home / "events.ndjson")]
    subprocess.run(simulator, cwd=ROOT, check=True, capture_output=True)
    keystone("replay", home / "events.ndjson", "--out", home / "out")
    return home / "out"


@pytest.fixture(scope="module")
def qoe_page(replayed) -> Path:
    keystone("report", "--qoe", replayed, "--out", replayed.parent / "page.html")
    return replayed.parent / "page.html"


# --- latencies ----------------------------------------------------------------------------------------------------------
def test_the_page_says_verdict_machine_and_percentiles(latency_page):
    text = words_of(latency_page.read_text())
    for said in ("PASS calm", "FAIL struck", "end-to-end latency up to 3,050 ms", "a processor, 2 cores, 8,000 MiB", "buffering loop", "within three seconds"):
        assert said in text
    p99 = quick_rank(stage_of(known_alerts(1), "end_to_end"), 0.99)
    assert f"{p99 / 1_000:.2f} s" in text


def test_the_charts_hold_the_figures_of_the_runs(latency_page):
    charts, rows = charts_of(latency_page.read_text()), known_alerts(1)
    stages = [
        row for row in rows_of(charts["Percentiles by stage"]) if row.get("run") == "calm" and row["percentile"] == "p90" and row["name"].startswith("decode")
    ]
    assert stages[0]["ms"] == pytest.approx(quick_rank(stage_of(rows, "decode"), 0.9))
    bars = [row for row in rows_of(charts["How long alerts took"]) if row.get("run") == "calm"]
    assert sum(row["alerts"] for row in bars) == ALERTS
    assert sum(row["alerts"] for row in bars if row["low_ms"] >= PROMISE_MS) <= sum(ms > PROMISE_MS for ms in stage_of(rows, "end_to_end"))
    shares = [row for row in rows_of(charts["Alerts by partition · calm"]) if "alerts" in row]
    assert {row["partition"]: row["alerts"] for row in shares} | {} == {p: sum(partition_by_reference(row) == p for row in rows) for p in range(PARTITIONS)}
    assert {row["ms"] for row in rows_of(charts["Back at work after faults · struck"])} == {1_900.0, 2_400.0, 700.0}
    assert not any(title.startswith("Back at work") and "calm" in title for title in charts)


def test_faults_are_marked_where_they_struck(latency_page):
    charts = charts_of(latency_page.read_text())
    for title in ("Latency over the run", "Where the time went", "How late the generator was"):
        marks = {(row["number"], row["from_s"], row["to_s"]) for row in rows_of(charts[f"{title} · struck"]) if "from_s" in row}
        assert marks == {(1, 5.0, 8.0), (2, 12.0, 14.5)}
        assert not any("from_s" in row for row in rows_of(charts[f"{title} · calm"]))


def test_one_run_alone_has_a_page_and_one_without_alerts_too(tmp_path):
    one = write_run(tmp_path / "one", known_alerts(3), faults=())
    none = write_run(tmp_path / "none", [], verdict="invalid", reasons=("interrupted",), faults=())
    keystone("report", one, "--out", tmp_path / "one.html")
    assert "give a second folder" in words_of((tmp_path / "one.html").read_text())
    keystone("report", none, "--out", tmp_path / "none.html")
    text = words_of((tmp_path / "none.html").read_text())
    assert "INVALID none" in text
    assert "no alerts with known times" in text
    assert charts_of((tmp_path / "none.html").read_text()) == {}


def test_nothing_is_loaded_from_anywhere(latency_page, qoe_page):
    for path in (latency_page, qoe_page):
        assert loads_of(path.read_text()) == []


# --- quality ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def expected(replayed) -> pl.DataFrame:
    """Session records by the slow implementation, which shares no code with the program."""
    found = reference_file((replayed.parent / "events.ndjson").read_bytes())
    return pl.DataFrame(found.sessions, infer_schema_length=None)


def test_the_worst_regions_are_those_of_the_reference(qoe_page, expected):
    charts = charts_of(qoe_page.read_text())
    shown = {row["value"]: row for row in rows_of(charts["Worst by region"])}
    by_region = expected.group_by(pl.col("region").fill_null("unknown")).agg(
        pl.len(), pl.col("stall_ms", "playing_ms", "alerts").sum(), pl.col("startup_ms").sort()
    )
    assert set(shown) == set(by_region.filter(pl.col("len") >= 20)["region"])
    for row in by_region.filter(pl.col("len") >= 20).iter_rows(named=True):
        mine = shown[row["region"]]
        assert (mine["sessions"], mine["alerts"]) == (row["len"], row["alerts"])
        assert mine["rebuffering"] == pytest.approx(row["stall_ms"] / (row["stall_ms"] + row["playing_ms"]))
        known = [ms for ms in row["startup_ms"] if ms is not None]
        assert (mine["startup_ms_p50"], mine["startup_ms_p95"]) == (quick_rank(known, 0.5), quick_rank(known, 0.95))
    order = [row["value"] for row in rows_of(charts["Worst by region"])]
    assert order == sorted(order, key=lambda region: -shown[region]["rebuffering"])


def test_single_sessions_stall_as_long_as_the_reference_says(qoe_page, expected):
    rows = rows_of(charts_of(qoe_page.read_text())["The worst sessions in time"])
    stalled: dict[str, float] = {}
    for row in {(row["session"], row["from_ms"]): row for row in rows}.values():
        if row["state"] == "stalled":
            stalled[row["session"]] = stalled.get(row["session"], 0) + row["to_ms"] - row["from_ms"]
    assert len(stalled) == 14
    known = {f"{row['device_id']} · {row['session_id']}": row["stall_ms"] for row in expected.iter_rows(named=True)}
    assert stalled == {session: known[session] for session in stalled}
    worst = expected.sort("alerts", "stall_ms", descending=True).row(0, named=True)
    assert f"{worst['device_id']} · {worst['session_id']}" in stalled


def test_stalls_over_time_are_the_buffers_of_the_file(qoe_page, replayed):
    rows = rows_of(charts_of(qoe_page.read_text())["Stalls over time by region"])
    events = pl.read_ndjson(replayed.parent / "events.ndjson", infer_schema_length=None)
    phase = pl.col("phase").is_null() | ~pl.col("phase").is_in(["startup", "seek"]) if "phase" in events.columns else pl.lit(value=True)
    once = events.unique(["device_id", "session_id", "seq"])
    assert sum(row["stalls"] for row in rows) == once.filter((pl.col("event") == "Buffer") & phase).height
    assert sum(row["events"] for row in rows) == once.height


def test_the_glance_counts_what_was_accepted(qoe_page, expected):
    text = words_of(qoe_page.read_text())
    assert f"ended sessions {expected.height:,}" in text
    assert f"events {EVENTS:,}" in text


# --- in a browser -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("which", ["latency_page", "qoe_page"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1_280, 390])
def test_every_chart_is_drawn_without_a_network_or_a_complaint(browser, request, which, dark, width):
    path = request.getfixturevalue(which)
    browser.open(path, width=width, dark=dark)
    count = len(charts_of(path.read_text()))
    assert browser.wait("document.documentElement.dataset.drawn") == f"{count}/{count} {'dark' if dark else 'light'}"
    drawn = browser.value("[...document.querySelectorAll('figure.chart')].map(f => f.querySelector('svg, canvas')?.querySelectorAll('path, text').length ?? 0)")
    assert len(drawn) == count
    assert min(drawn) > 8
    assert browser.value("document.documentElement.scrollWidth") <= width  # nothing sticks out
    assert (browser.errors, browser.requests) == ([], [])


def test_the_theme_changes_at_a_click_and_text_stays_readable(browser, latency_page):
    browser.open(latency_page, dark=False)
    browser.wait("document.documentElement.dataset.drawn")
    ink = "getComputedStyle([...document.querySelectorAll('.plot svg text')].find(t => t.textContent === 'Percentiles by stage')).fill"
    light = browser.value(ink)
    browser.value("document.getElementById('theme').click()")
    browser.wait("document.documentElement.dataset.drawn.endsWith('dark')")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(10, 16, 27)"
    assert (light, browser.value(ink)) == ("rgb(15, 23, 42)", "rgb(232, 237, 245)")
    assert browser.errors == []


def test_the_page_itself_refuses_to_fetch(browser, latency_page):
    """The test of the tests: a request would be seen, and is blocked by the page's own policy."""
    browser.open(latency_page)
    assert browser.value("fetch('http://127.0.0.1:9/x').then(() => 'fetched', () => 'refused')") == "refused"
    assert any("Content Security Policy" in line for line in browser.errors)
