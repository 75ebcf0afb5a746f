"""The story as text: what each line says, that no device can write on the terminal, and what the screen survives."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from contextlib import redirect_stdout
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.actors.story import ALERT, BUFFERING, START, STOP, Scene
from keystone.run import screen
from keystone.run.scenes import LINE_LETTERS_MAX, STYLES, escaped, line_of, span, status_line
from keystone.run.screen import StoryScreen

DIMENSIONS = {"country": "FR", "region": "eu-west", "device_type": "tv", "os": "tizen-8", "cdn": "swift", "title_id": "t-1"}
STRANGE = "[red]x[/red]\x1b[2J\x07\r\n\u202eevil\u200b\x9b1m"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)


def scene(what: str, device: str = "d-7", **fields: Any) -> dict[str, Any]:
    return Scene(what, 1_790_000_000_000.0, device, "s", **fields).as_dict()


SCENES = [
    (scene(START, user="u-1", dimensions=DIMENSIONS), "▶ START      d-7  u-1  FR/eu-west, tv tizen-8, swift, t-1"),
    (scene(START), "▶ START      d-7"),
    (scene(START, dimensions={"region": "eu-west", "os": "ios"}), "▶ START      d-7  eu-west, ios"),
    (scene(BUFFERING, run=2, threshold=3), "⚠ BUFFERING  d-7  2 of 3"),
    (
        scene(ALERT, run=3, kind="buffering_loop", from_kbps=3_000, to_kbps=2_350, latency_ms=12.4, dimensions=DIMENSIONS),
        "🚨 CRITICAL QoE ALERT  d-7  3 stalls in a row: downgrade 3,000 → 2,350 kbps, 12 ms after the log had it  (FR/eu-west, tv tizen-8, swift, t-1)",
    ),
    (
        scene(ALERT, run=1, kind="open_stall", to_kbps=235, latency_ms=1_260.0),
        "🚨 CRITICAL QoE ALERT  d-7  silent in a stall: downgrade unknown → 235 kbps, 1.3 s after the log had it",
    ),
    (scene(STOP, view_ms=83_500, stall_ms=1_240, outcome="played"), "⏹ STOP       d-7  watched 1 min 23 s, stalled 1.2 s, played"),
    (scene(STOP, view_ms=0, stall_ms=0, outcome="ebvs"), "⏹ STOP       d-7  watched 0.0 s, stalled 0.0 s, left before the video began"),
]


@pytest.mark.parametrize(("told", "line"), SCENES)
def test_a_line_says_what_matters(told: dict[str, Any], line: str) -> None:
    time_of_day, space, rest = line_of(told).partition("  ")
    assert re.fullmatch(r"\d\d:\d\d:\d\d", time_of_day)
    assert (space, rest) == ("  ", line)
    assert told["what"] in STYLES


def test_lengths_of_time_are_told_as_people_do() -> None:
    assert [span(ms) for ms in (0, 59_900, 60_000, 3_599_999, 3_600_000, 90 * 3_600_000)] == [
        "0.0 s",
        "59.9 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "90 h 0 min",
    ]


@given(device=TEXT, user=TEXT, dimensions=st.dictionaries(st.sampled_from(list(DIMENSIONS)), TEXT), what=st.sampled_from([START, BUFFERING, ALERT, STOP]))
def test_no_device_writes_on_the_terminal(device: str, user: str, dimensions: dict[str, str], what: str) -> None:
    line = line_of(scene(what, device, user=user, dimensions=dimensions, run=1, threshold=3, to_kbps=235, latency_ms=1.0, outcome="played"))
    assert len(line) <= LINE_LETTERS_MAX
    assert not [letter for letter in line if unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}]


def test_what_was_escaped_can_still_be_read() -> None:
    assert escaped(STRANGE) == r"[red]x[/red]\u001b[2J\u0007\u000d\u000a\u202eevil\u200b\u009b1m"
    assert escaped("Zoë 中 😀") == "Zoë 中 😀"


# --- the screen -------------------------------------------------------------------------------------------------------------
def test_markup_of_a_device_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    with StoryScreen(shows_story=True) as shown:
        shown.tell([scene(START, STRANGE), scene(BUFFERING, "[bold]", run=1, threshold=3)])
        shown.say("[link=x]remark[/link]", "yellow")
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith(r"[red]x[/red]\u001b[2J\u0007\u000d\u000a\u202eevil\u200b\u009b1m")
    assert "[bold]" in out
    assert "[link=x]remark[/link]\n" in out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 3


def test_without_a_story_only_remarks_and_the_state_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with StoryScreen(shows_story=False) as shown:
        shown.tell([scene(START)])
        for at_s in (0.0, 0.25, 4.9, 5.0, 9.9, 10.0):
            shown.status(at_s, SEEN)
    assert capsys.readouterr().out.splitlines() == [status_line(SEEN)] * 3


def test_a_long_line_is_not_wrapped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with StoryScreen(shows_story=True) as shown:
        shown.tell([scene(START, "d" * 500)])
    [line] = capsys.readouterr().out.splitlines()
    assert len(line) == LINE_LETTERS_MAX
    assert line.endswith("…")


def test_a_terminal_without_unicode_gets_question_marks() -> None:
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, "ascii", "strict")
    with redirect_stdout(terminal), StoryScreen(shows_story=True) as shown:
        shown.tell([told for told, _ in SCENES])
    lines = written.getvalue().decode("ascii").splitlines()
    assert len(lines) == len(SCENES)
    assert all("  ? " in line for line in lines)


def test_a_reader_that_went_away_ends_only_the_showing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as gone, redirect_stdout(gone), StoryScreen(shows_story=True) as shown:
        for _ in range(3):
            shown.tell([told for told, _ in SCENES])
            shown.status(0.0, SEEN)


# --- the state --------------------------------------------------------------------------------------------------------------
SEEN = {
    "events_per_s": 1_234.4, "sessions": 5_000, "alerts": 7, "detect_p99_ms": 12.3, "lag_events": 42, "dead_lettered": 0,
    "scenes_per_s": 10.0, "told_per_s": 10.0,
}  # fmt: skip


def test_the_state_is_one_line() -> None:
    assert status_line(SEEN) == "1,234 events/s  5,000 sessions  7 alerts  p99 12 ms  lag 42"
    assert "p99 -" in status_line(SEEN | {"detect_p99_ms": None})
    assert status_line(SEEN | {"dead_lettered": 3}).endswith("  3 dead letters")


def test_the_state_says_how_much_of_the_story_is_shown() -> None:
    assert "showing" not in status_line(SEEN)
    assert status_line(SEEN | {"scenes_per_s": 4_321.0}).endswith("  showing 10 of 4,321 a second")


def test_the_state_is_told_every_few_seconds_off_a_terminal() -> None:
    assert screen.PLAIN_STATUS_EVERY_S == 5.0
