"""Cohorts: how they are numbered, the sketch's error, ratios, limits with `other`, what is forgotten, what memory may be."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.config import CohortsConfig, Config, load
from keystone.decode import Decoder
from keystone.errors import CheckpointDamaged, UsageError
from keystone.events import CODED_DIMENSIONS, FIRST_DIMENSION, Records
from keystone.kernels import cohorts as kernel
from keystone.kernels.compiler import kernel as compiled
from keystone.pipeline import PartitionPipeline
from keystone.qoe import COLUMNS, SKETCH_ERROR, Layout, bin_values
from keystone.qoe_rows import told_schema, with_ratios
from keystone.session_snapshot import packed
from tests.batches import event
from tests.cohorts import assert_told, by_key, told_of
from tests.laws.test_cohort_laws import CohortRun, expected_of
from tests.reference_cohorts import DIMENSIONS, SUMS

NOW = 1_700_000_000_000
Events = list[tuple[dict[str, Any], int]]


@compiled
def _bins(values, found):
    for i in range(values.size):
        found[i] = kernel.bin_of(values[i])


# --- the sketch -------------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 2**53) | st.integers(0, 300) | st.integers(0, 53).map(lambda n: 2**n) | st.integers(1, 53).map(lambda n: 2**n - 1), min_size=1))
def test_a_bin_stands_for_its_values_within_the_stated_error(values: list[int]) -> None:
    numbers = np.array(sorted(values), np.int64)
    bins = np.zeros_like(numbers)
    _bins(numbers, bins)
    assert (np.diff(bins) >= 0).all()
    for value, found in zip(numbers.tolist(), bin_values(bins).tolist(), strict=True):
        assert abs(found - value) <= value * SKETCH_ERROR
        assert value >= 128 or found == value


def test_every_bin_has_one_value_and_no_number_is_left_out() -> None:
    values = np.concatenate([np.arange(5000), *(np.arange(2**n - 3, 2**n + 3) for n in range(13, 54))])
    bins = np.zeros_like(values)
    _bins(values, bins)
    assert bins[0] == 0
    assert set(np.unique(bins[:5000]).tolist()) == set(range(int(bins[4999]) + 1))
    middles = bin_values(bins)
    again = np.zeros_like(values)
    _bins(middles, again)
    assert (again == bins).all()


# --- numbering --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config",
    [
        CohortsConfig(values_max=3, pair_values_max=2),
        CohortsConfig(dimensions=("cdn",), pairs=()),
        CohortsConfig(dimensions=("cdn", "isp"), pairs=(("isp", "cdn"),), values_max=2),
    ],
)
def test_cohorts_have_numbers_of_their_own(config: CohortsConfig) -> None:
    laid = Layout(config)
    names = [laid.numbers_of(cohort) for cohort in range(laid.cohorts)]
    assert len(set(names)) == laid.cohorts


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"cohorts.dimensions": '["region"]'}, "cohorts.pairs has cdn, which is not in cohorts.dimensions"),
        ({"cohorts.pairs": '[["cdn","cdn"]]'}, "pairs of two dimensions"),
        ({"cohorts.dimensions": "[]"}, "at least one dimension"),
        ({"cohorts.values_max": "0"}, "cohorts.values_max = '0' must be"),
    ],
)
def test_settings_that_make_no_sense_are_told_in_a_line(flags: dict[str, object], line: str) -> None:
    with pytest.raises(UsageError, match=line) as caught:
        load(env={}, flags=flags)
    assert "\n" not in str(caught.value)


def test_a_dimension_that_events_do_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="planet is none of title_id, region"):
        Layout(CohortsConfig(dimensions=("planet",), pairs=()))


def test_columns_are_those_of_the_specification_and_two_quantiles() -> None:
    assert [name for name in COLUMNS if not name.startswith("startup_ms_p")] == [*SUMS, "concurrent_plays"]
    assert list(told_schema(DIMENSIONS)) == ["window_start_ms", "window_ms", *DIMENSIONS, *COLUMNS]


def test_ratios_are_of_sums_and_null_where_nothing_is_below_the_line() -> None:
    rows = pl.DataFrame({"stall_ms": [1, 0], "played_ms": [3, 0], "ebvs": [1, 0], "vsf": [1, 0], "vpf": [2, 0], "attempts": [4, 0], "ended": [6, 0]})
    found = with_ratios(rows).to_dicts()
    assert {name: found[0][name] for name in found[0] if name.endswith("ratio")} == {
        "rebuffering_ratio": 0.25, "ebvs_ratio": 0.25, "vsf_ratio": 0.25, "vpf_ratio": 0.5,
    }  # fmt: skip
    assert {found[1][name] for name in found[1] if name.endswith("ratio")} == {None}


# --- limits -----------------------------------------------------------------------------------------------------------
def crowd(seed: int, sessions: int, values: int, *, spread_ms: int = 150_000) -> Events:
    """Many values of each dimension, for some minutes."""
    rng = random.Random(seed)
    events = []
    for number in range(sessions):
        mine = {name: rng.choice([None, *(f"{name} {rng.randrange(values)}" for _ in range(9))]) for name in DIMENSIONS}
        times = sorted(NOW + rng.randrange(spread_ms) for _ in range(6))
        for kind, time in zip(["Start", "Heartbeat", "Buffer", rng.choice(["Heartbeat", "Error"]), "Heartbeat", "Stop"], times, strict=True):
            events.append((event(kind, time - 7, session_id=str(number), bitrate_kbps=rng.choice([None, 900, 2**53]), **mine), time))
    return sorted(events, key=lambda pair: pair[1])


def assert_sums_are_true(table: pl.DataFrame, config: CohortsConfig) -> None:
    """In each window the values of a dimension, or the pairs, add up to all sessions."""
    every = by_key(table, config.dimensions)
    nobody = (None,) * len(config.dimensions)
    groups: dict[Any, dict[str, int]] = {}
    for (start, size, key), row in every.items():
        told = tuple(value is not None for value in key)
        total = groups.setdefault((start, size, told), dict.fromkeys(SUMS, 0))
        for name in SUMS:
            total[name] = min(total[name] + row[name], 2**63 - 1)
    for (start, size, _), total in groups.items():
        assert total == {name: every[start, size, nobody][name] for name in SUMS}


def run_of(events: Events, config: CohortsConfig, cuts: int, *, moves: bool = False, **options: Any) -> CohortRun:
    run = CohortRun(cohorts=config, **options)
    for number, first in enumerate(range(0, len(events), cuts)):
        run.apply(events[first : first + cuts])
        if run.has_log_time and number % 3 == 1:
            run.advance(events[first : first + cuts][-1][1])
        if moves:
            run = run.move(number % 7, is_packed=number % 2 == 0)  # type: ignore[assignment]
    return run


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{"values_max": 5}, {"values_max": 40, "pair_values_max": 3}, {"combinations_max": 1024, "values_max": 200}])
def test_beyond_the_limits_is_other_whatever_the_batches(limits: dict[str, int]) -> None:
    events, config = crowd(4, 2_500, 300), CohortsConfig(**limits)
    tables = []
    for cuts, moves in ((10**6, False), (997, False), (3_333, True)):
        run = run_of(events, config, cuts, moves=moves)
        run.advance(NOW + 10**6)
        tables.append(by_key(told_of(run.end())))
    assert tables[0] == tables[1] == tables[2]
    table = told_of(run.partials)
    assert_sums_are_true(table, config)
    for name in DIMENSIONS:
        told = table.filter(pl.all_horizontal(pl.col(other).is_null() for other in DIMENSIONS if other != name), pl.col(name).is_not_null())
        assert table.filter(pl.col(name) == "other").height > 0
        assert told.filter(pl.col("window_ms") == 1_000).group_by("window_start_ms").len()["len"].max() <= config.values_max + 2
    assert run.table.cohort_overflows > 0


def test_values_that_nobody_has_any_more_make_room() -> None:
    """A minute after the sessions of the old values are closed, new ones are told apart."""
    config = CohortsConfig(values_max=2)
    run = CohortRun(cohorts=config)
    for minute in range(4):
        at = NOW + minute * 180_000
        run.apply([(event("Start", 1, session_id=f"{minute} {i}", cdn=f"cdn {minute} {i}"), at + i) for i in range(3)])
        run.advance(at + 120_000)
    cdns = {row["cdn"] for row in told_of(run.end()).to_dicts() if row["cdn"] is not None and row["region"] is None}
    assert cdns == {"other", *(f"cdn {minute} {i}" for minute in range(4) for i in range(2))}


def test_a_plain_file_tells_the_first_values_of_the_file_apart_whoever_has_them() -> None:
    events = [(event("Start", NOW + i, device_id=f"d{i}", cdn=f"cdn {i}"), 0) for i in range(40)]
    decoder = Decoder(seed=3)
    found = []
    for partitions in (1, 3):
        told = []
        for number in range(partitions):
            pipeline = PartitionPipeline(number, decoder, Config(cohorts=CohortsConfig(values_max=10)), has_log_time=False)
            pipeline.sessions.anchor(NOW)
            text = [b'{"event":"Start","ts":%d,"device_id":"d%d","session_id":"s","cdn":"cdn %d"}' % (item["ts"], i, i) for i, (item, _) in enumerate(events)]
            mine = [line for i, line in enumerate(text) if i % partitions == number]
            for line in text:  # every process decodes every line
                list(decoder.decode(Records.of([line])))
            told += pipeline.step(Records.of(mine)).cohorts + pipeline.finish().cohorts
        found.append(by_key(told_of(told)))
    assert found[0] == found[1]
    cdns = {key[2][2] for key in found[0] if key[2][2] is not None}
    assert cdns == {"other", *(f"cdn {i}" for i in range(10))}


@pytest.mark.slow
# --- memory -----------------------------------------------------------------------------------------------------------
def test_growth_of_everything_loses_nothing() -> None:
    """More rows, side rows, combinations and startups than there is room for at first."""
    events: Events = []
    for number in range(9_000):
        mine = {"cdn": f"c{number % 60}", "isp": f"i{number % 71}", "region": f"r{number % 7}"}
        events.append((event("Start", NOW, session_id=str(number), **mine), NOW + 10))
        events.append((event("Heartbeat", NOW + number, session_id=str(number), bitrate_kbps=10**6, **mine), NOW + 400))
        if number % 3 == 0:
            events.append((event("Buffer", NOW + number + 5, session_id=str(number), **mine), NOW + 500))
    events.sort(key=lambda pair: pair[1])
    run = run_of(events, CohortsConfig(), 4_000)
    run.advance(NOW + 5_000)
    assert_told(told_of(run.end()), expected_of(events, end=NOW + 5_000))


@pytest.mark.slow
def test_a_file_larger_than_memory_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystone.cohort_state.FILE_FACTS", 128)
    monkeypatch.setattr("keystone.cohort_state.ROWS_HELD_MAX", 500)
    monkeypatch.setattr("keystone.cohort_state.EXPANDED_MAX", 100)
    events = crowd(5, 300, 10)
    run = run_of(events, CohortsConfig(), 700, has_log_time=False)
    assert len(run.partials) > 3
    run.close_all()
    assert_told(told_of(run.partials), expected_of(events, end=None, has_log_time=False))


def test_broken_clocks_are_held_within_a_month_of_a_file() -> None:
    moments = [NOW, 0, 2**53 - 1, NOW + 30 * 86_400_000 + 1, NOW - 30 * 86_400_000 - 1]
    events = [(event("Start", ts, session_id=str(i)), 0) for i, ts in enumerate(moments)]
    run = CohortRun(has_log_time=False)
    run.apply(events)
    run.close_all()
    table = told_of(run.partials)
    assert_told(table, expected_of(events, end=None, has_log_time=False))
    assert table["window_start_ms"].max() <= NOW + 30 * 86_400_000
    assert table["window_start_ms"].min() >= NOW - 30 * 86_400_000 - 60_000


def test_sums_stay_at_the_limits_of_64_bits() -> None:
    events = [(event("Start", 0, session_id="s"), NOW)]
    events += [(event("Heartbeat", 2**53 - 1, session_id="s", bitrate_kbps=2**53), NOW + 1) for _ in range(1_100)]
    events += [(event("Heartbeat", 5, session_id="t", bitrate_kbps=2**53, cdn="c"), NOW + 2)]
    run = run_of(events, CohortsConfig(), 300)
    table = told_of(run.end())
    assert table["bitrate_kbps_sum"].max() == 2**63 - 1
    assert_told(table, expected_of(events, end=NOW + 2))


# --- codes and checkpoints --------------------------------------------------------------------------------------------
def pipeline_of(decoder: Decoder, config: Config | None = None) -> PartitionPipeline:
    return PartitionPipeline(0, decoder, config or Config())


def lines(first: int, count: int, *, cdn: str = "cdn %d", ts: int = NOW) -> list[bytes | None]:
    return [b'{"event":"Heartbeat","ts":%d,"device_id":"d%d","session_id":"s","cdn":"%s"}' % (ts, i, (cdn % i).encode()) for i in range(first, first + count)]


def test_dictionaries_may_be_renumbered_in_the_midst_of_a_window() -> None:
    """Values stay what they were, though their codes are others and strings that nobody holds are gone."""
    decoders = Decoder(seed=1), Decoder(seed=1)
    pipelines = [pipeline_of(decoder) for decoder in decoders]
    told: list[list[Any]] = [[], []]
    for turn in range(6):
        for k, (decoder, pipeline) in enumerate(zip(decoders, pipelines, strict=True)):
            told[k] += pipeline.step(Records.of(lines(turn * 20, 30), append_ts_ms=NOW + turn * 400)).cohorts
            list(decoder.decode(Records.of(lines(10_000 + turn, 1, cdn="nobody's %d"))))  # another partition's
            if k:
                decoder.compact_dictionaries()
    for k, pipeline in enumerate(pipelines):
        told[k] += pipeline.end_range().cohorts
    assert by_key(told_of(told[0])) == by_key(told_of(told[1]))
    assert decoders[1].compactions == 6
    assert "cdn 3" in {key[2][2] for key in by_key(told_of(told[1]))}


@pytest.mark.parametrize("before", [None, CohortsConfig(enabled=False), CohortsConfig(dimensions=("os", "cdn"), pairs=()), CohortsConfig(values_max=7)])
def test_a_snapshot_without_these_cohorts_is_gone_on_with(before: CohortsConfig | None) -> None:
    """Sessions are of the cohorts of their dimensions last seen, and what plays is counted from the start."""
    events = [(event("Start", 0, session_id="s", seq=0, cdn="c"), NOW), (event("Heartbeat", 9, session_id="s", seq=1), NOW + 1)]
    events += [(event("Heartbeat", 4, session_id="s", seq=2), NOW + 2), (event("Start", 1, session_id="t", cdn="d"), NOW + 3)]
    old: Any = CohortRun(cohorts=before)
    old.apply(events)
    old.cohorts_config = CohortsConfig()
    new = old.move(9)
    new.partials.clear()
    new.apply([(event("Heartbeat", 12, session_id="s", seq=3), NOW + 2_000)])
    found = by_key(told_of(new.end()))
    second = (NOW // 1000 * 1000 + 2000, 1000)
    told = {
        key[2][2]: (row["events"], row["concurrent_plays"], row["played_ms"]) for key, row in found.items() if key[:2] == second and key[2].count(None) == 5
    }
    assert told["c"] == (1, 1, 3)  # since its end_ts: the previous event is not known
    assert found[NOW // 1000 * 1000, 1000, (None,) * 6]["concurrent_plays"] == 1


@pytest.mark.parametrize(
    "name", ["cohort_rows", "cohort_state", "cohort_keys", "cohort_values", "cohort_counts", "cohort_facts", "cohort_starts", "cohort_rules"]
)
def test_cohorts_that_do_not_fit_together_are_refused(name: str) -> None:
    run = CohortRun()
    run.apply([(event(kind, 1 + k, session_id=str(i), cdn="ab"[i % 2]), NOW) for i in range(10) for k, kind in enumerate(("Start", "Heartbeat"))])
    arrays = run.table.snapshot()
    wrongs = [arrays[name][:-1], arrays[name].astype(np.float64), *([arrays[name] + 1_000] if name in {"cohort_rows", "cohort_keys", "cohort_counts"} else [])]
    for wrong in wrongs:
        with pytest.raises(CheckpointDamaged):
            CohortRun().table.restore(arrays | {name: wrong})
    CohortRun().table.restore(packed(arrays))


def test_a_cohorts_code_without_a_string_is_refused() -> None:
    """Of a value that no session has any more."""
    run = CohortRun()
    run.apply([(event("Start", 1, cdn="a"), NOW)])
    run.advance(NOW + 90_000)
    arrays = packed(run.table.snapshot())
    assert arrays["text"].tobytes() == b"a"
    arrays |= {"text": arrays["text"][:0]} | {part: arrays[part][:0] for part in ("text_sizes", "text_columns", "text_codes")}
    with pytest.raises(CheckpointDamaged, match="a cdn without a string"):
        CohortRun().table.restore(arrays)


def test_codes_of_cohorts_are_alive() -> None:
    run = CohortRun(first_code=5)
    run.apply([(event("Start", 1, cdn="a", os="x"), NOW)])
    run.advance(NOW + 90_000)
    assert run.table.active == 0
    assert np.flatnonzero(run.table.live_codes(CODED_DIMENSIONS.index("cdn"))).tolist() == [5]
    assert run.table.live_codes(CODED_DIMENSIONS.index("os")).size == 0
    assert FIRST_DIMENSION > 0


def test_a_table_that_counts_none_holds_nothing() -> None:
    run = CohortRun(cohorts=CohortsConfig(enabled=False))
    done = run.apply([(event("Start", 1, cdn="a"), NOW)])
    assert done.cohorts == []
    assert run.advance(NOW + 10**6).cohorts == []
    assert run.end() == []
    assert all(run.table.snapshot()[name].size == 0 for name in ("cohort_rows", "cohort_rules", "cohort_state"))
