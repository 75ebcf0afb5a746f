"""``keystone routes``: what is active, what is refused, and a sample that is what a replay of the same file gives."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from keystone.cli import cli, main
from keystone.config import CohortsConfig
from keystone.log.embedded import EmbeddedLog
from keystone.qoe_rows import with_ratios
from keystone.routes_sources import EVENT_SCHEMA, SESSION_COLUMNS, cohort_schema
from keystone.sinks.route_sinks import sinks_of_run
from tests.dirty import dirty_text
from tests.services import runs

VIP = """
[[routes]]
name = "vip"
from = "alerts"
where = "region = 'a' OR region IS NULL"
select = "alert_id, LOWER(kind) AS kind"
sink = "file:{folder}/vip.ndjson"

[[routes]]
name = "short"
from = "dead_letters"
where = "length < 100"
sink = "console"
"""
Tell = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tell:
    """Exit status, lines and errors of ``keystone routes``, with a keystone.toml there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keystone.toml").write_text(VIP.format(folder=tmp_path))

    def told(*words: str) -> tuple[int, list[str], str]:
        with pytest.raises(SystemExit) as ended:
            main(["routes", *words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out.splitlines(), err

    return told


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dirty file, and beside it what a replay makes of it."""
    folder = tmp_path_factory.mktemp("dirty")
    path = folder / "events.ndjson"
    path.write_bytes(dirty_text(7, 3_000))
    assert CliRunner().invoke(cli, ["replay", str(path), "--out", str(folder / "out")]).exit_code == 0
    return path


def sampled(path: Path, name: str, *words: str, toml: str = "") -> list[dict[str, Any]]:
    """Everything that a route would send."""
    config = path.with_name("routes.toml")
    config.write_text(toml)
    asked = ["routes", "sample", name, "--from", str(path), "--rows", "1000000", "--seconds", "300", "--config", str(config), *words]
    result = CliRunner().invoke(cli, asked)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- check and explain ---------------------------------------------------------------------------------------------


def test_check_says_what_is_active_with_these_options(tell: Tell, tmp_path: Path) -> None:
    status, lines, _ = tell("check")
    assert status == 0
    assert lines[:3] == [
        f"active    vip: alerts -> file:{tmp_path}/vip.ndjson",
        "active    short: dead_letters -> console",
        "active    actions: alerts -> actions (by default)",
    ]
    assert "inactive  lake-events: events -> lake: add --lake DIR or run.lake, or leave the route out" in lines
    status, lines, _ = tell("check", "--lake", "x", "--elastic", "http://127.0.0.1", "--actions", "none", "--log", "kafka://127.0.0.1/t")
    assert [line.split()[1] for line in lines if line.startswith("inactive")] == ["actions:"]
    assert tell("check", "--set", "run.lake=x")[1][-1] == "inactive  dashboards-cohorts: cohorts -> elastic: add --elastic URL, or leave the route out"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("check", "--config", "wrong.toml"), 'wrong.toml: routes[0] "x" where, column 1: there is no column "regoin": did you mean "region"?'),
        (("check", "--set", 'routes=[{"name": "x", "from": "alerts", "sink": "elastic"}]'), 'command line: routes[0] "x" sink: this run has no elastic'),
        (("explain", "vap"), "there is no route 'vap': did you mean vip?"),
        (("sample", "vip"), "name a file of events by --from FILE, or a log by --log URL: one of both"),
        (("sample", "vip", "--from", "a", "--log", "embedded:b"), "name a file of events by --from FILE, or a log by --log URL: one of both"),
        (("sample", "nothing", "--from", "a"), "there is no route 'nothing': choose among vip, short, dashboards-alerts"),
        (("sample", "vip", "--from", "no.ndjson"), "no.ndjson: no such file"),
        (("sample", "vip", "--log", "embedded:no"), "no"),
        (("sample", "vip", "--log", "nats:x"), "neither embedded: nor kafka://"),
        (("sample", "dashboards-cohorts", "--from", "a", "--set", "cohorts.enabled=false"), "there are no cohorts to sample"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tell: Tell, tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    (tmp_path / "wrong.toml").write_text('[[routes]]\nname = "x"\nfrom = "alerts"\nwhere = "regoin = 1"\nsink = "none"\n')
    status, lines, errors = tell(*words)
    assert (status, lines) == (2, [])
    told = [text for text in errors.splitlines() if text.startswith("keystone: ")]
    assert len(told) == 1
    assert line in told[0]


def test_explain_shows_columns_state_and_plan(tell: Tell) -> None:
    status, lines, _ = tell("explain", "vip")
    assert status == 0
    assert lines[:7] == [
        "vip",
        "  from     alerts",
        "  where    region = 'a' OR region IS NULL",
        "  select   alert_id, LOWER(kind) AS kind",
        lines[4],
        "  state    active",
        "  columns  alert_id String, kind String",
    ]
    assert lines[4].startswith("  sink     file:/")
    assert any("to_lowercase" in line for line in lines[7:])
    assert any("FILTER" in line for line in lines[7:])
    status, lines, _ = tell("explain")
    assert "  state    inactive: add --elastic URL, or leave the route out" in lines
    assert len([line for line in lines if not line.startswith(" ")]) == 10


def test_which_sinks_a_run_has_is_known_by_its_options() -> None:
    none = {"log": None, "lake": None, "elastic": None, "actions": None, "dead_letters": None}
    assert sinks_of_run(**none) == {"actions"}
    assert sinks_of_run(**none | {"log": "kafka://a/t", "actions": "none"}) == {"dead_letters"}
    assert sinks_of_run(**none | {"lake": "x", "dead_letters": "none"}) == {"actions", "lake"}
    assert sinks_of_run(**none | {"elastic": "http://a", "dead_letters": "x"}) == {"actions", "elastic", "dead_letters"}


# --- samples of a file ---------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def counted(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(json.dumps(row, sort_keys=True) for row in rows)


@pytest.mark.slow
def test_alerts_and_dead_letters_are_those_of_a_replay(dirty: Path) -> None:
    out = dirty.with_name("out")
    found = sampled(dirty, "dashboards-alerts")
    known = lines_of(out / "alerts.ndjson")
    assert len(known) > 10
    assert counted([{name: row[name] for name in known[0]} for row in found]) == counted(known)
    found, known = sampled(dirty, "dead-letters"), lines_of(out / "dead_letters.ndjson")
    assert len(known) > 100
    assert counted([{name: row[name] for name in ("partition", "offset", "reason", "length", "raw")} for row in found]) == counted(
        [{name: row[name] for name in ("partition", "offset", "reason", "length", "raw")} for row in known]
    )


@pytest.mark.slow
def test_sessions_events_and_cohorts_are_those_of_a_replay(dirty: Path) -> None:
    out = dirty.with_name("out")
    known = pl.read_parquet(out / "sessions.parquet").cast(SESSION_COLUMNS)  # type: ignore[arg-type]
    assert_same(pl.DataFrame(sampled(dirty, "dashboards-sessions"), schema=SESSION_COLUMNS), known)
    events = pl.read_parquet(out / "lake" / "**" / "*.parquet", hive_partitioning=False)
    assert_same(pl.DataFrame(sampled(dirty, "lake-events"), schema=EVENT_SCHEMA), events.select(list(EVENT_SCHEMA)).cast(EVENT_SCHEMA))  # type: ignore[arg-type]
    schema = cohort_schema(CohortsConfig().dimensions)
    cohorts = with_ratios(pl.read_parquet(out / "cohorts.parquet")).with_columns(revision=pl.lit(0, pl.Int64)).select(list(schema)).cast(schema)  # type: ignore[arg-type]
    assert_same(pl.DataFrame(sampled(dirty, "dashboards-cohorts"), schema=schema), cohorts)


def assert_same(found: pl.DataFrame, known: pl.DataFrame) -> None:
    assert known.height > 50
    assert found.sort(found.columns).equals(known.sort(found.columns), null_equal=True)


@pytest.mark.slow
def test_where_and_select_are_those_of_the_route(dirty: Path) -> None:
    toml = VIP.format(folder=dirty.parent)
    everything = sampled(dirty, "dashboards-alerts", toml=toml)
    expected = [{"alert_id": row["alert_id"], "kind": row["kind"].lower()} for row in everything if row["region"] in ("a", None)]
    assert 0 < len(expected) < len(everything)
    assert sampled(dirty, "vip", toml=toml) == expected


@pytest.mark.slow
def test_a_sample_ends_with_its_rows_or_its_time(dirty: Path, tell: Tell, tmp_path: Path) -> None:
    status, lines, errors = tell("sample", "lake-events", "--from", str(dirty), "--rows", "3")
    assert (status, len(lines)) == (0, 3)
    assert errors.splitlines()[-1].endswith("3 shown")
    large = tmp_path / "large.ndjson"
    large.write_bytes((dirty.read_bytes() + b"\n") * 40)
    status, lines, errors = tell("sample", "short", "--from", str(large), "--rows", "1000000", "--seconds", "0.1")
    assert status == 0
    assert "events read in" in errors


@pytest.mark.slow
def test_standard_input_is_a_file_and_a_reader_may_go_away(dirty: Path) -> None:
    command = f"{sys.executable} -m keystone routes sample lake-events --from - --rows 1000000 < {dirty} | head -n 2"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert len(ended.stdout.splitlines()) == 2
    assert "Traceback" not in ended.stderr


# --- samples of a log ----------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path):
    with closing(EmbeddedLog.create(tmp_path / "log", partitions=2, segment_bytes=4 << 20, retention_bytes=64 << 20)) as made:
        yield made


def places(log: EmbeddedLog) -> list[Any]:
    return [log.stats(partition) for partition in range(log.partitions)]


@pytest.mark.slow
def test_a_log_is_read_from_its_last_minute_and_nobody_notices(log: EmbeddedLog, tell: Tell, tmp_path: Path) -> None:
    writers = [log.writer(partition) for partition in range(2)]
    for partition, value in runs.frames(dirty_text(7, 2_000), 2, lines=(1, 7, 20)):
        writers[partition].append(value)
    before = places(log)
    status, lines, errors = tell("sample", "lake-events", "--log", f"embedded:{tmp_path / 'log'}", "--rows", "5", "--seconds", "60")
    assert (status, len(lines)) == (0, 5), errors
    assert all(json.loads(line)["append_ts"] > 0 for line in lines)
    assert {json.loads(line)["partition"] for line in lines} <= {0, 1}
    assert places(log) == before, "nothing was committed or reported"


@pytest.mark.slow
def test_what_is_appended_while_a_sample_reads_is_in_it_and_so_is_what_is_due_by_the_clock(log: EmbeddedLog, tell: Tell, tmp_path: Path) -> None:
    """A stall without a further event: only log time that passes raises its alert."""
    writer = log.writer(0)
    now = int(time.time() * 1_000)
    events = [{"event": kind, "ts": now + k, "device_id": "d", "session_id": "s", "seq": k} for k, kind in enumerate(("Start", "Heartbeat", "Buffer"))]

    def append() -> None:
        time.sleep(0.3)
        writer.append("\n".join(map(json.dumps, events)).encode())

    late = threading.Thread(target=append)
    late.start()
    status, lines, errors = tell(
        "sample", "vip", "--log", f"embedded:{tmp_path / 'log'}", "--rows", "1", "--seconds", "60", "--set", "detection.open_stall_ms=500"
    )
    late.join()
    assert status == 0, errors
    assert [json.loads(line)["kind"] for line in lines] == ["open_stall"]


@pytest.mark.slow
def test_cohorts_of_a_log_come_at_the_end(log: EmbeddedLog, tell: Tell, tmp_path: Path) -> None:
    writers = [log.writer(partition) for partition in range(2)]
    for partition, value in runs.frames(dirty_text(7, 500), 2, lines=(20,)):
        writers[partition].append(value)
    status, lines, errors = tell("sample", "dashboards-cohorts", "--log", f"embedded:{tmp_path / 'log'}", "--rows", "100000", "--seconds", "1")
    assert status == 0, errors
    rows = [json.loads(line) for line in lines]
    everyone = [
        row
        for row in rows
        if row["window_ms"] == 60_000 and all(row[name] is None for name in ("region", "device_type", "cdn", "isp", "app_version", "country"))
    ]
    assert sum(row["events"] for row in everyone) > 200
