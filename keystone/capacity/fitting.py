"""From two reports of a bench to what an event costs, and what is spent at any rate. Pure.

What a part takes of the cores is a straight line over the rate: ``cores = base + rate x us``. Two rates give it. Batches grow with the rate, so
the line is only good between the two. At the highest rate a machine sustains an event costs what it does at the higher of the two, or less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from keystone.capacity.rates import PARTS
from keystone.errors import UsageError

APART: Final = 1.5  # how far the two rates must be apart, or noise decides the line


def fit(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, float]:
    """``PART_us``, ``PART_base_cores`` and ``PART_busy_us`` of every part and of the loop, from two reports (``report.json``) of one machine.

    A base below zero is noise: it is zero then, and the cost an event that of the higher rate.
    """
    rates = [float(report["achieved_eps"]) for report in (low, high)]
    if rates[1] < APART * rates[0]:
        raise UsageError(f"two benches at {rates[0]:,.0f} and {rates[1]:,.0f} events/s are too near to each other to tell what an event costs")
    found: dict[str, float] = {}
    for part in (*PARTS, "loop"):
        us = [float(report["cpu_us_per_event"].get(part) or 0.0) for report in (low, high)]
        cores = [rate * each / 1e6 for rate, each in zip(rates, us, strict=True)]
        slope = (cores[1] - cores[0]) / (rates[1] - rates[0])
        base = cores[0] - slope * rates[0]
        if base < 0 or slope < 0:
            base, slope = 0.0, cores[1] / rates[1]
        found[f"{part}_us"], found[f"{part}_base_cores"] = round(slope * 1e6, 4), round(base, 4)
        found[f"{part}_busy_us"] = us[1]
    for kind in ("us", "busy_us"):
        found[f"loop_{kind}"] = min(found[f"loop_{kind}"], found[f"sessions_{kind}"])
    return found


def busy_share(report: Mapping[str, Any]) -> float:
    """Of the cores, that a run took: devices, brokers and all."""
    cpu = report["cpu_us_per_event"]
    return min(1.0, float(report["achieved_eps"] * (cpu["total"] + (cpu.get("broker") or 0.0)) / 1e6 / report["machine"]["cores"]))
