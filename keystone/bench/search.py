"""The search for the highest sustained rate: doubles until a probe fails, halves the gap, and doubts the fail that ended it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

TOLERANCE = 0.05  # the gap between the highest pass and the lowest fail, as a share of the pass, at which to stop
PROBES_MAX = 16
RATE_MIN = 1_000.0  # events/s; nothing below is worth finding
DEMOTE_SHARE = 0.1  # of a rate that did not confirm: the next one is so much lower at most
RATE_STEP = 1_000.0  # probes are whole thousands: rates that people can type


@dataclass(slots=True)
class RateSearch:
    """Ask ``next_rate``, run it, tell ``record``; until ``next_rate`` is None. Then ``best`` is the answer.

    Assumes that what passes at a rate passes below it, but not that a fail is always deserved: on a shared machine a moment can fail a probe at half of
    what is sustained. So the lowest rate that failed is probed again where nothing is left between it and the highest that passed; where it passes now,
    the search goes on upward. ``best`` is 0 where nothing passed.
    """

    start: float
    tolerance: float = TOLERANCE
    probes_max: int = PROBES_MAX
    best: float = 0.0
    worst: float = float("inf")  # the lowest rate that failed
    probes: list[tuple[float, bool]] = field(default_factory=list)

    def next_rate(self) -> float | None:
        """The next rate to probe, events/s, or None when the search is over."""
        if len(self.probes) >= self.probes_max or self.worst <= RATE_MIN:
            return None
        if not self.probes:
            rate = self.start
        elif self.worst == float("inf"):
            rate = self.best * 2
        elif self.best == 0:
            rate = self.worst / 2
        elif self.worst - self.best <= self.tolerance * self.best:
            return self._doubted()
        else:
            rate = (self.best + self.worst) / 2
        rate = max(RATE_MIN, round(rate / RATE_STEP) * RATE_STEP)
        return self._doubted() if rate in (self.best, self.worst) else rate

    def _doubted(self) -> float | None:
        """The lowest rate that failed, if it did so once."""
        return self.worst if self.best > 0 and self.probes.count((self.worst, False)) == 1 else None

    def record(self, rate: float, passed: bool) -> None:  # noqa: FBT001 - the outcome is the argument
        """Tell how the probe of ``rate`` went."""
        self.probes.append((rate, passed))
        if passed:
            self.best = max(self.best, rate)
        self.worst = min((failed for failed, passed in self.probes if not passed and failed > self.best), default=float("inf"))

    def demote(self) -> float:
        """The confirming run at ``best`` failed: the next rate to confirm. The next lower pass, but a tenth lower at most; 0 below ``RATE_MIN``.

        What passes for a short while and fails for a longer one is often little too much, and the next lower pass may be half of it.
        """
        failed = self.best
        self.worst = min(self.worst, failed)
        passed = max((rate for rate, passed in self.probes if passed and rate < failed), default=0.0)
        nearer = failed * (1 - DEMOTE_SHARE) // RATE_STEP * RATE_STEP
        self.best = max(passed, nearer if nearer >= RATE_MIN else 0.0)
        return self.best
