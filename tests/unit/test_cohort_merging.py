"""Who adds up beside a run: fetches what is new, tells rows, survives answers that are none; and the table of a bench."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from keystone.actors.cohort_desk import CohortDesk, Fetched
from keystone.actors.cohort_merging import CohortMerging
from keystone.bench.cohorts import CohortTable, dimensions_of
from keystone.config import CohortsConfig
from keystone.qoe import SUMS, CohortPartial

pytestmark = pytest.mark.slow

MINUTE = 1_700_000_040_000
CONFIG = CohortsConfig(dimensions=("region",), pairs=())


def partial(partition: int, second: int, events: int = 1) -> CohortPartial:
    sums = np.zeros((1, len(SUMS) + 1), np.int64)
    sums[0, 0] = events
    start = np.array([MINUTE + second * 1_000], np.int64)
    return CohortPartial(partition, ("region",), ((None,),), start, np.zeros(1, np.int32), sums, np.zeros((0, 4), np.int64))


class Desks:
    """Session actors: they answer what they are asked before anything else happens, and are heard the next time."""

    def __init__(self, *names: str) -> None:
        self.desks = {name: CohortDesk() for name in names}
        self.told: list[bytes] = []

    def collect(self, pending: dict[str, Any]) -> list[tuple[str, Any]]:
        answers = list(pending.items())
        pending.clear()
        return answers

    def ask(self, kind: str, method: str, pending: dict[str, Any], arguments: Mapping[str, tuple[Any, ...]] | None = None) -> None:
        assert (kind, method) == ("session", "cohorts")
        for name, desk in self.desks.items():
            assert name not in pending
            pending[name] = desk.fetch(*((arguments or {}).get(name) or (None,)))
            self.told += pending[name].contents


def until(claim: Any) -> None:
    limit_s = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < limit_s
        time.sleep(0.01)


def test_rows_of_all_partitions_are_told_once_they_have_passed() -> None:
    desks, told = Desks("a", "b"), []
    for partition, desk in enumerate(desks.desks.values()):
        desk.own(partition, {})
        desk.add(partition, [partial(partition, 0, 5 + partition)], MINUTE + 1_000)
    merging = CohortMerging(CONFIG, [0, 1], told.append)
    merging.ask(desks)  # asks
    merging.ask(desks)  # hears, and asks again
    until(lambda: told)
    assert told[0].select("window_start_ms", "events", "revision").rows() == [(MINUTE, 11, 2)]
    merging.ask(desks)
    assert len(desks.told) == 2  # each partial once: what was fetched is not asked for again
    assert merging.close(10)
    assert pl.concat(told).filter(pl.col("window_ms") == 1_000).height == 1
    assert pl.concat(told)["window_ms"].to_list() == [1_000, 10_000, 60_000]  # the end tells what is not over, too
    assert merging.status()["rows"] == 3


def test_an_answer_that_cannot_be_read_costs_itself_alone() -> None:
    told: list[pl.DataFrame] = []
    merging = CohortMerging(CONFIG, [0], told.append)
    merging.take("broken", Fetched(("x", 1), {0: MINUTE + 1_000}, [b"what is this"]))
    desk = CohortDesk()
    desk.own(0, {})
    desk.add(0, [partial(0, 0, 7)], MINUTE + 1_000)
    merging.take("a", desk.fetch(None))
    until(lambda: told)
    assert told[0]["events"].to_list() == [7]
    assert merging.close(10)


def test_a_receiver_that_fails_does_not_end_the_merge() -> None:
    told: list[int] = []

    def fails_once(rows: pl.DataFrame) -> None:
        told.append(rows.height)
        if len(told) == 1:
            raise RuntimeError("first")

    desk = CohortDesk()
    desk.own(0, {})
    merging = CohortMerging(CONFIG, [0], fails_once)
    for second in range(2):
        desk.add(0, [partial(0, second)], MINUTE + second * 1_000 + 1_000)
        merging.take("a", desk.fetch(None))
        until(lambda count=second + 1: len(told) >= count)
    assert merging.close(10)


def test_a_table_has_the_newest_row_of_each_and_sums_over_all_sessions(tmp_path: Path) -> None:
    desk, table = CohortDesk(), CohortTable()
    for partition in (0, 1):
        desk.own(partition, {})
    merging = CohortMerging(CohortsConfig(dimensions=("region",), pairs=(), lateness_max_ms=1), [0, 1], table.take)
    desk.add(0, [partial(0, 0, 5)], MINUTE + 20_000)
    merging.take("a", desk.fetch(None))
    until(lambda: merging.status()["rows"] > 0)
    desk.add(1, [partial(1, 0, 6)], MINUTE + 20_000)  # late: what was told is told again
    merging.take("a", desk.fetch(None))
    assert merging.close(10)
    said = table.write(tmp_path)
    found = pl.read_parquet(tmp_path / "cohorts.parquet")
    assert dimensions_of(found) == ["region"]
    assert found.filter(pl.col("window_ms") == 1_000).select("events", "revision").rows() == [(11, 2)]
    assert (said["rows"], said["events"], said["left_out"]) == (found.height, 11, 0)
    assert CohortTable().write(tmp_path) == {}
