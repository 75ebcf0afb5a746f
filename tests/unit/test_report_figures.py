"""The tables behind the charts, against the obvious computation."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.errors import UsageError
from keystone.report import figures
from keystone.report.runs import Run, load_run, load_runs, names_of
from tests.report_runs import (
    ALERTS,
    FAULTS,
    PARTITIONS,
    REGIONS,
    SECONDS,
    STAGES,
    START_MS,
    known_alerts,
    partition_by_reference,
    quick_rank,
    rank,
    stage_of,
    write_run,
)

ROWS = known_alerts()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return load_run(write_run(tmp_path_factory.mktemp("runs") / "calm", ROWS))


def windowed(rows, window_s, keep=lambda row: True):
    found: dict[float, list[dict]] = {}
    for row in rows:
        if keep(row):
            found.setdefault(math.floor((row["intended"] - START_MS) / 1_000 / window_s) * window_s, []).append(row)
    return found


# --- reading ------------------------------------------------------------------------------------------------------------
def test_each_alert_has_its_stages_its_place_and_its_partition(run):
    assert run.alerts.height == ALERTS
    for known, row in zip(ROWS, run.alerts.iter_rows(named=True), strict=True):
        assert row["alert_id"] == known["alert_id"]
        assert row["at_s"] == pytest.approx((known["intended"] - START_MS) / 1_000)
        assert row["region"] == known["region"]
        assert row["partition"] == partition_by_reference(known)
        for stage, (begin, end) in STAGES.items():
            assert row[stage] == pytest.approx(known[end] - known[begin])


def test_a_folder_without_a_report_is_refused_in_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=r"holds no report\.json") as refused:
            load_run(folder)
        assert "\n" not in str(refused.value)
        assert str(folder) in str(refused.value)


@pytest.mark.parametrize(("content", "words"), [("{", "not JSON"), ("[]", "not a bench report"), ('{"schema": 99, "verdict": "pass"}', "not a bench report")])
def test_another_file_of_that_name_is_refused(tmp_path, content, words):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UsageError, match=words):
        load_run(tmp_path)


def test_a_file_that_is_no_table_of_latencies_is_refused(tmp_path):
    folder = write_run(tmp_path / "run", ROWS[:10])
    (folder / "latency.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(UsageError, match="latency"):
        load_run(folder)


def test_a_run_that_never_came_to_alerts_has_empty_tables(tmp_path):
    folder = write_run(tmp_path / "run", [], faults=())
    for name in ("latency.parquet", "alerts.ndjson"):
        (folder / name).unlink()
    run = load_run(folder)
    assert run.alerts.is_empty()
    assert run.span_s == SECONDS
    for table in (figures.over_time, figures.parts_over_time, figures.by_dimension, figures.faults, figures.recoveries):
        assert table(run).is_empty()
    assert figures.histogram([run]).is_empty()
    assert figures.tail([run]).is_empty()
    assert figures.percentiles([run])["count"].to_list() == [0] * 6
    assert figures.by_partition(run)["alerts"].to_list() == [0] * PARTITIONS
    assert figures.comparison(run, run)["change"].null_count() == 30


def test_a_last_line_that_was_not_written_to_its_end_costs_a_region_only(tmp_path):
    folder = write_run(tmp_path / "run", ROWS[:50])
    whole = (folder / "alerts.ndjson").read_bytes()
    (folder / "alerts.ndjson").write_bytes(whole[:-30])
    run = load_run(folder)
    assert run.alerts.height == 50
    assert (run.alerts["region"] == "unknown").sum() == 1


def test_an_alert_that_the_truth_does_not_know_is_placed_by_its_append(tmp_path):
    rows = [ROWS[0] | {"intended": None}, ROWS[1]]
    run = load_run(write_run(tmp_path / "run", rows))
    assert run.alerts["end_to_end"].null_count() == 1
    assert run.alerts["at_s"][0] == pytest.approx((rows[0]["appended"] - START_MS) / 1_000)
    assert figures.percentiles([run]).filter(stage="end_to_end")["count"].item() == 1


def test_names_are_as_short_as_they_can_be_told_apart(tmp_path):
    paths = [tmp_path / "a" / "out", tmp_path / "b" / "out", tmp_path / "c", tmp_path / "c"]
    assert names_of(paths) == ["a/out", "b/out", "c (1)", "c (2)"]
    with pytest.raises(UsageError, match="at least one"):
        load_runs([])


# --- figures ------------------------------------------------------------------------------------------------------------
def test_percentiles_of_every_stage(run):
    table = figures.percentiles([run])
    for row in table.iter_rows(named=True):
        values = stage_of(ROWS, row["stage"])
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
            assert row[name] == pytest.approx(quick_rank(values, share))
        assert (row["max"], row["count"], row["negatives"]) == (pytest.approx(max(values)), ALERTS, 0)


@given(st.lists(st.floats(-5, 1e5), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_nearest_rank_is_what_it_says(values, share):
    assert pl.DataFrame({"ms": values}).select(figures.nearest_rank("ms", share)).item() == rank(values, share)


def test_nearest_rank_of_nothing_is_nothing():
    assert pl.DataFrame({"ms": []}, schema={"ms": pl.Float64}).select(figures.nearest_rank("ms", 0.5)).item() is None


def test_a_histogram_holds_every_alert_once_between_its_bounds(run):
    table, values = figures.histogram([run]), stage_of(ROWS, "end_to_end")
    for low, high, alerts in table.select("low_ms", "high_ms", "alerts").iter_rows():
        assert alerts == sum(low <= value < high for value in values)
    assert table["alerts"].sum() == ALERTS
    assert table["share"].sum() == pytest.approx(1)


def test_what_is_below_the_axis_is_counted_at_its_beginning(tmp_path):
    rows = [row | {"visible": row["intended"] - 3} for row in ROWS[:7]]
    table = figures.histogram([load_run(write_run(tmp_path / "run", rows))])
    assert table["alerts"].to_list() == [7]
    assert table["low_ms"].item() <= figures.LEAST_MS


def test_the_stretched_tail_is_the_distribution(run):
    table, values = figures.tail([run]), sorted(stage_of(ROWS, "end_to_end"))
    for share, nines, ms in table.select("share", "nines", "ms").iter_rows():
        assert nines == pytest.approx(-math.log10(1 - share))
        assert share * ALERTS <= sum(value <= ms for value in values) + 1e-6
    assert table["ms"].is_sorted()
    assert table["ms"][-1] == values[-1]
    assert table.height <= figures.TAIL_POINTS + 1


def test_windows_hold_what_was_due_in_them(run):
    table, expected = figures.over_time(run, window_s=0.5), windowed(ROWS, 0.5)
    assert table["at_s"].to_list() == sorted(expected)
    for row in table.iter_rows(named=True):
        values = stage_of(expected[row["at_s"]], "end_to_end")
        assert row["alerts"] == len(values)
        assert (row["p50"], row["p99"], row["max"]) == pytest.approx((quick_rank(values, 0.5), quick_rank(values, 0.99), max(values)))
    inside = table.filter(pl.col("at_s").is_between(5, 7.4))["max"]
    assert inside.min() > table.filter(~pl.col("at_s").is_between(4.5, 8))["max"].max()  # the fault is to be seen


def test_parts_add_up_to_the_mean_end_to_end(run):
    table, expected = figures.parts_over_time(run, window_s=2.0), windowed(ROWS, 2.0)
    sums = table.group_by("at_s").agg(pl.col("ms").sum()).sort("at_s")
    for at_s, ms in sums.iter_rows():
        values = stage_of(expected[at_s], "end_to_end")
        assert ms == pytest.approx(sum(values) / len(values))


def test_partitions_are_those_of_any_kafka_client(run):
    table = figures.by_partition(run)
    assert table["partition"].to_list() == list(range(PARTITIONS))
    for row in table.iter_rows(named=True):
        own = [known for known in ROWS if partition_by_reference(known) == row["partition"]]
        assert (row["alerts"], row["share"], row["fair"]) == (len(own), pytest.approx(len(own) / ALERTS), 1 / PARTITIONS)
        assert row["p99"] == pytest.approx(quick_rank(stage_of(own, "end_to_end"), 0.99))


def test_regions_over_time(run):
    table = figures.by_dimension(run, "region", 5.0)
    assert set(table["value"]) == set(REGIONS)
    for row in table.iter_rows(named=True):
        own = windowed(ROWS, 5.0, lambda known, region=row["value"]: known["region"] == region)[row["at_s"]]
        assert (row["alerts"], row["p99"]) == (len(own), pytest.approx(quick_rank(stage_of(own, "end_to_end"), 0.99)))


def test_only_the_most_frequent_values_have_rows(tmp_path):
    rows = [row | {"region": f"r{number % 40:02d}"} for number, row in enumerate(ROWS[:1_000])] + [row | {"region": "most"} for row in ROWS[1_000:1_100]]
    table = figures.by_dimension(load_run(write_run(tmp_path / "run", sorted(rows, key=lambda row: row["visible"]))), "region")
    assert table["value"].n_unique() == figures.HEAT_VALUES_MAX
    assert "most" in table["value"]


def test_send_delay_is_of_all_events_and_of_those_that_raised_an_alert(run):
    every, own = figures.send_delay(run).iter_rows(named=True)
    assert (every["p99"], every["max"], every["count"]) == (4.0, 60.0, 2_000_000)
    assert own["p99"] == pytest.approx(quick_rank(stage_of(ROWS, "send"), 0.99))


def test_faults_have_numbers_windows_and_their_slowest_recovery(run):
    table = figures.faults(run)
    assert table.select("number", "from_s", "to_s", "slowest_ms").rows() == [(1, 5.0, 8.0, 2_400.0), (2, 12.0, 14.5, 700.0)]
    assert figures.recoveries(run).select("number", "ms").rows() == [(1, 1_900.0), (1, 2_400.0), (2, 700.0)]


def test_a_fault_whose_end_nobody_saw_has_no_recovery(tmp_path):
    run = load_run(write_run(tmp_path / "run", ROWS[:5], faults=({**FAULTS[0], "recovery_ms": [], "lag_back_ms": None},)))
    assert figures.faults(run)["slowest_ms"].to_list() == [None]
    assert figures.recoveries(run).is_empty()


def test_two_runs_are_compared_by_stage_and_percentile(run, tmp_path):
    slower = known_alerts(slower=2.0)
    table = figures.comparison(run, load_run(write_run(tmp_path / "slow", slower)))
    assert table.height == 30
    for row in table.iter_rows(named=True):
        share = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}[row["percentile"]]
        before, after = quick_rank(stage_of(ROWS, row["stage"]), share), quick_rank(stage_of(slower, row["stage"]), share)
        assert (row["before"], row["after"], row["change"]) == pytest.approx((before, after, after / before - 1))


@given(st.floats(0.5, 1e6))
def test_windows_are_few_enough_to_read(seconds):
    window = figures.window_of(seconds)
    assert window in figures.WINDOWS_S
    assert seconds / window <= figures.WINDOWS_MAX or window == figures.WINDOWS_S[-1]
    assert window == figures.WINDOWS_S[0] or seconds / figures.WINDOWS_S[figures.WINDOWS_S.index(window) - 1] > figures.WINDOWS_MAX


def test_the_report_in_the_folder_is_what_was_written(run):
    assert run.report == json.loads((run.folder / "report.json").read_text())
