"""When an owner takes checkpoints before they are due."""

from __future__ import annotations

import pytest

from keystone.actors.durable import BEHIND_MS, REPLAY_BYTES, SAVING_SHARE, is_worth_it

CPU_S = 0.4
LONG_S = CPU_S / SAVING_SHARE


@pytest.mark.parametrize(
    ("replay_bytes", "since_s", "late_ms", "expected"),
    [
        pytest.param(REPLAY_BYTES, LONG_S, 0, True, id="much to replay"),
        pytest.param(REPLAY_BYTES, LONG_S, BEHIND_MS, True, id="a little late"),
        pytest.param(REPLAY_BYTES - 1, LONG_S, 0, False, id="little to replay"),
        pytest.param(REPLAY_BYTES, LONG_S * 0.99, 0, False, id="the last ones cost more than their share"),
        pytest.param(REPLAY_BYTES * 9, LONG_S * 9, BEHIND_MS + 1, False, id="behind"),
    ],
)
def test_a_checkpoint_comes_earlier(replay_bytes: int, since_s: float, late_ms: int, *, expected: bool) -> None:
    assert is_worth_it(replay_bytes, since_s, CPU_S, late_ms) is expected
