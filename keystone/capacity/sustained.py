"""How much one machine sustains with everything on it, devices and brokers included: what ``bench --search`` looks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keystone.capacity.rates import PARTS, Rates

LOOP: Final = "the loop of a session actor, which is one thread"
FLEET: Final = "the loop of a fleet actor, which is one thread"
CORES: Final = "the cores, all parts together"


@dataclass(frozen=True, slots=True)
class Sustained:
    """Events/s. ``limit``: which of the three is the least."""

    eps: float
    limit: str
    by_loop: float
    by_fleet: float
    by_cores: float


def sustained(rates: Rates, log: str) -> Sustained:
    """Of a machine with the cores of ``rates``, by the number of actors that a bench takes there.

    A loop has a core at most; all parts together have the cores, of which a run that passes uses a measured share.
    """
    us = {part: rates[f"{log}_{part}_busy_us"] for part in PARTS}
    actors, fleets = max(1, rates.cores - 1), max(1, rates.cores // 3)
    by_loop = _rate(actors, rates[f"{log}_loop_busy_us"])
    by_fleet = _rate(fleets, us["fleet"])
    by_cores = _rate(rates[f"{log}_busy_share"] * rates.cores, sum(us.values()))
    eps = min(by_loop, by_fleet, by_cores)
    limit = CORES if eps == by_cores else LOOP if eps == by_loop else FLEET
    return Sustained(eps, limit, by_loop, by_fleet, by_cores)


def _rate(cores: float, us: float) -> float:
    return cores * 1e6 / us if us > 0 else float("inf")
