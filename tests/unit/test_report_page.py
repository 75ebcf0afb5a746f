"""The page: nothing in it is fetched, nothing that a run holds is believed, and every mark has a colour in both themes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import altair as alt
import nbformat
import pytest
from click.testing import CliRunner

from keystone.bench.__main__ import _write_page, bench_command
from keystone.cli import main
from keystone.errors import UsageError
from keystone.report import charts, notebook, page, quality, quality_charts, theme, words
from keystone.report.runs import load_run
from tests.report_runs import ALERTS, known_alerts, loads_of, rows_of, words_of, write_run

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><script>alert(1)</script><img src=http://example.invalid/x onerror=alert(2)>"
NOTEBOOKS = (notebook.LATENCY, notebook.QOE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(write_run(tmp_path_factory.mktemp("runs") / "one", known_alerts()))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return load_run(write_run(tmp_path_factory.mktemp("runs") / "other", known_alerts(2, 3.0), faults=()))


def executed(*outputs, source="1 + 1", tags=()):
    """A notebook of one cell with these outputs, as nbclient leaves it."""
    shown = [nbformat.v4.new_output("display_data", data=data) for data in outputs]
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# A title\n\n## A part"), nbformat.v4.new_code_cell(source, outputs=shown, metadata={"tags": list(tags)})]
    )


def every_chart(run, other):
    both = [other, run]
    made = [charts.stages(both), charts.distribution(both), charts.percentile_curve(both), charts.change(other, run)]
    for one in both:
        made += [
            charts.latency_over_time(one),
            charts.parts_over_time(one),
            charts.send_delay(one),
            charts.partition_shares(one),
            charts.partition_latency(one),
            charts.heat(one),
        ]
    return [*made, charts.recoveries(run), charts.heat(run, "cdn")]


# --- charts -------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_every_chart_is_one_that_vega_knows_and_small(run, other):
    for chart in every_chart(run, other):
        spec = chart.to_dict()  # checked against the schema of Vega-Lite
        assert spec["width"] == "container"
        assert spec["title"]["text"]
        assert len(json.dumps(spec)) < 400_000


@pytest.mark.slow
def test_charts_name_styles_that_every_theme_has_and_no_colour(run, other):
    for colours in (theme.LIGHT, theme.DARK):
        known = set(theme.config(colours)["style"])
        for chart in every_chart(run, other):
            spec = json.dumps({name: part for name, part in chart.to_dict().items() if name not in ("config", "datasets")})
            assert set(re.findall(r'"style": "([^"]+)"', spec)) <= known
            assert not re.search(r'"#[0-9a-f]{3,8}"', spec)


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return sum(weight * (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4) for weight, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK])
def test_text_and_marks_can_be_read_in_both_themes(colours):
    for text in (colours.ink, colours.muted, colours.promise, colours.fault):
        assert contrast(text, colours.surface) >= 4.5
    for mark in (*colours.runs, *colours.depth[1:]):
        assert contrast(mark, colours.surface) >= 3
    heat = [luminance(colour) for colour in colours.heat]
    assert heat in (sorted(heat), sorted(heat, reverse=True))


@pytest.mark.slow
def test_the_promise_stands_in_the_charts_it_is_about(run):
    for chart in (charts.distribution([run]), charts.percentile_curve([run]), charts.latency_over_time(run), charts.stages([run])):
        assert {"ms": 3_000.0, "words": "3 s promise"} in rows_of(chart.to_dict())


@pytest.mark.slow
def test_a_healthy_run_leaves_room_for_the_promise_and_a_slow_one_for_itself(run, other):
    for one in (run, other):
        low, high = charts.LogRange.of(charts.figures.over_time(one), "p50", "max").scale.to_dict()["domain"]
        assert low > 0
        assert high > max(3_000, one.alerts["end_to_end"].max())


@pytest.mark.parametrize(
    ("ms", "text"), [(None, "-"), (0.04, "0.0 ms"), (18.26, "18.3 ms"), (99.96, "100 ms"), (848.2, "848 ms"),
     (999.7, "1.00 s"), (2_345, "2.35 s"), (13_402, "13.4 s"), (-3.2, "-3.2 ms")]
)  # fmt: skip
def test_durations_have_three_digits(ms, text):
    assert charts.duration(ms) == text


@pytest.mark.slow
def test_a_notebook_program_without_vega_shows_a_picture(run):
    before = alt.renderers.active
    try:
        theme.enable(pictures=True)
        bundle = charts.heat(run)._repr_mimebundle_()
        theme.enable(pictures=False)
        assert "image/svg+xml" not in charts.heat(run)._repr_mimebundle_()
    finally:
        alt.renderers.enable(before)
        alt.theme.enable("default")
    assert bundle[theme.VEGALITE]["config"]["background"] == "#ffffff"
    assert bundle["image/svg+xml"].startswith("<svg")
    assert "p99 by region" in bundle["image/svg+xml"]


# --- words --------------------------------------------------------------------------------------------------------------
def test_the_verdict_says_why_and_the_machine_where(tmp_path):
    run = load_run(write_run(tmp_path / "run", known_alerts(), verdict="fail", reasons=("lag grows by 5 events/s", HOSTILE)))
    shown = words.verdict(run)
    assert "FAIL" in shown.html
    assert "lag grows by 5 events/s" in shown.html
    assert "<script>" not in shown.html
    assert f"{ALERTS:,}" in shown.html
    assert repr(shown) == shown.text
    assert "FAIL  run  99,990 of 100,000 events/s for 20 s" in shown.text
    assert "a processor, 2 cores, 8,000 MiB" in words.machine([run]).text


def test_an_honest_generator_is_told_from_a_late_one(run, tmp_path):
    assert "Yes: 99 %" in words.honesty(run).text
    folder = write_run(tmp_path / "late", known_alerts())
    report = json.loads((folder / "report.json").read_text())
    report["send_delay_ms"]["p99"] = 250.0
    (folder / "report.json").write_text(json.dumps(report))
    assert "No: p99 is 250 ms" in words.honesty(load_run(folder)).text


def test_a_partition_that_has_most_is_named(tmp_path, run):
    assert "evenly; the fullest" in words.skew(run).text
    same = [row | {"device_id": "d-1"} for row in known_alerts()]
    assert "unevenly; the fullest" in words.skew(load_run(write_run(tmp_path / "skewed", same))).text
    assert "4.00 times" in words.skew(load_run(tmp_path / "skewed")).text


def test_faults_are_told_by_the_numbers_in_the_charts(run, other):
    told = words.fault_table(run).text
    assert re.search(r"1 +kill:session-actor +5\.0 s +session-0 +2 +2\.40 s +2\.00 s +5\.0 to 8\.0 s", told)
    assert "no faults were made" in words.fault_table(other).text


# --- the page -----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_nothing_in_a_page_is_fetched_and_the_page_forbids_it(run):
    html = page.to_html(executed({theme.VEGALITE: charts.heat(run).to_dict()}, {"text/html": words.verdict(run).html}))
    assert loads_of(html) == []
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "connect-src" not in policy  # so that the default holds
    for name in ("vegaEmbed", "theme-light", "theme-dark"):
        assert name in html


@pytest.mark.slow
def test_what_a_device_sent_cannot_leave_its_place(tmp_path):
    rows = [row | {"region": HOSTILE} for row in known_alerts()[:50]]
    run = load_run(write_run(tmp_path / "run", rows))
    assert run.alerts["region"].unique().to_list() == [HOSTILE]
    html = page.to_html(executed({theme.VEGALITE: charts.heat(run).to_dict()}, source=f"x = {HOSTILE!r}"))
    assert "<script>alert" not in html
    assert "<img src=http://example" not in html
    opened, closed = len(re.findall(r"<script\b", html)), html.count("</script>")
    assert opened == closed == 5


@pytest.mark.slow
def test_text_code_and_streams_are_shown_as_they_are():
    note = executed({"text/plain": "a < b"}, source="if a < b: pass")
    note.cells[1].outputs.append(nbformat.v4.new_output("stream", text="<b>loud</b>"))
    text = words_of(page.to_html(note))
    assert "A title" in text
    assert "a < b" in text
    assert "if a < b: pass" in text
    assert "<b>loud</b>" in text


@pytest.mark.slow
def test_outputs_stand_side_by_side_where_the_cell_says_so():
    two = ({"text/plain": "1"}, {"text/plain": "2"})
    assert 'class="outputs columns"' in page.to_html(executed(*two, tags=[page.SIDE_BY_SIDE]))
    assert 'class="outputs columns"' not in page.to_html(executed(*two))


@pytest.mark.slow
def test_contents_lead_to_the_parts():
    html = page.to_html(executed())
    assert '<a href="#A-part">A part</a>' in html
    assert '<h2 id="A-part">A part</h2>' in html
    assert "<title>A title · Keystone</title>" in html


def test_an_earlier_page_stays_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "page.html"
    page.write("one", target)
    page.write("two", target)
    assert target.read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        page.write("three", tmp_path / "folder.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "page.html"]


# --- the notebooks as files ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs_and_explains_itself(name):
    stored = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    nbformat.validate(stored)
    assert notebook.find(name) == ROOT / "notebooks" / name
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in code) == 1
    assert all(len(cell.source.splitlines()) <= 9 for cell in code)  # what is longer belongs into keystone/report, where it is tested
    text = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "markdown")
    assert {name.replace("-", " ") for name in re.findall(r"\]\(#([^)]+)\)", text)} <= set(re.findall(r"^## (.+)$", text, re.MULTILINE))
    assert sum(len(cell.source.split()) for cell in stored.cells if cell.cell_type == "markdown") > 200
    assert "PICTURES = True" in next(cell.source for cell in code)
    assert "PICTURES = False" in notebook.read(name, {}).cells[1].source


def test_parameters_take_the_place_of_the_notebooks_own():
    given = notebook.read(notebook.LATENCY, {"RUNS": ["/a 'b'", "/c"]})
    namespace: dict = {}
    exec(given.cells[1].source, namespace)
    assert namespace["RUNS"] == ["/a 'b'", "/c"]


@pytest.mark.slow
def test_an_installed_package_brings_its_notebooks(tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        held.extractall(tmp_path / "installed")
    where = "import keystone.report.notebook as n; print(n.find(n.LATENCY), n.find(n.QOE))"
    answer = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "installed")}, check=True, capture_output=True, text=True
    )
    assert answer.stdout.split() == [str(tmp_path / "installed" / "keystone" / "notebooks" / name) for name in NOTEBOOKS]
    for name in ("page.css", "page.js"):
        assert (tmp_path / "installed" / "keystone" / "report" / name).read_text() == (ROOT / "keystone" / "report" / name).read_text()


# --- commands -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--out", "x.html"], "name the folder of a finished run"),
        (["{empty}", "--out", "x.html"], "holds no report.json"),
        (["{run}", "{empty}", "--out", "x.html"], "holds no report.json"),
        (["{run}", "--out", "{empty}/no/such/x.html"], "there is no such directory"),
        (["{run}", "{run}", "--qoe", "--out", "x.html"], "--qoe takes one folder"),
        (["{run}", "--qoe", "--out", "x.html"], "holds no lake"),
    ],
)
def test_a_persons_mistake_gets_one_line(arguments, line, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["report", *(text.format(empty=tmp_path / "empty", run=run.folder) for text in arguments)])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1
    assert line in said
    assert not (tmp_path / "x.html").exists()


def test_without_its_packages_the_report_says_what_to_install(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(notebook, "NEEDED", ("json", "no_such_package"))
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run.folder), "--out", str(tmp_path / "x.html")])
    assert ended.value.code == 2
    assert "no_such_package" in (said := capsys.readouterr().err)
    assert "keystone[notebooks]" in said


def test_the_bench_says_before_the_run_that_it_cannot_make_the_report(monkeypatch, tmp_path):
    monkeypatch.setattr(notebook, "NEEDED", ("no_such_package",))
    answer = CliRunner().invoke(bench_command, ["--report", "--out", str(tmp_path / "out"), "--seconds", "1"])
    assert answer.exit_code == 2
    assert "no_such_package" in answer.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("verdict", "is_made", "status"), [("pass", True, 0), ("pass", False, 1), ("fail", True, 1), ("fail", False, 1)])
def test_the_bench_makes_the_report_whatever_the_verdict(monkeypatch, tmp_path, verdict, is_made, status):
    """The run and the page are stood in for; both real: tests/faults/test_bench_page.py."""
    made = []

    def make(folders, target):
        made.append((folders, target))
        if not is_made:
            raise UsageError("no room")

    monkeypatch.setattr("keystone.report.making.make_latency_page", make)
    monkeypatch.setattr("keystone.bench.command.run_bench", lambda *_, **__: {"verdict": verdict})
    monkeypatch.setattr("keystone.bench.screen.print_final", lambda report: None)
    answer = CliRunner().invoke(bench_command, ["--report", "--out", str(tmp_path)])
    assert answer.exit_code == status
    assert made == [([tmp_path], tmp_path / "report.html")]
    assert ("no room" in answer.output) is not is_made


def test_a_folder_that_cannot_be_reported_is_told_and_no_more(tmp_path, capsys):
    assert not _write_page(tmp_path)
    assert "no report.html" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    program = "import sys; from keystone.cli import cli; cli(['report', '--help'], standalone_mode=False); print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage" in answer.stdout
    assert not {"altair", "duckdb", "polars", "nbclient", "ray"} & set(answer.stdout.split())


# --- quality ------------------------------------------------------------------------------------------------------------
def event(kind, ts, phase=None):
    return {"event": kind, "ts": ts, "phase": phase}


@pytest.mark.parametrize(
    ("events", "spans"),
    [
        ([event("Start", 0), event("Heartbeat", 900), event("Buffer", 2_000), event("Buffer", 4_000), event("Heartbeat", 5_000), event("Stop", 9_000)],
         [("waiting", 0, 900), ("playing", 900, 2_000), ("stalled", 2_000, 5_000), ("playing", 5_000, 9_000)]),
        ([event("Start", 0), event("Buffer", 100, "startup"), event("Buffer", 300), event("Stop", 1_000)], [("waiting", 0, 300), ("stalled", 300, 1_000)]),
        ([event("Heartbeat", 10), event("Buffer", 50, "seek"), event("Buffer", 60)], [("playing", 10, 60)]),
        ([event("Heartbeat", 10), event("Buffer", 60), event("Error", 90)], [("playing", 10, 60), ("stalled", 60, 90)]),
        ([event("Heartbeat", 10), event("Stop", 60), event("Heartbeat", 900)], [("playing", 10, 60)]),
        ([event("Start", 5)], []),
        ([], []),
    ],
)  # fmt: skip
def test_a_session_is_playing_stalled_or_waiting(events, spans):
    assert quality.spans(events) == spans


def test_only_columns_that_are_known_reach_the_query():
    with pytest.raises(UsageError, match="region"):
        quality.worst(SimpleNamespace(sql=None), "region; drop table x")


def test_charts_of_a_lake_write_numbers_for_people():
    found = dict.fromkeys(("rebuffering", "waited", "startup_ms_p95", "startup_ms_p50", "start_failures", "left_before_start"))
    shown = quality_charts.summary({**found, "events": 1_234, "sessions": 0, "devices": 0})
    assert "events: 1,234" in shown.text
    assert "rebuffering: -" in shown.text
