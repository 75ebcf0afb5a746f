"""Fixtures of lakes with tables. Making three tables takes 0.1 s, so it is done once and copied."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from keystone.sinks.iceberg.tables import LakeTables


@pytest.fixture(scope="session")
def empty_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables know where they are, so each test gets its copy at the same place."""
    from tests.lake_tables import opened

    folder = tmp_path_factory.mktemp("made") / "lake"
    opened(folder).close()
    shutil.copytree(folder, folder.with_name("kept"))
    return folder


@pytest.fixture
def lake(empty_lake: Path) -> Path:
    """A lake with empty tables."""
    shutil.rmtree(empty_lake)
    return Path(shutil.copytree(empty_lake.with_name("kept"), empty_lake))


@pytest.fixture
def tables(lake: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LakeTables]:
    """Its tables, open. Nobody waits: neither before the next try nor for the disk."""
    from keystone.sinks.iceberg import durable, tables
    from tests.lake_tables import opened

    monkeypatch.setattr(tables, "TRY_AGAIN_S", 0.0)
    monkeypatch.setattr(durable.os, "fsync", lambda descriptor: None)
    found = opened(lake)
    yield found
    found.close()
