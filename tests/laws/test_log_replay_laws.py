"""A log's records again give what the live run gave: alerts, sessions, rows; and where they do not, the difference is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import polars as pl
import pytest
from click.testing import CliRunner, Result

from keystone.cli import cli
from tests.cohorts import assert_told
from tests.lakes import rows_of
from tests.reference_cohorts import reference_log_cohorts
from tests.services import runs
from tests.stories import IDLE_MS, PARTITIONS, Story

QUICK = runs.settings({"session.grace_ms": 600, "detection.open_stall_ms": 1_000})
RULES = {"grace_ms": 600, "open_stall_ms": 1_000}
PLACES = ["partition", "offset", "line"]


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told = Story(tmp_path)
    yield told
    told.log.close()


def replay(story: Story, *words: str, out: str = "again", settings: tuple[str, ...] = ()) -> Result:
    log = f"embedded:{story.folder / 'log'}"
    return CliRunner().invoke(cli, ["replay", "--log", log, "--out", str(story.folder / out), *words, *QUICK, *settings])


def summary(story: Story, out: str = "again") -> dict[str, object]:
    found: dict[str, object] = orjson.loads((story.folder / out / "summary.json").read_bytes())
    return found


def live(story: Story, *pauses_s: float) -> list[int]:
    """A run over parts with pauses between them; the moments of the pauses, ms."""
    actor, moments = story.begin(), []
    for seed, pause_s in enumerate((*pauses_s, 0.0)):
        story.write(seed)
        time.sleep(pause_s / 2)
        moments.append(int(time.time() * 1_000))
        time.sleep(pause_s / 2)
    story.end(actor, idle_ms=IDLE_MS)
    story.commit()
    return moments


@pytest.mark.slow
def test_the_whole_log_gives_what_the_live_run_gave(story: Story) -> None:
    live(story, 0.6)
    lake, again = story.folder / "lake", story.folder / "again"
    result = replay(story, "--against", str(lake))
    assert result.exit_code == 0, result.output
    alerts, sessions = rows_of(lake, "alerts"), rows_of(lake, "sessions")
    assert summary(story)["against"] == {"same": alerts.height, "began_before": 0, "only_live": 0, "only_replay": 0}
    assert alerts.height > 5
    assert pl.read_parquet(again / "alerts.parquet").sort("partition", "alert_id").equals(alerts.sort("partition", "alert_id"))
    columns = ["device_id", "session_id", "start_ts", "events"]
    written = pl.read_parquet(again / "sessions.parquet").select(sessions.columns)
    assert written.sort(columns).to_dicts() == sessions.sort(columns).to_dicts()
    events, places = rows_of(lake), pl.read_parquet(again / "lake" / "**" / "*.parquet", hive_partitioning=True)
    assert places.select(PLACES).sort(PLACES).to_dicts() == events.select(PLACES).sort(PLACES).to_dicts()


@pytest.mark.ray
@pytest.mark.slow
def test_processes_share_the_partitions(story: Story) -> None:
    live(story)
    result = replay(story, "--against", str(story.folder / "lake"), "--actors", "2")
    assert result.exit_code == 0, result.output
    assert summary(story)["actors"] == 2


def written(story: Story) -> int:
    """Three parts over some seconds of log time; the moment before the last."""
    for seed in range(3):
        story.write(seed, events=400)
        moment = int(time.time() * 1_000) + 450
        time.sleep(0.9)
    return moment - 900


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), pytest.param(("--actors", "2"), marks=pytest.mark.ray)], ids=["alone", "two actors"])
def test_cohorts_of_a_log_are_the_references(story: Story, words: tuple[str, ...]) -> None:
    written(story)
    result = replay(story, *words)
    assert result.exit_code == 0, result.output
    table = pl.read_parquet(story.folder / "again" / "cohorts.parquet")
    assert_told(table, reference_log_cohorts(story.records, **RULES))
    assert table["concurrent_plays"].max() > 1
    assert table["window_start_ms"].n_unique() > 2


@pytest.mark.slow
def test_cohorts_of_a_range_are_the_references(story: Story) -> None:
    until = written(story)
    assert replay(story, "--to", str(until)).exit_code == 0
    within = {partition: [record for record in records if record.append_ts < until] for partition, records in story.records.items()}
    assert 0 < sum(map(len, within.values())) < sum(map(len, story.records.values()))
    expected = reference_log_cohorts(within, end_log_time=until - 1, **RULES)
    assert_told(pl.read_parquet(story.folder / "again" / "cohorts.parquet"), expected)


@pytest.mark.slow
def test_what_the_lake_does_not_have_yet_is_not_compared(story: Story) -> None:
    live(story)
    story.write(5)
    result = replay(story, "--against", str(story.folder / "lake"))
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_other_rules_are_told_as_differences(story: Story) -> None:
    live(story)
    result = replay(story, "--against", str(story.folder / "lake"), settings=("--set", "detection.loop_threshold=2"))
    found = summary(story)["against"]
    assert result.exit_code == 1
    assert isinstance(found, dict)
    assert found["only_replay"] > 0
    rows = [orjson.loads(line) for line in (story.folder / "again" / "alerts_diff.ndjson").read_bytes().splitlines()]
    assert [row["side"] for row in rows].count("replay") == found["only_replay"]
    assert [row["side"] for row in rows].count("live") == found["only_live"]


@pytest.mark.slow
def test_a_range_gives_its_own_records_and_alerts(story: Story) -> None:
    first, _ = live(story, 0.8)
    lake = story.folder / "lake"
    assert replay(story, "--to", str(first), out="before").exit_code == 0
    replay(story, "--from", str(first), "--against", str(lake), out="after")
    places = [pl.read_parquet(story.folder / out / "lake" / "**" / "*.parquet", hive_partitioning=True).select(PLACES) for out in ("before", "after")]
    assert all(part.height > 0 for part in places)
    assert pl.concat(places).sort(PLACES).to_dicts() == rows_of(lake).select(PLACES).sort(PLACES).to_dicts()
    found = summary(story, "after")["against"]
    assert isinstance(found, dict)
    within = rows_of(lake, "alerts").filter(pl.col("append_ts_ms") >= first).height
    assert found["same"] + found["began_before"] + found["only_live"] == within > 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--from", "2031-01-01"), "no record lies between --from 2031-01-01"),
        (("--from", "2000", "--to", "1000"), "--from 2000 is not before --to 1000"),
        (("--from", "soon"), "--from soon: write earliest, or a time"),
        (("--to", "later"), "--to later: write latest, or a time"),
        (("--partitions", "2"), "--partitions is for files"),
        (("--against", "nowhere"), "nowhere"),
        (("events.ndjson",), "one of both"),
    ],
)
def test_what_must_be_changed_is_said_in_a_line(story: Story, words: tuple[str, ...], line: str) -> None:
    story.write(0)
    result = replay(story, *words)
    assert line in str(result.exception or result.output)
    assert result.exit_code != 0


@pytest.mark.slow
def test_offsets_stay_where_the_live_run_left_them(story: Story) -> None:
    live(story)
    before = [story.log.stats(p) for p in range(PARTITIONS)]
    assert replay(story).exit_code == 0
    assert [story.log.stats(p) for p in range(PARTITIONS)] == before
