"""What a sink does when those around it break their word: who is told of refusals, who makes documents, the receiver, the disk."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from keystone.config import SinksConfig, load
from keystone.errors import SinkError, UsageError
from keystone.sinks.base import DONE, KINDS, Answer, Document, Outcome, RawSink, Refused
from keystone.sinks.memory import MemoryRows
from keystone.sinks.shell import BufferedSink
from keystone.sinks.spill import Spill
from tests.sink_rows import Gate, NumberedRows, until

QUICK = SinksConfig(batch_items_max=50, linger_ms=10, retry_first_ms=5, retry_max_ms=20, mark_wait_ms=50)
LIMIT_S = 60.0
OPENED: list[BufferedSink] = []


@pytest.fixture(autouse=True)
def _closed() -> Any:
    yield
    while OPENED:
        OPENED.pop().close(0.0)


def open_sink(raw: RawSink, on_refused: Any = lambda _: None, spill_dir: Path | None = None, kinds: Sequence[str] = KINDS, **settings: Any) -> BufferedSink:
    OPENED.append(BufferedSink("subject", raw, QUICK.model_copy(update=settings), on_refused, spill_dir, kinds=kinds))
    return OPENED[-1]


class Refusing(MemoryRows):
    """Refuses the even ones."""

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        super().send_batch([document for document in documents if int(document.id) % 2])
        return [DONE if int(document.id) % 2 else Answer(Outcome.REFUSED, "even") for document in documents]


class Deaf:
    """Cannot be told the first times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.told: list[Refused] = []

    def __call__(self, refused: Sequence[Refused]) -> None:
        if self.left:
            self.left -= 1
            raise OSError("no room for dead letters")
        self.told += refused


def test_what_is_refused_is_owed_until_somebody_was_told() -> None:
    deaf = Deaf(3)
    sink = open_sink(Refusing(), deaf)
    sink.offer([NumberedRows("alerts", 0, 40)])
    mark = sink.mark()
    assert sink.flush(LIMIT_S)
    assert sink.is_kept(mark)
    assert {one.id for one in deaf.told} == {str(number) for number in range(0, 40, 2)}
    assert sink.status()["acknowledged"] == sink.status()["refused"] == 20


@pytest.mark.slow
def test_a_row_that_cannot_be_said_is_owed_until_somebody_was_told() -> None:
    deaf = Deaf(2)
    sink = open_sink(MemoryRows(), deaf)
    sink.offer([NumberedRows("alerts", 0, 40, broken=7)])
    assert sink.flush(LIMIT_S)
    assert [one.reason for one in deaf.told] == ["cannot be made JSON: this row cannot be said"]


def test_nobody_is_told_after_the_close() -> None:
    told: list[Refused] = []
    gate = Gate(Refusing())
    sink = open_sink(gate, told.extend)
    sink.offer([NumberedRows("alerts", 0, 10)])
    until(lambda: gate.waiting > 0)
    assert sink.close(0.1) == 10  # which opens the gate
    until(lambda: not any(thread.name == "subject-alerts" and thread.is_alive() for thread in threading.enumerate()))
    assert told == []


@pytest.mark.slow
def test_a_receiver_that_answers_for_fewer_documents_is_asked_again() -> None:
    class Short(MemoryRows):
        calls = 0

        def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
            self.calls += 1
            return super().send_batch(documents)[: None if self.calls > 2 else -1]

    sink = open_sink(Short())
    sink.offer([NumberedRows("alerts", 0, 40)])
    assert sink.flush(LIMIT_S)
    assert (sink.status()["acknowledged"], sink.status()["retried"]) == (40, 80)


def test_rows_that_become_fewer_documents_are_refused_alone() -> None:
    class Fewer(NumberedRows):
        def documents(self, start: int, stop: int) -> list[Document]:
            return [one for one in super().documents(start, stop) if one.id != "5"]

    told: list[Refused] = []
    raw = MemoryRows()
    sink = open_sink(raw, told.extend)
    sink.offer([Fewer("alerts", 0, 10)])
    assert sink.flush(LIMIT_S)
    assert [one.reason for one in told] == ["cannot be made JSON: 1 rows became 0 documents"]
    assert len(raw.documents) == 9


def test_only_kinds_that_it_was_opened_for_are_taken_and_others_on_disk_are_delivered(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "a", "subject")
    spill.write("sessions", NumberedRows("sessions", 0, 5).documents(0, 5))
    spill.close()
    raw = MemoryRows()
    sink = open_sink(raw, spill_dir=tmp_path / "a", kinds=("alerts",))
    with pytest.raises(SinkError, match="not opened for events"):
        sink.offer([NumberedRows("alerts", 0, 1), NumberedRows("events", 0, 1)])
    sink.offer([NumberedRows("alerts", 0, 1)])
    assert sink.flush(LIMIT_S)
    assert sorted(raw.documents) == [("alerts", "0"), *(("sessions", str(number)) for number in range(5))]


def test_a_file_that_is_damaged_behind_a_wrong_head_ends_in_order(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "a", "subject")
    spill.write("alerts", NumberedRows("alerts", 0, 20).documents(0, 20))
    spill.close()
    (path,) = (tmp_path / "a").glob("*.spill")
    text = bytearray(path.read_bytes())
    text[4] = 10  # of 20 documents, says the head
    path.write_bytes(text)
    raw = MemoryRows()
    sink = open_sink(raw, spill_dir=tmp_path / "a")
    assert sink.flush(LIMIT_S)
    assert len(raw.documents) == 20
    sink.close(LIMIT_S)
    assert path.with_suffix(".damaged").exists()


@pytest.mark.parametrize("kind", ["events", "dead_letters"])
def test_events_and_dead_letters_are_kept_unless_they_may_be_dropped(kind: str) -> None:
    sinks = {may_drop: open_sink(Gate(MemoryRows()), queue_items_max=100, may_drop=may_drop) for may_drop in [(), (kind,)]}
    for sink in sinks.values():
        for first in range(0, 1_000, 20):
            if sink.has_room():
                sink.offer([NumberedRows(kind, first, 20)])
    assert [(sink.has_room(), sink.status()["offered"]) for sink in sinks.values()] == [(False, 100), (True, 1_000)]
    assert sinks[()].status()["dropped"] == {}
    assert sinks[kind,].status()["dropped"].keys() == {f"{kind}:queue_full"}


def test_alerts_and_sessions_can_never_be_dropped() -> None:
    assert load(None, {}, {"sinks.may_drop": '["cohorts", "events"]'}).sinks.may_drop == ("cohorts", "events")
    with pytest.raises(UsageError, match=r"sinks\.may_drop"):
        load(None, {}, {"sinks.may_drop": '["alerts"]'})
