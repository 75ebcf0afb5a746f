"""The embedded log keeps every promise of a log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keystone.log.embedded import EmbeddedLog

from .log_suite import RECORD_BYTES, LogSuite, MakeLog


class TestEmbeddedLog(LogSuite):
    @pytest.fixture
    def make_log(self, tmp_path: Path) -> Iterator[MakeLog]:
        made: list[EmbeddedLog] = []

        def make(**options: Any) -> EmbeddedLog:
            sizes = {"partitions": 1, "segment_bytes": 1 << 16, "retention_bytes": 1 << 18, "record_bytes_max": RECORD_BYTES}
            made.append(EmbeddedLog.create(tmp_path / f"log{len(made)}", **{**sizes, **options}))
            return made[-1]

        yield make
        for log in made:
            log.remove()
