"""Capacity of simulated paths: figures fitted to measured traces, made into the tables the device kernel reads.

``network_figures.json`` is what ``tools/fit_network.py`` made of the traces of
github.com/confiwent/Real-world-bandwidth-traces (MIT; fcc, hsdpa, oboe, puffer). A path has a mean capacity, drawn from the quantiles of
its network, and a level: a Markov chain over eight classes of throughput / mean.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from keystone.events import U8
from keystone.kernels.seats import Model
from keystone.sim import catalog

STEP_MS: Final = 64  # of the table of level changes; 256 steps reach 16 s, the longest report interval
#: The collections leave out paths that cannot play at all, and are 5 to 15 years old: their paths are this much faster now.
CAPACITY_SCALE: Final = 3.0
#: Weak paths: a moment's distance from the access point, a crowded cell. Multiples of the ladder's lowest rung, log-uniform.
WEAK_PATH: Final = (0.6, 1.6)
#: Some stalls are outages (a lift, a tunnel, a router that restarts): Pareto, this long at least and with this exponent.
OUTAGE_MIN_S: Final = 2.5
OUTAGE_TAIL: Final = 1.05
OUTAGE_MAX_S: Final = 600.0
#: Bad paths: cannot hold the lowest rung for long.
BAD_PATH: Final = (0.3, 1.0)


@cache
def figures() -> dict[str, Any]:
    """The fitted figures, as ``tools/fit_network.py`` wrote them."""
    parsed: dict[str, Any] = json.loads((Path(__file__).parent / "network_figures.json").read_text())
    return parsed


def model(ladder_kbps: tuple[int, ...]) -> Model:
    """Tables for players that know this ladder (rising kbit/s, at most 16 rungs)."""
    networks = figures()["networks"]
    names = sorted(networks)
    fitted = [networks[name] for name in names]
    dwell_ms = np.array([1000 * d for n in fitted for d in n["dwell_s"]])
    changed = 1 - np.exp(-np.arange(256) * STEP_MS / dwell_ms[:, None])
    spans = [_log_uniform(*(ladder_kbps[0] * edge for edge in edges)) for edges in (WEAK_PATH, BAD_PATH)]
    paths = np.stack([CAPACITY_SCALE * _quantile_table(n["path_kbps_quantiles"]) for n in fitted] + spans)
    chances = (np.arange(4096) + 0.5) / 4096
    thresholds = np.arange(256) * 32
    return Model(
        change=np.minimum(changed * 65536, 65535).astype(np.uint16).reshape(-1),
        jump=np.concatenate([_inverse(row) + 8 * i for i, n in enumerate(fitted) for row in n["jump"]]).astype(np.uint8),
        ratio=np.array([round(256 * r) for n in fitted for r in n["level_ratio"]], np.int32),
        first_level=np.concatenate([_inverse(n["level_share"]) + 8 * i for i, n in enumerate(fitted)]).astype(np.uint8),
        path=np.minimum(paths, 65535).astype(np.uint16).reshape(-1),
        rung=np.maximum(np.searchsorted(ladder_kbps, thresholds, side="right") - 1, 0).astype(np.uint8),
        share=np.array([round((1 << 20) / rate) for rate in ladder_kbps], np.int32),
        network=np.array([names.index(p.figures) for p in catalog.profiles()], np.uint8),
        outage=np.round(10 * np.minimum(OUTAGE_MIN_S * (1 - chances) ** (-1 / OUTAGE_TAIL), OUTAGE_MAX_S)).astype(np.int32),
        exponential=np.round(-np.log1p(-chances) * 1024).astype(np.int32),
    )


def _inverse(shares: list[float]) -> U8:
    """Which class each of 256 equal chances means, shape (256,)."""
    edges = np.cumsum(shares) / np.sum(shares)
    return np.searchsorted(edges, (np.arange(256) + 0.5) / 256).astype(np.uint8)


def _quantile_table(quantiles: list[float]) -> np.ndarray:
    """256 values between the given evenly spaced quantiles; the ends are flat."""
    places = (np.arange(len(quantiles)) + 0.5) / len(quantiles)
    return np.interp((np.arange(256) + 0.5) / 256, places, quantiles)


def _log_uniform(low: float, high: float) -> np.ndarray:
    return low * (high / low) ** ((np.arange(256) + 0.5) / 256)
