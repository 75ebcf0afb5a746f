"""The README's one command on real servers, smaller: lake, index, actions and audit agree with what was sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.demo import demonstrate

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.kafka, pytest.mark.search, pytest.mark.s3]


def test_the_whole_way_agrees_with_the_truth(tmp_path: Path) -> None:
    assert demonstrate(tmp_path / "out", eps=4_000, seconds=12, flavor="opensearch", kind="moto") == []
    audited = (tmp_path / "out" / "audit.txt").read_text()
    assert "alerts" in audited
    assert "not compared" not in audited
