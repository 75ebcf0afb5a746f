"""The cohorts' part of a session table's snapshot: what its arrays are, and whether they fit together.

``cohort_rules`` what they were counted by (empty: by nothing) · ``cohort_state`` counters · ``cohort_rows`` the combination of each session
· ``cohort_counts`` ``cohort_values`` how many values each dimension has admitted, and their codes · ``cohort_keys`` the combinations ·
``cohort_facts`` ``cohort_fact_keys`` sums of the window under way, and whose · ``cohort_starts`` startups in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keystone.config import CohortsConfig
from keystone.errors import CheckpointDamaged
from keystone.events import CODED_DIMENSIONS, I32, I64
from keystone.kernels.cohorts import COHORT_STATE_WORDS, COMBINATIONS, FACT_WORDS, FIRST_VALUE, START_WORDS

Arrays = Mapping[str, npt.NDArray[Any]]

LAYOUT: Final[dict[str, Any]] = {
    "cohort_rules": np.int64, "cohort_state": np.int64, "cohort_rows": np.uint32, "cohort_counts": np.int64, "cohort_values": np.int32,
    "cohort_keys": np.uint16, "cohort_facts": np.int64, "cohort_fact_keys": np.uint32, "cohort_starts": np.int64,
}  # fmt: skip
RULES: Final = 4  # numbers before the dimensions


def none() -> dict[str, npt.NDArray[Any]]:
    """The arrays of a table that counts no cohorts."""
    return {name: np.zeros(0, dtype) for name, dtype in LAYOUT.items()}


def rules_of(config: CohortsConfig, *, has_log_time: bool) -> I64:
    """What sums depend on: of other rules they cannot be gone on with."""
    dims = [CODED_DIMENSIONS.index(name) for name in config.dimensions]
    return np.array([int(has_log_time), config.values_max, config.combinations_max, len(dims), *dims], np.int64)


def codes_of(arrays: Arrays, dimension: int) -> I32:
    """The dictionary codes that cohorts hold of a coded dimension."""
    dims = arrays["cohort_rules"][RULES:]
    ends = np.cumsum(arrays["cohort_counts"])
    found = [arrays["cohort_values"][end - count : end] for dim, count, end in zip(dims, arrays["cohort_counts"], ends, strict=True) if dim == dimension]
    return np.concatenate(found) if found else np.zeros(0, np.int32)


def check(arrays: Arrays, rows: int) -> None:
    """Raise ``CheckpointDamaged`` unless these can be a table's of so many rows: kernels trust them."""
    if not arrays["cohort_rules"].size:
        if any(arrays[name].size for name in LAYOUT):
            raise CheckpointDamaged("it has cohorts without the rules that they were counted by")
        return
    rules, state, counts = arrays["cohort_rules"].tolist(), arrays["cohort_state"], arrays["cohort_counts"]
    dims = rules[RULES:]
    if len(rules) < RULES or len(dims) != rules[RULES - 1] or not set(dims) <= set(range(len(CODED_DIMENSIONS))) or state.size != COHORT_STATE_WORDS:
        raise CheckpointDamaged("the rules of its cohorts are none")
    known, facts = int(state[COMBINATIONS]), arrays["cohort_fact_keys"].size
    sizes = {"cohort_rows": rows, "cohort_keys": known * len(dims), "cohort_counts": len(dims), "cohort_facts": facts * FACT_WORDS}
    if any(arrays[name].size != size for name, size in sizes.items()) or arrays["cohort_starts"].size % START_WORDS or known < 1:
        raise CheckpointDamaged("its cohorts do not have the sizes that its counters tell")
    if (counts < 0).any() or (counts > rules[1]).any() or int(counts.sum()) != arrays["cohort_values"].size or (arrays["cohort_values"] < 0).any():
        raise CheckpointDamaged("the values of its cohorts do not have the sizes that it tells")
    starts, keys = arrays["cohort_starts"].reshape(-1, START_WORDS), arrays["cohort_keys"].reshape(known, len(dims))
    numbers = (arrays["cohort_fact_keys"], starts[:, 1])
    if (keys >= FIRST_VALUE + (counts if rules[0] else rules[1])).any() or any(((part < 0) | (part >= known)).any() for part in numbers):
        raise CheckpointDamaged("its cohorts name values or combinations that it does not have")
