"""Quality of experience by cohort: what is summed, what a cohort is, and the partial sums of one partition.

Names follow CTA-2066 (docs/glossary.md). Choices where the specification is silent, the same in the reference of the tests:

* A late event adds what the specification names: every one to ``events``, a Start that makes ``has_start`` true to ``attempts``, a Stop
  that stops its session to ``stall_ms`` and ``ended`` (with ``ebvs vsf vpf``). It adds no ``played_ms``.
* Closing as ``open`` adds nothing at all, an open run's ``stall_ms`` neither.
* An ``open_stall`` alert and a timeout are of the window in which they were due, whenever they are found.
* With log time, a cohort with plays at a window's end has something to tell there, even if nothing else happened.
* A value that is spelled ``unknown`` or ``other`` is of the same cohort as what is absent, or not told apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

import numpy as np

from keystone.config import CohortsConfig
from keystone.errors import UsageError
from keystone.events import CODED_DIMENSIONS, I32, I64
from keystone.kernels.cohorts import BIN_BITS, FIRST_VALUE, OTHER, UNKNOWN

#: What is summed, in the kernel's order (``kernels.cohorts.F_...``).
SUMS: Final = (
    "events", "heartbeats", "bitrate_count", "bitrate_kbps_sum", "played_ms", "attempts", "plays", "stalls", "stall_ms", "startups", "startup_ms_sum",
    "ended", "ebvs", "vsf", "vpf", "alerts",
)  # fmt: skip
CONCURRENT: Final = "concurrent_plays"
#: The quantiles that are told of ``startup_ms``, and their columns.
QUANTILES: Final = {"startup_ms_p50": 50, "startup_ms_p95": 95}  # percent
#: Columns of a cohort's row behind the window and the dimensions, in the order of the specification.
COLUMNS: Final = (
    "events", "attempts", "plays", "stalls", "stall_ms", "played_ms", "startups", "startup_ms_sum", *QUANTILES, "heartbeats", "bitrate_count",
    "bitrate_kbps_sum", "ended", "ebvs", "vsf", "vpf", "alerts", CONCURRENT,
)  # fmt: skip
#: Seconds of log time that rows are told for: the first is measured, the others are added up from it.
WINDOWS_MS: Final = (1_000, 10_000, 60_000)
#: How far a quantile may be from the value of its rank, as a share of it: half of a bin's width (``kernels.cohorts.bin_of``).
SKETCH_ERROR: Final = 1 / (2 << BIN_BITS)
NAMES: Final = {UNKNOWN: "unknown", OTHER: "other"}
#: Which cohort: for each dimension its value, None where it is not told apart. All None: all sessions.
Key = tuple[str | None, ...]


def bin_values(bins: I64) -> I64:
    """The value that stands for each bin: its middle, within ``SKETCH_ERROR`` of every value in it; exact below 128."""
    octaves = np.maximum(bins - (1 << BIN_BITS), 0) >> BIN_BITS
    lowest = np.where(octaves > 0, ((bins & ((1 << BIN_BITS) - 1)) | (1 << BIN_BITS)) << octaves, bins)
    return np.asarray(lowest + ((np.int64(1) << octaves) >> 1), np.int64)


class Layout:
    """How cohorts are numbered: 0 is all sessions, then the values of each dimension, then the pairs.

    A value's number in its dimension is UNKNOWN, OTHER, or FIRST_VALUE and up; pairs tell the first ``pair_values`` numbers apart.
    Raises ``UsageError`` for a dimension that events do not have.
    """

    def __init__(self, config: CohortsConfig) -> None:
        for name in (*config.dimensions, *(side for pair in config.pairs for side in pair)):
            if name not in CODED_DIMENSIONS or name not in config.dimensions:
                known = config.dimensions if name in CODED_DIMENSIONS else CODED_DIMENSIONS
                raise UsageError(f"cohorts.dimensions or cohorts.pairs: {name} is none of {', '.join(known)}: choose among these")
        self.dimensions = config.dimensions
        self.pairs = tuple((config.dimensions.index(left), config.dimensions.index(right)) for left, right in config.pairs)
        self.values = FIRST_VALUE + config.values_max
        self.pair_values = FIRST_VALUE + min(config.pair_values_max, config.values_max)
        sizes = (1, *(self.values for _ in self.dimensions), *(self.pair_values**2 for _ in self.pairs))
        ends = tuple(accumulate(sizes))
        self.cohorts = ends[-1]
        self.groupings = len(sizes)
        starts = np.array(ends[:-1], np.int64)
        self.bases: I64 = starts[: len(self.dimensions)].copy()
        self.pair_bases: I64 = starts[len(self.dimensions) :].copy()
        self.left: I64 = np.array([left for left, _ in self.pairs], np.int64)
        self.right: I64 = np.array([right for _, right in self.pairs], np.int64)

    def numbers_of(self, cohort: int) -> tuple[int | None, ...]:
        """For each dimension the number of its value, None where the cohort does not tell it apart."""
        numbers: list[int | None] = [None] * len(self.dimensions)
        for pair, (left, right) in enumerate(self.pairs):
            at = cohort - int(self.pair_bases[pair])
            if 0 <= at < self.pair_values**2:
                numbers[left], numbers[right] = divmod(at, self.pair_values)
        for k, base in enumerate(self.bases.tolist()):
            if 0 <= cohort - base < self.values:
                numbers[k] = cohort - base
        return tuple(numbers)


@dataclass(frozen=True, slots=True)
class CohortPartial:
    """One partition's share of some windows, which log time has passed (or a file's, which add up).

    ``keys``: the cohorts it tells of; two may be spelled alike, and add up. ``window_start_ms`` int64 (rows,); ``cohorts`` int32
    (rows,): places in ``keys``; ``sums`` int64 (rows, SUMS and the concurrent plays). ``bins`` int64 (any, 4): window start in ms,
    place in ``keys``, bin, how many startups. ``has_log_time`` False: nobody knows how many played at once.
    """

    partition: int
    dimensions: tuple[str, ...]
    keys: tuple[Key, ...]
    window_start_ms: I64 = field(repr=False)
    cohorts: I32 = field(repr=False)
    sums: I64 = field(repr=False)
    bins: I64 = field(repr=False)
    has_log_time: bool = True

    @property
    def rows(self) -> int:
        return int(self.window_start_ms.size)
