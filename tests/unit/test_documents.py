"""Rows become documents: JSON that says what the row says, ids that repeats share, days that broken clocks do not make."""

from __future__ import annotations

import orjson
import pyarrow as pa
import pytest

from keystone.events import DIMENSIONS, Alert
from keystone.session_records import SESSION_SCHEMA
from keystone.sinks.base import DAY_MS, event_day
from keystone.sinks.documents import FEW_ROWS, AlertRows, CohortRows, SessionRows
from keystone.sinks.elastic import lines_of
from keystone.sinks.elastic_schema import FIELDS, day_of, index_of

NOW_MS = 20_000 * DAY_MS + 5
HOSTILE = ("a", '"}\n{"delete":{"_id":"x"}}\n', "\r\u2028\u0085\x0b\x0c\x1e\x00\x7f\\", "é😀", "")


@pytest.mark.parametrize(
    ("ts_ms", "day"),
    [(NOW_MS, 20_000), (NOW_MS - 2 * DAY_MS, 19_998), (NOW_MS - 2 * DAY_MS - 1, 20_000), (NOW_MS + 2 * DAY_MS, 20_002), (0, 20_000), ((1 << 53) - 1, 20_000)],
)
def test_a_day_is_the_events_where_its_clock_is_believed(ts_ms: int, day: int) -> None:
    assert event_day(ts_ms, NOW_MS) == day


def test_days_have_names_that_can_be_read_back() -> None:
    assert index_of("alerts", 20_781) == "keystone-alerts-2026.11.24"
    assert str(day_of("keystone-alerts-2026.11.24")) == "2026-11-24"
    assert [day_of(name) for name in ("keystone-alerts-2026.13.24", "keystone-mine-2026.11.24", "keystone-alerts-2026.11.24-old")] == [None] * 3


def table(rows: int) -> pa.Table:
    made = [
        {field.name: 1.5 if field.type == pa.float64() else k if field.type == pa.int64() else HOSTILE[k % len(HOSTILE)] + str(k) for field in SESSION_SCHEMA}
        for k in range(rows)
    ]
    made[0] |= {field.name: None for field in SESSION_SCHEMA if field.nullable}
    return pa.Table.from_pylist(made, schema=SESSION_SCHEMA)


def test_sessions_say_what_their_table_says() -> None:
    sessions = table(50)
    documents = SessionRows(sessions, NOW_MS).documents(0, 50)
    for row, document in zip(sessions.to_pylist(), documents, strict=True):
        assert orjson.loads(document.body) == {**row, "@timestamp": NOW_MS}  # their clocks say 1970
        assert document.day == 20_000
        assert FIELDS["sessions"].keys() == orjson.loads(document.body).keys()
    assert len({document.id for document in documents}) == 50
    assert SessionRows(sessions, NOW_MS).documents(10, 20) == documents[10:20]


def test_alerts_leave_out_what_is_absent_and_one_that_is_no_text_is_told() -> None:
    alert = Alert("0" * 32, "open_stall", "d", HOSTILE[1], 5, None, 2, None, 235, {**dict.fromkeys(DIMENSIONS), "region": HOSTILE[2]}, NOW_MS)
    (document,) = AlertRows([alert]).documents(0, 1)
    body = orjson.loads(document.body)
    assert (body["session_id"], body["region"], body["seq"], "cdn" in body) == (HOSTILE[1], HOSTILE[2], None, False)
    assert body.keys() <= FIELDS["alerts"].keys()
    assert lines_of(document).count(b"\n") == 2
    lone = Alert("0" * 32, "open_stall", "\ud800", "s", 5, None, 2, None, 235, {}, NOW_MS)
    with pytest.raises(TypeError):
        AlertRows([lone]).documents(0, 1)


def test_few_sessions_and_many_are_said_alike() -> None:
    made = table(FEW_ROWS + 10)
    many = SessionRows(made, NOW_MS).documents(0, made.num_rows)
    few = [SessionRows(made, NOW_MS).documents(row, row + 1)[0] for row in range(made.num_rows)]
    assert [(one.id, one.day, orjson.loads(one.body)) for one in few] == [(one.id, one.day, orjson.loads(one.body)) for one in many]
    assert not any(b"\n" in one.body for one in few)


def test_cohorts_are_named_by_window_and_dimensions_and_carry_ratios_of_sums() -> None:
    own = {"window_start_ms": NOW_MS, "window_ms": 1_000, "stall_ms": 1, "played_ms": 3, "attempts": 0, "ebvs": 0, "ended": 4, "vsf": 1, "vpf": 1}
    rows = [{**own, "region": "r", "cdn": None}, {**own, "region": None, "cdn": "r"}, {**own, "region": "r", "cdn": "c"}, {**own, "region": None, "cdn": None}]
    documents = CohortRows(pa.Table.from_pylist(rows), 7).documents(0, 4)
    bodies = [orjson.loads(document.body) for document in documents]
    assert [body["cohort"] for body in bodies] == ["region", "cdn", "cdn+region", "all"]
    assert len({document.id for document in documents}) == 4
    assert (bodies[0]["rebuffering_ratio"], bodies[0]["vpf_ratio"], "ebvs_ratio" in bodies[0]) == (0.25, 1 / 3, False)
    assert {document.revision for document in documents} == {7}
    again = CohortRows(pa.Table.from_pylist(rows[:1]), 8).documents(0, 1)[0]
    assert (again.id, again.revision) == (documents[0].id, 8)
