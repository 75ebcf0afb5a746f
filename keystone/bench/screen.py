"""What people see: the run while it goes, and one screen (100 x 40) at its end. Pure but for `Progress`."""

from __future__ import annotations

import sys
import textwrap
from typing import Any, Self

from keystone.actors.nodes import counted

PLAIN_EVERY_S = 5.0  # off a terminal: one line this often
WIDTH = 100
_COLOURS = {"pass": "green", "fail": "red", "invalid": "yellow"}
REASON_LINES = 9


def ms(value: float | None) -> str:
    """Milliseconds as people read them, at most 8 letters."""
    if value is None:
        return "-"
    if abs(value) >= 10_000:
        return f"{value / 1_000:,.1f} s"
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def duration(value: float | None) -> str:
    """The same with its unit, in the midst of a line."""
    told = ms(value)
    return told if told.endswith("s") else f"{told} ms"


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def final_lines(r: dict[str, Any]) -> list[str]:
    """The end of a run from its report: plain lines, at most 100 letters wide and 40 high."""
    lines = [f"{r['verdict'].upper()}  {r['achieved_eps']:,.0f} events/s of {r['target_eps']:,.0f} for {r['seconds']:g} s"]
    lines += _reasons(r["reasons"])
    lines += [f"  note: {note}" for note in r["notes"][:2]]
    lines += ["", *_run(r), "", *_latency(r), "", *_truth_and_ledger(r), "", *_costs(r), "", *_machine(r)]
    return [line[:WIDTH] for line in lines]


def _reasons(reasons: list[str]) -> list[str]:
    """Each reason on at most two lines, as many as there is room for, and how many there are more."""
    lines: list[str] = []
    for told, reason in enumerate(reasons):
        wrapped = textwrap.wrap(reason, WIDTH, initial_indent="  - ", subsequent_indent="    ", max_lines=2)
        if len(lines) + len(wrapped) > REASON_LINES - 1:
            return [*lines, f"  - and {len(reasons) - told} more in report.json"]
        lines += wrapped
    return lines


def _run(r: dict[str, Any]) -> list[str]:
    bench = r["config"]["bench"]
    lag = r["lag"]
    return [
        f"run       {count(r['events'])} events, {r['bytes'] / 1e6:,.0f} MB, {count(r['devices'])} devices, {count(r['sessions'])} sessions, seed {r['seed']}",
        f"layout    {bench['partitions']} partitions, {bench['fleet_actors']} fleet and {bench['session_actors']} session actors",
        f"lag       at most {count(lag['max_events'])} events, slope {lag['slope_events_per_s']:+,.0f} events/s",
        *(_faults(r) if "chaos" in r else []),
    ]


def _faults(r: dict[str, Any]) -> list[str]:
    """What was struck, and the figures that are judged. Those below are of the whole run, faults and all."""
    kinds: dict[str, int] = {}
    for fault in r["chaos"]["faults"]:
        kinds[fault["kind"]] = kinds.get(fault["kind"], 0) + 1
    struck = ", ".join(f"{times} {kind}" if times > 1 else kind for kind, times in kinds.items()) or "none"
    recovery, outside = r["recovery_ms"], r["chaos"]["outside"]
    apart = f"; apart from faults, end to end max {ms(outside['end_to_end_ms']['max'])}" if outside is not None else ""
    return [f"faults    {struck}", f"recovery  of killed session actors, ms: p50 {ms(recovery['p50'])}, p99 {ms(recovery['p99'])}{apart}"]


def _latency(r: dict[str, Any]) -> list[str]:
    names = {
        "send delay (all events)": r["send_delay_ms"],
        "intended -> appended": r["latency_ms"]["send"],
        "appended -> decoded": r["latency_ms"]["decode"],
        "decoded -> alerted": r["latency_ms"]["alert"],
        "alerted -> visible": r["latency_ms"]["write"],
        "detect (appended -> visible)": r["latency_ms"]["detect"],
        "END TO END (intended -> visible)": r["latency_ms"]["end_to_end"],
    }
    lines = [f"{'latency, ms':<33}" + "".join(f"{h:>9}" for h in ("p50", "p90", "p99", "p999", "max")) + f"{'count':>13}{'<0':>6}"]
    for name, q in names.items():
        values = "".join(f"{ms(q[k]):>9}" for k in ("p50", "p90", "p99", "p999", "max"))
        lines.append(f"{name:<33}{values}{q['count']:>13,}{q['negatives']:>6,}")
    lines.append(f"{'within 3 s':<33}{r['within_3s'] * 100:>9.3f} % of the expected alerts")
    return lines


def _truth_and_ledger(r: dict[str, Any]) -> list[str]:
    t, g = r["truth"], r["ledger"]
    return [
        "truth     " + ", ".join(f"{count(t[name])} {name}" for name in ("expected", "alerted", "missed", "false", "duplicate")),
        f"ledger    sent {count(g['sent'])} = received {count(g['received'])} = accepted {count(g['accepted'])} + dead-lettered {count(g['dead_lettered'])}",
        f"          accepted = applied {count(g['applied'])} + duplicates {count(g['duplicates'])}; lake rows {count(g['lake_rows'])}",
    ]


def _costs(r: dict[str, Any]) -> list[str]:
    cpu, memory = r["cpu_us_per_event"], r["memory"]
    broker = f"; brokers {cpu['broker']:.3f} beside it" if cpu.get("broker") is not None else ""
    state = f", {memory['bytes_per_session']:,.0f} B a session ({count(memory['sessions_active_max'])} at once)" if memory["bytes_per_session"] else ""
    lines = [
        "CPU us    " + ("{total:.3f} an event: fleet {fleet:.3f}, sessions {sessions:.3f}, other {other:.3f}".format(**cpu) if r["events"] else "-") + broker,
        f"memory    {memory['private_max_mib']:,.0f} MiB private, {memory['rss_max_mib']:,.0f} MiB sum of RSS{state}",
    ]
    lines += _durable(r)
    lines += _onward(r)
    if "unit" in r:
        lines.append(f"unit      u = {r['unit']['events_per_s']:,} events/s (polars, one thread): this run {r['unit']['achieved_units']:.2f} u")
    return lines


def _durable(r: dict[str, Any]) -> list[str]:
    c, k, us = r["checkpoints"], r["commits"], 1e6 / max(1, r["events"])
    if not c.get("count"):
        return []
    each, cost = c["bytes"] / c["count"] / 1e6, f"{c['cpu_s'] * us:.3f} us an event"
    lines = [f"durable   {c['count']:,} checkpoints of {each:,.0f} MB, {cost}, paused for {c['pause_ms_max']:,.0f} ms at most"]
    if k:
        seen, cost = k["age_ms_max"] / 1_000, f"{k['cpu_s'] * us:.3f} us an event"
        lines.append(f"          {k['commits']:,} commits of {k['files']:,} files, {cost}, visible there after {seen:.0f} s at most")
    return lines


def _onward(r: dict[str, Any]) -> list[str]:
    """Cohorts and what routes sent, with their cost."""
    c, us = r["cohorts"], 1e6 / max(1, r["events"])
    if not c:
        return []
    lines = [f"cohorts   {c['rows']:,} rows told, {c['corrections']:,} windows corrected, merged for {c['cpu_s'] * us:.3f} us an event"]
    for part in (*r["routing"].values(), c):
        sent = ", ".join(f"{rows:,} by {name}" for name, rows in part["routes"].items())
        if sent:
            sinks_s = sum(sink["cpu_s"] for sink in part["sinks"].values())
            offered_s = part["cpu_s"] if part is not c else 0.0
            lines.append(f"routes    {sent}: {offered_s * us:.3f} us an event in the step, {sinks_s * us:.3f} beside it")
    return lines


def _nodes(r: dict[str, Any]) -> list[str]:
    """Of a cluster: what was where. Latencies between two nodes are as true as their clocks."""
    lines = []
    for node in r.get("nodes", []):
        clock = f", clock {node['clock_ms']:+.1f} ms" if node["clock_ms"] is not None else ""
        clock = clock if node["is_alive"] else ", gone before the end"
        lines.append(f"node      {node['address']}: {node['session_actors']} session and {node['fleet_actors']} fleet actors{clock}")
    for key, what in (("moves_ms", "moves     {} to other owners, each paused for"), ("recovery_ms", "recovery  {} of lost owners, each without one for")):
        if lines and key in r:
            lines.append(f"{what.format(counted(r[key]['count'], 'partition'))} p50 {r[key]['p50']:,.0f} ms, max {r[key]['max']:,.0f} ms")
    return lines


def _machine(r: dict[str, Any]) -> list[str]:
    m, v = r["machine"], r["versions"]
    if not m:
        return []
    load = " ".join(f"{x:.2f}" for x in m["load_average"])
    shown = ", ".join(f"{name} {v[name]}" for name in ("ray", "numpy", "numba", "polars", "pyarrow") if name in v)
    return [*_nodes(r), f"machine   {m['cpu']}, {m['cores']} cores, {m['memory_mib']:,} MiB, load before {load}", f"          Python {m['python']}, {shown}"]


def print_final(report: dict[str, Any]) -> None:
    """The final screen on stdout, its verdict coloured on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    first, *rest = final_lines(report)
    console.print(Text(first, style=f"bold {_COLOURS[report['verdict']]}"))
    console.print(Text("\n".join(rest)))


class Progress:
    """One live line on a terminal, a plain line every few seconds elsewhere. On stderr: stdout is for results."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._is_live = sys.stderr.isatty()
        self._live: Any = None
        self._said_at_s = float("-inf")

    def __enter__(self) -> Self:
        if self._is_live:
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, markup=False, soft_wrap=True)

    def show(self, at_s: float, fields: dict[str, str]) -> None:
        """The state of the run; ``at_s`` rises from call to call."""
        if self._live is not None:
            self._live.update(_table(fields))
        elif at_s - self._said_at_s >= PLAIN_EVERY_S:
            self._said_at_s = at_s
            self.say("  ".join(f"{name} {value}" for name, value in fields.items()))


def _table(fields: dict[str, str]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in fields:
        table.add_column(name, justify="right", min_width=10)
    table.add_row(*fields.values())
    return table
