"""A replayed file's alerts, sessions, dead letters and lake equal the reference's, with any number of partitions or actors."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from keystone.cli import cli
from tests import corpus
from tests.cohorts import assert_told
from tests.dirty import dirty_text
from tests.reference import DIMENSIONS, INTS, parse_json, reference_file
from tests.reference_cohorts import reference_file_cohorts

Rows = list[dict[str, Any]]
ALERT_COLUMNS = (
    "alert_id", "kind", "action", "device_id", "session_id", "event_ts", "seq", "buffers_in_run", "bitrate_kbps", "recommended_bitrate_kbps", *DIMENSIONS,
)  # fmt: skip
LAKE_COLUMNS = (
    "event", "ts", "device_id", "session_id", "phase", "fatal", "reason", "error_code", *INTS, *DIMENSIONS,
    "partition", "offset", "line", "duplicate", "late",
)  # fmt: skip
RESULTS = {"alerts.ndjson", "sessions.parquet", "cohorts.parquet", "dead_letters.ndjson", "summary.json", "lake"}


def replay(out: Path, *arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ["replay", "--out", str(out), *arguments], input=stdin)


def lines_of(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def ordered(rows: Rows, *by: str) -> Rows:
    return sorted(rows, key=lambda row: tuple(str(row[name]) for name in by))


def assert_results(out: Path, text: bytes, partitions: int) -> None:
    expected = reference_file(text, partitions=partitions)
    alerts = [{name: row[name] for name in ALERT_COLUMNS} for row in lines_of(out / "alerts.ndjson")]
    assert ordered(alerts, "alert_id") == ordered([{name: row[name] for name in ALERT_COLUMNS} for row in expected.alerts], "alert_id")
    sessions = pl.read_parquet(out / "sessions.parquet").to_dicts()
    identity = ("device_id", "session_id", "start_ts", "end_ts", "events")
    assert ordered(sessions, *identity) == ordered(expected.sessions, *identity)
    letters = [(row["line"], row["reason"], row["length"], base64.b64decode(row["raw"])) for row in lines_of(out / "dead_letters.ndjson")]
    assert letters == [(row["offset"], row["reason"], row["length"], row["raw"]) for row in expected.dead_letters]
    summary = json.loads((out / "summary.json").read_bytes())
    ledger = expected.ledger() | {"late": sum(row["late"] for row in expected.rows)}
    assert summary["ledger"] == {name: value for name, value in ledger.items() if name != "empty_records"}
    assert (summary["sessions"], summary["alerts"]) == (len(expected.sessions), len(expected.alerts))
    assert_lake(out / "lake", expected.rows)
    assert_told(pl.read_parquet(out / "cohorts.parquet"), reference_file_cohorts(text, partitions=partitions))


def assert_lake(lake: Path, rows: Rows) -> None:
    expected = sorted(rows, key=lambda row: row["offset"])
    found = pl.read_parquet(lake / "**/*.parquet", hive_partitioning=False).sort("offset")
    assert found.height == len(expected)
    assert found.select(LAKE_COLUMNS).to_dicts() == [{name: row[name] for name in LAKE_COLUMNS} for row in expected]
    assert [None if text is None else parse_json(text) for text in found["extra"]] == [row["extra"] for row in expected]
    assert found["append_ts"].null_count() == found.height


@pytest.mark.slow
@pytest.mark.parametrize("partitions", [1, 7])
@pytest.mark.parametrize("seed", range(4))
def test_dirty_files_replay_as_the_reference_does(tmp_path: Path, seed: int, partitions: int) -> None:
    text = dirty_text(seed, 3_000)
    (tmp_path / "events.ndjson").write_bytes(text)
    result = replay(tmp_path / "out", str(tmp_path / "events.ndjson"), "--partitions", str(partitions))
    assert result.exit_code == 0, result.output
    assert_results(tmp_path / "out", text, partitions)


@pytest.mark.slow
def test_oversize_lines_and_every_size_of_the_corpus(tmp_path: Path) -> None:
    text = b"\n".join([*corpus.SIZES, b"x" * 5_000_000, b" " * 9_000_000, corpus.HEAD + b"}"])
    (tmp_path / "events.ndjson").write_bytes(text)
    assert replay(tmp_path / "out", str(tmp_path / "events.ndjson")).exit_code == 0
    assert_results(tmp_path / "out", text, 1)


@pytest.mark.ray
@pytest.mark.parametrize("actors", [1, 2])
def test_actors_give_what_one_process_gives(tmp_path: Path, actors: int) -> None:
    text = dirty_text(11, 4_000)
    (tmp_path / "events.ndjson").write_bytes(text)
    result = replay(tmp_path / "out", str(tmp_path / "events.ndjson"), "--actors", str(actors), "--partitions", "5")
    assert result.exit_code == 0, result.output
    assert_results(tmp_path / "out", text, 5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == RESULTS


@pytest.mark.slow
def test_several_files_packed_and_from_standard_input(tmp_path: Path) -> None:
    """Numbers of lines go on through the files in the order given."""
    parts = [dirty_text(seed, 300).rstrip(b"\r\n") + b"\n" for seed in (21, 22, 23)]
    (tmp_path / "a.ndjson").write_bytes(parts[0])
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(parts[1]))
    command = [sys.executable, "-m", "keystone", "replay", "--out", str(tmp_path / "out"), str(tmp_path / "a.ndjson"), str(tmp_path / "b.ndjson.gz"), "-"]
    done = subprocess.run(command, input=parts[2], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_results(tmp_path / "out", b"".join(parts), 1)


def test_a_replay_replaces_an_earlier_one_but_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_bytes(dirty_text(1, 50))
    out = tmp_path / "out"
    for _ in range(2):
        assert replay(out, str(tmp_path / "events.ndjson")).exit_code == 0
    assert_results(out, dirty_text(1, 50), 1)
    (out / "thesis.tex").write_text("years of work")
    result = replay(out, str(tmp_path / "events.ndjson"))
    assert result.exit_code != 0
    assert "thesis.tex" in str(result.exception)
    assert (out / "alerts.ndjson").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.ndjson"], "no such file"),
        (["."], "is a directory"),
        (["-", "-"], "name it once"),
        (["-", "--set", "detection.loop_treshold=2"], "did you mean detection.loop_threshold?"),
        (["-", "--set", "nonsense"], "NAME=VALUE"),
        (["-", "--config", "no.toml"], "no such configuration file"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = replay(tmp_path / "out", *arguments, stdin=b"")
    assert result.exit_code != 0
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.slow
def test_thresholds_can_be_tried(tmp_path: Path) -> None:
    text = dirty_text(5, 1_500, broken_share=0)
    (tmp_path / "events.ndjson").write_bytes(text)
    settings = ("--set", "detection.loop_threshold=2", "--set", "detection.ladder_kbps=[100,200]")
    assert replay(tmp_path / "out", str(tmp_path / "events.ndjson"), *settings).exit_code == 0
    expected = reference_file(text, loop_threshold=2, ladder_kbps=(100, 200))
    assert sorted(row["alert_id"] for row in lines_of(tmp_path / "out" / "alerts.ndjson")) == sorted(row["alert_id"] for row in expected.alerts)
    assert {row["recommended_bitrate_kbps"] for row in lines_of(tmp_path / "out" / "alerts.ndjson")} <= {100, 200}


def test_what_a_killed_replay_left_is_replaced(tmp_path: Path) -> None:
    """The lake's unfinished files lie beside it, under a name that the next replay knows as its own."""
    (tmp_path / "events.ndjson").write_bytes(dirty_text(1, 50))
    out = tmp_path / "out"
    (out / ".lake.writing").mkdir(parents=True)
    (out / ".lake.writing" / ".p00000-1.tmp").write_bytes(b"torn")
    (out / ".sessions.parquet-7.tmp").write_bytes(b"torn")
    assert replay(out, str(tmp_path / "events.ndjson")).exit_code == 0
    assert {path.name for path in out.iterdir()} == RESULTS
