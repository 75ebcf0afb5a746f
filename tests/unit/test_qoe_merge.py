"""The merge of partitions: every window once, corrected where it must be, held within limits; replays change nothing."""

from __future__ import annotations

import random
from typing import Any

import polars as pl
import pytest

from keystone.config import CohortsConfig
from keystone.qoe import CohortPartial
from keystone.qoe_merge import CohortMerge
from tests.batches import event
from tests.cohorts import assert_told, by_key
from tests.laws.test_cohort_laws import CohortRun, expected_of
from tests.reference import partition_of

pytestmark = pytest.mark.slow

NOW = 1_700_000_040_000  # a full minute
PARTITIONS = 3
Events = list[tuple[dict[str, Any], int]]


def story(seed: int = 1, seconds: int = 130) -> Events:
    rng = random.Random(seed)
    events = []
    for number in range(60):
        mine = {"cdn": rng.choice(["a", "b", None]), "region": rng.choice(["x", "y"]), "device_id": f"d{number}", "session_id": str(number)}
        start = NOW + rng.randrange(seconds * 1000)
        for beat in range(rng.randrange(2, 12)):
            time = start + beat * 5_000
            kind = "Start" if beat == 0 else rng.choice(["Heartbeat", "Heartbeat", "Buffer", "Stop"])
            events.append((event(kind, time - 20, bitrate_kbps=900, **mine), time))
    return sorted(events, key=lambda pair: pair[1])


def partials_of(events: Events, end: int) -> list[list[CohortPartial]]:
    """Of each partition, a partial a step."""
    found = []
    for number in range(PARTITIONS):
        run = CohortRun(partition=number)
        for item, time in events:
            if partition_of(item["device_id"], PARTITIONS) == number:
                run.apply([(item, time)])
        run.advance(end)
        found.append(run.partials)
    return found


def fed(merge: CohortMerge, *parts: list[CohortPartial], passed_ms: int) -> pl.DataFrame:
    for partials in parts:
        merge.take(partials)
    merge.take((), dict.fromkeys(range(PARTITIONS), passed_ms))
    return merge.emit()


def last_of(tables: list[pl.DataFrame]) -> pl.DataFrame:
    """What an index holds that keeps the row of the highest revision of each key, the first where they are equal."""
    table = pl.concat(tables).sort("revision", descending=True, maintain_order=True)
    keys = table.columns[:8]
    return table.group_by(keys, maintain_order=True).first()


END = NOW + 240_000


@pytest.mark.slow
def test_windows_come_out_once_when_all_have_passed_them() -> None:
    events = story()
    parts = partials_of(events, END)
    merge = CohortMerge(CohortsConfig(), range(PARTITIONS))
    out = [fed(merge, *parts, passed_ms=NOW + 1_000)]
    assert out[0].filter(pl.col("window_ms") == 1_000)["window_start_ms"].unique().to_list() in ([], [NOW])
    for second in range(2, 241):
        out.append(fed(merge, passed_ms=NOW + second * 1_000))
        assert (out[-1]["window_start_ms"] + out[-1]["window_ms"] == NOW + second * 1_000).all()
    every = pl.concat(out)
    assert every.filter(pl.col("window_ms") == 1_000)["revision"].is_between(1, PARTITIONS).all()
    assert_told(every, expected_of(events, end=END - 1))
    assert merge.counters.rows == every.height
    assert fed(merge, passed_ms=END).height == 0


def test_replays_change_nothing() -> None:
    parts = partials_of(story(), END)
    merge = CohortMerge(CohortsConfig(), range(PARTITIONS))
    assert fed(merge, *parts, passed_ms=END).height > 0
    assert fed(merge, parts[1], parts[0], passed_ms=END).height == 0
    assert merge.counters.corrections == 0


def test_a_partition_behind_is_waited_for_then_corrects() -> None:
    events = story()
    parts = partials_of(events, END)
    merge = CohortMerge(CohortsConfig(lateness_max_ms=10_000), range(PARTITIONS))
    merge.take([*parts[0], *parts[1]], {0: NOW + 15_000, 1: NOW + 15_000})
    first = merge.emit()
    assert first["window_start_ms"].max() < NOW + 5_000  # 10 s behind the first
    assert first.filter(pl.col("window_ms") == 10_000).height == 0
    merge.take((), {0: END, 1: END})
    second = merge.emit()
    assert (second["window_start_ms"] + second["window_ms"]).is_between(NOW, END - 10_000).all()
    late = fed(merge, parts[2], passed_ms=END)
    corrected = late.filter(pl.col("window_start_ms") + pl.col("window_ms") <= END - 10_000)
    told = pl.concat([first, second]).select("window_start_ms", "window_ms", pl.col("revision").alias("before")).unique()
    both = corrected.join(told, on=["window_start_ms", "window_ms"])
    assert both.height > 0
    assert (both["revision"] > both["before"]).all()
    assert merge.counters.corrections > 0
    assert_told(last_of([first, second, late]).drop("revision"), expected_of(events, end=END - 1))


@pytest.mark.slow
def test_any_order_comes_to_the_same() -> None:
    events = story(7)
    parts = [(n, partial) for n, partials in enumerate(partials_of(events, END)) for partial in partials]
    for seed in range(3):
        rng = random.Random(seed)
        rng.shuffle(parts)
        merge = CohortMerge(CohortsConfig(lateness_max_ms=1), range(PARTITIONS))
        out = []
        for at in range(0, len(parts), 20):
            merge.take([partial for _, partial in parts[at : at + 20]], {rng.randrange(PARTITIONS): NOW + rng.randrange(240_000)})
            out.append(merge.emit())
        out.append(fed(merge, passed_ms=END))
        assert_told(last_of(out).drop("revision"), expected_of(events, end=END - 1))


def test_what_is_told_otherwise_replaces_and_what_is_gone_is_told_as_nothing() -> None:
    config = CohortsConfig()
    runs = []
    for cdn in ("a", "b"):
        run = CohortRun()
        run.apply([(event("Start", 1, cdn=cdn), NOW)])
        run.advance(NOW + 60_000)
        runs.append(run.partials)
    merge = CohortMerge(config, [0])
    merge.take(runs[0], {0: NOW + 60_000})
    before = by_key(merge.emit())
    merge.take(runs[1])
    again = merge.emit()
    after = by_key(again)
    key = (NOW, 60_000, (None, None, "a", None, None, None))
    assert (before[key]["attempts"], after[key]["attempts"]) == (1, 0)
    assert after[key]["revision"] > before[key]["revision"]
    assert after[NOW, 60_000, (None,) * 6]["attempts"] == 1
    merge.take(runs[1])
    assert merge.emit().height == 0


def test_old_minutes_are_let_go_of_and_what_comes_later_is_counted() -> None:
    parts = partials_of(story(), END)
    rows = sum(partial.rows for partial in parts[2])
    merge = CohortMerge(CohortsConfig(windows_held=120), range(PARTITIONS))
    fed(merge, parts[0], parts[1], passed_ms=END + 400_000)
    assert (merge.windows, merge.rows_held) == (0, 0)
    assert fed(merge, parts[2], passed_ms=END + 400_000).height == 0
    assert (merge.counters.late_rows, merge.counters.late_partitions) == (rows, {2: rows})


def test_rows_beyond_the_limit_go_out_early() -> None:
    events = story()
    parts = partials_of(events, END)
    merge = CohortMerge(CohortsConfig(rows_held_max=500), range(PARTITIONS))
    out = [fed(merge, *parts, passed_ms=NOW)]
    assert merge.rows_held <= 500
    assert merge.counters.forced > 0
    out.append(merge.finish())
    assert_told(last_of(out).drop("revision"), expected_of(events, end=END - 1))


def test_partitions_that_leave_are_waited_for_no_longer() -> None:
    parts = partials_of(story(), END)
    merge = CohortMerge(CohortsConfig(lateness_max_ms=10**9), range(PARTITIONS))
    merge.take([*parts[0], *parts[1]], {0: END, 1: END})
    assert merge.emit().height == 0
    merge.expect([0, 1])
    assert merge.emit().height > 0


@pytest.mark.parametrize("partitions", [[], [5]])
def test_nothing_comes_of_nothing(partitions: list[int]) -> None:
    merge = CohortMerge(CohortsConfig(), partitions)
    assert merge.emit().height == 0
    assert merge.finish().columns == merge.emit().columns


def test_a_merge_begun_anew_makes_nothing_worse() -> None:
    events = story(3)
    parts = partials_of(events, END)
    whole = CohortMerge(CohortsConfig(), range(PARTITIONS))
    before = fed(whole, *parts, passed_ms=END)
    anew = CohortMerge(CohortsConfig(lateness_max_ms=1), range(PARTITIONS))
    out = [before]
    for number in (2, 0, 1):
        anew.take(parts[number], {number: END})
        out.append(anew.emit())
    assert any(table.height for table in out[1:])
    assert_told(last_of(out).drop("revision"), expected_of(events, end=END - 1))


def test_what_the_slowest_partition_has_not_passed_is_held() -> None:
    events = story()
    parts = partials_of(events, END)
    merge = CohortMerge(CohortsConfig(windows_held=120, lateness_max_ms=1_000), range(PARTITIONS))
    merge.take([*parts[0], *parts[1]], {0: END + 900_000, 1: END + 900_000, 2: NOW})
    out = [merge.emit()]
    out.append(fed(merge, parts[2], passed_ms=END + 900_000))
    assert merge.counters.late_rows == 0
    assert_told(last_of(out).drop("revision"), expected_of(events, end=END - 1))
