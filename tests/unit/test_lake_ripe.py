"""Small files joined while a stream runs: how often a row is rewritten, how many files are left, and that nothing else changes."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest

from keystone.actors.committer import Compacting
from keystone.config import LakeConfig
from keystone.errors import LakeDamaged, SinkBusy
from keystone.run.lake import size_line
from keystone.sinks.iceberg import compaction
from keystone.sinks.iceberg.compaction import compact_ripe, groups, ripe
from keystone.sinks.iceberg.files import Listed
from keystone.sinks.iceberg.tables import ORDER
from keystone.sinks.iceberg.verify import verify
from tests.lake_tables import Owner, count, expected_places, opened, places, rows_of

MIB = 1 << 20
DAY = 20_000
TARGET = LakeConfig().target_file_bytes
FILES_MIN = LakeConfig().compact_files_min


def listed(day: int, partition: int, first: int, last: int, size: int) -> Listed:
    return Listed(f"data/p{partition:05d}-{first:020d}-{last:020d}-e1.parquet", day, (partition, partition), (first, last), 10, size, None)  # type: ignore[arg-type]


def a_day(rates: list[int], *, hours: float, days: tuple[int, ...] = (DAY,), seed: int = 1) -> tuple[list[Listed], float, int]:
    """What files are there after that time, how often a byte was rewritten, and the most files there ever were.

    A file of each partition and day every 10 s, ``rates`` bytes large or so, 0: none; joined every ten commits, as a committer does.
    """
    dice, files, offset, rewritten, written, most = random.Random(seed), [], 0, 0, 0, 0
    for commit in range(int(hours * 360)):
        for partition, rate in enumerate(rates):
            for day in days:
                if rate:
                    size = int(rate * dice.uniform(0.5, 1.5))
                    files.append(listed(day, partition, offset, offset + 9, size))
                    written += size
        offset += 10
        most = max(most, len(files))
        if commit % 10 == 9:
            for group in ripe(groups(files, TARGET, 1), FILES_MIN):
                old = {file.path for file in group.files}
                files = [file for file in files if file.event_date != group.event_date or file.path not in old]
                files.append(listed(group.event_date or 0, group.partition, group.first_offset, group.last_offset, group.bytes))
                rewritten += group.bytes
    return files, rewritten / max(written, 1), most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "times_max", "files_max"),
    [(2_000, 6, 10), (170_000, 5, 10), (2 * MIB, 3, 50), (17 * MIB, 1.2, 300), (85 * MIB, 0.5, 1_440)],
    ids=["50 events/s", "500 events/s", "6,000 events/s", "50,000 events/s", "250,000 events/s"],
)
def test_a_row_is_rewritten_a_few_times_and_few_files_are_left(size: int, times_max: float, files_max: int) -> None:
    """Of one partition in four hours: 1,440 files without."""
    files, times, _ = a_day([size], hours=4)
    assert times <= times_max
    assert len(files) <= files_max
    assert sum(file.bytes for file in files) > 0


@pytest.mark.slow
def test_many_small_partitions_idle_ones_and_late_days_are_no_flood() -> None:
    """64 partitions, a third of them idle, each with files of the day and, by slow clocks, of the day before: 31,000 files in an hour without."""
    rates = [0 if partition % 3 == 0 else 2_000 for partition in range(64)]
    files, times, most = a_day(rates, hours=1, days=(DAY - 1, DAY))
    assert times <= 5
    busy = sum(rate > 0 for rate in rates) * 2
    assert len(files) <= 10 * busy
    assert most <= 25 * busy, "it does not grow with time"
    spans = sorted((file.event_date, file.partitions, file.offsets) for file in files)
    for before, after in itertools.pairwise(spans):
        assert before[:2] != after[:2] or before[2][1] < after[2][0], "files stay ranges of offsets that follow each other"  # type: ignore[index]


def test_what_is_not_worth_it_stays() -> None:
    large = listed(DAY, 0, 0, 9, 90 * MIB)
    few = [listed(DAY, 0, 10 * k, 10 * k + 9, MIB) for k in range(1, FILES_MIN)]
    assert ripe(groups([large, *few], TARGET, 1), FILES_MIN) == []
    more = [*few, listed(DAY, 0, 900, 909, MIB)]
    (group,) = ripe(groups([large, *more], TARGET, 1), FILES_MIN)
    assert (group.files, group.first_offset, group.last_offset) == (more, 10, 909), "without the large one"
    full = [*more, *(listed(DAY, 0, 1_000 + 10 * k, 1_009 + 10 * k, 8 * MIB) for k in range(8))]
    found = ripe(groups([large, *full], TARGET, 1), FILES_MIN)
    assert found[0].files[0] is large, "a group that is full is joined whole"


@pytest.mark.slow
def test_a_stream_s_files_are_joined_in_one_snapshot_a_table(tables, lake) -> None:
    owners, segments = [Owner(lake, p) for p in range(2)], []
    for _ in range(6):
        segments += [owner.segment(days=(0, -1)) for owner in owners]
        tables.commit(segments, 1)
    chain, history = tables.committed(), {name: len(tables.load(name).metadata.snapshots) for name in ORDER}
    done = compact_ripe(tables, 60.0)
    assert (done.files_before, done.files_after, done.lost) == (6 * 2 * 4, 2 * 4, 0)
    assert {name: len(tables.load(name).metadata.snapshots) - history[name] for name in ORDER} == dict.fromkeys(ORDER, 1)
    assert tables.committed() == chain
    assert places(tables) == expected_places(segments)
    assert [count(tables, name) for name in ORDER] == [rows_of(segments, name) for name in ORDER]
    assert [verdict.faults for verdict in verify(tables)] == [[], [], []]
    assert compact_ripe(tables, 60.0).groups == 0


def test_of_nothing_nothing_is_joined(tables) -> None:
    assert ripe([], FILES_MIN) == []
    assert compact_ripe(tables, 60.0).groups == 0


@pytest.mark.slow
def test_it_ends_when_its_time_is_over(tables, lake) -> None:
    owners = [Owner(lake, p) for p in range(2)]
    tables.commit([owner.segment() for _ in range(6) for owner in owners], 1)
    assert compact_ripe(tables, -1.0).groups == 0


def test_a_committer_joins_them_every_so_many_turns(tables, lake, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(compaction, "compact_ripe", lambda tables, budget_s: (asked.append(budget_s), SimpleNamespace(files_before=7, files_after=2))[1])
    compacting = Compacting()
    for _ in range(25):
        compacting.turn(tables)
    assert asked == [pytest.approx(10.0)] * 2, "a tenth of ten intervals of 10 s"
    assert compacting.files == 10
    off = opened(lake, compact_time_share=0)
    for _ in range(25):
        compacting.turn(off)
    off.close()
    assert len(asked) == 2


def test_damage_ends_the_joining_and_not_the_commits(tables, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [OSError("away"), LakeDamaged("two rows are not there"), AssertionError("never asked again")]

    def fails(tables, budget_s):
        raise errors.pop(0)

    monkeypatch.setattr(compaction, "compact_ripe", fails)
    compacting = Compacting()
    for _ in range(9):
        compacting.turn(tables)
    with pytest.raises(SinkBusy, match="away"):
        compacting.turn(tables)
    for _ in range(30):
        compacting.turn(tables)
    assert len(errors) == 1


def test_sizes_are_told_as_how_many_of_each() -> None:
    line = size_line([1_000, 2_000, 5 * MIB, 100 * MIB])
    assert line == f"4 files, {3_000 + 105 * MIB:,} bytes, median {5 * MIB:,}: 2 under 1 MiB, 1 to 16 MiB, 1 larger"
