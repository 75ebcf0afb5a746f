"""What cohorts add to the cost of an event: the same batches through a session table with and without them, turn about.

    python benchmarks/cohorts.py [--sessions 100000 1000000] [--json FILE]

Events are those of ``session_table.py``: every session in turn, each round in another random order, timers included, log time as if each
session sent every 5 s. Dimensions: *catalog*, the simulator's 512 profiles; *hostile*, 100,000 values of each of the six dimensions, no
two sessions alike as long as they last, so that most are ``other``. With cohorts, rows are taken out after every batch, as the pipeline
does. CPU time of this process; a pair of readings for each batch, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.measure import report
from benchmarks.session_table import EVENTS_MIN, WARM_ROUNDS, Texts, batches, mixed
from keystone.config import CohortsConfig, DetectionConfig, SessionConfig
from keystone.events import CODED_DIMENSIONS, DICTIONARY_COLUMNS, FIRST_DIMENSION, EventBatch
from keystone.sessions import SessionTable
from keystone.sim.catalog import profiles

HOSTILE_VALUES = 100_000
COHORTS = CohortsConfig()


def catalog_codes() -> np.ndarray:
    """Codes of each profile's dimensions, -1 where it has none: (CODED_DIMENSIONS, profiles)."""
    codes = np.full((len(CODED_DIMENSIONS), len(profiles())), -1, np.int32)
    for d, name in enumerate(CODED_DIMENSIONS):
        if hasattr(profiles()[0], name):
            texts = [getattr(profile, name) for profile in profiles()]
            codes[d] = np.unique(texts, return_inverse=True)[1]
    return codes


def dressed(world: Iterator[tuple[int, EventBatch]], style: str) -> Iterator[tuple[int, EventBatch]]:
    """The batches with other dimensions, which follow from the session's key."""
    profile_codes = catalog_codes()
    for turn, batch in world:
        of_session = (mixed(batch.key_lo, 9) >> np.uint64(11)).astype(np.int64)
        if style == "catalog":
            batch.codes[FIRST_DIMENSION:] = profile_codes[:, of_session % profile_codes.shape[1]]
        else:
            for column in range(FIRST_DIMENSION, len(DICTIONARY_COLUMNS)):
                batch.codes[column] = (of_session * (2 * column + 1) + column) % HOSTILE_VALUES
        yield turn, batch


def measure(sessions: int, style: str) -> dict[str, Any]:
    rounds = WARM_ROUNDS + max(1, -(-EVENTS_MIN // sessions))
    tables = [SessionTable(SessionConfig(), DetectionConfig(), Texts(), cohorts=cohorts) for cohorts in (None, COHORTS)]
    seconds, events, rows, windows = [0.0, 0.0], 0, 0, 0
    first_rounds = [[0.0, 0.0], [0.0, 0.0]]  # sessions open, then most of them start to play
    for number, (turn, batch) in enumerate(dressed(batches(sessions, rounds, "hex", np.random.default_rng(7)), style)):
        for which in (0, 1) if number % 2 else (1, 0):
            started = time.process_time()
            done = tables[which].apply(batch)
            swept = tables[which].advance(int(batch.append_ts_ms[-1]))
            spent = time.process_time() - started
            if turn >= WARM_ROUNDS:
                seconds[which] += spent
                rows += sum(partial.rows for partial in done.cohorts + swept.cohorts)
                windows += sum(np.unique(partial.window_start_ms).size for partial in done.cohorts + swept.cohorts)
            elif turn < len(first_rounds):
                first_rounds[turn][which] += spent
        events += batch.rows if turn >= WARM_ROUNDS else 0
    off_ns, on_ns = (second / events * 1e9 for second in seconds)
    return {
        "dimensions": style,
        "sessions": sessions,
        "events": events,
        "ns_without": round(off_ns, 1),
        "ns_with": round(on_ns, 1),
        "ns_of_cohorts": round(on_ns - off_ns, 1),
        **{
            f"ns_of_cohorts_{what}": round((on - off) / sessions * 1e9, 1) for what, (off, on) in zip(("an_opening", "a_first_play"), first_rounds, strict=True)
        },
        "rows_a_window": round(rows / max(windows, 1)),
        "state_bytes_without": tables[0].state_bytes,
        "state_bytes_with": tables[1].state_bytes,
        "overflows": tables[1].cohort_overflows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    measure(8192, "catalog")  # compiles, loads
    rows = [measure(sessions, style) for sessions in arguments.sessions for style in ("catalog", "hostile")]
    report("cohorts", rows, arguments.json)


if __name__ == "__main__":
    main()
