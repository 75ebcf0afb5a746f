"""Segments and data files as JSON: what was given comes back, and nothing else is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.errors import CheckpointDamaged
from keystone.segments import TABLES, DataFile, Segment
from tests.checkpoints import segment

counts = st.integers(0, 2**63 - 1)
parts = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=9).filter(lambda part: part not in {".", ".."})
paths = st.lists(parts, min_size=1, max_size=4).map("/".join)
files = st.builds(DataFile, st.sampled_from(TABLES), paths, counts, counts, st.none() | st.integers(-(2**31), 2**31))


@given(counts, counts, st.tuples(counts, counts).map(sorted), counts, counts, st.lists(files, max_size=4).map(tuple))
def test_a_segment_comes_back(partition: int, epoch: int, offsets: list[int], log_time_ms: int, sequence: int, written: tuple[DataFile, ...]) -> None:
    before = Segment(partition, epoch, *offsets, log_time_ms, sequence, written)
    assert Segment.from_json(json.loads(json.dumps(before.to_json()))) == before


WHOLE = segment(3, files=2).to_json()
FILE = WHOLE["files"][0]


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        "segment",
        {},
        WHOLE | {"more": 1},
        {name: value for name, value in WHOLE.items() if name != "epoch"},
        WHOLE | {"epoch": "1"},
        WHOLE | {"epoch": True},
        WHOLE | {"epoch": 1.0},
        WHOLE | {"epoch": -1},
        WHOLE | {"next_offset": WHOLE["first_offset"] - 1},
        WHOLE | {"files": {}},
        WHOLE | {"files": [None]},
        WHOLE | {"files": [FILE | {"table": "others"}]},
        WHOLE | {"files": [FILE | {"rows": -1}]},
        WHOLE | {"files": [FILE | {"event_date": "2026-09-21"}]},
        *(WHOLE | {"files": [FILE | {"path": path}]} for path in ("", "/etc/passwd", "../x", "a/../../x", "a//b", "a/.", "a\0b", 7)),
    ],
)
def test_what_is_no_segment_is_refused(wrong: Any) -> None:
    with pytest.raises(CheckpointDamaged):
        Segment.from_json(wrong)


def test_the_whole_one_is_taken() -> None:
    assert Segment.from_json(WHOLE) == segment(3, files=2)
