"""The model of this machine: kept figures at its speed (a quarter of a minute), or benches of its own (a minute)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from keystone.capacity.fitting import fit
from keystone.capacity.rates import CPU_FIGURES, Rate, Rates
from keystone.capacity.sustained import sustained
from keystone.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Of what the machine should sustain: one rate at which what is spent at any rate shows, one at which both cores are busy enough to get in
#: each other's way, and which still passes where the guess was a third too high.
LOW_SHARE: Final = 0.15
HIGH_SHARES: Final = (0.6, 0.4)  # the second where the first does not pass: another program may take a share of the machine
SECONDS: Final = 14  # a checkpoint and a commit are in it
RATE_MIN: Final = 2_000.0
BUSY_LOAD: Final = 0.5  # of a minute, for each core: what others take shows as a lower speed
DEVICES_MAX: Final = 2_000_000  # more take longer to build than to measure


def here(rates: Rates) -> Rates:
    """``rates`` at the speed of this machine, by its speed."""
    from keystone.bench.machine import Machine, StealMeter, stolen_note
    from keystone.bench.speed import measure_speed

    machine = Machine.here()
    _say("measuring the speed of this machine, 15 s")
    if (load := machine.load_average[0]) > BUSY_LOAD * machine.cores:
        _say(f"the machine is busy (load {load:.2f} on {machine.cores} cores): it is slower than alone, and so is what it is said to sustain")
    steal = StealMeter()
    speed = round(measure_speed())
    if (note := stolen_note(steal.cores(), machine.cores)) is not None:
        _say(note)
    return rates.on(speed, machine=machine.cpu, cores=machine.cores)


def measure(kept: Rates, path: Path) -> Rates:
    """Bench this machine at two rates over the embedded log, write what follows to ``path``, and return it.

    Kafka's figures are the kept ones, times what this machine takes for the same part over the embedded log; brokers go with the whole.
    ``UsageError`` where a bench does not pass: then it says nothing about cost.
    """
    scaled = here(kept)
    able = sustained(scaled, "embedded").eps
    found = fit(*(_bench_one_of([max(RATE_MIN, round(able * share, -3)) for share in shares]) for shares in ((LOW_SHARE,), HIGH_SHARES)))
    figures = {f"embedded_{name}": Rate(value, "measured") for name, value in found.items() if not name.startswith("broker")}
    figures |= _as_kafka(kept, found)
    rates = Rates(scaled.machine, scaled.cores, scaled.speed_events_per_s, {**scaled.figures, **figures})
    path.write_text(json.dumps(rates.as_dict(), indent=1) + "\n", "utf-8")
    _say(f"measured: {path}")
    return rates


def _as_kafka(kept: Rates, found: dict[str, float]) -> dict[str, Rate]:
    """Kafka's figures for this machine, by how it does over the embedded log."""
    figures: dict[str, Rate] = {}
    parts = ("fleet", "sessions", "other")
    whole = sum(found[f"{part}_us"] for part in parts) / sum(kept[f"embedded_{part}_us"] for part in parts)
    for name in (name for name in CPU_FIGURES if name.startswith("kafka_")):
        part, _, kind = name.removeprefix("kafka_").partition("_")
        before = kept[f"embedded_{part}_us"]
        factor = found[f"{part}_us"] / before if kind != "base_cores" and part in (*parts, "loop") and before > 0 else whole
        figures[name] = Rate(round(kept[name] * factor, 4), f"{kept.source(name)}, x {factor:.3f} as over the embedded log")
    for kind in ("us", "busy_us"):
        loop, sessions = figures[f"kafka_loop_{kind}"], figures[f"kafka_sessions_{kind}"]
        figures[f"kafka_loop_{kind}"] = Rate(min(loop.value, sessions.value), loop.source)
    return figures


def _bench_one_of(rates: Sequence[float]) -> dict[str, Any]:
    """The report of the first of these rates that passes."""
    reasons = []
    for eps in rates:
        report = _bench(eps)
        if report["verdict"] == "pass":
            return report
        reasons.append(f"a bench at {eps:,.0f} events/s did not pass here ({report['reasons'][0]})")
        _say(reasons[-1])
    raise UsageError(f"{reasons[-1]}: measure when the machine is quiet")


def _bench(eps: float) -> dict[str, Any]:
    from keystone.bench.command import run_bench
    from keystone.bench.plan import Options

    with tempfile.TemporaryDirectory(prefix="keystone-plan-") as scratch:
        _say(f"a bench at {eps:,.0f} events/s for {SECONDS} s")
        options = Options(eps=eps, seconds=SECONDS, devices=max(1_000, min(DEVICES_MAX, int(eps * 5))), out=str(Path(scratch) / "out"))
        return run_bench(options, config_file=None, is_search=False, unit_events_per_s=None)


def _say(text: str) -> None:
    click.echo(f"keystone plan: {text}", err=True)
