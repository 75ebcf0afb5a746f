"""Memory follows the sessions that are active, never those ever seen."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from keystone.config import DetectionConfig, SessionConfig
from keystone.events import (
    DICTIONARY_COLUMNS,
    FIRST_DIMENSION,
    INT_COLUMNS,
    INT_NULL,
    KIND_BUFFER,
    KIND_HEARTBEAT,
    KIND_STOP,
    PADDING,
    EventBatch,
    StringColumn,
)
from keystone.sessions import SessionTable
from tests.batches import ToyDictionaries

SESSIONS, ACTIVE_MAX = 20_000_000, 1_000_000
ROWS = 8192
BATCH_MS = 850  # 90 s of timeout hold 106 batches: 870,000 sessions
START = 1_700_000_000_000
KINDS = np.array([KIND_BUFFER, *[KIND_STOP] * 8, *[KIND_HEARTBEAT] * 23], np.int8)


def names(numbers: np.ndarray, width: int) -> StringColumn:
    digits = (numbers[:, None] // 10 ** np.arange(width - 1, -1, -1) % 10 + 48).astype(np.uint8)
    data = np.concatenate((digits.reshape(-1), np.zeros(PADDING, np.uint8)))
    return StringColumn((np.arange(numbers.size + 1) * width).astype(np.int32), data, np.ones(numbers.size, np.uint8))


def batch_of(first: int, log_time: int) -> EventBatch:
    """``ROWS`` sessions never seen before, with names of another length each time."""
    numbers = np.arange(first, first + ROWS)
    keys = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    keys ^= keys >> np.uint64(29)
    codes = np.full((len(DICTIONARY_COLUMNS), ROWS), -1, np.int32)
    codes[FIRST_DIMENSION] = 0
    column = names(numbers, 8 + first // ROWS % 9)
    empty, none = np.zeros(ROWS, np.uint8), np.zeros(ROWS, np.int64)
    ints = np.full((len(INT_COLUMNS), ROWS), INT_NULL, np.int64)
    return EventBatch(
        0, ROWS, KINDS[numbers % KINDS.size], np.zeros(ROWS, np.int8), numbers, ints, codes, column, column, column, column,
        keys, keys * np.uint64(3), keys, none, none.astype(np.int32), np.full(ROWS, log_time), empty, empty.copy(),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)  # 40 s of CPU time
def test_twenty_million_sessions_through_a_table_of_one_million() -> None:
    dictionaries = ToyDictionaries(first=1)
    table = SessionTable(SessionConfig(sessions_max=ACTIVE_MAX), DetectionConfig(), dictionaries)
    process = psutil.Process()
    closed = alerts = most = 0
    sizes, resident = [], []
    for first in range(0, SESSIONS, ROWS):
        log_time = START + first // ROWS * BATCH_MS
        done = [table.apply(batch_of(first, log_time)), table.advance(log_time + BATCH_MS - 1)]
        closed += sum(part.sessions.rows for part in done)
        alerts += sum(len(part.alerts) for part in done)
        most = max(most, table.active)
        sizes.append(table.state_bytes)
        resident.append(process.memory_info().rss)
    opened = -(-SESSIONS // ROWS) * ROWS
    assert 600_000 < most <= ACTIVE_MAX
    settled = len(sizes) // 5  # four million sessions in
    assert sizes[-1] <= sizes[settled] * 1.1
    assert sizes[-1] <= 200 * most
    assert resident[-1] <= resident[settled] + (64 << 20)
    last = table.advance(log_time + 10**6)
    assert (table.active, closed + last.sessions.rows) == (0, opened)
    assert alerts + len(last.alerts) == opened // KINDS.size  # of those that stall, one open stall each
