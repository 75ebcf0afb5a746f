"""The story as text. Pure: a scene in, a line out; whatever a device sent is escaped."""

from __future__ import annotations

import time
from typing import Any, Final

from keystone.actors.story import ALERT, BUFFERING, START, STOP

LINE_LETTERS_MAX: Final = 160
_MARKS: Final = {START: "▶ START", BUFFERING: "⚠ BUFFERING", ALERT: "🚨 CRITICAL QoE ALERT", STOP: "⏹ STOP"}
STYLES: Final = {START: "green", BUFFERING: "yellow", ALERT: "bold red", STOP: "cyan"}
_OUTCOMES: Final = {"played": "played", "ebvs": "left before the video began", "vsf": "failed to start", "vpf": "failed while playing"}
_HOUR_S, _MINUTE_S = 3_600, 60


def escaped(text: str) -> str:
    """Text that a terminal only prints: control characters, escapes and marks of direction as their code."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)


def span(ms: float) -> str:
    """A length of time as people say it."""
    seconds = ms / 1_000
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < _HOUR_S:
        return f"{int(seconds // _MINUTE_S)} min {int(seconds % _MINUTE_S)} s"
    return f"{int(seconds // _HOUR_S)} h {int(seconds % _HOUR_S // _MINUTE_S)} min"


def _latency(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms < 1_000 else f"{ms / 1_000:,.1f} s"


def _time(ms: float) -> str:
    """Of day, in this place's zone."""
    return time.strftime("%H:%M:%S", time.localtime(ms / 1_000))


def line_of(scene: dict[str, Any]) -> str:
    """One line: what happened, to which device, and what matters about it."""
    what = scene["what"]
    device = escaped(scene["device"])
    text = f"{_time(scene['at_ms'])}  {_MARKS[what]:<11}  {device}  {_details(scene)}".rstrip()
    return text if len(text) <= LINE_LETTERS_MAX else text[: LINE_LETTERS_MAX - 1] + "…"


def _details(scene: dict[str, Any]) -> str:
    what = scene["what"]
    if what == START:
        user = f"{escaped(scene['user'])}  " if scene["user"] else ""
        return user + _where(scene["dimensions"] or {})
    if what == BUFFERING:
        return f"{scene['run']} of {scene['threshold']}"
    if what == ALERT:
        return _alert(scene)
    return f"watched {span(scene['view_ms'])}, stalled {span(scene['stall_ms'])}, {_OUTCOMES.get(scene['outcome'], scene['outcome'])}"


def _alert(scene: dict[str, Any]) -> str:
    before = f"{scene['from_kbps']:,}" if scene["from_kbps"] is not None else "unknown"
    cause = f"{scene['run']} stalls in a row" if scene["kind"] == "buffering_loop" else "silent in a stall"
    where = _where(scene["dimensions"] or {})
    return f"{cause}: downgrade {before} → {scene['to_kbps']:,} kbps, {_latency(scene['latency_ms'])} after the log had it" + (f"  ({where})" if where else "")


def _where(dimensions: dict[str, str]) -> str:
    """Where, on what device, watching what."""
    place = "/".join(escaped(dimensions[name]) for name in ("country", "region") if name in dimensions)
    machine = " ".join(escaped(dimensions[name]) for name in ("device_type", "os") if name in dimensions)
    rest = [escaped(dimensions[name]) for name in ("cdn", "title_id") if name in dimensions]
    return ", ".join(part for part in (place, machine, *rest) if part)


def status_line(seen: dict[str, Any]) -> str:
    """Rate, active sessions, alerts, p99, lag; and how much of the story is shown."""
    p99 = seen["detect_p99_ms"]
    parts = [
        f"{seen['events_per_s']:,.0f} events/s",
        f"{seen['sessions']:,} sessions",
        f"{seen['alerts']:,} alerts",
        f"p99 {_latency(p99) if p99 is not None else '-'}",
        f"lag {seen['lag_events']:,}",
    ]
    if seen["dead_lettered"]:
        parts.append(f"{seen['dead_lettered']:,} dead letters")
    if seen["scenes_per_s"] > seen["told_per_s"] + 1:
        parts.append(f"showing {seen['told_per_s']:,.0f} of {seen['scenes_per_s']:,.0f} a second")
    return "  ".join(parts)
