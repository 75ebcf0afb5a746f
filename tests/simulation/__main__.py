"""Run schedules by hand: ``python -m tests.simulation --seed 4711 -v`` replays one and tells every step of it."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.simulation.mutations import MUTATIONS
from tests.simulation.schedule import replay_command, run
from tests.simulation.world import Violation


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--schedules", type=int, default=1, help="how many, one seed after the other")
    parser.add_argument("--mutation", choices=list(MUTATIONS), default="none", help="a protection to take away")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell every step")
    options = parser.parse_args(arguments)
    if not options.verbose:
        logging.disable(logging.ERROR)  # what the program says of faults that were made is no news
    broken, happened, began_s = 0, Counter[str](), time.monotonic()
    with MUTATIONS[options.mutation]() as is_torn:
        for seed in range(options.seed, options.seed + options.schedules):
            try:
                happened += Counter(run(seed, is_torn=is_torn, tell=tell if options.verbose else None).counts)
            except Violation as violation:
                broken += 1
                tell(f"seed {seed}: {violation}\n  {replay_command(seed, options.mutation)}")
    took_s = time.monotonic() - began_s
    tell(f"{options.schedules:,} schedules, {broken:,} broke a promise; {took_s:.1f} s; {', '.join(f'{count:,} {what}' for what, count in happened.items())}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
