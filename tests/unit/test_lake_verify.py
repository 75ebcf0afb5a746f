"""``keystone lake``: that a whole lake passes, and that each kind of damage is told."""

from __future__ import annotations

from contextlib import closing

import pyarrow.parquet as pq
import pytest

from keystone.cli import main
from keystone.log.embedded import EmbeddedLog
from keystone.segments import Segment
from keystone.sinks.iceberg import producers
from keystone.sinks.iceberg.chain import Link, Span, to_text
from keystone.sinks.iceberg.files import Listed, listed
from keystone.sinks.iceberg.verify import verify, windows
from tests.lake_tables import DAY, Owner, opened, write_parquet


def told(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def committed(tables, lake, count=3, partitions=(0, 1), **fields):
    owners = [Owner(lake, p) for p in partitions]
    segments = [owner.segment(**fields) for _ in range(count) for owner in owners]
    for first in range(0, len(segments), 2):
        tables.commit(segments[first : first + 2], 1)
    return segments


def faults(tables, partition=0):
    return next(v.faults for v in verify(tables) if v.partition == partition)


@pytest.mark.slow
def test_a_whole_lake_passes(tables, lake):
    committed(tables, lake, days=(0, 1))
    verdicts = list(verify(tables))
    assert [(v.partition, v.first_offset, v.next_offset, v.rows, v.files, v.faults) for v in verdicts] == [
        (0, 0, 18, 36, 6, []), (1, 0, 18, 36, 6, []), (None, 0, 0, 72 + 12 + 6, 12, []),
    ]  # fmt: skip


def rewrite(lake, file, change):
    """Change the rows of a committed file behind the table's back."""
    rows = pq.read_table(lake / file.path, partitioning=None)
    write_parquet(lake / file.path, change(rows).cast(rows.schema))


@pytest.mark.slow
def test_a_row_that_is_there_twice(tables, lake):
    segments = committed(tables, lake)
    rewrite(lake, segments[2].files[0], lambda rows: rows.take([0, 1, 2, 3, 4, 4]))
    assert faults(tables) == ["1 rows are there more than once, the first at offset 5, line 0"]


@pytest.mark.slow
def test_a_row_that_is_lost(tables, lake):
    segments = committed(tables, lake)
    rewrite(lake, segments[2].files[0], lambda rows: rows.slice(0, 5))
    assert any("has 5 rows, its manifest says 6" in fault for fault in faults(tables))
    assert "17 rows in its files, and 18 were committed" in faults(tables)
    assert faults(tables, 1) == []


@pytest.mark.slow
def test_a_file_that_is_gone(tables, lake):
    segments = committed(tables, lake)
    (lake / segments[0].files[0].path).unlink()
    assert any("cannot be read" in fault for fault in faults(tables))


@pytest.mark.slow
def test_a_segment_that_was_committed_twice(tables, lake):
    segments = committed(tables, lake)
    table = tables.load("events")
    file = segments[0].files[0]
    described = next(found.file for found in listed(table, tables.place) if found.path == file.path)
    head = producers.head_of(table.metadata)
    producers.append(table, [described], head, head.text, "{}", 1)
    assert "6 rows are there more than once, the first at offset 0, line 0" in faults(tables)
    whole = faults(tables, None)
    assert any("more than once" in fault for fault in whole)
    assert any("added 6 rows, and says 0" in fault for fault in whole)


@pytest.mark.slow
def test_a_chain_that_says_more_than_there_is(tables, lake):
    committed(tables, lake)
    table = tables.load("events")
    head = producers.head_of(table.metadata)
    producers.append(table, [], head, to_text({0: Link(0, 9, 3, 1, 20), 5: Link(0, 1, 1, 1, 1)}), "{}", 1)
    assert faults(tables) == ["18 rows in its files, and 20 were committed"]
    assert faults(tables, 1) == ["3 files, and the chain knows nothing of this partition"]
    assert faults(tables, 5) == ["0 rows in its files, and 1 were committed"]
    assert any("partition 5: one snapshot ends at None" in fault for fault in faults(tables, None))


@pytest.mark.slow
def test_snapshots_that_do_not_meet(tables, lake):
    committed(tables, lake, partitions=(0,), count=2)
    table = tables.load("events")
    head = producers.head_of(table.metadata)
    link = head.chain[0]
    moved = {0: link._replace(next_offset=link.next_offset + 9, next_sequence=link.next_sequence + 1)}
    span = {0: Span(link.next_offset + 4, link.next_offset + 9, link.next_sequence, link.next_sequence + 1, 1, 0)}
    producers.append(table, [], head, to_text(moved), to_text(span), 1)
    assert any("partition 0: one snapshot ends at (6, 2)" in fault for fault in faults(tables, None))


def listing(*spans):
    return [Listed(f"{k}", DAY, (0, 0), span, 1, 1, None) for k, span in enumerate(spans)]


def test_windows_end_where_no_file_spans():
    found = [([f.path for f in window], end) for window, end in windows(listing((20, 29), (0, 9), (5, 12), (13, 13), (30, 31)), 40)]
    assert found == [(["1", "2"], 13), (["3"], 20), (["0"], 30), (["4"], 40)]
    assert list(windows([], 4)) == []


# --- with a log -----------------------------------------------------------------------------------------------------------------
EVENT = b'{"event": "Heartbeat", "ts": 1790000000000, "device_id": "d", "session_id": "s"}'


def with_log(tables, lake, folder, *, records=9, dead=None):
    """A log whose records hold two events each, and a lake that holds them."""
    log = EmbeddedLog.create(folder, partitions=1, segment_bytes=1 << 16, retention_bytes=1 << 18)
    with closing(log):
        writer = log.writer(0)
        for k in range(records):
            writer.append(EVENT + b"\n" + (b"not json" if k == dead else EVENT))
    segments = committed(tables, lake, partitions=(0,), sessions=0, alerts=0)
    return f"embedded:{folder}", segments


@pytest.mark.slow
def test_the_lake_is_what_the_log_gives(tables, lake, tmp_path, capsys):
    url, _ = with_log(tables, lake, tmp_path / "log")
    status, out, _ = told(capsys, "lake", "verify", "--lake", str(lake), "--log", url)
    assert (status, out.splitlines()) == (0, ["ok     partition 0: offsets 0 to 9, 18 rows, 3 files, compared with the log from 0", "ok     tables: 18 rows"])


def test_what_the_log_does_not_accept_is_told(tables, lake, tmp_path, capsys):
    url, _ = with_log(tables, lake, tmp_path / "log", dead=4)
    status, out, _ = told(capsys, "lake", "verify", "--lake", str(lake), "--log", url)
    assert status == 1
    assert "WRONG  partition 0" in out
    assert "1 events are in the lake and not among the log's, the first at offset 4, line 1" in out


@pytest.mark.slow
def test_what_the_lake_lacks_is_told(tables, lake, tmp_path, capsys):
    url, segments = with_log(tables, lake, tmp_path / "log", records=11)
    owner = Owner(lake, sequence=3, offset=9)
    skipped = Segment(0, 1, 9, 11, 0, 3, ())  # says nothing was accepted
    owner.offset = 11
    assert tables.commit([*segments, skipped], 1).segments == 1
    status, out, _ = told(capsys, "lake", "verify", "--lake", str(lake), "--log", url)
    assert status == 1
    assert "4 events are in the log, accepted, and not in the lake, the first at offset 9, line 0" in out


# --- the other commands ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_files_compact_and_expire(tables, lake, capsys):
    committed(tables, lake, count=6)
    status, out, err = told(capsys, "lake", "files", "--lake", str(lake))
    assert status == 0
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[:3] for line in (lines[0], lines[6])] == [["0", "0-2", "6"], ["1", "0-2", "6"]]
    assert "12 files, 72 rows" in err
    assert "12 files, " in err.splitlines()[0], "of the one day"
    assert err.splitlines()[0].endswith("12 under 1 MiB")
    summary = told(capsys, "lake", "files", "--lake", str(lake), "--summary")
    assert summary == (0, "", err)
    assert told(capsys, "lake", "files", "--set", f"run.lake={lake}", "--summary") == summary
    assert told(capsys, "lake", "files", "--lake", str(lake), "--table", "sessions")[1].startswith("0\t0-3\t2\t")
    assert "36 files became 6: 108 rows" in told(capsys, "lake", "compact", "--lake", str(lake))[1]
    assert "0 files became 0" in told(capsys, "lake", "compact", "--lake", str(lake), "--date", "2026-09-21")[1]
    assert told(capsys, "lake", "verify", "--lake", str(lake))[0] == 0
    out = told(capsys, "lake", "expire", "--lake", str(lake), "--keep", "1")[1]
    assert "snapshots expired; 0 files deleted" in out
    assert len(tables.load("events").snapshots()) == 1
    assert "0 wait" in told(capsys, "lake", "expire", "--lake", str(lake), "--set", "lake.orphan_age_ms=1")[1]
    assert len(list((lake / "data").rglob("*.parquet"))) == 6
    assert told(capsys, "lake", "verify", "--lake", str(lake))[0] == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("files", "--lake", "{tmp}/none"), "there is no catalog.db in it"),
        (("compact", "--lake", "{lake}", "--date", "yesterday"), "such as 2026-09-21"),
        (("verify",), "no lake is named: say --lake DIR or s3://BUCKET/PREFIX, or set run.lake"),
        (("verify", "--lake", "s3://bucket/no-such-lake"), "bucket/no-such-lake/catalog.db is not there: say this on the machine that writes the lake"),
        (("verify", "--lake", "{lake}", "--log", "embedded:{tmp}/none"), "holds no log"),
        (("files", "--lake", "{lake}", "--set", 'lake.catalog={"token": "x"}'), "PYICEBERG_CATALOG__KEYSTONE__TOKEN"),
    ],
)
def test_mistakes_are_one_line(words, line, lake, tmp_path, capsys):
    status, _, err = told(capsys, "lake", *(word.format(lake=lake, tmp=tmp_path) if "{" in word and '"' not in word else word for word in words))
    assert status == 2
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_an_alert_that_was_raised_twice(tables, lake):
    owner = Owner(lake)
    first = owner.segment()
    owner.sequence = 0  # alerts of the same ids
    again = owner.segment()
    tables.commit([first, Segment(0, 1, again.first_offset, again.next_offset, 0, 1, again.files)], 1)
    assert faults(tables, None) == ["1 alerts are there more than once, such as 0-0"]


@pytest.mark.slow
def test_another_tables_rows_are_counted(tables, lake):
    segments = committed(tables, lake)
    assert faults(tables, None) == []
    tables.load("sessions").delete()
    assert any("table sessions has 0 rows" in fault for fault in faults(opened(lake), None))
    assert segments
