"""What a report says in words and tables, as HTML that a notebook and the page both show. Everything that a run holds is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import polars as pl

from keystone.bench.latency import PROMISE_MS
from keystone.bench.verdict import SEND_DELAY_P99_MAX_MS
from keystone.report import figures
from keystone.report.charts import duration
from keystone.report.runs import Run

SKEW_MAX: Final = 1.25  # of an equal share: what few alerts may differ by chance is less, from 1,000 a partition on
_MEANING: Final = {
    "pass": "everything expected was alerted once and in time, every sum balances, and the lag did not grow",
    "fail": "something was wrong or too late",
    "invalid": "the generator was the limit, so the run says nothing about the system's speed",
}


@dataclass(frozen=True, slots=True)
class Html:
    """A piece of a page; ``text`` is what a console shows instead."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def verdict(run: Run) -> Html:
    """The verdict, why, and the figures that a person asks for first."""
    r = run.report
    verdict_word = str(r["verdict"])
    rate = f"{_number(r.get('achieved_eps'))} of {_number(r.get('target_eps'))} events/s for {run.seconds:g} s"
    latency, truth = r.get("latency_ms", {}).get("end_to_end", {}), r.get("truth", {})
    within = r.get("within_3s")
    tiles = [
        ("median", duration(latency.get("p50")), "end to end"),
        ("p99", duration(latency.get("p99")), "end to end"),
        ("slowest", duration(latency.get("max")), f"promise: {PROMISE_MS / 1_000:g} s"),
        ("in time", "-" if within is None else f"{within * 100:.4g} %", "of the expected alerts"),
        ("alerts", _number(truth.get("alerted")), f"of {_number(truth.get('expected'))} expected"),
        ("wrong", _number(sum(truth.get(k) or 0 for k in ("missed", "false", "duplicate"))), "missed, false or twice"),
    ]
    boxes = "".join(f'<div class="tile"><span>{escape(a)}</span><b>{escape(b)}</b><span>{escape(c)}</span></div>' for a, b, c in tiles)
    why = "".join(f"<li>{escape(str(reason))}</li>" for reason in (*r.get("reasons", []), *r.get("notes", [])))
    meaning = _MEANING.get(verdict_word, "")
    head = f'<span class="badge {escape(verdict_word)}">{escape(verdict_word.upper())}</span> <b>{escape(run.name)}</b> {escape(rate)}'
    html = f'<div class="verdict"><p>{head}<br><small>{escape(meaning)}</small></p>{f"<ul>{why}</ul>" if why else ""}<div class="tiles">{boxes}</div></div>'
    return Html(html, "\n".join([f"{verdict_word.upper()}  {run.name}  {rate}", *r.get("reasons", []), *(f"{a} {b} ({c})" for a, b, c in tiles)]))


def machine(runs: Sequence[Run]) -> Html:
    """Where and how each run was made: what a figure is worth nothing without."""
    rows = []
    for run in runs:
        r, m, plan = run.report, run.report.get("machine", {}), run.report.get("config", {}).get("bench", {})
        ledger, versions = r.get("ledger", {}), r.get("versions", {})
        load = " ".join(map(str, m.get("load_average", [])))
        chaos = r.get("chaos", {}).get("spec")
        rows += [
            ("run", run.name),
            (
                "machine",
                f"{m.get('cpu', '?')}, {m.get('cores', '?')} cores, {_number(m.get('memory_mib'))} MiB; load before {load}",
            ),
            ("software", ", ".join(f"{name} {version}" for name, version in (("Python", m.get("python", "?")), *versions.items()))),
            (
                "load",
                f"{_number(r.get('events'))} events from {_number(r.get('devices'))} devices, {_number(r.get('sessions'))} sessions, seed {r.get('seed')}",
            ),
            ("layout", f"{run.partitions} partitions, {plan.get('fleet_actors', '?')} fleet and {plan.get('session_actors', '?')} session actors"),
            ("ledger", ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in ledger.items())),
            ("faults", chaos or "none on purpose"),
        ]
    body = "".join(f"<tr{' class=first' if name == 'run' else ''}><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return Html(f'<table class="facts">{body}</table>', "\n".join(f"{name:<9} {value}" for name, value in rows))


def percentiles(runs: Sequence[Run]) -> Html:
    """Every stage's percentiles in figures."""
    found = figures.percentiles(runs)
    has_many = len(runs) > 1
    head = [*(["run"] if has_many else []), "stage", "p50", "p90", "p99", "p99.9", "max", "alerts", "below 0"]
    rows = [
        [
            *([row["run"]] if has_many else []),
            row["name"],
            *(duration(row[k]) for k in ("p50", "p90", "p99", "p999", "max")),
            _number(row["count"]),
            _number(row["negatives"]),
        ]
        for row in found.iter_rows(named=True)
    ]
    return table(head, rows, left=2 if has_many else 1)


def honesty(run: Run) -> Html:
    """Whether the generator kept its schedule."""
    found = figures.send_delay(run)
    rows = [[row["of"], *(duration(row[k]) for k in ("p50", "p90", "p99", "p999", "max")), _number(row["count"])] for row in found.iter_rows(named=True)]
    shown = table(["of", "p50", "p90", "p99", "p99.9", "max", "events"], rows)
    p99 = found["p99"][0]
    if p99 is None:
        said = "Nothing was sent."
    elif p99 <= SEND_DELAY_P99_MAX_MS:
        said = (
            f"Yes: 99 % of all events were in the log within {duration(p99)} of their time ({SEND_DELAY_P99_MAX_MS:.0f} ms allowed): lateness is the system's."
        )
    else:
        said = f"No: p99 is {duration(p99)}, above {SEND_DELAY_P99_MAX_MS:.0f} ms. What is late may be the generator."
    return Html(f"<p><b>{escape(run.name)}</b> {escape(said)}</p>{shown.html}", f"{run.name}: {said}\n{shown.text}")


def skew(run: Run) -> Html:
    """Whether the load lay evenly on the partitions."""
    found = figures.by_partition(run)
    if run.alerts.is_empty():
        return paragraph(f"{run.name}: no alerts, so nothing can be said about partitions.")
    most = found.sort("share", descending=True).row(0, named=True)
    times = most["share"] / most["fair"]
    even = "evenly" if times <= SKEW_MAX else "unevenly"
    return paragraph(f"{run.name}: {found.height} partitions share the alerts {even}; the fullest, {most['partition']}, has {times:.2f} times an equal share.")


def fault_table(run: Run) -> Html:
    """What was struck, by the numbers in the charts."""
    found = figures.faults(run)
    if found.is_empty():
        return paragraph(f"{run.name}: no faults were made on purpose (--chaos makes them).")
    head = ["", "fault", "at", "process", "partitions hit", "slowest recovery", "lag back after", "window"]
    rows = [
        [
            str(row["number"]), row["what"], f"{row['at_s']:.1f} s", row["process"], str(row["partitions"]), duration(row["slowest_ms"]),
            duration(row["lag_back_ms"]), f"{row['from_s']:.1f} to {row['to_s']:.1f} s",
        ]
        for row in found.iter_rows(named=True)
    ]  # fmt: skip
    sides = [(name, run.report["chaos"].get(name)) for name in ("inside", "outside")]
    said = "; ".join(
        f"{name} fault windows p99 {duration(side['end_to_end_ms']['p99'])}, max {duration(side['end_to_end_ms']['max'])}" for name, side in sides if side
    )
    shown = table(head, rows, left=2)
    return Html(f"<p><b>{escape(run.name)}</b> {escape(said)}</p>{shown.html}", f"{run.name}: {said}\n{shown.text}")


def comparison(before: Run, after: Run) -> Html:
    """Two runs' end to end in figures."""
    found = figures.comparison(before, after).filter(pl.col("stage") == "end_to_end")
    rows = [
        [row["percentile"], duration(row["before"]), duration(row["after"]), "-" if row["change"] is None else f"{row['change']:+.1%}"]
        for row in found.iter_rows(named=True)
    ]
    return table(["end to end", before.name, after.name, "change"], rows)


def paragraph(text: str) -> Html:
    return Html(f"<p>{escape(text)}</p>", text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Html:
    """A table of texts; the first ``left`` columns are words, the others figures."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{' class=word' if at < left else ''}>{escape(str(cell))}</{tag}>" for at, cell in enumerate(cells)) + "</tr>"

    widths = [max(len(str(row[at])) for row in (head, *rows)) for at in range(len(head))]
    text = "\n".join(
        "  ".join(f"{cell!s:<{w}}" if at < left else f"{cell!s:>{w}}" for at, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in (head, *rows)
    )
    body = "".join(line(row, "td") for row in rows)
    return Html(f'<div class="wide"><table class="figures"><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>', text)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:,.0f}"
