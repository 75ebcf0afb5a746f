"""Where partitions would have to go for loads to be even: arithmetic over what is owned and what each partition weighs.

A weight is a whole number, so that sums are exact and nothing moves for a rounding error. One step takes a partition from the fullest
owner to the emptiest, the one that leaves the fuller of the two least; steps follow until none lowers it. Each makes the sum of
squares smaller, so they end, and where the same weights are told again there is nothing left to do.

How good that is: where no step is left, the fullest of n owners has one partition only, or at most 2n/(n+1) times the mean. (The emptiest
has at least the fullest's M less its smallest partition x, or x would move; so has everybody else; and x is at most M/2. Then all
together have at least M + (n-1)M/2.) The mean, and the largest partition, are not above what any way of dealing out reaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

CLOSE_PERCENT: Final = 5  # above the least that steps reach: the last ones gain little, and each costs a pause like any other
LOOKS_APART_MAX_S: Final = 5.0  # longer without a look, nobody knows what was so meanwhile: a frozen supervisor has waited for nothing

Owned = Mapping[str, Iterable[int]]  # partitions by owner


@dataclass(frozen=True, slots=True)
class Move:
    partition: int
    source: str
    target: str


@dataclass(slots=True)
class Patience:
    """Whether something was so at every look, for long enough."""

    needed_s: float
    _since_s: float | None = None
    _looked_s: float = 0.0

    def has_lasted(self, now_s: float, *, is_so: bool) -> bool:
        """Look once."""
        if not is_so:
            self._since_s = None
            return False
        if self._since_s is None or now_s - self._looked_s > LOOKS_APART_MAX_S:
            self._since_s = now_s
        self._looked_s = now_s
        return now_s - self._since_s >= self.needed_s

    def begin_anew(self) -> None:
        self._since_s = None


class Deal:
    """Who would have what, after the steps made so far. The first of equal owners is the fullest, and the emptiest."""

    def __init__(self, owned: Owned, weights: Mapping[int, int]) -> None:
        self._weights = weights
        self._before = {name: frozenset(partitions) for name, partitions in owned.items()}
        self._now = {name: set(partitions) for name, partitions in self._before.items()}
        self.sums = {name: sum(weights[p] for p in partitions) for name, partitions in self._now.items()}

    @property
    def highest(self) -> int:
        return max(self.sums.values(), default=0)

    def even_out(self) -> None:
        """Steps from the fullest to the emptiest until none makes the fullest less; of them the first that come close to that."""
        steps: list[Move] = []
        highest = [self.highest]
        while (step := self._next()) is not None:
            steps.append(step)
            self._take(step)
            highest.append(self.highest)
        enough = next(number for number, one in enumerate(highest) if one * 100 <= highest[-1] * (100 + CLOSE_PERCENT))
        for step in reversed(steps[enough:]):
            self._take(Move(step.partition, step.target, step.source))

    def _next(self) -> Move | None:
        if not self.sums:
            return None
        return self._step(max(self.sums, key=self.sums.__getitem__), min(self.sums, key=self.sums.__getitem__))

    def fill(self, newcomers: Iterable[str]) -> None:
        """Steps to the emptiest of ``newcomers``, each from the fullest owner that gains by it; others get nothing."""
        fresh = sorted(newcomers)
        while fresh:
            target = min(fresh, key=self.sums.__getitem__)
            sources = sorted(self.sums.keys() - {target}, key=lambda name: (-self.sums[name], name))
            step = next((step for source in sources if (step := self._step(source, target)) is not None), None)
            if step is None:
                return
            self._take(step)

    def _step(self, source: str, target: str) -> Move | None:
        """Of the partition that leaves the fuller of the two least; of equal ones the last."""
        full, room = self.sums[source], self.sums[target]
        weights = self._weights
        fitting = [(max(full - weights[p], room + weights[p]), -p) for p in self._now[source] if room + weights[p] < full]
        return Move(-min(fitting)[1], source, target) if fitting else None

    def _take(self, step: Move) -> None:
        weight = self._weights[step.partition]
        self._now[step.source].remove(step.partition)
        self._now[step.target].add(step.partition)
        self.sums[step.source] -= weight
        self.sums[step.target] += weight

    def moves(self) -> list[Move]:
        """What has to move for it, each partition once, from whoever has it: the heaviest first."""
        goes = {p: name for name, partitions in self._now.items() for p in partitions}
        found = [Move(p, name, goes[p]) for name, partitions in self._before.items() for p in partitions if goes[p] != name]
        return sorted(found, key=lambda move: (-self._weights[move.partition], move.partition))


def evening(owned: Owned, weights: Mapping[int, int], *, uneven_percent: int, gain_percent: int) -> list[Move]:
    """Moves that are worth their pauses: the fullest owner has over ``uneven_percent`` of the mean, and the highest load falls by ``gain_percent``.

    None otherwise. Weights are positive.
    """
    deal = Deal(owned, weights)
    highest, total = deal.highest, sum(deal.sums.values())
    if highest * len(deal.sums) * 100 <= uneven_percent * total:
        return []
    deal.even_out()
    return deal.moves() if deal.highest * 100 <= highest * (100 - gain_percent) else []


def filling(owned: Owned, newcomers: Iterable[str], weights: Mapping[int, int]) -> list[Move]:
    """Moves that give ``newcomers``, which own little or nothing, their shares."""
    fresh = list(newcomers)
    deal = Deal({**dict.fromkeys(fresh, ()), **owned}, weights)
    deal.fill(fresh)
    return deal.moves()


def too_hot(weights: Mapping[int, int], owners: int, uneven_percent: int) -> int | None:
    """The partition that makes its owner too full were it alone there, if there is one: no move helps. The heaviest of several."""
    heaviest = max(weights, key=lambda p: (weights[p], -p), default=None)
    if heaviest is None or weights[heaviest] * owners * 100 <= uneven_percent * sum(weights.values()):
        return None
    return heaviest
