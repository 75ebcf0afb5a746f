"""The verdict and its reasons. Pure: numbers in, words out; no clock, no files.

pass     everything expected was alerted once and in time, every sum balances, and the lag did not grow
invalid  the generator, not the system, was the limit: the run says nothing about the system's speed
fail     anything else

A generator that waits for room is not the limit: the readers of a full log are, or brokers that do not answer.
A wrong answer is a fail at any speed, so correctness is judged first; only then whether the generator kept its
schedule; only a run on schedule is judged by lag and latency. All reasons are listed, whatever the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from keystone.bench.latency import PROMISE_MS, Score

SEND_DELAY_P99_MAX_MS = 100.0  # a generator later than this measures itself
ACHIEVED_SHARE_MIN = 0.95  # below it the plan did not make the rate (too few devices), however punctual it was
#: The truth knows the schedule alone. Players that stall report every 2 s, and silence of 10 s is an alert: kept from sending for
#: longer than this, they may really have been silent for 10 s.
SILENCE_MAX_MS = 7_000.0
LAG_SLOPE_SHARE_MAX = 0.01  # of the target rate: 1 % of the events piling up
READERS_LIMIT = "the session actors were the limit: the log was full"  # of an embedded log
BROKERS_LIMIT = "the brokers were the limit: kafka.send_bytes_max were without an answer"
LAG_RESTING_S = 0.1  # a queue that empties to this many seconds' worth of events does not grow


@dataclass(frozen=True, slots=True)
class LagSample:
    """Events appended and not yet consumed, ``at_s`` seconds after the start."""

    at_s: float
    events: int


@dataclass(frozen=True, slots=True)
class LagTrend:
    """Slope by least squares over the second half; the most seen; the least in the last quarter (where it rests)."""

    slope_events_per_s: float = 0.0
    max_events: int = 0
    resting_events: int = 0

    def grows(self, target_eps: float) -> bool:
        """True where more than 1 % of the rate piles up and the queue no longer empties.

        Slope alone would blame one pause of the machine near the end; a queue that empties between pauses keeps up.
        """
        return self.slope_events_per_s > LAG_SLOPE_SHARE_MAX * target_eps and self.resting_events > LAG_RESTING_S * target_eps


def lag_trend(samples: list[LagSample], seconds: float) -> LagTrend:
    """The trend of samples taken within ``seconds``; later ones (the drain) count for nothing."""
    inside = [s for s in samples if 0 <= s.at_s <= seconds]
    if not inside:
        return LagTrend()
    at = np.array([s.at_s for s in inside])
    events = np.array([s.events for s in inside], np.float64)
    second_half, last_quarter = at >= seconds / 2, at >= seconds * 0.75
    slope = 0.0
    if second_half.sum() >= 3:
        centred = at[second_half] - at[second_half].mean()
        spread = float((centred * centred).sum())
        slope = float((centred * events[second_half]).sum()) / spread if spread > 0 else 0.0
    resting = int(events[last_quarter].min()) if last_quarter.any() else 0
    return LagTrend(slope, int(events.max()), resting)


@dataclass(frozen=True, slots=True)
class Sums:
    """The ledger of a run. ``lake_rows`` is counted from the files; None where no lake was written."""

    sent: int = 0
    received: int = 0
    accepted: int = 0
    applied: int = 0
    duplicates: int = 0
    dead_lettered: int = 0
    lake_rows: int | None = None

    def imbalances(self) -> list[str]:
        """One line for each sum that does not balance."""
        claims = [
            ("received", self.received, "sent", self.sent),
            ("accepted + dead-lettered", self.accepted + self.dead_lettered, "received", self.received),
            ("applied + duplicates", self.applied + self.duplicates, "accepted", self.accepted),
        ]
        if self.lake_rows is not None:
            claims.append(("lake rows", self.lake_rows, "accepted", self.accepted))
        return [f"ledger: {a} {x:,} != {b} {y:,} ({x - y:+,})" for a, x, b, y in claims if x != y]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a verdict rests on. ``faults``: lines that each make the run fail (a dead actor, an interruption)."""

    target_eps: float
    achieved_eps: float
    score: Score
    sums: Sums
    lag: LagTrend
    send_delay_p99_ms: float | None
    end_to_end_max_ms: float | None
    faults: tuple[str, ...] = ()
    log_full_ms: float = 0.0  # that the generator waited for room
    full_means: str = READERS_LIMIT  # who is the limit then
    silence_max_ms: float | None = None  # that devices were kept from sending, by faults on purpose


@dataclass(frozen=True, slots=True)
class Verdict:
    verdict: str  # pass | fail | invalid
    reasons: list[str] = field(default_factory=list)


def judge(e: Evidence) -> Verdict:
    """The rules above."""
    wrong, generator, slow = _wrong(e), _generator_limits(e), _slow(e)
    reasons = wrong + generator + slow
    if wrong:
        return Verdict("fail", reasons)
    if generator:
        return Verdict("invalid", reasons)
    return Verdict("fail" if slow else "pass", reasons)


def _wrong(e: Evidence) -> list[str]:
    counts = [("missed", e.score.missed), ("false", e.score.false), ("doubled", e.score.duplicate)]
    return list(e.faults) + [f"alerts {name}: {count:,}" for name, count in counts if count] + e.sums.imbalances()


def _generator_limits(e: Evidence) -> list[str]:
    reasons: list[str] = []
    if e.silence_max_ms is not None and e.silence_max_ms > SILENCE_MAX_MS:
        reasons.append(f"the devices were kept from sending for {e.silence_max_ms:,.0f} ms > {SILENCE_MAX_MS:,.0f} ms: the truth does not hold")
    if e.log_full_ms > SEND_DELAY_P99_MAX_MS:
        return reasons
    if e.send_delay_p99_ms is not None and e.send_delay_p99_ms > SEND_DELAY_P99_MAX_MS:
        reasons.append(f"the generator was the limit: send delay p99 {e.send_delay_p99_ms:,.0f} ms > {SEND_DELAY_P99_MAX_MS:.0f} ms")
    if e.achieved_eps < ACHIEVED_SHARE_MIN * e.target_eps and not e.faults:
        reasons.append(f"the generator made {e.achieved_eps:,.0f} events/s of {e.target_eps:,.0f}")
    return reasons


def _slow(e: Evidence) -> list[str]:
    reasons = []
    if e.log_full_ms > SEND_DELAY_P99_MAX_MS:
        reasons.append(f"{e.full_means} for {e.log_full_ms:,.0f} ms")
    if e.lag.grows(e.target_eps):
        reasons.append(f"lag grows by {e.lag.slope_events_per_s:,.0f} events/s (at most {e.lag.max_events:,} events)")
    if e.end_to_end_max_ms is not None and e.end_to_end_max_ms > PROMISE_MS:
        reasons.append(f"end-to-end latency up to {e.end_to_end_max_ms:,.0f} ms > {PROMISE_MS:,.0f} ms")
    return reasons
