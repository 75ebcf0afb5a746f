"""``keystone audit``: clean where all agree, and every row that is removed, added or doubled anywhere is told, with its minute and place."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.audit.engine import Audit, PartitionAudit, late_notes
from keystone.audit.places import compare, is_not_kept
from keystone.checkpoint import Checkpoints
from keystone.log.embedded import EmbeddedLog
from keystone.sinks.iceberg.tables import LakeTables
from keystone.store import open_store
from tests.audit_scene import MINUTES, Scene, told_of, whole
from tests.lake_batches import APPEND_MS
from tests.letters import letter, told, write


@pytest.fixture
def scene(tmp_path: Path, lake: Path, tables: LakeTables) -> Iterator[Scene]:
    found = Scene(tmp_path, lake, tables)
    yield found
    found.close()


# --- the arithmetic -----------------------------------------------------------------------------------------------------------------
pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=20)


def as_places(some: list[tuple[int, int]]) -> Any:
    return np.array([(*one, 0) for one in some], np.int64).reshape(-1, 3)


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 3))), pairs)
def test_sides_are_those_of_multisets(expected: set[tuple[int, int]], found: list[tuple[int, int]]) -> None:
    wanted = sorted(expected)
    sides = compare(as_places(wanted), as_places(found))
    assert [one for one, flag in zip(wanted, sides.missing, strict=True) if flag] == sorted(expected - set(found))
    assert Counter(one for one, flag in zip(found, sides.extra, strict=True) if flag) == Counter(one for one in found if one not in expected)
    assert int(sides.doubled.sum()) == len(found) - len(set(found))
    assert sides.are_same == (sorted(found) == wanted)


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)), st.lists(st.integers(0, 30), max_size=3))
def test_what_was_not_kept_lies_behind_a_marker_and_before_the_next_letter(kept: set[int], dead: set[int], markers: list[int]) -> None:
    missing = sorted(dead - kept)
    found = is_not_kept(as_places([(k, 0) for k in missing]), as_places([(k, 0) for k in sorted(kept)]), as_places([(k, 0) for k in markers]))
    assert found.tolist() == [any(mark <= one and not kept & set(range(mark, one)) for mark in markers) for one in missing]


# --- log, lake and letters ------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_all_agree(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = whole(scene).audit(capsys)
    assert (status, found["clean"], found["differences"], found["notes"]) == (0, True, [], [])
    first = found["partitions"][0]
    assert {name: first[name] for name in ("first_offset", "next_offset", "received", "accepted", "dead", "lake", "letters", "in_flight")} == {
        "first_offset": 0, "next_offset": 12, "received": 27, "accepted": 24, "dead": 3, "lake": 24, "letters": 3, "in_flight": 0,
    }  # fmt: skip
    assert [cell["received"] for cell in found["minutes"] if cell["partition"] == 0] == minutes_of(scene, 0)
    status, out, _ = told(capsys, *scene.words)
    assert status == 0
    assert out.splitlines()[0] == "partition 0: offsets 0 to 12; received 27 = accepted 24 + dead 3; lake 24; dead letters 3"
    assert out.splitlines()[-1] == "clean"


def minutes_of(scene: Scene, partition: int) -> list[int]:
    counts = Counter[int]()
    for offset, ms in enumerate(scene.times[partition]):
        counts[ms // 60_000] += 3 if offset % 4 == 1 else 2
    return [counts[key] for key in sorted(counts)]


@pytest.mark.slow
def test_what_is_newer_than_the_last_commit_is_in_flight(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    whole(scene).append(3)
    scene.commit(1)
    write(scene.letters, [letter(13, b"broken", "invalid_json", line=1)], epoch=9)  # delivered, and not committed yet
    status, found = scene.audit(capsys)
    assert (status, found["clean"]) == (0, True)
    assert [(p["next_offset"], p["in_flight"], p["received"]) for p in found["partitions"]] == [(12, 3, 27), (15, 0, 34)]
    assert "in flight 3 records (" in told(capsys, *scene.words)[1]


def test_what_was_in_flight_for_minutes_is_said() -> None:
    found = Audit(partitions=[PartitionAudit(0, 0, 5, 7, 1_000), PartitionAudit(1, 0, 5, 7, 500_000), PartitionAudit(2)])
    assert late_notes(found, 601_000) == ["partition 0: 7 records are in flight, the oldest for 600 s: is the run that writes this lake up?"]


def test_a_partition_that_has_no_commit_yet_is_in_flight(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.append()
    scene.commit(1)
    status, found = scene.audit(capsys)
    assert (status, found["partitions"][0]["in_flight"]) == (0, 12)


# --- and each kind of difference --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda rows: rows[:9] + rows[10:], (8, 7, 1, 0, 0, "offset 4, line 2")),
        (lambda rows: [*rows, rows[9]], (8, 9, 0, 0, 1, "offset 4, line 2")),
        (lambda rows: [*rows, rows[9] | {"line": 5}], (8, 9, 0, 1, 0, "offset 4, line 5")),
        (lambda rows: [*rows[:9], rows[9] | {"line": 5}, *rows[10:]], (8, 8, 1, 1, 0, "offset 4, line 2")),
    ],
    ids=["removed", "doubled", "added", "moved"],
)
def test_the_lake_differs(scene: Scene, capsys: pytest.CaptureFixture[str], change: Any, difference: tuple[Any, ...]) -> None:
    scene.append()
    scene.commit(0, change=change)
    scene.commit(1)
    status, found = scene.audit(capsys)
    assert status == 1
    at = (scene.times[0][4] - APPEND_MS // 60_000 * 60_000) // 60_000
    [(when, partition, where, expected, there, *rest)] = told_of(found)
    assert (when, partition, where) == (MINUTES[at], 0, "lake")
    assert (*rest[:3], rest[3]) == difference[2:]
    assert there - expected == difference[1] - difference[0]
    status, out, _ = told(capsys, *scene.words)
    assert status == 1
    assert out.splitlines()[-1] == "DIFFERS: 1 differences"
    assert difference[-1] in out


@pytest.mark.slow
def test_a_row_outside_of_what_is_committed(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.append()
    scene.commit(0, change=lambda rows: [*rows, rows[0] | {"offset": 99}])
    scene.commit(1)
    status, found = scene.audit(capsys)
    assert (status, told_of(found)[0][2:]) == (1, ("lake", 0, 1, 0, 1, 0, "offset 99, line 0"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda lines: lines[:1] + lines[2:], (1, 0, 1, 0, 0, "offset 5, line 1")),
        (lambda lines: [*lines, lines[1]], (1, 2, 0, 0, 1, "offset 5, line 1")),
    ],
    ids=["removed", "doubled"],
)
def test_the_letters_differ(scene: Scene, capsys: pytest.CaptureFixture[str], change: Any, difference: tuple[Any, ...]) -> None:
    whole(scene)
    path = next(scene.letters.glob("*p00000-*.ndjson"))
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    status, found = scene.audit(capsys)
    assert status == 1
    assert [one[1:] for one in told_of(found)] == [(0, "dead letters", *difference)]
    assert scene.audit(capsys, "--dead-letters", "none")[0] == 0


@pytest.mark.slow
def test_a_letter_too_many_has_no_minute(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    whole(scene)
    write(scene.letters, [letter(2, b"x", "invalid_json")], epoch=7)
    status, found = scene.audit(capsys)
    assert (status, told_of(found)) == (1, [("", 0, "dead letters", 0, 1, 0, 1, 0, "offset 2, line 0")])


@pytest.mark.slow
def test_letters_that_were_not_kept_on_purpose_are_told_and_no_difference(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    whole(scene)
    path = next(scene.letters.glob("*p00000-*.ndjson"))
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    write(scene.letters, [letter(5, b"", "not_kept", line=1)], epoch=7)
    status, found = scene.audit(capsys)
    assert status == 0
    assert found["notes"] == ["partition 0: 2 dead letters were counted and not kept (dead_letters.bytes_max)"]


@pytest.mark.slow
def test_a_letter_behind_one_that_is_kept_again_is_missing_whatever_is_looked_at(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """The marker is of offset 1, letter 5 is kept again, and 9 is lost: also where the look begins behind 5."""
    whole(scene)
    path = next(scene.letters.glob("*p00000-*.ndjson"))
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[1])
    write(scene.letters, [letter(1, b"", "not_kept", line=1)], epoch=7)
    for words in ((), ("--from", str(scene.times[0][6]))):
        status, found = scene.audit(capsys, *words)
        assert (status, [one[5:] for one in told_of(found)]) == (1, [(1, 0, 0, "offset 9, line 1")]), words


# --- several runs' letters in one place ---------------------------------------------------------------------------------------------
def with_state(folder: Path) -> str:
    """A place of checkpoints, and what the letters of its runs are named by."""
    return f"{Checkpoints(open_store(str(folder))).seed() & 0xFFFFFFFF:08x}"


def other_letters(scene: Scene, run: str) -> None:
    """At places where this log has others, and where it has none; and a marker that would excuse any loss."""
    write(scene.letters, [letter(o, b"{", "invalid_json", line=1) for o in (0, 1, 5)] + [letter(0, b"", "not_kept", partition=1)], run=run)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["beside the lake", "named", "in keystone.toml"])
def test_letters_of_other_runs_are_not_compared(scene: Scene, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole(scene)
    state = scene.folder / "state" if place != "beside the lake" else scene.lake.with_name("lake-state")
    words = {"named": ("--state", str(state)), "in keystone.toml": ("--set", f"run.state={state}")}.get(place, ())
    mine = with_state(state)
    try:
        for path in scene.letters.iterdir():
            path.rename(path.with_name(path.name.replace("0f3a91c2", mine)))
        other_letters(scene, "other")
        status, found = scene.audit(capsys, *words)
        assert (status, found["notes"]) == (0, ["4 dead letters of other runs are in the same place: not compared"]), found
        assert [partition["letters"] for partition in found["partitions"]] == [3, 3]
        for path in scene.letters.glob(f"{mine}-p00001-*"):
            path.unlink()
        status, found = scene.audit(capsys, *words)
        assert (status, sum(one["missing"] for one in found["differences"])) == (1, 3), "no other run's letters or markers stand for them"
    finally:
        shutil.rmtree(state)


@pytest.mark.slow
def test_letters_of_several_runs_without_a_state_are_one_line(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    whole(scene)
    other_letters(scene, "other")
    status, out, err = told(capsys, *scene.words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{scene.letters} has dead letters of several runs (0f3a91c2, other), and no state beside the lake says which are its own: name it by --state" in err
    assert scene.audit(capsys, "--dead-letters", "none")[0] == 0
    status, _, err = told(capsys, *scene.words, "--state", str(scene.folder / "none"))
    assert (status, err.count("\n")) == (2, 1)
    assert "no run has kept its state there" in err
    assert not (scene.folder / "none").exists()


@pytest.mark.slow
def test_the_log_has_forgotten_its_beginning(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.append(40, blank=4_000)  # three segments of 64 KiB
    scene.commit(0)
    scene.commit(1)
    with closing(scene.log.reader(0)) as reader:
        while scene.log.stats(0).start_offset == 0:
            reader.commit(len(scene.times[0]))
            scene.times[0].append(scene._writers[0].append(b"\n" * 30_000).append_ts_ms)
    assert 0 < scene.log.stats(0).start_offset < 40
    status, found = scene.audit(capsys)
    assert status == 0, found
    assert any("the log has forgotten offsets 0 to" in note and "audited from what is left" in note for note in found["notes"])


@pytest.mark.slow
def test_another_log_than_the_lakes(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    whole(scene)
    with closing(EmbeddedLog.create(scene.folder / "other", partitions=2, segment_bytes=1 << 16, retention_bytes=1 << 18)):
        status, found = scene.audit(capsys, "--log", f"embedded:{scene.folder / 'other'}")
    assert status == 1
    assert "it is not the log of this lake" in found["differences"][0]["first"]


@pytest.mark.slow
def test_a_range_of_time(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.append()
    scene.commit(0, change=lambda rows: rows[1:])
    scene.commit(1)
    assert scene.audit(capsys)[0] == 1
    status, found = scene.audit(capsys, "--from", str(scene.times[0][1]), "--to", str(scene.times[0][8]))
    assert status == 0
    assert [(p["first_offset"], p["next_offset"], p["received"]) for p in found["partitions"]] == [(1, 8, 16), (1, 8, 16)]
    assert scene.audit(capsys, "--to", str(scene.times[0][1]))[0] == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "no log is named: say --log, or set run.log"),
        (("--log", "embedded:{tmp}/log"), "no lake is named: say --lake, or set run.lake"),
        (("--log", "embedded:{tmp}/none", "--lake", "{lake}"), "holds no log"),
        (("--log", "embedded:{tmp}/log", "--lake", "{tmp}/none"), "there is no catalog.db in it"),
        (("--log", "embedded:{tmp}/log", "--lake", "{lake}", "--from", "later"), "--from later: write a day"),
        (("--log", "embedded:{tmp}/log", "--lake", "{lake}", "--from", "9", "--to", "8"), "nothing lies between"),
        (("--log", "embedded:{tmp}/log", "--lake", "{lake}", "--dead-letters", "{tmp}/none"), "there is no such directory"),
        (("--log", "embedded:{tmp}/log", "--lake", "{lake}", "--elastic", "x"), "write it as http://HOST:9200"),
    ],
)
def test_mistakes_are_one_line(scene: Scene, words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = told(capsys, "audit", *(word.format(tmp=scene.folder, lake=scene.lake) for word in words))
    assert (status, err.count("\n")) == (2, 1)
    assert line in err


@pytest.mark.slow
def test_a_file_that_is_gone_is_told(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.append()
    segment = scene.commit(0)
    scene.commit(1)
    (scene.lake / segment.files[0].path).unlink()
    status, found = scene.audit(capsys)
    assert status == 1
    assert any("cannot be read" in d["first"] for d in found["differences"])
