"""The memory of a session table: growth, long names, keys that collide, codes beyond 16 bits, limits."""

from __future__ import annotations

import hashlib
import random
import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.core.dispatcher import Dispatcher

from keystone.config import CohortsConfig, Config, DetectionConfig, SessionConfig
from keystone.decode import Decoder, Dictionaries
from keystone.errors import CheckpointDamaged, SessionsFull, UsageError
from keystone.events import CODED_DIMENSIONS, DICTIONARY_COLUMNS, FIRST_DIMENSION, Records
from keystone.kernels import arena, cohorts
from keystone.kernels import session_rows as layout
from keystone.kernels import sessions as kernel
from keystone.kernels.arena import CLASSES, UNIT
from keystone.mappings import ALIGNMENT, Mapping, Room
from keystone.pipeline import PartitionPipeline
from keystone.session_snapshot import SCHEMA, packed
from keystone.sessions import SessionTable
from tests.batches import Run, ToyDictionaries, batch_of, canonical, event, reference_outcome

NOW = 1_700_000_000_000
FILE = {"has_log_time": False}

hexadecimal = st.text("0123456789abcdef", max_size=40)
uuids = st.uuids().map(str)
almost = st.tuples(uuids, st.integers(0, 35), st.sampled_from("-g0FA\0")).map(lambda x: x[0][: x[1]] + x[2] + x[0][x[1] + 1 :])
symbols = st.text(string.ascii_letters + string.digits + "-_", max_size=200)
names = st.one_of(hexadecimal, uuids, almost, symbols, st.text(max_size=70), st.integers(0, 3000).map(lambda n: "x." * n))


@given(st.lists(st.tuples(names, names, st.none() | names), min_size=1, max_size=5))
def test_names_come_back_byte_for_byte(ids: list[tuple[str, str, str | None]]) -> None:
    events = [(event("Start", 1, device_id=device, session_id=session, user_id=user), 0) for device, session, user in ids]
    run = Run(**FILE)
    run.apply(events)
    run.close_all()
    assert run.outcome() == reference_outcome(events, end=None, has_log_time=False)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 1), ("abc", 4), ("00ff00ff00ff00ff", 9), ("123e4567-e89b-42d3-a456-426614174000", 17), ("123E4567-E89B-42D3-A456-426614174000", 29),
        ("dev-00000001", 10), ("a b c", 6),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_names_are_spelled_short(text: str, size: int) -> None:
    memory = np.zeros(64, np.uint8)
    data = np.frombuffer(text.encode() or b"\0", np.uint8).copy()
    assert arena.put_string(data, 0, len(text), memory, 0) == size
    assert arena.skip_string(memory, 0) == size


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 5000, 1 << 20])
def test_names_of_any_length(size: int) -> None:
    rows = 40 if size < 1 << 20 else 4
    events = [(event("Start", 1, seq=0, device_id="d" * size, session_id=f"{i}" + "." * size, user_id="short"), NOW) for i in range(rows)]
    events += [
        (event("Buffer", 2 + k, seq=1 + k, device_id="d" * size, session_id=f"{i}" + "." * size, user_id="ü" * (size // 2 - i)), NOW)
        for i in range(rows)
        for k in range(3)
    ]
    run = Run()
    for first in range(0, len(events), 7):
        run.apply(events[first : first + 7])
    run.advance(NOW + 100_000)
    assert run.outcome() == reference_outcome(events, end=NOW + 100_000)


@pytest.mark.slow
def test_users_that_change_leave_no_waste() -> None:
    run = Run()
    before = 0
    for turn in range(300):
        run.apply([(event("Heartbeat", turn, session_id=str(i), user_id="u" * (1 + (turn * 7 + i) % 50)), NOW + turn) for i in range(20)])
        if turn == 100:
            before = run.table.state_bytes
    assert run.table.state_bytes <= before + 4096


@pytest.mark.slow
def test_an_arena_full_of_holes_is_compacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystone.session_state.WASTE_MIN", 64)
    run, expected = Run(), []
    for turn in range(40):  # names of another size each turn, so that no hole fits the next turn's
        events = [(event("Start", turn, session_id=f"{turn}.{i}" + "." * (40 * turn), user_id="u"), NOW + turn * 100_000) for i in range(60)]
        expected += events
        run.apply(events)
        run.advance(NOW + turn * 100_000 + 99_999)
    live = 60 * (40 * 40 + 40)
    assert run.table.state_bytes < 8 * live + 500_000
    assert run.outcome() == reference_outcome(expected, end=NOW + 40 * 100_000)


def test_keys_that_collide_in_the_index() -> None:
    """All keys in one place of the index, with equal tags: nothing but the second half of the key tells them apart."""
    rng = random.Random(5)
    events = [(event(rng.choice(["Heartbeat", "Stop", "Start"]), i, session_id=str(rng.randrange(60))), NOW + 300 * i) for i in range(1500)]
    run = Run()
    for first in range(0, len(events), 97):
        batch = batch_of(events[first : first + 97], run.dictionaries)
        batch.key_lo[:] = np.uint64(2**64 - 2) + batch.key_hi % np.uint64(2)  # two homes at the index's end: probes wrap around
        run.take(run.table.apply(batch))
    run.advance(NOW + 10**6)
    alerts, sessions, _ = reference_outcome(events, end=NOW + 10**6)
    assert (canonical(run.alerts), canonical(run.sessions), run.table.active) == (alerts, sessions, 0)


@pytest.mark.slow
def test_growth_loses_nothing() -> None:
    events = [(event("Start", i, session_id=str(i), title_id=f"t{i % 7}"), NOW) for i in range(20_000)]
    run = Run()
    run.apply(events[:10])
    run.apply(events[10:])
    assert run.table.active == 20_000
    run.apply([(event("Heartbeat", i + 5, session_id=str(i)), NOW + 1) for i in range(20_000)])
    run.advance(NOW + 90_001)
    found = sorted((session["start_ts"], session["end_ts"], session["events"], session["title_id"]) for session in run.sessions)
    assert found == [(i, i + 5, 2, f"t{i % 7}") for i in range(20_000)]


@pytest.mark.slow
def test_rows_are_used_again() -> None:
    run = Run()
    sizes = []
    for turn in range(10):
        run.apply([(event("Buffer", 1, session_id=f"{turn:04}.{i:06}"), NOW + turn * 100_000) for i in range(3000)])
        run.advance(NOW + turn * 100_000 + 90_000)
        sizes.append(run.table.state_bytes)
    assert set(sizes[1:]) == {sizes[0]}
    assert len(run.sessions) == 30_000


def test_a_full_table_says_what_to_change() -> None:
    run = Run(session={"sessions_max": 5000})
    run.apply([(event("Start", 1, session_id=str(i)), NOW) for i in range(5000)])
    with pytest.raises(SessionsFull, match=r"sessions_max is 5,000: raise it"):
        run.apply([(event("Start", 1, session_id=f"more {i}"), NOW) for i in range(200)])


def test_durations_that_memory_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(UsageError, match=r"session.timeout_ms = 1073741824 must be"):
        SessionTable(SessionConfig(timeout_ms=1 << 30), DetectionConfig(), ToyDictionaries())


def test_codes_beyond_16_bits_and_renumbering() -> None:
    run = Run(first_code=65_530)
    column = CODED_DIMENSIONS.index("cdn")
    events = [(event("Start", 1, session_id=str(i), cdn=f"cdn {i}", os="x" if i % 2 else None), NOW) for i in range(20)]
    run.apply(events)
    live = run.table.live_codes(column)
    assert np.flatnonzero(live).tolist() == list(range(65_530, 65_550))
    mapping = np.full(live.size, -1, np.int32)
    mapping[65_530:] = np.arange(20)[::-1]
    run.table.remap(column, mapping)
    run.dictionaries.values[FIRST_DIMENSION + column] = [f"cdn {19 - k}" for k in range(20)]
    run.advance(NOW + 10**6)
    assert sorted((session["session_id"], session["cdn"], session["os"]) for session in run.sessions) == sorted(
        (str(i), f"cdn {i}", "x" if i % 2 else None) for i in range(20)
    )
    assert run.table.live_codes(column).size == 0


def test_a_snapshot_is_a_copy_and_follows_active_sessions_once_packed() -> None:
    run = Run(partition=7)
    run.apply([(event("Start", 1, session_id=str(i), cdn=f"cdn {i}"), NOW) for i in range(3000)])
    run.advance(NOW + 90_000)
    run.apply([(event("Buffer", 1, session_id="s", seq=9, cdn="é"), NOW + 90_000)])
    raw = run.table.snapshot()
    arrays = packed(raw)
    assert sum(array.nbytes for array in raw.values()) > 3000 * layout.ROW_BYTES
    assert sum(array.nbytes for array in arrays.values()) < 8 * CLASSES + 1000  # the arena's free lists, and one session
    run.advance(NOW + 10**6)
    kept: dict[str, Any] = {name: array.copy() for name, array in (raw | arrays).items()}
    for snapshot in (raw, arrays):
        other = Run(first_code=3)
        other.apply([(event("Start", 1, session_id="gone"), NOW)])
        other.table.restore(snapshot)
        other.advance(NOW + 10**6)
        assert [(session["session_id"], session["cdn"]) for session in other.sessions] == [("s", "é")]
        assert [(alert["kind"], alert["partition"]) for alert in other.alerts] == [("open_stall", 7)]
        assert "cdn 5" not in other.dictionaries.values[FIRST_DIMENSION + CODED_DIMENSIONS.index("cdn")]
    assert all(np.array_equal(array, kept[name]) for name, array in (raw | arrays).items())


@pytest.mark.slow
def test_what_a_table_freed_is_used_again_after_a_restore() -> None:
    """A raw snapshot takes free rows, side rows and blobs along: sessions that open later must not lie over one another."""
    run, straight = Run(), Run()
    for turn in range(12):
        some = [event("Buffer" if i % 3 else "Stop", turn, session_id=f"{i * 7 + turn * 5:x}", device_id="d" * (i % 40), cdn=str(i % 4)) for i in range(60)]
        for table in (run, straight):
            table.apply([(item, NOW + turn * 30_000) for item in some])
            table.advance(NOW + turn * 30_000)
        run = run.move(turn, is_packed=turn % 3 == 0)
    run.advance(NOW + 10**7)
    straight.advance(NOW + 10**7)
    assert run.outcome() == straight.outcome()
    assert len(run.sessions) > 300


def test_a_raw_restore_takes_no_more_memory_than_going_on() -> None:
    straight = Run()
    for turn in range(3):
        straight.apply([(event("Buffer", turn, session_id=f"{turn} {i}"), NOW + turn * 100_000) for i in range(500)])
        straight.advance(NOW + turn * 100_000 + 90_000)
    moved = straight.move(5, is_packed=False)
    for run in (straight, moved):
        run.apply([(event("Buffer", 9, session_id=f"9 {i}"), NOW + 900_000) for i in range(500)])
    places = [layout.ROWS, layout.SIDES, layout.SIDES_USED, layout.UNITS, layout.UNITS_FREE, layout.ACTIVE]
    assert moved.table._memory.state[places].tolist() == straight.table._memory.state[places].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("cohorts", [None, CohortsConfig()])
@pytest.mark.parametrize("sessions", [0, 1, 40_000])
def test_the_room_that_a_snapshot_takes_is_known_from_counts_even_while_memory_grows(sessions: int, cohorts: CohortsConfig | None) -> None:
    run = Run()
    run.table = SessionTable(*run.configs, run.dictionaries, cohorts=cohorts)
    if sessions:
        run.apply([(event("Buffer" if i % 3 else "Heartbeat", 1, session_id=str(i), region=f"r{i % 7}"), NOW) for i in range(sessions)])
    memory = run.table._memory
    assert memory.snapshot_bytes == sum(array.nbytes + ALIGNMENT for array in memory._used().values())
    before = memory.snapshot_bytes
    memory._release()  # as while it grows: the thread that makes checkpoints durable asks at any time
    assert run.table.snapshot_bytes == before
    memory._bind()


@pytest.mark.slow
def test_a_room_is_used_again_and_grows() -> None:
    run, room = Run(), Room()
    run.apply([(event("Start", 1, session_id=str(i)), NOW) for i in range(1000)])
    room.reserve(run.table.snapshot_bytes)
    first = run.table.snapshot(room)
    again = run.table.snapshot(room)
    assert np.shares_memory(first["rows"], again["rows"])
    run.apply([(event("Start", 1, session_id=f"more {i}"), NOW) for i in range(50_000)])
    larger = run.table.snapshot(room)
    assert not np.shares_memory(first["rows"], larger["rows"])
    room.reserve(run.table.snapshot_bytes)  # a quarter more than the last snapshot took is there
    assert np.shares_memory(larger["rows"], run.table.snapshot(room)["rows"])
    other = Run()
    other.table.restore(larger)
    assert other.table.active == 51_000


def test_nothing_passes_over_sessions_or_strings_while_the_stream_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder()
    pipeline = PartitionPipeline(0, decoder, Config())
    lines = [b'{"event":"Start","ts":%d,"device_id":"d%d","session_id":"s","cdn":"c%d"}' % (NOW, i, i) for i in range(50)]
    pipeline.step(Records.of(lines, append_ts_ms=NOW))
    passes = [name for name in vars(kernel) if isinstance(vars(kernel)[name], Dispatcher)]
    assert {"gather", "mark_codes", "mark_all_codes", "apply_events"} <= set(passes)
    with monkeypatch.context() as patch:
        for name in passes:
            patch.delattr(kernel, name)
        patch.delattr(Dictionaries, "values")
        patch.delattr(Dictionaries, "text")
        arrays = pipeline.snapshot()
    assert np.shares_memory(arrays["text"], decoder.dictionaries.words.arena)
    assert not np.shares_memory(arrays["rows"], pipeline.sessions._memory.table.words)


def test_a_snapshot_of_another_schema_is_refused() -> None:
    arrays = Run().table.snapshot()
    arrays["schema"] = arrays["schema"] + 1
    with pytest.raises(UsageError, match="replay the log instead"):
        Run().table.restore(arrays)


def test_the_schema_has_a_number_of_its_own_for_each_layout() -> None:
    """Fails when the layout changes: then give SCHEMA the next number, write the digest here, and think of checkpoints that exist."""
    transient = (
        "A_",
        "C_",
        "L_",
        "BY_",
        "CHUNK",
        "BLOCK_",
        "SUPER_",
        "ROOM_",
        "ALERT_WORDS",
        "CLOSED_WORDS",
        "LOOK_WORDS",
        "SWEEP",
        "LONG_BYTES",
        "WINDOW_OVER",
    )
    names = [name for name in sorted(vars(layout)) if name.isupper() and not name.startswith(transient) and isinstance(getattr(layout, name), int)]
    known = {*vars(layout), "BIN_SHIFT", "WINDOW_SHIFT", "FREE"}  # of a kernel's own table
    counted = [(name, value) for name, value in sorted(vars(cohorts).items()) if name.isupper() and isinstance(value, int) and name not in known]
    described = repr(([(name, getattr(layout, name)) for name in names], counted, DICTIONARY_COLUMNS, UNIT, CLASSES))
    assert {SCHEMA: hashlib.sha256(described.encode()).hexdigest()[:16]} == {2: "c971d19ac3dbc235"}


@pytest.mark.parametrize("name", ["rows", "side", "arena", "state", "free", "text", "text_sizes", "text_codes", "partition"])
def test_arrays_that_do_not_fit_together_are_refused(name: str) -> None:
    run = Run()
    run.apply([(event("Buffer", 1, session_id=str(i), cdn="a"), NOW) for i in range(10)])
    arrays = run.table.snapshot()
    for wrong in (arrays[name][:-1], arrays[name].astype(np.float64)):
        with pytest.raises(CheckpointDamaged):
            Run().table.restore(arrays | {name: wrong})
    del arrays[name]
    with pytest.raises(CheckpointDamaged):
        Run().table.restore(arrays)


def test_a_code_without_a_string_is_refused() -> None:
    run = Run()
    run.apply([(event("Start", 1, cdn="a"), NOW), (event("Start", 1, session_id="t", cdn="b"), NOW)])
    arrays = packed(run.table.snapshot())
    arrays["text_codes"] = arrays["text_codes"] // 2
    with pytest.raises(CheckpointDamaged, match="a cdn without a string"):
        Run().table.restore(arrays)


def test_a_mapping_grows_with_and_without_views() -> None:
    mapping = Mapping(4096)
    view = mapping.view(np.uint8)
    view[7] = 7
    mapping.grow(8192)  # a view lives: copied
    assert mapping.view(np.uint8)[[7, 8191]].tolist() == [7, 0]
    mapping.grow(1 << 22)
    assert mapping.view(np.uint8)[[7, (1 << 22) - 1]].tolist() == [7, 0]
