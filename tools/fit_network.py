"""Fit the simulator's network figures to measured throughput traces.

    python tools/fit_network.py network_traces.parquet > keystone/sim/network_figures.json

The traces (columns ``network trace t_s mbps``) are those of github.com/confiwent/Real-world-bandwidth-traces (MIT):
fcc (US home broadband), hsdpa (3G commute in Norway), oboe (Oboe's wired and mobile mix), puffer (Puffer TV streams).

The model, per network: a path has a mean capacity (16 quantiles of the traces' own means), times a level. The level is a
Markov chain in continuous time: eight classes of throughput / mean of its trace, with the mean time a class is kept
and the probabilities of the class that follows, counted on the traces held at one sample a second.
"""

# ruff: noqa: INP001 - a script, not a package
from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import polars as pl

SOURCE = "github.com/confiwent/Real-world-bandwidth-traces (MIT): fcc, hsdpa, oboe, puffer; at most 20 minutes a trace"
BOUNDS = (0.08, 0.2, 0.4, 0.65, 0.9, 1.2, 1.7)  # of throughput / mean; log-spaced where stalls come from
QUANTILES = 16
PRIOR = 0.5  # pseudo-counts on neighbouring classes: no class is a trap because a short trace ended in it


def seconds_of(trace: pl.DataFrame) -> np.ndarray:
    """Throughput in Mbit/s held at one sample a second, shape (seconds,)."""
    times, rates = trace["t_s"].to_numpy(), trace["mbps"].to_numpy()
    clock = np.arange(0, max(1.0, float(times[-1])), 1.0)
    return rates[np.clip(np.searchsorted(times, clock, side="right") - 1, 0, None)].astype(np.float64)


def fit(traces: list[np.ndarray]) -> dict[str, Any]:
    """Figures of one network from its traces."""
    classes = len(BOUNDS) + 1
    jumps = np.zeros((classes, classes))
    visits, stays, sums = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    for rates in traces:
        ratios = rates / rates.mean()
        level = np.searchsorted(BOUNDS, ratios, side="right")
        stays += np.bincount(level, minlength=classes)
        sums += np.bincount(level, ratios, minlength=classes)
        moves = np.flatnonzero(np.diff(level))
        np.add.at(jumps, (level[moves], level[moves + 1]), 1)
        np.add.at(visits, level[moves], 1)
    for level in range(classes):
        for other in (level - 1, level + 1):
            if 0 <= other < classes:
                jumps[level, other] += PRIOR
    means = np.array([rates.mean() for rates in traces])
    middles = [(a + b) / 2 for a, b in zip((0.0, *BOUNDS), (*BOUNDS, 2.4), strict=True)]
    return {
        "traces": len(traces),
        "seconds": int(stays.sum()),
        "path_kbps_quantiles": [round(1000 * float(q)) for q in np.quantile(means, (np.arange(QUANTILES) + 0.5) / QUANTILES)],
        "level_ratio": [round(float(s / n) if n else m, 4) for s, n, m in zip(sums, stays, middles, strict=True)],
        "level_share": [round(float(x), 4) for x in stays / stays.sum()],
        "dwell_s": [round(float((s + 1) / (v + 1)), 3) for s, v in zip(stays, visits, strict=True)],
        "jump": [[round(float(x), 4) for x in row / row.sum()] for row in jumps],
    }


def main(path: str) -> None:
    frame = pl.read_parquet(path).with_columns(pl.col("network", "trace").cast(pl.String))
    networks = {}
    for (network,), part in sorted(frame.group_by("network")):
        traces = [seconds_of(t.sort("t_s")) for _, t in sorted(part.group_by("trace"), key=lambda pair: pair[0])]
        networks[str(network)] = fit([t for t in traces if t.mean() > 0])
    json.dump({"source": SOURCE, "bounds": BOUNDS, "networks": networks}, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/fit_network.py network_traces.parquet > keystone/sim/network_figures.json")
    main(sys.argv[1])
