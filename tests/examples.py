"""How many examples a law tries: as many as it says in ``make test``, few in ``make test-fast`` (its profile of Hypothesis)."""

from __future__ import annotations

from typing import Final

from hypothesis import settings

FAST: Final = "fast"  # the name of the profile
FAST_MAX: Final = 15  # finds what breaks at once; the rest is for the whole suite


def examples(most: int) -> int:
    """``most``, or what the profile allows."""
    return min(most, FAST_MAX) if settings.get_current_profile_name() == FAST else most
