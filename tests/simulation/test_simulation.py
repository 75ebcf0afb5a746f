"""Kill, freeze, cut off, refuse, restart, by seed: nothing lost, nothing twice, and nothing stands still for ever.

``pytest tests/simulation --schedules 100000 --first-seed 5000`` runs others; a failure prints the command that replays it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.simulation.mutations import MUTATIONS
from tests.simulation.schedule import replay_command, run
from tests.simulation.world import Violation

PORTIONS = 10  # of the schedules: a test each, so that one that hangs is named
MUTANT_SEEDS_MAX = 1_000
FAULTS = (
    "killed",
    "frozen",
    "cut off",
    "unavailable",
    "lost answer",
    "fenced",
    "lost",
    "run restarted",
    "owners changed",
    "partitions added",
    "supervisor replaced",
    "committers doubled",
)
RARE = ("repeats", "moved by load")  # in one of ten or twenty schedules: a hundred may be without
RARE_WITHIN = 400


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Warnings about what a schedule does are no news."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.timeout(0)  # as long as it was told to run; STEPS_MAX ends a schedule that does not end
@pytest.mark.parametrize("portion", range(PORTIONS))
def test_schedules_keep_every_promise(portion: int, pytestconfig: pytest.Config) -> None:
    schedules, first = pytestconfig.getoption("schedules"), pytestconfig.getoption("first_seed")
    seeds = range(first + schedules * portion // PORTIONS, first + schedules * (portion + 1) // PORTIONS)
    happened = Counter[str]()
    for seed in seeds:
        try:
            happened += Counter(run(seed).counts)
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}\n{replay_command(seed)}", pytrace=False)
    if len(seeds) >= 100:
        assert [fault for fault in FAULTS if not happened[fault]] == []


@pytest.mark.slow
def test_what_is_rare_happens_too() -> None:
    happened = Counter[str]()
    for seed in range(RARE_WITHIN):
        happened += Counter(run(seed).counts)
        if all(happened[fault] for fault in RARE):
            return
    pytest.fail(f"in {RARE_WITHIN} schedules there was none of {[fault for fault in RARE if not happened[fault]]}")


@pytest.mark.slow
def test_a_seed_gives_the_same_schedule_each_time() -> None:
    told: list[list[str]] = [[], []]
    for lines in told:
        run(7, tell=lines.append)
    assert told[0] == told[1]
    assert len(told[0]) > 300


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MUTATIONS if name != "none"])
def test_a_protection_that_is_missing_is_noticed(name: str) -> None:
    with MUTATIONS[name]() as is_torn:
        for seed in range(MUTANT_SEEDS_MAX):
            try:
                run(seed, is_torn=is_torn)
            except Violation:
                return
    pytest.fail(f"nothing was noticed without {name} in {MUTANT_SEEDS_MAX} schedules")
