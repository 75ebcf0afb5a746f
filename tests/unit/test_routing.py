"""Rows of a session actor on their way to sinks: filtered, shaped, offered; checkpoints wait for them, sinks do not for each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from keystone.actors.onward import Onward
from keystone.actors.routing import GATHER_S, Routing
from keystone.config import Config, RouteConfig
from keystone.decode import Decoder
from keystone.errors import SinkBusy
from keystone.events import Records
from keystone.pipeline import PartitionPipeline, StepResult
from keystone.routes import Route, Routes, Target, compile_routes
from keystone.sinks.base import Document, Rows
from keystone.sinks.route_sinks import sink_rules

ELASTIC = Target("elastic")
START_MS = 1_700_000_000_000


class HandSink:
    """Takes rows while ``room`` is True; what ``kept`` says is kept."""

    def __init__(self) -> None:
        self.room = True
        self.documents: list[Document] = []
        self.offers = 0
        self.kept = -1
        self.closed = 0

    def offer(self, rows: Sequence[Rows]) -> None:
        if not self.room:
            raise SinkBusy("full")
        self.offers += 1
        for one in rows:
            self.documents += one.documents(0, one.rows)

    def has_room(self) -> bool:
        return self.room

    def mark(self) -> int:
        return len(self.documents)

    def is_kept(self, mark: int) -> bool:
        return mark <= self.kept

    def flush(self, limit_s: float) -> bool:
        return True

    def close(self, limit_s: float) -> int:
        self.closed += 1
        return 0

    def status(self) -> dict[str, Any]:
        return {"documents": len(self.documents), "cpu_s": 0.0}

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [orjson.loads(document.body) for document in self.documents if document.kind == kind]


class Hand:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def routes(*declared: dict[str, str]) -> Routes:
    return compile_routes([RouteConfig.model_validate(one) for one in declared], sink_rules({"elastic", "lake", "actions", "dead_letters"}))


def result(*, devices: int = 4, partition: int = 0) -> tuple[StepResult, PartitionPipeline, Decoder]:
    """Each device of regions r0, r1, ... alerts once and stops; one line is none."""
    decoder = Decoder(seed=1)
    pipeline = PartitionPipeline(partition, decoder, Config())
    lines = [b"{"]
    for device in range(devices):
        for seq, kind in enumerate(("Start", "Buffer", "Buffer", "Buffer", "Stop")):
            event = {"event": kind, "ts": START_MS + seq, "seq": seq, "device_id": f"d{device}", "session_id": "s", "region": f"r{device}"}
            lines.append(orjson.dumps(event))
    records = Records.of(lines)
    step = pipeline.step(records, None)
    late = pipeline.step(Records.empty(partition, len(lines)), int(records.append_ts_ms[-1]) + 60_000)
    step.sessions += late.sessions
    return step, pipeline, decoder


def routing(sinks: dict[Target, HandSink], clock: Hand, *declared: dict[str, str]) -> Routing:
    return Routing(routes(*declared), sinks, now_s=clock)


def test_alerts_go_on_at_the_turns_end_and_sessions_when_enough_are_gathered() -> None:
    sink, clock = HandSink(), Hand()
    way = routing({ELASTIC: sink}, clock)
    step, _, _ = result()
    way.take(step, START_MS)
    assert sink.documents == []
    way.end_turn()
    assert [one["region"] for one in sink.of("alerts")] == ["r0", "r1", "r2", "r3"]
    assert sink.of("sessions") == []
    clock.now_s += GATHER_S
    way.end_turn()
    assert {one["device_id"] for one in sink.of("sessions")} == {"d0", "d1", "d2", "d3"}
    assert way.status()["routes"] == {"dashboards-alerts": 4, "dashboards-sessions": 4}
    assert way.status()["errors"] == {}


def test_a_condition_and_a_projection_change_what_is_told_and_not_who_it_is() -> None:
    plain, shaped, clock = HandSink(), HandSink(), Hand()
    way = routing({ELASTIC: plain}, clock)
    other = routing(
        {ELASTIC: shaped}, clock,
        {"name": "some", "from": "alerts", "where": "region <> 'r1'", "select": "alert_id, upper(region) AS region", "sink": "elastic"},
        {"name": "none", "from": "sessions", "where": "region = 'r2'", "sink": "elastic"},
    )  # fmt: skip
    step, _, _ = result()
    for one in (way, other):
        one.take(step, START_MS)
        one.mark()
    assert [one["region"] for one in shaped.of("alerts")] == ["R0", "R2", "R3"]
    assert all(set(one) == {"alert_id", "region", "@timestamp"} for one in shaped.of("alerts"))
    assert [one["device_id"] for one in shaped.of("sessions")] == ["d2"]
    whole = {document.id: document for document in plain.documents}
    assert all((whole[document.id].day, whole[document.id].kind) == (document.day, document.kind) for document in shaped.documents)


def test_events_and_dead_letters_are_named_by_their_place() -> None:
    sink, clock = HandSink(), Hand()
    target = Target("file", "/x.ndjson")
    way = routing(
        {target: sink}, clock,
        {"name": "stalls", "from": "events", "where": "event = 'Buffer'", "select": "device_id, ts", "sink": "file:/x.ndjson"},
        {"name": "bad", "from": "dead_letters", "select": "reason, text", "sink": "file:/y.ndjson"},
    )  # fmt: skip
    assert way.takes_events
    decoder = Decoder(seed=1)
    onward = Onward(routing=way)
    pipeline = PartitionPipeline(3, decoder, Config(), on_batch=onward.take_events)
    line = b'{"event":"%s","ts":5,"device_id":"d","session_id":"s"}'
    onward.take(pipeline.step(Records.of([line % b"Start", line % b"Buffer", line % b"Buffer"]), None), 0)
    onward.mark()
    assert sink.of("events") == [{"device_id": "d", "ts": 5}] * 2
    assert len({document.id for document in sink.documents}) == 2


def test_a_full_sink_holds_up_reading_and_no_other_sinks_rows() -> None:
    full, other, clock = HandSink(), HandSink(), Hand()
    target = Target("file", "/x.ndjson")
    way = routing({ELASTIC: full, target: other}, clock, {"name": "copy", "from": "alerts", "sink": "file:/x.ndjson"})
    full.room = False
    step, _, _ = result()
    way.take(step, START_MS)
    way.end_turn()
    assert len(other.of("alerts")) == 4
    assert not way.has_room()
    full.room = True
    way.end_turn()
    assert len(full.of("alerts")) == 4
    assert way.has_room()


def test_a_checkpoint_waits_for_what_was_given_before_it_and_for_nothing_else() -> None:
    sink, clock = HandSink(), Hand()
    way = routing({ELASTIC: sink}, clock)
    way.take(result()[0], START_MS)
    sink.room = False
    first = way.mark()  # the sink cannot even be asked for a mark yet
    assert not way.is_kept(first)
    sink.room = True
    sink.kept = 7
    assert not way.is_kept(first)  # 8 documents
    sink.kept = 8
    assert way.is_kept(first)
    way.take(result()[0], START_MS)
    second = way.mark()
    assert way.is_kept(first)
    assert not way.is_kept(second)
    sink.kept = 16
    assert way.is_kept(second)
    assert way.settle(1.0)


def test_rows_that_no_sink_took_count_as_left() -> None:
    sink, clock = HandSink(), Hand()
    way = routing({ELASTIC: sink}, clock)
    sink.room = False
    way.take(result()[0], START_MS)
    way.mark()
    assert way.close(1.0) == 8
    assert sink.closed == 1


def test_sessions_are_told_by_the_dictionaries_they_were_closed_with() -> None:
    sink, clock = HandSink(), Hand()
    way = routing({ELASTIC: sink}, clock)
    for devices in (2, 3):  # two decoders
        way.take(result(devices=devices)[0], START_MS)
    way.mark()
    assert sorted(one["region"] for one in sink.of("sessions")) == ["r0", "r0", "r1", "r1", "r2"]


@pytest.mark.parametrize("route", [{"name": "x", "from": "alerts", "where": "region = 1", "sink": "elastic"}])
def test_what_cannot_be_compiled_is_told_before_anything_runs(route: dict[str, str]) -> None:
    with pytest.raises(Exception, match="routes"):
        routes(route)


def test_a_route_without_its_sink_is_followed_by_nobody() -> None:
    way = Routing(routes(), {})
    way.take(result()[0], START_MS)
    way.end_turn()
    assert way.has_room()
    assert way.is_kept(way.mark())
    assert isinstance(routes().of("alerts")[0], Route)
