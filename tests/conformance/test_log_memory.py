"""The log in memory keeps every promise of a log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from keystone.log.memory import MemoryLog

from .log_suite import MakeLog, OwnLogSuite


class TestMemoryLog(OwnLogSuite):
    @pytest.fixture
    def make_log(self) -> Iterator[MakeLog]:
        made: list[MemoryLog] = []

        def make(**options: Any) -> MemoryLog:
            made.append(MemoryLog(**{"partitions": 1, "retention_bytes": 1 << 18, **options}))
            return made[-1]

        yield make
        for log in made:
            log.close()
