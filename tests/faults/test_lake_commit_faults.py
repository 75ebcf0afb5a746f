"""Committers that are killed at any moment, and one that is frozen while another takes over: real processes, one lake."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from keystone.config import LakeConfig
from keystone.errors import UsageError
from keystone.segments import Segment
from keystone.sinks.iceberg import places as iceberg_places
from keystone.sinks.iceberg.places import CATALOG_FILE
from keystone.sinks.iceberg.tables import LakeTables
from keystone.sinks.iceberg.verify import verify
from tests.lake_tables import Owner, count, expected_places, opened, places, rows_of

ROOT = Path(__file__).parents[2]
KILLS = 8
pytestmark = [pytest.mark.slow, pytest.mark.faults]

#: Commits the segments of a file one after another, as its epoch; says how far it is.
COMMITTER = """
import json, sys
from keystone.config import LakeConfig
from keystone.errors import Fenced
from keystone.segments import Segment
from keystone.sinks.iceberg.tables import LakeTables
from keystone.sinks.iceberg.upkeep import expire
lake, file, epoch, sizes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
segments = [Segment.from_json(found) for found in json.load(open(file))]
tables = LakeTables.open(lake, LakeConfig())
begin = sum(link.next_sequence for link in tables.committed().values())
print("ready", flush=True)
try:
    for end in range(begin + sizes, len(segments) + sizes, sizes):
        done = tables.commit(segments[:end], epoch)
        assert not done.refused, done.refused
        print(end, flush=True)
        if end % (5 * sizes) == 0:
            expire(tables, keep=2)
except Fenced:
    print("fenced", flush=True)
"""

#: Takes the catalog's lock, and keeps it.
HOLDER = """
import sqlite3, sys, time
catalog = sqlite3.connect(sys.argv[1])
catalog.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(600)
"""


def start(lake, file, epoch, sizes=2):
    return subprocess.Popen([sys.executable, "-c", COMMITTER, str(lake), str(file), str(epoch), str(sizes)], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def written(lake, tmp_path, each):
    owners = [Owner(lake, p) for p in range(2)]
    segments = [owner.segment() for _ in range(each) for owner in owners]
    file = tmp_path / "segments.json"
    file.write_text(json.dumps([segment.to_json() for segment in segments]))
    assert Segment.from_json(json.loads(file.read_text())[0]) == segments[0]
    return segments, file


def freeze(process, lake):
    """Stop it in the midst of anything but a transaction of SQLite's: in one of those nobody else can do anything until it goes on or dies."""
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with closing(sqlite3.connect(lake / CATALOG_FILE, timeout=0)) as catalog:
                catalog.execute("BEGIN EXCLUSIVE")
                return
        except sqlite3.OperationalError as error:
            assert "locked" in str(error)  # noqa: PT017 - anything else would be a fault of this test
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.002)


def agree(lake, segments):
    tables = opened(lake)
    assert places(tables) == expected_places(segments)
    for name in ("sessions", "alerts"):
        assert count(tables, name) == rows_of(segments, name)
    assert [v.faults for v in verify(tables)] == [[], [], []]


def test_killed_at_any_moment(lake, tmp_path):
    segments, file = written(lake, tmp_path, each=60)
    dice = random.Random(5)
    for epoch in range(1, 1 + KILLS):
        with start(lake, file, epoch) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(dice.uniform(0.0, 0.3))  # a commit of three tables takes 0.1 s
            process.kill()
    tables = opened(lake)
    halfway = sum(link.next_sequence for link in tables.committed().values())
    with start(lake, file, 1 + KILLS) as process:
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert halfway < len(segments), "the kills came in the midst of it"
    agree(lake, segments)


@pytest.mark.parametrize("after_commits", [0, 1, 3])
def test_frozen_while_another_takes_over(lake, tmp_path, after_commits):
    segments, file = written(lake, tmp_path, each=12)
    with start(lake, file, 1) as frozen:
        for _ in range(1 + after_commits):
            frozen.stdout.readline()
        time.sleep(0.03)  # into the midst of the next commit
        freeze(frozen, lake)
        try:
            with start(lake, file, 2, sizes=6) as successor:
                out, _ = successor.communicate(timeout=120)
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        assert int(out.splitlines()[-1]) >= len(segments)
        out, _ = frozen.communicate(timeout=120)
    assert out.splitlines()[-1] == "fenced"
    agree(lake, segments)


def test_frozen_in_a_transaction_of_the_catalog(lake, tmp_path, monkeypatch):
    segments, file = written(lake, tmp_path, each=6)
    opened(lake)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lake / CATALOG_FILE)], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        os.kill(holder.pid, signal.SIGSTOP)
        monkeypatch.setattr(iceberg_places, "SQLITE_WAIT_S", 0)
        with pytest.raises(UsageError, match=r"another process has held .*catalog\.db .*: if it was stopped in its midst, let it go on, or kill it"):
            LakeTables.open(lake, LakeConfig())
        with start(lake, file, 1) as successor:  # waits
            time.sleep(0.5)
            assert successor.poll() is None
            holder.kill()
            out, _ = successor.communicate(timeout=120)
    assert int(out.splitlines()[-1]) >= len(segments)
    agree(lake, segments)
