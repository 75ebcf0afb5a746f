"""Expiry, sweeping and compaction of real tables."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import ManifestContent
from pyiceberg.table.snapshots import Operation
from pyiceberg.types import StringType

from keystone.errors import LakeDamaged
from keystone.sinks.iceberg import compaction, producers
from keystone.sinks.iceberg.chain import CHAIN_KEY
from keystone.sinks.iceberg.compaction import SMALL, compact, groups
from keystone.sinks.iceberg.files import Listed, listed, parse_name
from keystone.sinks.iceberg.tables import ORDER
from keystone.sinks.iceberg.upkeep import expire, sweep
from keystone.sinks.iceberg.verify import verify
from tests.lake_tables import DAY, Owner, count, expected_places, opened, places, rows_of, write_parquet

AGE_MS = 86_400_000


def files_of(lake):
    return {str(path.relative_to(lake)) for path in lake.rglob("*") if path.is_file() and path.name not in ("catalog.db", "unreferenced.json")}


def many(lake, partitions=2, each=6, **fields):
    owners = [Owner(lake, p, offset=100 * p) for p in range(partitions)]
    return owners, [owner.segment(**fields) for _ in range(each) for owner in owners]


# --- snapshots -----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_history_and_metadata_stay_short(tables, lake):
    owner, segments = Owner(lake), []
    for _ in range(30):
        segments.append(owner.segment(alerts=0, sessions=0))
        tables.commit(segments[-1:], 1)
        expire(tables, keep=3)
    table = tables.load("events")
    assert len(table.snapshots()) == 3
    assert len(table.metadata.metadata_log) <= 5
    assert len(list((lake / "metadata" / "events").glob("*.metadata.json"))) <= 6
    assert len([m for m in table.current_snapshot().manifests(table.io) if m.content == ManifestContent.DATA]) <= 20
    assert places(tables) == expected_places(segments)
    assert tables.load("alerts").snapshots() == []


@pytest.mark.slow
def test_snapshots_with_a_name_are_kept(tables, lake):
    owner = Owner(lake)
    tables.commit([owner.segment()], 1)
    events = tables.load("events")
    named = events.current_snapshot().snapshot_id
    events.manage_snapshots().create_tag(named, "audit").commit()
    for _ in range(4):
        tables.commit([owner.segment()], 1)
    expire(tables, keep=2)
    assert named in {s.snapshot_id for s in tables.load("events").snapshots()}


# --- files ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_what_no_snapshot_needs_goes_after_a_safe_age_and_nothing_else(tables, lake):
    owner = Owner(lake)
    segments = [owner.segment() for _ in range(6)]
    for segment in segments[:5]:
        tables.commit([segment], 1)
    pending = {f.path for f in segments[5].files}
    lost = Owner(lake, offset=2, epoch=7).segment()  # of offsets that are committed: its owner was replaced
    torn = lake / ".compacting" / "p00000-half.parquet"
    torn.parent.mkdir()
    torn.write_bytes(b"PAR1")
    strange = lake / "data" / "events" / "notes.txt"
    strange.write_text("mine")
    expire(tables, keep=2)
    before = files_of(lake)
    first = sweep(tables, 1_000)
    assert (first.deleted, files_of(lake)) == (0, before)
    assert first.waiting > 3 + 2 * 3
    assert sweep(tables, 1_000 + AGE_MS - 1).deleted == 0
    swept = sweep(tables, 1_000 + AGE_MS)
    gone = before - files_of(lake)
    assert swept.deleted == len(gone) == first.waiting
    assert {f.path for f in lost.files} | {str(torn.relative_to(lake))} <= gone
    assert gone & (pending | {"data/events/notes.txt"}) == set()
    assert swept.left == len(pending) + 1
    tables.commit(segments, 1)
    assert places(tables) == expected_places(segments)
    assert [v.faults for v in verify(tables)] == [[], []]


@pytest.mark.slow
def test_a_file_that_is_needed_again_waits_anew(tables, lake):
    owner = Owner(lake)
    segment = owner.segment()
    manifest = lake / "metadata" / "events" / "left-m0.avro"
    tables.commit([segment], 1)
    manifest.write_bytes(b"x")
    sweep(tables, 0)
    manifest.unlink()
    sweep(tables, 10)
    manifest.write_bytes(b"x")
    sweep(tables, AGE_MS + 5)
    assert manifest.exists()
    sweep(tables, 2 * AGE_MS + 5)
    assert not manifest.exists()


def test_a_lost_record_of_what_was_seen_only_delays(tables, lake):
    tables.commit([Owner(lake).segment()], 1)
    left = lake / "metadata" / "events" / "left-m0.avro"
    left.write_bytes(b"x")
    sweep(tables, 0)
    (lake / "metadata" / "unreferenced.json").write_text("[torn")
    sweep(tables, 10 * AGE_MS)
    assert left.exists()


# --- compaction ----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_small_files_become_one_of_each_partition_and_day(tables, lake):
    owners, segments = many(lake, days=(0, -1))
    tables.commit(segments, 1)
    chain = tables.committed()
    done = compact(tables)
    assert (done.files_before, done.files_after, done.lost) == (6 * 2 * 4, 2 * 4, 0)
    assert places(tables) == expected_places(segments)
    assert [count(tables, name) for name in ORDER] == [rows_of(segments, name) for name in ORDER]
    found = list(listed(tables.load("events"), tables.place))
    assert {(f.event_date, f.partitions, f.rows) for f in found} == {(DAY + d, (p, p), 36) for d in (0, -1) for p in (0, 1)}
    for file in found:
        rows = pq.read_table(lake / file.path, partitioning=None)
        keys = list(zip(rows["partition"].to_pylist(), rows["offset"].to_pylist(), rows["line"].to_pylist(), strict=True))
        assert keys == sorted(keys)
        assert "event_date" not in rows.column_names
        assert parse_name(file.path) is not None
    events = tables.load("events")
    assert events.current_snapshot().summary.operation == Operation.REPLACE
    assert tables.committed() == chain
    assert not list((lake / ".compacting").iterdir())
    segments += [owner.segment(days=(0, -1)) for owner in owners]
    tables.commit(segments, 1)
    assert [v.faults for v in verify(tables)] == [[], [], []]
    assert compact(tables).groups == 0, "two files of a day are not worth it"


@pytest.mark.slow
def test_rows_stay_what_they_were(tables, lake):
    _, segments = many(lake, partitions=1, days=(0, 2))
    tables.commit(segments, 1)
    order = [("event_date", "ascending"), ("offset", "ascending"), ("line", "ascending")]
    before = {name: tables.load(name).scan().to_arrow() for name in ORDER}
    compact(tables)
    assert tables.load("events").scan().to_arrow().sort_by(order).equals(before["events"].sort_by(order))
    for name in ("sessions", "alerts"):
        key = [(before[name].column_names[0], "ascending"), ("append_ts_ms" if name == "alerts" else "start_ts", "ascending")]
        assert tables.load(name).scan().to_arrow().sort_by(key).equals(before[name].sort_by(key))


@pytest.mark.slow
def test_the_stream_appends_meanwhile(tables, lake, monkeypatch):
    owners, segments = many(lake)
    tables.commit(segments, 1)
    stream = opened(lake)
    commit, replaced = tables.catalog.commit_table, []

    def raced(table, *arguments):
        if len(replaced) < 2:
            replaced.append(1)
            segments.extend(owner.segment() for owner in owners)
            stream.commit(segments, 1)
        return commit(table, *arguments)

    monkeypatch.setattr(tables.catalog, "commit_table", raced)
    done = compact(tables)
    assert (done.groups, done.lost) == (6, 0)
    assert places(tables) == expected_places(segments)
    assert tables.committed() == stream.commit(segments, 1).chain
    assert tables.committed()[0].next_sequence == 8
    assert [v.faults for v in verify(tables)] == [[], [], []]


@pytest.mark.slow
def test_a_compaction_meanwhile_does_not_hold_up_the_stream(tables, lake, monkeypatch):
    owners, segments = many(lake, partitions=1)
    tables.commit(segments, 1)
    segments.append(owners[0].segment())
    other = opened(lake)
    commit, raced = tables.catalog.commit_table, []

    def late(*arguments):
        if not raced:
            raced.append(compact(other))
        return commit(*arguments)

    monkeypatch.setattr(tables.catalog, "commit_table", late)
    assert tables.commit(segments, 1).segments == 1
    assert raced[0].groups == 3
    assert places(tables) == expected_places(segments)


@pytest.mark.slow
def test_two_compactions_at_once_replace_once(tables, lake, monkeypatch):
    _, segments = many(lake, partitions=1)
    tables.commit(segments, 1)
    other = opened(lake)
    replace, raced = producers.replace, []

    def late(*arguments):
        if not raced:
            raced.append(1)
            raced.append(compact(other))
        return replace(*arguments)

    monkeypatch.setattr(producers, "replace", late)
    done = compact(tables)
    assert (done.groups + raced[1].groups, done.lost) == (3, 1), "the first one is begun by both, the others are found done"
    assert places(tables) == expected_places(segments)
    assert [count(tables, name) for name in ORDER] == [rows_of(segments, name) for name in ORDER]


@pytest.mark.slow
def test_a_compaction_whose_answer_is_lost_is_looked_up(tables, lake, monkeypatch):
    _, segments = many(lake, partitions=1, sessions=0, alerts=0)
    tables.commit(segments, 1)
    commit = tables.catalog.commit_table

    def lossy(*arguments):
        commit(*arguments)
        raise ConnectionError

    monkeypatch.setattr(tables.catalog, "commit_table", lossy)
    assert compact(tables).groups == 1
    monkeypatch.undo()
    assert places(tables) == expected_places(segments)


@pytest.mark.slow
def test_columns_that_this_version_does_not_know_are_kept(tables, lake):
    owner = Owner(lake)
    segments = [owner.segment(sessions=0, alerts=0) for _ in range(6)]
    with tables.load("events").update_schema() as update:
        update.add_column("theirs", StringType())
    file = segments[2].files[0]
    rows = pq.read_table(lake / file.path, partitioning=None)
    _, size = write_parquet(lake / file.path, rows.append_column("theirs", pa.array(["x"] * rows.num_rows)))
    segments[2] = replace(segments[2], files=(replace(file, bytes=size),))
    assert tables.commit(segments, 1).refused == {}
    assert compact(tables).groups == 1
    found = tables.load("events").scan().to_arrow()
    assert found["theirs"].to_pylist().count("x") == rows.num_rows
    assert found["theirs"].null_count == found.num_rows - rows.num_rows


def test_rows_that_do_not_rise_are_not_made_one_file(tables, lake, monkeypatch):
    _, segments = many(lake, partitions=1, sessions=0, alerts=0)
    tables.commit(segments, 1)
    file = lake / segments[3].files[0].path
    rows = pq.read_table(file, partitioning=None)
    write_parquet(file, rows.take(list(range(rows.num_rows))[::-1]).cast(rows.schema))
    before = tables.load("events").current_snapshot().snapshot_id
    with pytest.raises(LakeDamaged, match="do not rise"):
        compact(tables)
    assert tables.load("events").current_snapshot().snapshot_id == before


def listing(sizes, partition=0, day=DAY):
    return [Listed(f"data/events/p{partition:05d}-{10 * k:020d}-{10 * k + 9:020d}-e.parquet", day, None, None, 1, size, None) for k, size in enumerate(sizes)]


def test_groups_are_cut_at_the_target_and_leave_large_files_alone():
    found = groups([*listing([30, 30, 30, 90, 30, 30]), *listing([1, 1], partition=1)], 100, 2)
    assert [(g.partition, g.first_offset, g.last_offset, g.bytes) for g in found] == [(0, 0, 29, 90), (0, 40, 59, 60), (1, 0, 19, 2)]
    assert groups(listing([1, 1]), 100, 3) == []
    assert groups(listing([int(SMALL * 100) + 1] * 5), 100, 2) == []
    assert groups([*listing([1]), *listing([1], day=DAY + 1)], 100, 2) == []
    assert [len(g.files) for g in groups(listing([1] * 5)[::-1], 100, 2)] == [5]


@pytest.mark.slow
def test_replacements_say_of_the_chain_what_their_parent_said(tables, lake):
    _, segments = many(lake, partitions=1)
    tables.commit(segments, 1)
    told = tables.load("events").current_snapshot().summary.additional_properties[CHAIN_KEY]
    compact(tables)
    assert tables.load("events").current_snapshot().summary.additional_properties[CHAIN_KEY] == told
    assert compaction.ROW_GROUP_ROWS == 131_072
