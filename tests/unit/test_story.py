"""What a person is shown: each session's lines as it goes, few enough to read, and how many there would have been."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from keystone.actors import story
from keystone.actors.story import ALERT, ALERTS_PER_S, BUFFERING, KEPT_MAX, LINES_PER_S, START, STOP, TEXT_LETTERS_MAX, StoryTap
from keystone.config import Config
from keystone.decode import Decoder
from keystone.events import Alert, Records
from keystone.pipeline import PartitionPipeline

THRESHOLD = 3


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(story, "time", SimpleNamespace(monotonic=found.monotonic))
    return found


class Stage:
    """A tap behind a real pipeline, as a session actor has it."""

    def __init__(self) -> None:
        decoder = Decoder()
        self.tap = StoryTap(THRESHOLD)
        self.pipeline = PartitionPipeline(0, decoder, Config())
        self.pipeline.on_batch = lambda batch, dictionaries: self.tap.take(batch, dictionaries, self.pipeline.sessions)
        self._offset = 0

    def play(self, *events: dict[str, Any]) -> None:
        """In one batch."""
        values = [json.dumps(event).encode() for event in events]
        self.pipeline.step(Records.of(values, first_offset=self._offset, append_ts_ms=1_790_000_000_000), None)
        self._offset += len(values)


def event(kind: str, seq: int | None = None, device: str = "d", **fields: Any) -> dict[str, Any]:
    numbered = {} if seq is None else {"seq": seq}
    return {"event": kind, "ts": 1_790_000_000_000 + 1_000 * (seq or 0), "device_id": device, "session_id": "s", **numbered, **fields}


def told(tap: StoryTap) -> list[tuple[Any, ...]]:
    return [(scene["what"], scene["run"]) if scene["what"] == BUFFERING else (scene["what"],) for scene in tap.drain()]


EVENING = (
    event("Start", 0, user_id="u-1", country="FR", os="ios"),
    event("Buffer", 1, phase="startup"),
    event("Heartbeat", 2, bitrate_kbps=3_000),
    event("Buffer", 3),
    event("Buffer", 4),
    event("Heartbeat", 5),
    event("Buffer", 6),
    event("Buffer", 6),  # once more
    event("Buffer", 7, phase="seek"),
    event("Buffer", 9),
    event("Buffer", 8),  # late
    event("Buffer", 10),  # raises the alert
    event("Buffer", 11),
    event("Stop", 12),
)
LINES = [(START,), (BUFFERING, 1), (BUFFERING, 2), (BUFFERING, 1), (BUFFERING, 2), (STOP,)]


@pytest.mark.parametrize("size", [1, len(EVENING)])
def test_a_session_is_told_from_start_to_stop(clock: Clock, size: int) -> None:
    assert evening(size) == LINES


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_run_that_began_before_its_batch_and_ended_in_it_is_told_as_shorter_at_worst(clock: Clock, size: int) -> None:
    """Nobody waits for it: a batch of a second of one device is the past, read from the beginning."""
    found = evening(size)
    assert [line for line in found if line[0] != BUFFERING] == [(START,), (STOP,)]
    assert 4 <= len(found) - 2 <= 6
    assert {run for _, run in found[1:-1]} <= {1, 2}


def evening(size: int) -> list[tuple[Any, ...]]:
    """Its lines, told in batches of ``size`` events."""
    stage, found = Stage(), []
    for at in range(0, len(EVENING), size):
        stage.play(*EVENING[at : at + size])
        found += told(stage.tap)
    assert stage.tap.scenes == stage.tap.told == len(found)
    return found


def test_what_is_told_of_each(clock: Clock) -> None:
    stage = Stage()
    stage.play(*EVENING)
    start, first, *_, stop = stage.tap.drain()
    assert (start["device"], start["session"], start["user"], start["dimensions"]) == ("d", "s", "u-1", {"country": "FR", "os": "ios"})
    assert (first["run"], first["threshold"]) == (1, THRESHOLD)
    assert (stop["stall_ms"], stop["view_ms"], stop["outcome"]) == (2_000 + 6_000, 12_000 - 8_000 - 2_000, "played")
    assert {start["at_ms"], stop["at_ms"]} == {1_790_000_000_000.0}


def test_several_sessions_in_a_batch_have_runs_of_their_own(clock: Clock) -> None:
    stage = Stage()
    stage.play(*itertools.chain.from_iterable((event("Buffer", seq, "a"), event("Buffer", seq, "b")) for seq in range(2)))
    assert [(scene["device"], scene["run"]) for scene in stage.tap.drain()] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_long_strings_are_cut_and_strange_ones_are_left_to_the_screen(clock: Clock) -> None:
    stage = Stage()
    strange = "[red]x[/red]\x1b[2J\u202e"
    stage.play(event("Start", device=strange, user_id="u" * 1_000_000, region="r" * 500), event("Start", device="d" * 81))
    first, second = stage.tap.drain()
    assert first["device"] == strange
    assert {len(first["user"]), len(first["dimensions"]["region"]), len(second["device"])} == {TEXT_LETTERS_MAX}


# --- alerts ---------------------------------------------------------------------------------------------------------------
def alert(number: int) -> Alert:
    dimensions = {"region": "eu", "isp": "not shown", "os": None}
    return Alert(f"{number:032x}", "buffering_loop", f"d{number}", "s", 1, 2, 3, 3_000, 2_350, dimensions, append_ts_ms=1_000)


def test_alerts_are_told_with_their_latency_a_few_each_second(clock: Clock) -> None:
    tap = StoryTap(THRESHOLD)
    for _ in range(3):
        tap.take_alerts([alert(number) for number in range(50)], [1_250.0] * 50)
        clock.now_s += 0.2
    scenes = tap.drain()
    assert len(scenes) == ALERTS_PER_S
    first = scenes[0]
    assert (first["what"], first["device"], first["run"], first["from_kbps"], first["to_kbps"]) == (ALERT, "d0", 3, 3_000, 2_350)
    assert (first["latency_ms"], first["dimensions"]) == (250.0, {"region": "eu"})
    assert (tap.scenes, tap.told) == (150, ALERTS_PER_S)
    clock.now_s += 1.0
    tap.take_alerts([alert(99)], [1_250.0])  # also where no event came between
    assert [scene["device"] for scene in tap.drain()] == ["d99"]


# --- how many ---------------------------------------------------------------------------------------------------------------
def session(device: str) -> list[dict[str, Any]]:
    return [event("Start", 0, device), event("Buffer", 1, device), event("Buffer", 2, device), event("Heartbeat", 3, device), event("Stop", 4, device)]


def stream(stage: Stage, clock: Clock, seconds: int, sessions_per_s: int, name: str = "d") -> list[list[dict[str, Any]]]:
    """Sessions whose five events lie 0.1 s apart, begun evenly; the scenes of each second."""
    found = []
    steps = seconds * 10
    for step in range(steps):
        of_step = []
        for age in range(5):
            born = step - age
            of_step += [session(f"{name}-{born}-{number}")[age] for number in range(sessions_per_s // 10) if born >= 0]
        stage.play(*of_step)
        clock.now_s += 0.1
        if step % 10 == 9:
            found.append(stage.tap.drain())
    return found


def test_few_sessions_are_all_told(clock: Clock) -> None:
    stage = Stage()
    for number in range(40):
        for found in session(f"d-{number}"):
            stage.play(found)
            clock.now_s += 0.05
    assert stage.tap.told == 0
    assert len(stage.tap.drain()) == stage.tap.told == stage.tap.scenes == 40 * 4


@pytest.mark.slow
@pytest.mark.parametrize("sessions_per_s", [200, 3_000])
def test_of_many_a_few_are_told_whole_and_stand_for_the_others(clock: Clock, sessions_per_s: int) -> None:
    stage = Stage()
    seconds = stream(stage, clock, 12, sessions_per_s)
    settled = list(itertools.chain.from_iterable(seconds[2:]))
    assert max(len(scenes) for scenes in seconds) < 8 * LINES_PER_S, "more than anyone reads"
    assert len(settled) < 10 * 2 * LINES_PER_S
    assert len(settled) > 10 * LINES_PER_S / 8, "and not nothing"
    whole = Counter(scene["device"] for scene in settled if 30 <= int(scene["device"].split("-")[1]) < 110)
    assert set(whole.values()) == {4}, "a session that is told is told from its Start to its Stop"
    produced = sessions_per_s * 12 * 4
    assert 0.5 < stage.tap.scenes / produced < 1.7, "what is told stands for the rest"


@pytest.mark.slow
def test_after_a_flood_everything_is_told_again(clock: Clock) -> None:
    stage = Stage()
    stream(stage, clock, 2, 3_000)
    clock.now_s += 1.0
    stage.play(*session("first"))
    clock.now_s += 1.0
    stage.play(*session("second"))
    stage.tap.drain()
    stage.play(*session("third"))
    assert [scene["device"] for scene in stage.tap.drain()] == ["third"] * 4


@pytest.mark.slow
def test_a_burst_out_of_nothing_is_bounded_too(clock: Clock) -> None:
    """A log that is read from its beginning comes at whatever rate the machine can."""
    stage = Stage()
    for batch in range(50):
        stage.play(*(event("Start", device=f"{batch}-{number}") for number in range(400)))
        clock.now_s += 0.004
    assert len(stage.tap.drain()) <= 6 * LINES_PER_S


def test_what_nobody_fetches_is_forgotten_from_its_beginning(clock: Clock) -> None:
    tap = StoryTap(THRESHOLD)
    for number in range(2 * KEPT_MAX):
        tap.take_alerts([alert(number)], [1_250.0])
        clock.now_s += 1.0
    assert tap.told == 0
    scenes = tap.drain()
    assert [scene["device"] for scene in scenes] == [f"d{number}" for number in range(KEPT_MAX, 2 * KEPT_MAX)]
    assert (tap.told, tap.scenes) == (KEPT_MAX, 2 * KEPT_MAX)
