"""Run schedules by hand: ``python -m tests.simulation --seed 4711 -v`` replays one and tells every step of it."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext

from tests.simulation.mutations import MUTATIONS
from tests.simulation.shares import Share, run_share, tell

SHARE = 100  # schedules


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--schedules", type=int, default=1, help="how many, one seed after the other")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share them")
    parser.add_argument("--mutation", choices=list(MUTATIONS), default="none", help="a protection to take away")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell every step")
    options = parser.parse_args(arguments)
    began_s = time.monotonic()
    seeds = range(options.seed, options.seed + options.schedules)
    shares = [Share(seeds[first : first + SHARE], options.mutation, options.verbose) for first in range(0, len(seeds), SHARE)]
    broken, happened = 0, Counter[str]()
    with multiprocessing.get_context("spawn").Pool(options.jobs) if options.jobs > 1 else nullcontext() as pool:
        for more, counts in pool.imap_unordered(run_share, shares) if pool is not None else map(run_share, shares):
            broken, happened = broken + more, happened + counts
    took_s = time.monotonic() - began_s
    tell(f"{options.schedules:,} schedules, {broken:,} broke a promise; {took_s:.1f} s; {', '.join(f'{count:,} {what}' for what, count in happened.items())}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
