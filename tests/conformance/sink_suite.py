"""What every sink of rows must do, faults included. A module of tests subclasses ``SinkSuite`` and gives a ``place`` fixture.

A ``Place`` is where documents end: it opens raw sinks that write there, and says what is there. A sink in ``BufferedSink`` is what
everybody uses, so that is what is tested; how a receiver misbehaves is played before it (``Moody``, ``Gate``), by a seed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from keystone.config import SinksConfig
from keystone.errors import SinkBusy, SinkError
from keystone.sinks.base import KINDS, RawSink, Refused
from keystone.sinks.memory import MemoryRows
from keystone.sinks.shell import BufferedSink
from tests.sink_rows import Gate, Moody, NumberedRows, until

QUICK = SinksConfig(batch_items_max=50, linger_ms=10, retry_first_ms=5, retry_max_ms=50, mark_wait_ms=50, queue_items_max=2_000)
LIMIT_S = 60.0
SHORT_S = 0.3


class Place(Protocol):
    def raw(self) -> RawSink: ...

    def there(self, kind: str) -> dict[str, int]:
        """Id to revision (-1 without one) of everything that readers find."""


Open = Callable[..., BufferedSink]


class SinkSuite:
    kinds: tuple[str, ...] = KINDS  # that the receiver takes

    @pytest.fixture
    def refused(self) -> list[Refused]:
        return []

    @pytest.fixture
    def open_sink(self, place: Place, refused: list[Refused]) -> Iterator[Open]:
        with ExitStack() as opened:

            def open_(before: Callable[[RawSink], RawSink] = lambda raw: raw, spill_dir: Path | None = None, **settings: Any) -> BufferedSink:
                sink = BufferedSink("subject", before(place.raw()), QUICK.model_copy(update=settings), refused.extend, spill_dir)
                opened.callback(sink.close, 0.0)
                return sink

            yield open_

    def test_everything_arrives(self, open_sink: Open, place: Place) -> None:
        sink = open_sink()
        for first in range(0, 300, 30):
            sink.offer([NumberedRows(kind, first, 30) for kind in self.kinds])
        assert sink.flush(LIMIT_S)
        for kind in self.kinds:
            assert place.there(kind) == {str(number): -1 for number in range(300)}
        status = sink.status()
        rows = 300 * len(self.kinds)
        assert (status["offered"], status["acknowledged"], status["only_in_memory"], status["circuit"]) == (rows, rows, 0, "closed")

    def test_repeats_change_nothing(self, open_sink: Open, place: Place) -> None:
        sink = open_sink()
        for _ in range(3):
            sink.offer([NumberedRows(kind, 0, 120) for kind in self.kinds])
            assert sink.flush(LIMIT_S)
        assert all(place.there(kind) == {str(number): -1 for number in range(120)} for kind in self.kinds)

    def test_an_older_revision_never_replaces_a_newer(self, open_sink: Open, place: Place) -> None:
        sink = open_sink()
        for revision in (2, 1, 5, 4, 5, 3):
            sink.offer([NumberedRows("cohorts", 0, 10, revision=revision)])
            assert sink.flush(LIMIT_S)
        assert place.there("cohorts") == {str(number): 5 for number in range(10)}

    @pytest.mark.parametrize("seed", range(3))
    def test_a_receiver_that_fails_in_every_way_gets_everything(self, seed: int, open_sink: Open, place: Place, refused: list[Refused]) -> None:
        bad = frozenset({"7", "133"})
        sink = open_sink(lambda raw: Moody(raw, seed, refuses=bad))
        for first in range(0, 400, 20):
            sink.offer([NumberedRows(kind, first, 20) for kind in self.kinds])
        assert sink.flush(LIMIT_S)
        wanted = {str(number) for number in range(400)} - bad
        assert all(place.there(kind).keys() == wanted for kind in self.kinds)
        assert sorted((one.kind, one.id, one.reason) for one in refused) == sorted((kind, number, "made up") for kind in self.kinds for number in bad)
        assert sink.status()["dropped"] == {}

    def test_a_row_that_cannot_be_said_harms_no_other(self, open_sink: Open, place: Place, refused: list[Refused]) -> None:
        sink = open_sink()
        sink.offer([NumberedRows("alerts", 0, 30, broken=11)])
        assert sink.flush(LIMIT_S)
        assert place.there("alerts").keys() == {str(number) for number in range(30) if number != 11}
        assert [one.reason for one in refused] == ["cannot be made JSON: this row cannot be said"]

    def test_without_a_disk_a_receiver_that_hangs_makes_callers_wait_and_loses_no_alert(self, open_sink: Open, place: Place) -> None:
        gate = Gate(place.raw())
        sink = open_sink(lambda _: gate, queue_items_max=200)
        number = 0
        while sink.has_room():
            sink.offer([NumberedRows("alerts", number, 20), NumberedRows("cohorts", number, 20)])
            number += 20
        assert number <= 220
        with pytest.raises(SinkBusy):
            sink.offer([NumberedRows("alerts", number, 1)])
        assert not sink.flush(SHORT_S)
        mark = sink.mark()
        assert not sink.is_kept(mark)
        gate.is_open.set()
        until(sink.has_room)
        assert sink.flush(LIMIT_S)
        assert sink.is_kept(mark)
        assert place.there("alerts").keys() == {str(one) for one in range(number)}

    def test_cohorts_beyond_the_queue_push_out_the_oldest_and_are_counted(self, open_sink: Open, place: Place) -> None:
        gate = Gate(place.raw())
        sink = open_sink(lambda _: gate, queue_items_max=200)
        for first in range(0, 1_000, 20):
            assert sink.has_room()
            sink.offer([NumberedRows("cohorts", first, 20)])
        gate.is_open.set()
        assert sink.flush(LIMIT_S)
        arrived = {int(number) for number in place.there("cohorts")}
        status = sink.status()
        assert status["dropped"] == {"cohorts:queue_full": 1_000 - len(arrived)}
        assert arrived >= set(range(900, 1_000))
        assert 100 <= len(arrived) <= 300

    def test_a_checkpoint_waits_for_the_disk_only_and_a_restart_delivers(self, open_sink: Open, place: Place, tmp_path: Path) -> None:
        gate = Gate(MemoryRows())
        sink = open_sink(lambda _: gate, spill_dir=tmp_path / "a")
        for first in range(0, 300, 30):
            sink.offer([NumberedRows(kind, first, 30) for kind in self.kinds])
        mark = sink.mark()
        until(lambda: sink.is_kept(mark))
        assert sink.status()["acknowledged"] == 0
        sink.offer([NumberedRows("alerts", 300, 10)])
        assert sink.close(2 * SHORT_S) == 0
        with pytest.raises(SinkError):
            sink.offer([NumberedRows("alerts", 0, 1)])

        again = open_sink(spill_dir=tmp_path / "a")
        assert again.flush(LIMIT_S)
        assert place.there("alerts").keys() == {str(number) for number in range(310)}
        assert all(place.there(kind).keys() == {str(number) for number in range(300)} for kind in self.kinds if kind != "alerts")
        until(lambda: not list((tmp_path / "a").glob("*.spill")))
        assert again.close(LIMIT_S) == 0

    def test_far_more_than_memory_holds_goes_by_the_disk(self, open_sink: Open, place: Place, tmp_path: Path) -> None:
        gate = Gate(place.raw())
        sink = open_sink(lambda _: gate, spill_dir=tmp_path / "a", queue_items_max=200)
        for first in range(0, 3_000, 20):
            until(sink.has_room)
            sink.offer([NumberedRows("alerts", first, 20)])
            assert sink.status()["lanes"]["alerts"]["items"] <= 220
        gate.is_open.set()
        assert sink.flush(LIMIT_S)
        assert place.there("alerts").keys() == {str(number) for number in range(3_000)}

    def test_one_that_hangs_holds_up_no_other_and_no_caller(self, open_sink: Open, place: Place) -> None:
        gate = Gate(MemoryRows())
        stuck, well = open_sink(lambda _: gate), open_sink()
        stuck.offer([NumberedRows("alerts", 0, 10)])
        until(lambda: gate.waiting > 0)
        for first in range(0, 200, 20):
            for sink in (stuck, well):
                sink.offer([NumberedRows("alerts", first, 20)])
        assert well.flush(LIMIT_S)
        assert place.there("alerts").keys() == {str(number) for number in range(200)}

    def test_a_kind_that_hangs_holds_up_no_other(self, open_sink: Open, place: Place) -> None:
        class SlowSessions(Gate):
            def send_batch(self, documents: Any) -> Any:
                return super().send_batch(documents) if documents[0].kind == "sessions" else self.inner.send_batch(documents)

        gate = SlowSessions(place.raw())
        sink = open_sink(lambda _: gate)
        sink.offer([NumberedRows("sessions", 0, 10)])
        until(lambda: gate.waiting > 0)
        sink.offer([NumberedRows("alerts", 0, 10)])
        until(lambda: len(place.there("alerts")) == 10)
        gate.is_open.set()
        assert sink.flush(LIMIT_S)

    def test_many_callers_see_whole_numbers(self, open_sink: Open, place: Place) -> None:
        sink = open_sink()

        def offer(first: int) -> None:
            for number in range(first, first + 100):
                sink.offer([NumberedRows("alerts", number, 1)])

        threads = [threading.Thread(target=offer, args=(first,)) for first in range(0, 400, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sink.flush(LIMIT_S)
        assert place.there("alerts").keys() == {str(number) for number in range(400)}

    def test_close_may_be_repeated_and_tells_what_is_lost(self, open_sink: Open, place: Place) -> None:
        gate = Gate(MemoryRows())
        sink = open_sink(lambda _: gate)
        sink.offer([NumberedRows("alerts", 0, 10)])
        until(lambda: gate.waiting > 0)
        started = time.monotonic()
        assert sink.close(SHORT_S) == 10
        assert time.monotonic() - started < LIMIT_S
        sink.close(SHORT_S)
