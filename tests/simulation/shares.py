"""Several schedules in one process."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from typing import NamedTuple

from tests.simulation.mutations import MUTATIONS
from tests.simulation.schedule import replay_command, run
from tests.simulation.world import Violation


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Share(NamedTuple):
    """Schedules that one process runs."""

    seeds: range
    mutation: str
    is_verbose: bool


def run_share(share: Share) -> tuple[int, Counter[str]]:
    """How many broke a promise, and what happened in all of them."""
    if not share.is_verbose:
        logging.disable(logging.ERROR)  # what the program says of faults that were made is no news
    broken, happened = 0, Counter[str]()
    with MUTATIONS[share.mutation]() as is_torn:
        for seed in share.seeds:
            try:
                happened += Counter(run(seed, is_torn=is_torn, tell=tell if share.is_verbose else None).counts)
            except Violation as violation:
                broken += 1
                tell(f"seed {seed}: {violation}\n  {replay_command(seed, share.mutation)}")
    return broken, happened
