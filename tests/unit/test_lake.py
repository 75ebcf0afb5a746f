"""The lake writer: what goes in comes out, once, in the right folder, under the right name."""

from __future__ import annotations

import random
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone.config import LakeConfig
from keystone.errors import SinkError, UsageError
from keystone.kernels import lake as kernel
from keystone.sinks.lake import DIRECT_ROWS_MIN, LakeWriter
from keystone.sinks.lake_schema import COLUMNS, DESCRIPTIONS, DESCRIPTIONS_KEY, NAMES, SCHEMA
from tests.examples import examples
from tests.lake_batches import APPEND_MS, DAY_MS, ToyDictionaries, batch_of, random_rows, row

INT64 = st.integers(-(2**63) + 1, 2**63 - 1)


def by_place(rows):
    return sorted(rows, key=lambda r: (r["partition"], r["offset"], r["line"]))


def files(directory):
    return sorted(directory.glob("event_date=*/*.parquet"))


def read(directory):
    return by_place([r for path in files(directory) for r in pq.ParquetFile(path).read().to_pylist()])


def write(directory, rows, cuts=(), *, config=None, dictionaries=None, junk=False, **options):
    """Write rows in batches cut at ``cuts``; returns the rows in place."""
    writer = LakeWriter(directory, config or LakeConfig(), **options)
    dictionaries = dictionaries or ToyDictionaries()
    edges = sorted({0, len(rows), *(c for c in cuts if c < len(rows))})
    for first, end in pairwise(edges):
        writer.append(batch_of(rows[first:end], dictionaries, junk=junk), dictionaries)
        writer.end_step(0)
    return writer.close()


def test_schema_and_kernel_agree_on_places():
    for name in ("EVENT", "TS", "SEQ", "PHASE", "FATAL", "REASON", "ERROR_CODE", "APPEND_TS", "PARTITION", "OFFSET", "LINE", "DUPLICATE", "LATE", "EXTRA"):
        assert NAMES[getattr(kernel, name)] == name.lower()
    assert [NAMES[place] for place in (kernel.DEVICE, kernel.SESSION, kernel.USER, kernel.TITLE, kernel.BITRATE)] == [
        "device_id", "session_id", "user_id", "title_id", "bitrate_kbps",
    ]  # fmt: skip
    assert kernel.COLUMNS == len(COLUMNS) == 32


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 31, 32, 33, 127, 128, 129, 130, 257, 3000])
def test_every_column_comes_back(tmp_path, count):
    rows = random_rows(count, seed=count)
    assert write(tmp_path, rows) == count
    assert read(tmp_path) == rows


@pytest.mark.parametrize("null_share", [0.0, 0.02, 0.98, 1.0])
def test_nulls_come_back(tmp_path, null_share):
    rows = random_rows(700, seed=3, null_share=null_share)
    write(tmp_path, rows)
    assert read(tmp_path) == rows


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 100, DIRECT_ROWS_MIN, 5000])
def test_batches_of_any_size(tmp_path, size):
    rows = random_rows(6000 if size > 1 else 300, seed=size)
    write(tmp_path, rows, range(0, len(rows), size))
    assert read(tmp_path) == rows


@pytest.mark.slow
@settings(max_examples=examples(25))
@given(cuts=st.lists(st.integers(1, 5999), max_size=6), group=st.sampled_from([1, 500, 4096, 131_072]))
def test_cuts_and_row_groups_change_nothing(tmp_path_factory, cuts, group):
    rows = CUT_ROWS
    directory = tmp_path_factory.mktemp("lake")
    assert write(directory, rows, cuts, config=LakeConfig(row_group_rows=group), dictionaries=ToyDictionaries()) == len(rows)
    assert read(directory) == rows


CUT_ROWS = random_rows(1500, seed=5, titles=700)


@settings(max_examples=examples(50))
@given(values=st.lists(st.one_of(st.none(), INT64, st.integers(-3, 3)), min_size=1, max_size=300))
def test_integers_of_any_size(tmp_path_factory, values):
    directory = tmp_path_factory.mktemp("lake")
    rows = [row(offset=i, position_ms=value, seq=i) for i, value in enumerate(values)]
    write(directory, rows)
    assert [r["position_ms"] for r in read(directory)] == values


@pytest.mark.slow
@settings(max_examples=examples(50))
@given(values=st.lists(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=40)), min_size=1, max_size=60), junk=st.booleans())
def test_strings_of_any_content(tmp_path_factory, values, junk):
    directory = tmp_path_factory.mktemp("lake")
    rows = [
        row(offset=i, device_id=value or "", session_id="\0" * (i % 3), user_id=value, cdn=value, event=value or "Stop", extra=value)
        for i, value in enumerate(values)
    ]
    write(directory, rows, range(0, len(rows), 7), junk=junk)
    assert read(directory) == rows


@pytest.mark.slow
def test_a_dictionary_of_many_values_is_written_by_use(tmp_path):
    dictionaries = ToyDictionaries()
    for i in range(50_000):
        dictionaries.code(NAMES_TITLE, f"title number {i:06d}")
    rows = [row(offset=i, title_id=f"title number {(i * 7919) % 50_000:06d}", cdn=f"cdn-{i % 3}") for i in range(9000)]
    write(tmp_path, rows, range(0, 9000, 2500), dictionaries=dictionaries, config=LakeConfig(row_group_rows=3000))
    assert read(tmp_path) == rows
    path = files(tmp_path)[0]
    assert path.stat().st_size < 50_000 * 12  # the whole dictionary, three times, is 3 MB


NAMES_TITLE = 4  # row of title_id among the dictionary-coded columns


def test_a_dictionary_that_grows_within_a_row_group(tmp_path):
    rows = [row(offset=i, title_id=f"t{i}", isp=f"isp{i % (1 + i // 10)}") for i in range(2000)]
    write(tmp_path, rows, range(0, 2000, 130))
    assert read(tmp_path) == rows


@pytest.mark.slow
@pytest.mark.parametrize("spread", [1, 255, 256, 257, 5000])
def test_a_column_of_few_integers_that_become_many(tmp_path, spread):
    rows = [row(offset=i, bitrate_kbps=None if i % 11 == 0 else (i % 3) - 1 if i < 5000 else (i * i) % spread - 2**53) for i in range(10_000)]
    write(tmp_path, rows, range(0, 10_000, 2500), config=LakeConfig(row_group_rows=7500))
    assert read(tmp_path) == rows


@pytest.mark.parametrize("every", [2, 9, 47, 48, 49, 500, 4000])
@pytest.mark.parametrize("is_rare", [True, False])
def test_values_or_nulls_that_are_rare(tmp_path, every, is_rare):
    rows = [row(offset=i, reason="user" if (i % every < 2) == is_rare else None, late=(i // 7) % every == 0) for i in range(4093)]
    write(tmp_path, rows)
    assert read(tmp_path) == rows


@pytest.mark.slow
@given(gaps=st.lists(st.integers(1, 200), min_size=1, max_size=40), first=st.booleans())
@settings(max_examples=examples(50))
def test_runs_of_nulls_and_values(tmp_path_factory, gaps, first):
    directory = tmp_path_factory.mktemp("lake")
    present = [(i % 2 == 0) == first for i, gap in enumerate(gaps) for _ in range(gap)]
    rows = [row(offset=i, cdn="c" if there else None, fatal=there or None, seq=i if there else None, late=there) for i, there in enumerate(present)]
    write(directory, rows)
    assert read(directory) == rows


@pytest.mark.slow
def test_dictionaries_may_be_replaced(tmp_path):
    writer = LakeWriter(tmp_path, LakeConfig())
    rows = [row(offset=i, cdn=f"cdn-{i % 7}", title_id=f"t-{i % 900}") for i in range(9000)]
    for first in range(0, 9000, 1500):
        dictionaries = ToyDictionaries()
        for i in range(first):  # the same strings under other codes
            dictionaries.code(10, f"other {i}")
        writer.append(batch_of(rows[first : first + 1500], dictionaries), dictionaries)
    assert writer.close() == 9000
    assert read(tmp_path) == rows
    assert len(files(tmp_path)) == 1


@pytest.mark.slow
def test_a_batch_may_be_overwritten_afterwards(tmp_path):
    dictionaries, rows = ToyDictionaries(), random_rows(5000, seed=8)
    writer = LakeWriter(tmp_path, LakeConfig())
    for first, end in ((0, 100), (100, 4000), (4000, 5000)):
        batch = batch_of(rows[first:end], dictionaries)
        writer.append(batch, dictionaries)
        for array in (batch.ts, batch.ints, batch.codes, batch.offset, batch.line, batch.device_id.data, batch.device_id.offsets, batch.duplicate):
            array[...] = 0
    writer.close()
    assert read(tmp_path) == rows


def test_files_are_named_by_partition_and_offsets(tmp_path):
    dictionaries = ToyDictionaries()
    writer = LakeWriter(tmp_path, LakeConfig())
    for partition in (0, 12):
        rows = random_rows(30, partition=partition, first_offset=1000 * partition + 5)
        writer.append(batch_of(rows, dictionaries), dictionaries)
    assert writer.close() == 60
    assert [path.relative_to(tmp_path).as_posix() for path in files(tmp_path)] == [
        "event_date=2026-09-21/p00000-00000000000000000005-00000000000000000014.parquet",
        "event_date=2026-09-21/p00012-00000000000000012005-00000000000000012014.parquet",
    ]


def test_files_close_at_the_end_of_a_step_only(tmp_path):
    dictionaries = ToyDictionaries()
    writer = LakeWriter(tmp_path, LakeConfig(file_rows_max=10, row_group_rows=4))
    for first in (0, 20, 40):
        writer.append(batch_of(random_rows(60)[first : first + 20], dictionaries), dictionaries)
    writer.end_step(0)
    writer.append(batch_of(random_rows(3, first_offset=20), dictionaries), dictionaries)
    writer.end_step(0)
    writer.close()
    assert [path.stem for path in files(tmp_path)] == [f"p00000-{0:020d}-{19:020d}", f"p00000-{20:020d}-{20:020d}"]


def test_files_close_by_age(tmp_path):
    dictionaries = ToyDictionaries()
    writer = LakeWriter(tmp_path, LakeConfig(file_age_max_ms=1000))
    writer.append(batch_of([row()], dictionaries), dictionaries)
    for now_ms, files_then in ((50_000, 0), (50_999, 0), (51_000, 1), (60_000, 1)):
        writer.end_step(now_ms)
        writer._thread.wait_until_idle()
        assert writer.files == files_then
    assert writer.close() == 1


def test_large_rows_close_row_group_and_file(tmp_path):
    dictionaries = ToyDictionaries()
    config = LakeConfig(row_group_bytes_max=1 << 20, file_bytes_max=3 << 20)
    writer = LakeWriter(tmp_path, config)
    rows = [row(offset=i, extra='{"a":"' + chr(65 + i % 26) * 100_000 + '"}') for i in range(120)]
    for first in range(0, 120, 5):
        writer.append(batch_of(rows[first : first + 5], dictionaries), dictionaries)
        writer.end_step(0)
        assert writer._streams == {} or max(s.group_bytes for s in writer._streams.values()) < 2 << 20
    writer.close()
    assert read(tmp_path) == rows
    assert len(files(tmp_path)) > 2


def day(offset_ms=0):
    return (datetime.fromtimestamp(APPEND_MS / 1000, UTC) + timedelta(milliseconds=offset_ms)).date().isoformat()


@pytest.mark.slow
def test_event_date_follows_ts_within_two_days_of_the_append_time(tmp_path):
    reach = 2 * DAY_MS
    shifts = [0, -reach, reach, -reach - 1, reach + 1, -APPEND_MS, 2**53 - 1 - APPEND_MS]
    rows = [row(offset=i, ts=APPEND_MS + shift) for i, shift in enumerate(shifts * 300)]
    write(tmp_path, rows, [1000])
    folders = {path.parent.name.removeprefix("event_date="): pq.ParquetFile(path).read().to_pylist() for path in files(tmp_path)}
    expected = [day(), day(-reach), day(reach), day(), day(), day(), day()]
    assert set(folders) == set(expected)
    for i, r in enumerate(rows):
        assert r in folders[expected[i % len(shifts)]]
    assert read(tmp_path) == rows


def test_event_date_at_midnight(tmp_path):
    midnight = (APPEND_MS // DAY_MS + 1) * DAY_MS
    rows = [row(offset=0, ts=midnight - 1), row(offset=1, ts=midnight)]
    write(tmp_path, rows)
    assert [path.parent.name for path in files(tmp_path)] == ["event_date=2026-09-21", "event_date=2026-09-22"]


@pytest.mark.parametrize("is_told", [True, False])
def test_event_date_of_a_plain_file(tmp_path, is_told):
    reach = 30 * DAY_MS
    shifts = [0, -reach, reach, -reach - 1, reach + 1]
    rows = [row(offset=i, ts=APPEND_MS + shift, append_ts=None) for i, shift in enumerate(shifts)]
    for r in rows:
        r["append_ts"] = 0
    write(tmp_path, rows, [2], has_log_time=False, anchor_ts_ms=APPEND_MS if is_told else None)
    assert [path.parent.name[11:] for path in files(tmp_path)] == sorted({day(), day(-reach), day(reach)})
    assert read(tmp_path) == [dict(r, append_ts=None) for r in rows]


def test_statistics_codec_and_descriptions(tmp_path):
    rows = random_rows(500, seed=4)
    write(tmp_path, rows, config=LakeConfig(row_group_rows=100), cuts=range(0, 500, 100))
    file = pq.ParquetFile(files(tmp_path)[0])
    assert file.schema_arrow.remove_metadata().equals(SCHEMA.remove_metadata(), check_metadata=False)
    assert file.metadata.metadata[DESCRIPTIONS_KEY.encode()].decode() == DESCRIPTIONS
    assert file.metadata.num_row_groups == 1  # 500 rows in small batches are one page
    group = file.metadata.row_group(0)
    assert {group.column(i).compression for i in range(32)} == {"ZSTD"}
    for i, name in enumerate(NAMES):
        statistics, values = group.column(i).statistics, [r[name] for r in rows]
        assert statistics.null_count == values.count(None), name
        assert statistics.has_min_max == (name in {"ts", "offset"})
        if statistics.has_min_max:
            assert (statistics.min, statistics.max) == (min(values), max(values))


@pytest.mark.slow
def test_counters(tmp_path):
    dictionaries, rows = ToyDictionaries(), random_rows(3000)
    writer = LakeWriter(tmp_path, LakeConfig())
    writer.append(batch_of(rows, dictionaries), dictionaries)
    assert (writer.rows, writer.rows_written) == (3000, 0)
    assert writer.close() == writer.close() == writer.rows == 3000
    assert writer.files == 1
    assert writer.bytes == files(tmp_path)[0].stat().st_size
    assert writer.cpu_seconds > 0
    with pytest.raises(SinkError, match="closed"):
        writer.append(batch_of(rows, dictionaries), dictionaries)


def test_flush_puts_everything_in_place_and_goes_on(tmp_path):
    dictionaries, rows = ToyDictionaries(), random_rows(90)
    writer = LakeWriter(tmp_path, LakeConfig())
    for first in (0, 30, 60):
        writer.append(batch_of(rows[first : first + 30], dictionaries), dictionaries)
        writer.flush()
        assert read(tmp_path) == rows[: first + 30]
    assert writer.close() == 90


@pytest.mark.slow
def test_a_full_queue_makes_the_caller_wait(tmp_path):
    dictionaries = ToyDictionaries()
    batch = batch_of(random_rows(2500), dictionaries)
    writer = LakeWriter(tmp_path, LakeConfig(queue_bytes_max=1))
    may_write = threading.Event()
    writer._thread.put(1, may_write.wait)  # a disk that hangs
    threading.Timer(0.05, may_write.set).start()
    for _ in range(3):
        writer.append(batch, dictionaries)
        assert may_write.is_set()
    assert writer.close() == 7500
    assert writer.wait_seconds > 0


def test_discarding_a_partition_leaves_the_others(tmp_path):
    dictionaries = ToyDictionaries()
    rows = {partition: random_rows(60, partition=partition, seed=partition) for partition in (1, 2)}
    writer = LakeWriter(tmp_path, LakeConfig())
    for first in (0, 30):
        for partition in (1, 2):
            writer.append(batch_of(rows[partition][first : first + 30], dictionaries), dictionaries)
        if first == 0:
            writer.flush()
    writer.discard_partition(1)
    assert writer.rows == 60
    writer.append(batch_of(rows[1], dictionaries), dictionaries)
    assert writer.close() == 120
    assert read(tmp_path) == rows[1] + rows[2]


def test_opening_sweeps_its_own_partitions_only(tmp_path):
    lake, writing = tmp_path / "lake", tmp_path / ".lake.writing"
    writing.mkdir()
    for partition in (1, 2, 3):
        (writing / f"p{partition:05d}-2026-09-21-{0:020d}-999-1.tmp").write_bytes(b"PAR1 torn")
    writer = LakeWriter(lake, LakeConfig(), partitions=[1])
    assert [path.name[:6] for path in sorted(writing.iterdir())] == ["p00002", "p00003"]
    dictionaries = ToyDictionaries()
    writer.append(batch_of([row(partition=2)], dictionaries), dictionaries)  # a partition met later
    writer.close()
    assert [path.name[:6] for path in sorted(writing.iterdir())] == ["p00003"]
    assert len(files(lake)) == 1


def test_abort_leaves_what_is_in_place(tmp_path):
    dictionaries = ToyDictionaries()
    writer = LakeWriter(tmp_path / "lake", LakeConfig(row_group_rows=1))
    writer.append(batch_of([row()], dictionaries), dictionaries)
    writer.flush()
    writer.append(batch_of([row(offset=1)] * 3000, dictionaries), dictionaries)
    writer.abort()
    assert read(tmp_path / "lake") == [row()]
    assert [path.name for path in tmp_path.iterdir()] == ["lake"]


def test_writers_that_come_and_go_share_a_directory(tmp_path):
    dictionaries = ToyDictionaries()
    first = LakeWriter(tmp_path / "lake", LakeConfig(), partitions=[0])
    for partition in range(1, 4):
        second = LakeWriter(tmp_path / "lake", LakeConfig(), partitions=[partition])
        second.append(batch_of([row(partition=partition)], dictionaries), dictionaries)
        second.close()  # removes the directory of unfinished files that the first will need
    first.append(batch_of([row()], dictionaries), dictionaries)
    assert first.close() == 1
    assert len(read(tmp_path / "lake")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["lake"]


def test_a_directory_that_goes_between_two_looks_is_made_again(tmp_path, monkeypatch):
    """Another writer that is done removes it, when it is empty: after our mkdir found it, and before we look whether it is one."""
    writing = tmp_path / ".lake.writing"
    dictionaries = ToyDictionaries()
    writer = LakeWriter(tmp_path / "lake", LakeConfig())
    mkdir, is_dir = Path.mkdir, Path.is_dir
    looks = []

    def goes_meanwhile(path, *args, **kwargs):
        if path == writing and not looks:
            looks.append(path)
            monkeypatch.setattr(Path, "is_dir", lambda path: path != writing and is_dir(path))
            try:
                mkdir(path, *args, **kwargs)
            finally:
                path.rmdir()
                monkeypatch.setattr(Path, "is_dir", is_dir)
        else:
            mkdir(path, *args, **kwargs)

    writing.mkdir(exist_ok=True)
    monkeypatch.setattr(Path, "mkdir", goes_meanwhile)
    writer.append(batch_of([row()], dictionaries), dictionaries)
    assert writer.close() == 1
    assert looks == [writing]
    assert len(read(tmp_path / "lake")) == 1


def test_an_empty_batch_and_an_empty_lake(tmp_path):
    dictionaries = ToyDictionaries()
    writer = LakeWriter(tmp_path / "lake", LakeConfig())
    writer.append(batch_of([], dictionaries), dictionaries)
    writer.end_step(1)
    assert writer.close() == 0
    assert files(tmp_path / "lake") == []


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="choose another directory"):
        LakeWriter(tmp_path / "taken" / "lake", LakeConfig())


@pytest.mark.slow
@given(cuts=st.lists(st.integers(1, 2999), max_size=4), junk=st.booleans(), share=st.sampled_from([0.001, 0.3]))
@settings(max_examples=examples(20))
def test_days_mixed_in_a_batch(tmp_path_factory, cuts, junk, share):
    directory = tmp_path_factory.mktemp("lake")
    source = random.Random(len(cuts))
    rows = [dict(r, ts=r["ts"] + DAY_MS * source.choice([-1, 1])) if source.random() < share else r for r in MIXED_ROWS]
    assert write(directory, rows, cuts, junk=junk) == len(rows)
    assert read(directory) == rows
    for path in files(directory):
        held = pq.ParquetFile(path).read().to_pylist()
        assert {f"event_date={day(r['ts'] - APPEND_MS)}" for r in held} == {path.parent.name}
        offsets = [r["offset"] for r in held]
        assert offsets == sorted(offsets)
        assert path.name == f"p00000-{offsets[0]:020d}-{offsets[-1]:020d}.parquet"


MIXED_ROWS = random_rows(3000, seed=77, titles=400)
