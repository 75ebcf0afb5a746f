"""Committing to real tables of a SQLite catalog."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pyarrow as pa
import pytest
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.types import StringType

from keystone.errors import ChainBroken, Fenced, LakeDamaged, SinkBusy, UsageError
from keystone.sinks.iceberg import durable, files, producers
from keystone.sinks.iceberg import tables as module
from keystone.sinks.iceberg.chain import COMMITTER_KEY
from keystone.sinks.iceberg.columns import FILE_COLUMNS
from keystone.sinks.iceberg.places import check_catalog, place_of
from keystone.sinks.iceberg.tables import ORDER, LakeTables, refuse
from keystone.sinks.iceberg.upkeep import expire
from tests.lake_tables import Owner, count, expected_places, opened, places, rows_of, write_parquet


def agree(tables, segments):
    """The tables hold exactly these segments."""
    assert places(tables) == expected_places(segments)
    assert [count(tables, name) for name in ORDER] == [rows_of(segments, name) for name in ORDER]


@pytest.mark.slow
def test_segments_are_in_each_table_once(tables, lake):
    owners = [Owner(lake, p, offset=10 * p) for p in range(3)]
    segments = [owner.segment(days=(0, -1)) for owner in owners] + [owners[0].segment(alerts=0)]
    done = tables.commit(segments, 1)
    assert (done.segments, done.files, done.refused) == (4, 3 * 4 + 2, {})
    segments += [owners[1].segment(sessions=0), owners[1].segment(time_only=True)]
    again = tables.commit(segments[::-1], 1)
    assert again.segments == 2
    agree(tables, segments)
    assert {p: (link.first_offset, link.next_sequence) for p, link in again.chain.items()} == {0: (0, 2), 1: (10, 3), 2: (20, 1)}
    assert tables.commit([], 1).chain == again.chain == tables.committed()


@pytest.mark.slow
def test_nothing_new_makes_no_snapshot(tables, lake):
    segment = Owner(lake).segment()
    tables.commit([segment], 1)
    before = [tables.load(name).current_snapshot().snapshot_id for name in ORDER]
    tables.commit([segment], 1)
    assert [tables.load(name).current_snapshot().snapshot_id for name in ORDER] == before


# --- the dangers of pyiceberg's own commits: that they are there, and that ours are kept from them -------------------------
def in_the_midst(monkeypatch, table, act):
    """Have ``act`` happen right before the table's next commit reaches the catalog."""
    commit, acted = table.catalog.commit_table, []

    def late(*arguments):
        if not acted:
            acted.append(True)
            act()
        return commit(*arguments)

    monkeypatch.setattr(table.catalog, "commit_table", late)


@pytest.mark.slow
def test_pyiceberg_lets_whoever_was_replaced_commit_a_second_time(tables, lake, monkeypatch):
    segment = Owner(lake).segment()
    path = [f"file://{lake}/{f.path}" for f in segment.files if f.table == "sessions"]
    table, other = tables.load("sessions"), opened(lake).load("sessions")
    in_the_midst(monkeypatch, table, lambda: other.add_files(path))
    table.add_files(path)
    assert count(tables, "sessions") == 2 * segment.files[1].rows


@pytest.mark.slow
def test_ours_does_not(tables, lake, monkeypatch):
    segment = Owner(lake).segment()
    late, successor = opened(lake), opened(lake)
    head = producers.head_of(late.load("events").metadata)
    commit, acted = late.catalog.commit_table, []

    def overtaken(*arguments):
        if not acted:
            acted.append(successor.commit([segment], 2))
        return commit(*arguments)

    monkeypatch.setattr(late.catalog, "commit_table", overtaken)
    assert head.committer_epoch == 0
    with pytest.raises(Fenced):
        late.commit([segment], 1)
    agree(tables, [segment])
    with pytest.raises(Fenced):
        late.commit([segment], 1)


def lose_answers(monkeypatch, catalog, error, times=99):
    """Commits land, and are reported otherwise."""
    commit, lost = catalog.commit_table, []

    def lossy(*arguments):
        answer = commit(*arguments)
        if len(lost) < times:
            lost.append(answer)
            raise error
        return answer

    monkeypatch.setattr(catalog, "commit_table", lossy)
    return lost


def test_pyiceberg_deletes_what_a_commit_that_landed_refers_to(tables, lake, monkeypatch):
    segment = Owner(lake).segment()
    table = tables.load("sessions")
    with table.transaction() as transaction:
        transaction.set_properties({"commit.retry.num-retries": "0"})
    lose_answers(monkeypatch, table.catalog, CommitFailedException("it was not"))
    with pytest.raises(CommitFailedException):
        table.add_files([f"file://{lake}/{segment.files[1].path}"])
    with pytest.raises(FileNotFoundError):
        opened(lake).load("sessions").scan().to_arrow()


@pytest.mark.slow
@pytest.mark.parametrize("error", [CommitFailedException("it was not"), ConnectionError("no answer"), OSError("disk")])
def test_an_answer_that_is_lost_is_looked_up(tables, lake, monkeypatch, error):
    owner = Owner(lake)
    for name in ORDER:
        with tables.load(name).transaction() as transaction:
            transaction.set_properties({"commit.retry.num-retries": "0"})
    lost = lose_answers(monkeypatch, tables.catalog, error)
    segments = [owner.segment(), owner.segment()]
    done = tables.commit(segments, 1)
    assert len(lost) == 3
    assert (done.segments, done.refused) == (0, {}), "already in, when it looked"
    assert done.chain[0].next_sequence == 2
    agree(opened(lake), segments)


@pytest.mark.slow
def test_what_never_lands_is_busy_and_leaves_the_tables_as_they_were(tables, lake, monkeypatch):
    owner = Owner(lake)
    first, second = owner.segment(), owner.segment()
    tables.commit([first], 1)
    monkeypatch.setattr(tables.catalog, "commit_table", lambda *a: (_ for _ in ()).throw(ConnectionError("no way")))
    with pytest.raises(SinkBusy, match="no way"):
        tables.commit([first, second], 1)
    monkeypatch.undo()
    agree(tables, [first])
    tables.commit([first, second], 1)
    agree(tables, [first, second])


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("commits", [0, 1, 2])
@pytest.mark.parametrize("landed", [False, True])
def test_a_crash_between_the_three_commits_is_repaired_by_the_next(tables, lake, monkeypatch, commits, landed):
    owner = Owner(lake)
    segments = [owner.segment(), owner.segment(alerts=0)]
    append, seen = producers.append, []

    def dying(*arguments):
        seen.append(1)
        if landed or len(seen) <= commits:
            append(*arguments)
        if len(seen) > commits:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(producers, "append", dying)
        with pytest.raises(Killed):
            tables.commit(segments, 1)
    segments.append(owner.segment())
    opened(lake).commit(segments, 2)
    agree(tables, segments)


def test_what_a_catalog_names_is_on_the_disk_before(tables, lake, monkeypatch):
    synced = []
    for place in (durable, producers):
        monkeypatch.setattr(place, "sync", synced.extend)
    tables.commit([Owner(lake).segment()], 1)
    table = tables.load("events")
    snapshot = table.current_snapshot()
    needed = {table.metadata_location, snapshot.manifest_list, *(m.manifest_path for m in snapshot.manifests(table.io))}
    assert needed <= set(synced)
    monkeypatch.undo()
    durable.sync([table.metadata_location, "s3://bucket/elsewhere"])
    with pytest.raises(FileNotFoundError):
        durable.sync([table.metadata_location + "x"])


# --- refusals ---------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_file_that_is_not_what_was_written_holds_back_its_partition_alone(tables, lake):
    bad, short, good = (Owner(lake, p).segment() for p in range(3))
    (lake / bad.files[0].path).unlink()
    whole = (lake / short.files[2].path).read_bytes()
    (lake / short.files[2].path).write_bytes(whole[:-9])
    done = tables.commit([bad, short, good], 1)
    assert set(done.refused) == {0, 1}
    assert places(tables) == expected_places([good])
    with pytest.raises(ChainBroken, match=r"partition 0 \(and 1 more\): data/events/.* cannot be read"):
        refuse(done)
    (lake / short.files[2].path).write_bytes(whole)
    assert tables.commit([short, good], 1).refused == {}
    assert places(tables) == expected_places([short, good])


def test_storage_that_does_not_answer_is_no_damage(tables, lake, monkeypatch):
    segment = Owner(lake).segment()
    with monkeypatch.context() as patch:
        patch.setattr(files, "_footer", lambda io, url: (_ for _ in ()).throw(OSError("timed out")))
        with pytest.raises(SinkBusy, match="timed out"):
            tables.commit([segment], 1)
    (lake / segment.files[0].path).write_bytes(b"PAR1" + b"\xff" * 60 + (52).to_bytes(4, "little") + b"PAR1")
    assert "cannot be read" in tables.commit([segment], 1).refused[0]


@pytest.mark.slow
def test_the_first_reason_stays(tables, lake, monkeypatch):
    monkeypatch.setattr(module, "FILES_MAX", 3)
    bad = Owner(lake)
    segments = [bad.segment(), bad.segment(), Owner(lake, 1).segment()]
    (lake / segments[0].files[0].path).unlink()
    done = tables.commit(segments, 1)
    assert "cannot be read" in done.refused[0]
    assert done.chain.keys() == {1}


def test_a_column_that_the_table_lacks_is_not_dropped_in_silence(tables, lake):
    segment = Owner(lake).segment()
    file = segment.files[1]
    table = pa.table({"device_id": ["d"], "surprise": ["s"]})
    rows, size = write_parquet(lake / file.path, table)
    segment = replace(segment, files=(segment.files[0], replace(file, rows=rows, bytes=size)))
    assert "surprise" in tables.commit([segment], 1).refused[0]


def test_a_lake_that_is_not_the_checkpoints_is_refused(tables, lake):
    assert "not the lake" in tables.commit([Owner(lake, sequence=4, offset=70).segment()], 1).refused[0]


# --- what others do to the tables ------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_chain_outlives_expiry_and_snapshots_of_others(tables, lake):
    owner = Owner(lake)
    segments = [owner.segment() for _ in range(4)]
    for k in range(3):
        tables.commit(segments[: k + 1], 1)
    tables.load("events").delete("device_id = 'd1'")  # says nothing of the chain
    events = tables.load("events")
    assert COMMITTER_KEY not in events.current_snapshot().summary.additional_properties
    assert expire(tables, keep=1) > 0
    assert len(tables.load("events").snapshots()) == 2, "the newest, and the newest that says what is committed"
    done = tables.commit(segments, 1)
    assert (done.segments, done.chain[0].next_sequence) == (1, 4)
    assert expire(tables, keep=1) > 0
    assert tables.committed() == done.chain


@pytest.mark.slow
def test_a_lake_whose_chain_is_gone_is_not_begun_anew(tables, lake):
    segment = Owner(lake).segment()
    tables.commit([segment], 1)
    events = tables.load("events")
    told = events.current_snapshot().snapshot_id
    events.delete("device_id = 'd1'")
    events.maintenance.expire_snapshots().by_ids([told]).commit()
    with pytest.raises(LakeDamaged, match="another program"):
        tables.commit([segment], 1)


@pytest.mark.slow
def test_a_table_that_was_rolled_back_asks_for_what_it_lost(tables, lake):
    owner = Owner(lake)
    segments = [owner.segment() for _ in range(3)]
    tables.commit(segments[:1], 1)
    events = tables.load("events")
    back_to = events.current_snapshot().snapshot_id
    tables.commit(segments[:2], 1)
    tables.load("events").manage_snapshots().rollback_to_snapshot(back_to).commit()
    assert "segments 1 to 1 are missing" in tables.commit(segments[2:], 1).refused[0]
    tables.commit(segments, 1)
    agree(tables, segments)


# --- opening ----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_columns_of_a_newer_version_are_added_and_others_are_left_alone(tables, lake, monkeypatch):
    owner = Owner(lake)
    tables.commit([owner.segment()], 1)
    with tables.load("events").update_schema() as update:
        update.add_column("theirs", StringType())
        update.delete_column("extra")  # as a version that did not have it would have made the table
    newer = opened(lake)
    names = newer.load("events").schema().column_names
    assert names[-2:] == ["theirs", "extra"]
    newer.commit([owner.segment()], 1)
    found = newer.load("events").scan().to_arrow()
    assert found["extra"].null_count == found["theirs"].null_count == found.num_rows == 12
    assert opened(lake).load("events").schema() == newer.load("events").schema()


def test_a_lake_cannot_be_moved(lake, tmp_path):
    shutil.copytree(lake, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="cannot be moved"):
        opened(tmp_path / "elsewhere")


def test_a_lake_that_is_not_there_is_not_made_to_look_at_it(tmp_path):
    with pytest.raises(UsageError, match=r"catalog\.db"):
        LakeTables.open(tmp_path, opened(tmp_path / "x").config, is_made=False)


@pytest.mark.parametrize("text", ["ftp://x/y", "s3://", "/tmp/a#b"])
def test_what_is_no_place_of_a_lake(text):
    with pytest.raises(UsageError):
        place_of(text)


@pytest.mark.parametrize("properties", [{"token": "t"}, {"s3.secret-access-key": "t"}, {"uri": "postgresql://me:t@host/x"}])
def test_secrets_are_not_settings(properties):
    with pytest.raises(UsageError, match="PYICEBERG_CATALOG__KEYSTONE__") as caught:
        check_catalog(properties)
    assert "me:t" not in str(caught.value)


def test_every_column_is_explained(tables):
    for name in ORDER:
        fields = {field.name: field for field in tables.load(name).schema().fields}
        for column in FILE_COLUMNS[name]:
            assert fields[column.name].doc == column.description
            assert fields[column.name].required is not column.is_optional
