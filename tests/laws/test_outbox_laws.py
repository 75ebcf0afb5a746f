"""Whatever a receiver and a disk do, in whatever order: every row offered ends in one place, and only kinds that may be dropped are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.config import SinksConfig
from keystone.errors import SinkBusy
from keystone.sinks import lanes
from keystone.sinks.base import DONE, Answer, Document, Outcome
from keystone.sinks.lanes import Segment
from keystone.sinks.outbox import Outbox
from keystone.sinks.steps import Delete, Encode, Load, Merge, Send, Wait, Write
from tests.sink_rows import NumberedRows

pytestmark = pytest.mark.slow

SMALL = SinksConfig(
    queue_items_max=40, queue_bytes_max=40_000, batch_items_max=7, batch_bytes_max=5_000, retry_first_ms=20, retry_max_ms=400,
    open_after_failures=2, give_up_ms=3_000, mark_wait_ms=100, spill_bytes_max=60_000, spill_file_bytes=8_000, may_drop=("cohorts", "events"),
)  # fmt: skip
LIVES = ("alerts", "sessions", "cohorts", "events")  # dead letters are as sessions
KEPT_KINDS = ("alerts", "sessions")


@pytest.fixture(autouse=True, scope="module")
def _few_small_files() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(lanes, "SMALL_FILES_MAX", 3)
        yield


def disk_bytes(documents: list[Document]) -> int:
    return sum(60 + len(document.body) for document in documents)


class World:
    """One thread that plays all: caller, senders, keeper, receiver and disk, by a seed."""

    def __init__(self, seed: int, *, has_spill: bool, spill_file_bytes: int = SMALL.spill_file_bytes, is_calm: bool = False) -> None:
        self.random = random.Random(seed)
        self.now_ms = 1_000
        self.has_spill = has_spill
        config = SMALL.model_copy(update={"spill_file_bytes": spill_file_bytes})
        self.box = Outbox(config, has_spill=has_spill, kinds=LIVES, draw=self.random.random)
        self.next_number = 0
        self.offered: dict[str, set[str]] = {kind: set() for kind in LIVES}
        self.received: dict[str, set[str]] = {kind: set() for kind in LIVES}
        self.refused: dict[str, set[str]] = {kind: set() for kind in LIVES}
        self.flights: dict[str, Send] = {}
        self.writes: list[Write | Merge] = []
        self.merged = 0
        self.disk: dict[tuple[str, int], list[Document]] = {}
        self.segments = 0
        self.marks: list[tuple[int, set[str]]] = []
        self.is_up, self.disk_is_full = True, False
        self.offer_share = 0.02 if is_calm else 0.25  # calm: marks and disk keep up, so that there are many small files

    def act(self) -> None:
        draw = self.random.random()
        if draw < self.offer_share:
            self.offer()
        elif draw < 0.25:
            self.keep()
        elif draw < 0.32:
            self.is_up = self.random.random() < 0.5
        elif draw < 0.36:
            self.disk_is_full = self.random.random() < 0.3
        elif draw < 0.42:
            self.marks.append((self.box.mark(self.now_ms), {number for kind in LIVES for number in self.offered[kind]}))
        elif draw < 0.55:
            self.now_ms += self.random.choice([1, 10, 100, 1_000])
        elif draw < 0.75:
            self.keep()
        else:
            self.send(self.random.choice(LIVES))

    def offer(self) -> None:
        rows = []
        for kind in self.random.sample(LIVES, self.random.randint(1, 3)):
            count = self.random.randint(1, 15)
            broken = self.next_number if self.random.random() < 0.02 else -1
            rows.append(NumberedRows(kind, self.next_number, count, size_bytes=300 * count, broken=broken))
            self.next_number += count
        had_room = self.box.has_room()
        try:
            self.box.offer(rows, self.now_ms)
        except SinkBusy:
            assert not had_room
            return
        for one in rows:
            self.offered[one.kind] |= {str(number) for number in range(one.first, one.first + one.rows)}

    def send(self, kind: str) -> None:
        if kind in self.flights:
            self.land(kind)
            return
        step = self.box.next_send(kind, self.now_ms)
        if isinstance(step, Encode):
            self.encode(step)
        elif isinstance(step, Load) and self.random.random() < 0.1:
            self.box.not_loaded(step, self.now_ms)
        elif isinstance(step, Load):
            self.box.loaded(step, dict(enumerate(self.disk[kind, step.segment.number])), self.now_ms)
        elif isinstance(step, Send):
            assert 0 < len(step.batch) <= SMALL.batch_items_max
            self.flights[kind] = step

    def land(self, kind: str) -> None:
        send = self.flights.pop(kind)
        if not self.is_up:
            if self.random.random() < 0.5:  # it took them, and its answer is lost
                self.received[kind] |= {held.document.id for held in send.batch}
            self.box.failed(send, self.now_ms, wait_ms=self.random.choice([0, 0, 500]))
            return
        answers = []
        for held in send.batch:
            draw = self.random.random()
            if draw < 0.05:
                self.refused[kind].add(held.document.id)
                answers.append(Answer(Outcome.REFUSED, "bad"))
            elif draw < 0.2:
                answers.append(Answer(Outcome.AGAIN, "busy"))
            else:
                self.received[kind].add(held.document.id)
                answers.append(DONE)
        self.box.answered(send, answers, self.now_ms)

    def keep(self) -> None:
        if self.writes:  # one thread keeps the disk
            step = self.writes.pop()
            self.finish_write(step) if isinstance(step, Write) else self.finish_merge(step)
            return
        step = self.box.next_keep(self.now_ms)
        if isinstance(step, Encode):
            self.encode(step)
        elif isinstance(step, Write | Merge):
            assert self.has_spill
            self.writes.append(step)
        elif isinstance(step, Delete):
            del self.disk[step.kind, step.segment.number]

    def finish_write(self, write: Write) -> None:
        if self.disk_is_full:
            self.box.write_failed(write, self.now_ms)
            return
        self.segments += 1
        self.disk[write.kind, self.segments] = [held.document for held in write.batch]
        self.box.written(write, Segment(self.segments, len(write.batch), disk_bytes([held.document for held in write.batch])))

    def finish_merge(self, merge: Merge) -> None:
        assert len(merge.segments) > 1
        if self.disk_is_full or self.random.random() < 0.1:
            self.box.merge_failed(merge)
            return
        pending = [
            document
            for one in merge.segments
            for place, document in enumerate(self.disk.pop((merge.kind, one.number)))
            if place not in one.settled
        ]  # fmt: skip
        assert 2 * len(pending) <= SMALL.queue_items_max, "what is loaded as a whole may not fill half of the queue"
        assert len(pending) == sum(one.pending for one in merge.segments)
        self.disk[merge.kind, merge.segments[-1].number] = pending
        self.box.merged(merge, Segment(merge.segments[-1].number, len(pending), disk_bytes(pending)))
        self.merged += 1

    def encode(self, step: Encode) -> None:
        for cut in step.slices:
            documents: list[Document] = []
            for row in range(cut.start, cut.stop):
                try:
                    documents += cut.rows.documents(row, row + 1)
                except ValueError:
                    self.refused[step.kind].add(str(cut.rows.first + row))  # type: ignore[attr-defined]
            self.box.encoded(cut, documents)

    def look(self) -> None:
        assert self.box.failures() == []
        assert all(kind not in KEPT_KINDS for kind, _ in self.box.dropped)
        assert self.box.spill_bytes <= SMALL.spill_bytes_max
        for lane in self.box.lanes.values():
            assert lane.items >= 0
            assert lane.size_bytes >= 0
        safe = {document.id for documents in self.disk.values() for document in documents}
        for kind in LIVES:
            safe |= self.received[kind] | self.refused[kind]
        while len(self.marks) > 1 and self.box.kept() >= self.marks[1][0]:
            del self.marks[0]  # the later one says it too
        for mark, before in self.marks[:1]:
            if self.box.kept() >= mark:
                lost = before - safe - self.offered["cohorts"] - self.offered["events"]
                assert not lost, f"a checkpoint was told that these are kept: {sorted(lost)[:5]}"

    def live(self, acts: int, *, look_every: int) -> None:
        for number in range(acts):
            self.act()
            if number % look_every == 0:
                self.look()

    def drain(self) -> None:
        """Everything works from now on, and time passes."""
        self.is_up, self.disk_is_full, self.box.is_flushing = True, False, True
        for _ in range(20_000):
            if self.box.is_empty() and not self.writes and not self.disk:
                break
            self.now_ms += 50
            self.keep()
            for kind in LIVES:
                self.send(kind)
        self.look()
        assert self.box.is_empty()
        assert not self.writes
        assert self.disk == {}
        assert all(lane.items == 0 and lane.size_bytes == 0 for lane in self.box.lanes.values())


@given(seed=st.integers(0, 1 << 32), has_spill=st.booleans(), spill_file_bytes=st.sampled_from([1_000, 8_000, 20_000]))
def test_every_row_ends_in_one_place(seed: int, has_spill: bool, spill_file_bytes: int) -> None:
    """Also where a file is to be as large as all that the queue holds."""
    world = World(seed, has_spill=has_spill, spill_file_bytes=spill_file_bytes, is_calm=seed % 2 == 1)
    world.live(300, look_every=3)
    world.drain()
    for kind in KEPT_KINDS:
        assert world.received[kind] | world.refused[kind] == world.offered[kind]
    dropped = world.box.status()["dropped"]
    missing = [world.offered[kind] - world.received[kind] - world.refused[kind] for kind in SMALL.may_drop]
    assert sum(map(len, missing)) <= sum(dropped.values())  # one whose answer was lost may be dropped and there


@pytest.mark.parametrize("seed", range(4))
def test_every_row_ends_in_one_place_for_long(seed: int, record_property: Any) -> None:
    world = World(seed, has_spill=True)
    world.live(8_000, look_every=200)
    world.drain()
    record_property("status", world.box.status())
    for kind in KEPT_KINDS:
        assert world.received[kind] | world.refused[kind] == world.offered[kind]
    assert world.box.dropped.keys() == {(kind, reason) for kind in SMALL.may_drop for reason in ("queue_full", "spill_full", "too_old")}


@pytest.mark.parametrize("seed", range(4))
def test_every_row_ends_in_one_place_where_many_small_files_become_one(seed: int) -> None:
    world = World(seed, has_spill=True, is_calm=True)
    world.live(8_000, look_every=20)
    world.drain()
    assert world.merged > 10
    for kind in KEPT_KINDS:
        assert world.received[kind] | world.refused[kind] == world.offered[kind]


def test_a_file_of_which_a_document_is_on_its_way_is_not_joined() -> None:
    box = Outbox(SMALL.model_copy(update={"batch_items_max": 1}), has_spill=True, kinds=["alerts"])
    box.is_flushing = True
    files = {number: [Document("alerts", f"{number}-{n}", 1, b"{}") for n in range(2)] for number in range(1, 5)}
    for number, documents in files.items():
        box.found("alerts", Segment(number, 2, disk_bytes(documents)))
    load = box.next_send("alerts", 0)
    assert isinstance(load, Load)
    box.loaded(load, dict(enumerate(files[1])), 0)
    send = box.next_send("alerts", 0)
    assert isinstance(send, Send)
    assert box.lanes["alerts"].unload() == 1  # as where the queue fills up meanwhile
    merge = box.next_keep(0)
    assert isinstance(merge, Merge)
    assert [one.number for one in merge.segments] == [2, 3, 4]
    box.answered(send, [DONE], 0)
    box.merged(merge, Segment(4, 6, 200))
    assert [(one.number, one.pending) for one in box.lanes["alerts"].segments.values()] == [(1, 1), (4, 6)]
    assert box.failures() == []


ROW_BYTES = 600


class Outage:
    """Alerts that nobody takes, and a disk that only counts."""

    def __init__(self, alerts_per_s: int) -> None:
        self.box = Outbox(SinksConfig(), has_spill=True, kinds=["alerts"])
        self.count = alerts_per_s // 10
        self.at = self.number = self.written_bytes = 0
        self.files: dict[int, int] = {}

    def tick(self, now_ms: int) -> None:
        self.box.offer([BulkyRows("alerts", self.at, self.count, size_bytes=ROW_BYTES * self.count)], now_ms)
        self.at += self.count
        step = self.box.next_send("alerts", now_ms)
        if isinstance(step, Send):
            self.box.failed(step, now_ms)
        elif isinstance(step, Encode):
            self.encode(step)
        elif isinstance(step, Load):
            self.box.not_loaded(step, now_ms)
        while not isinstance(step := self.box.next_keep(now_ms), Wait):
            if isinstance(step, Encode):
                self.encode(step)
            elif isinstance(step, Write):
                self.number += 1
                self.files[self.number] = len(step.batch) * ROW_BYTES
                self.written_bytes += self.files[self.number]
                self.box.written(step, Segment(self.number, len(step.batch), self.files[self.number]))
            elif isinstance(step, Merge):
                size = sum(self.files.pop(one.number) for one in step.segments)
                self.files[step.segments[-1].number] = size
                self.written_bytes += size
                self.box.merged(step, Segment(step.segments[-1].number, sum(one.pending for one in step.segments), size))

    def encode(self, step: Encode) -> None:
        for cut in step.slices:
            self.box.encoded(cut, cut.rows.documents(cut.start, cut.stop))


class BulkyRows(NumberedRows):
    def documents(self, start: int, stop: int) -> list[Document]:
        return [Document(self.kind, str(self.first + row), 20_000, bytes(ROW_BYTES - 40)) for row in range(start, stop)]


@pytest.mark.parametrize(
    ("alerts_per_s", "mark_every_ms"),
    [pytest.param(1_000, 300, marks=pytest.mark.slow), pytest.param(1_000, 1_000, marks=pytest.mark.slow), (50, 300), (50, 1_000)],
)
def test_ten_minutes_without_a_receiver_make_few_files(alerts_per_s: int, mark_every_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of many partitions mark every 0.3 s: that would be 2,000 files."""
    monkeypatch.setattr(lanes, "SMALL_FILES_MAX", 32)
    world = Outage(alerts_per_s)
    for now_ms in range(0, 600_000, 100):
        world.tick(now_ms)
        if now_ms % mark_every_ms == 0:
            world.box.mark(now_ms)
    assert world.box.failures() == []
    assert world.box.dropped == {}
    kept_bytes = sum(world.files.values())
    assert kept_bytes >= 0.9 * alerts_per_s * 590 * ROW_BYTES, "nearly all of it is on the disk"
    assert len(world.files) == len(world.box.lanes["alerts"].segments) <= 32 + 2 * kept_bytes / SinksConfig().spill_file_bytes
    assert world.written_bytes <= 2 * kept_bytes + 100 * SinksConfig().spill_file_bytes
