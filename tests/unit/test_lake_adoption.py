"""A lake whose catalog was lost: never begun anew beside its files, and whole again once its tables are adopted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from keystone.cli import main
from keystone.config import Config, LakeConfig
from keystone.errors import UsageError
from keystone.run.places import Options, resolve
from keystone.sinks.iceberg.adoption import adopt, newest
from keystone.sinks.iceberg.compaction import compact
from keystone.sinks.iceberg.tables import ORDER, LakeTables
from keystone.sinks.iceberg.upkeep import expire
from keystone.sinks.iceberg.verify import verify
from tests.lake_tables import Owner, count, expected_places, opened, places, rows_of
from tests.unit.test_run_cli import make_log

pytestmark = pytest.mark.slow

LOST = r"its tables are there, and the catalog that knows them is not: bring catalog\.db back, or say keystone lake adopt --lake "


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def written(lake: Path, tables: LakeTables, segments: int = 12) -> tuple[Owner, list[Any]]:
    """A lake with history: commits, a compaction, snapshots expired and metadata files removed."""
    owner, given = Owner(lake), []
    for _ in range(segments):
        given.append(owner.segment(days=(0, -1)))
        tables.commit(given, 1)
    compact(tables)
    expire(tables, keep=2)
    given.append(owner.segment())
    tables.commit(given, 1)
    tables.close()
    return owner, given


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_lake_without_its_catalog_is_not_begun_anew(lake: Path, tables: LakeTables, tmp_path: Path, is_empty: bool) -> None:
    written(lake, tables, 2)
    (lake / "catalog.db").unlink()
    if is_empty:
        (lake / "catalog.db").touch()  # SQLite takes it for a new one
    else:
        with pytest.raises(UsageError, match=LOST):
            resolve(Options(log=make_log(tmp_path / "log"), lake=str(lake)), Config())
        with pytest.raises(UsageError, match=LOST):
            LakeTables.open(lake, LakeConfig(), is_made=False)
    before = {path for path in (lake / "metadata").rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=LOST):
        opened(lake)
    assert {path for path in (lake / "metadata").rglob("*") if path.is_file()} == before


def test_tables_that_are_adopted_are_whole_and_go_on(lake: Path, tables: LakeTables, capsys: pytest.CaptureFixture[str]) -> None:
    owner, segments = written(lake, tables)
    (lake / "catalog.db").unlink()
    status, out, _ = told(capsys, "lake", "adopt", "--lake", str(lake))
    assert status == 0
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["events", "sessions", "alerts"]
    assert f"{len(expected_places(segments)):,} rows" in lines[0]
    assert lines[3] == f"now say keystone lake verify --lake {lake}"
    again = opened(lake)
    assert places(again) == expected_places(segments)
    assert [count(again, name) for name in ORDER] == [rows_of(segments, name) for name in ORDER]
    assert all(not verdict.faults for verdict in verify(again))
    more = owner.segment()
    assert again.commit([*segments, more], 1).segments == 1
    assert places(again) == expected_places([*segments, more])
    again.close()
    assert "events: the catalog knows it already" in told(capsys, "lake", "adopt", "--lake", str(lake))[1]


def test_of_metadata_files_with_one_number_the_one_with_more_committed_is_taken(lake: Path, tables: LakeTables) -> None:
    """As where a commit lost a race, in either order of names."""
    owner = Owner(lake)
    segments = [owner.segment()]
    tables.commit(segments, 1)
    folder = lake / "metadata" / "events"
    (older,) = (Path(url.removeprefix("file://")) for url in newest(f"file://{path}" for path in folder.iterdir()))
    segments.append(owner.segment())
    tables.commit(segments, 1)
    tables.close()
    number = int(older.name.split("-")[0]) + 1
    for name in ("00000000", "ffffffff"):
        shutil.copy(older, folder / f"{number:05d}-{name}-0000-0000-0000-000000000000.metadata.json")
    (lake / "catalog.db").unlink()
    adopt(lake, LakeConfig(), ORDER)
    again = opened(lake)
    assert places(again) == expected_places(segments)
    again.close()


def test_the_newest_is_told_by_its_number() -> None:
    urls = [f"s3://b/{name}" for name in ("99999-a.metadata.json", "100000-b.metadata.json", "100000-c.metadata.json", "x.json", "snap-1.avro")]
    assert newest(urls) == urls[1:3]
    assert newest([]) == []


def test_tables_without_a_commit_are_made_as_ever(lake: Path, tables: LakeTables) -> None:
    """As where whoever made them died before the catalog had them, or another makes them at this moment."""
    tables.close()
    (lake / "catalog.db").unlink()
    again = opened(lake)
    assert again.committed() == {}
    again.close()


def test_what_cannot_be_adopted_is_one_line_and_changes_nothing(lake: Path, tables: LakeTables, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(lake, tables, 2)
    (lake / "catalog.db").unlink()
    shutil.copytree(lake, tmp_path / "moved")
    (newest_events,) = newest(str(path) for path in (lake / "metadata" / "events").glob("*.json"))
    Path(newest_events).write_bytes(Path(newest_events).read_bytes()[:200])
    for place, line in ((tmp_path / "none", "no metadata files of a table"), (tmp_path / "moved", "cannot be moved"), (lake, "cannot be read: bring it or")):
        status, _, err = told(capsys, "lake", "adopt", "--lake", str(place))
        assert (status, err.count("\n")) == (2, 1)
        assert line in err
        assert not (place / "catalog.db").exists()
    with pytest.raises(UsageError, match="that knows them is not"):
        opened(lake)
