"""When alerts and dead letters count as delivered: in order, only once they are there, and never twice for want of looking."""

from __future__ import annotations

import base64
import functools
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone.actors import outputs
from keystone.actors.outputs import Delivery, LocalOutput, OutputSpec, TopicOutput, open_output
from keystone.actors.trail import alerts_path, moments_path, read_moments, trail_name, trail_names
from keystone.config import KafkaConfig
from keystone.errors import RecordTooLarge
from keystone.events import DEAD_LETTER_BYTES_MAX, REASONS, Alert, DeadLetter
from keystone.letter_batch import LetterBatch
from keystone.log.kafka.batches import BatchBuilder, Headers
from keystone.sinks import kafka
from keystone.sinks.kafka import Item, TopicSink, action_record
from keystone.sinks.letter_records import LetterRecords
from tests.examples import examples
from tests.reference import partition_of

APPENDED_MS = 1_790_000_000_000


def alert(number: int, **dimensions: str | None) -> Alert:
    return Alert(f"{number:032x}", "buffering_loop", f"d-{number}", "s", 1, 2, 3, None, 235, {"region": None, **dimensions}, append_ts_ms=APPENDED_MS)


def letter(offset: int, raw: bytes = b"{") -> DeadLetter:
    return DeadLetter(5, offset, 2, "invalid_json", len(raw), raw)


def delivery(offset: int, *alerts: Alert, letters: Sequence[DeadLetter] = ()) -> Delivery:
    moments = [float(APPENDED_MS + 1)] * len(alerts)
    return Delivery(5, offset, list(alerts), moments, list(moments), LetterBatch.of(letters))


def offsets(finished: Iterable[Delivery]) -> list[int]:
    return [done.next_offset for done in finished]


# --- of this machine ----------------------------------------------------------------------------------------------------------
def local_output(tmp_path: Path, epoch: int) -> LocalOutput:
    """Of the owner of partition 5 in that epoch."""
    spec = OutputSpec(dead_letters_dir=str(tmp_path / "letters"), run="x")
    output = open_output(spec, KafkaConfig(), name="a", work_dir=tmp_path)
    assert isinstance(output, LocalOutput)
    output.own({5: epoch}, [])
    return output


def said_in(tmp_path: Path) -> list[str]:
    return [json.loads(line)["device_id"] for name in trail_names(tmp_path, 5) for line in alerts_path(tmp_path, name).read_bytes().splitlines()]


def letters_in(tmp_path: Path) -> list[tuple[int, int]]:
    rows = [json.loads(line) for path in sorted((tmp_path / "letters").glob("x-*.ndjson")) for line in path.read_bytes().splitlines()]
    assert all((row["partition"], base64.b64decode(row["raw"])) == (5, b"{") for row in rows)
    return [(row["offset"], row["line"]) for row in rows]


def test_files_are_written_when_send_returns(tmp_path: Path) -> None:
    output = local_output(tmp_path, 1)
    output.send(delivery(1, alert(1), alert(2), letters=[letter(0)]))
    output.send(delivery(2))
    assert said_in(tmp_path) == ["d-1", "d-2"]
    assert letters_in(tmp_path) == [(0, 2)]
    assert output.pending() == 2
    first, second = output.finished()
    assert (first.next_offset, second.next_offset) == (1, 2)
    assert len(first.visible_ms) == 2
    assert (output.alerts, output.detect.count, output.pending()) == (2, 2, 0)
    assert output.flush()
    output.close()


def test_without_files_alerts_are_counted_and_timed(tmp_path: Path) -> None:
    output = open_output(OutputSpec(trail=False), KafkaConfig(), name="a", work_dir=tmp_path)
    output.own({5: 1}, [])
    output.send(delivery(1, alert(1), letters=[letter(0)]))
    assert offsets(output.finished()) == [1]
    assert (output.alerts, output.detect.count) == (1, 1)
    output.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn_bytes", [0, 3])
def test_an_owner_says_and_writes_what_earlier_ones_have_not(tmp_path: Path, torn_bytes: int) -> None:
    """It reads again from the last checkpoint on; the last line of one that died may be torn."""
    first = local_output(tmp_path, 1)
    first.send(delivery(1, alert(1), alert(2), letters=[letter(0), letter(1)]))
    first.close()
    for path in (alerts_path(tmp_path, trail_name(5, 1)), tmp_path / "letters" / "x-p00005-e00000001.ndjson"):
        os.truncate(path, path.stat().st_size - torn_bytes)
    second = local_output(tmp_path, 2)
    second.send(delivery(3, alert(1), alert(2), alert(3), letters=[letter(0), letter(1), letter(2)]))
    second.close()
    assert said_in(tmp_path) == ["d-1", "d-2", "d-3"]
    assert letters_in(tmp_path) == [(0, 2), (1, 2), (2, 2)]
    assert second.alerts == (2 if torn_bytes else 1)


def test_one_that_was_frozen_before_a_write_is_not_heard_when_it_wakes(tmp_path: Path) -> None:
    """It cannot look once more between its last look and the write: so the write goes where nobody reads."""
    frozen = local_output(tmp_path, 1)
    frozen.send(delivery(1, alert(1), letters=[letter(0)]))
    second = local_output(tmp_path, 2)
    frozen.send(delivery(2, alert(2), letters=[letter(1)]))
    second.send(delivery(2, alert(1), alert(2), letters=[letter(0), letter(1)]))
    third = local_output(tmp_path, 3)
    frozen.send(delivery(3, alert(3), letters=[letter(2)]))
    second.send(delivery(3, alert(3), letters=[letter(2)]))
    third.send(delivery(3, alert(2), alert(3), letters=[letter(1), letter(2)]))
    assert said_in(tmp_path) == ["d-1", "d-2", "d-3"]
    assert letters_in(tmp_path) == [(0, 2), (1, 2), (2, 2)]
    assert {row["alert_id"] for name in trail_names(tmp_path, 5) for row in read_moments(moments_path(tmp_path, name)).to_dicts()} == {
        f"{number:032x}" for number in (1, 2, 3)
    }
    assert not list(tmp_path.rglob(".*")), "no copy is left"
    for output in (frozen, second, third):
        output.close()


def test_what_was_let_go_of_is_taken_up_elsewhere(tmp_path: Path) -> None:
    first = local_output(tmp_path, 1)
    first.send(delivery(1, alert(1), letters=[letter(0)]))
    first.disown(5)
    second = local_output(tmp_path, 2)
    second.send(delivery(1, alert(1), letters=[letter(0)]))
    assert (said_in(tmp_path), letters_in(tmp_path)) == (["d-1"], [(0, 2)])
    first.close()
    second.close()


# --- topics: the output -----------------------------------------------------------------------------------------------------
class Sink:
    """What was handed over; the test says how it ends."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.mended: list[list[Item]] = []
        self.is_closed = False
        self.waiting = 0  # handed over and not on its way
        self.wakes = 0

    def send(self, items: Sequence[Item], *, wakes: bool = True) -> None:
        self.items += items
        self.waiting += len(items)
        if wakes:
            self.wake()

    def wake(self) -> None:
        self.waiting, self.wakes = 0, self.wakes + 1

    def end(self, index: int, state: str = "acknowledged", at_ms: float = APPENDED_MS + 40.0) -> None:
        self.items[index].state, self.items[index].done_ms = state, at_ms

    def mend(self, items: Sequence[Item]) -> None:
        self.mended.append(list(items))

    def wait(self, items: Sequence[Item], *, wait_s: float) -> bool:
        return all(item.state != "pending" for item in items)

    def end_offsets(self) -> dict[int, int]:
        return {0: 70, 1: 80}

    def said_from(self, offsets: dict[int, int]) -> set[str]:
        self.asked = offsets
        return {alert(1).alert_id, alert(3).alert_id}

    def close(self) -> None:
        self.is_closed = True


def topic_output(trail_dir: Path | None = None, epoch: int = 1, marks: Sequence[Mapping[str, Any]] = ({},)) -> tuple[TopicOutput, Any]:
    sink = Sink()
    output = TopicOutput(sink, trail_dir, {0: 7, 1: 8})  # type: ignore[arg-type]
    output.own({5: epoch}, marks)
    return output, sink


def test_a_delivery_is_finished_when_all_of_it_and_all_before_it_is_there() -> None:
    output, sink = topic_output()
    output.send(delivery(1, alert(1), letters=[letter(0)]))
    output.send(delivery(2))
    output.send(delivery(3, alert(2)))
    sink.end(2)
    sink.end(0)
    assert offsets(output.finished()) == []
    sink.end(1)
    assert output.alerts == 0
    assert offsets(output.finished()) == [1, 2, 3]
    assert (output.alerts, output.pending(), output.detect.count, output.detect.max_ms) == (2, 0, 2, 40.0)


def test_what_partitions_of_one_turn_say_goes_together_and_waits_for_no_later_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    output, sink = topic_output()
    monkeypatch.setattr("keystone.actors.outputs.TOGETHER_S", 60.0)  # the turn is short, however slow the machine
    for number in range(3):
        output.send(delivery(number + 1, alert(number)))
    output.send(delivery(4))
    assert (sink.waiting, sink.wakes) == (3, 0)
    assert offsets(output.finished()) == []
    assert offsets(output.finished()) == []
    assert (sink.waiting, sink.wakes) == (0, 1)
    output.send(delivery(5, alert(5)))
    monkeypatch.setattr("keystone.actors.outputs.TOGETHER_S", -1.0)  # the turn takes long
    output.send(delivery(6, alert(6)))
    assert (sink.waiting, sink.wakes) == (0, 2)
    for index in range(5):
        sink.end(index)
    output.send(delivery(7, letters=[letter(7)]))
    sink.end(5)
    assert output.flush()
    assert (sink.waiting, sink.wakes) == (0, 3)


@settings(max_examples=examples(50))
@given(st.lists(st.integers(0, 3), max_size=12), st.randoms(use_true_random=False))
def test_whatever_the_order_of_outcomes_deliveries_finish_in_theirs(sizes: list[int], random: Any) -> None:
    output, sink = topic_output()
    for number, size in enumerate(sizes):
        output.send(delivery(number + 1, *(alert(10 * number + i) for i in range(size))))
    outcomes = list(range(len(sink.items)))
    random.shuffle(outcomes)
    ended: set[int] = set()
    found = offsets(output.finished())
    for index in outcomes:
        sink.end(index)
        ended.add(index)
        found += offsets(output.finished())
        behind = sum(sizes[: len(found)])
        assert all(index in ended for index in range(behind))
    assert found == list(range(1, len(sizes) + 1))
    assert output.alerts == sum(sizes)


def test_what_failed_or_is_unknown_is_mended_and_the_rest_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MEND_EVERY_S", 0.0)
    output, sink = topic_output()
    output.send(delivery(1, alert(1), alert(2)))
    output.send(delivery(2, alert(3), alert(4)))
    for index, state in enumerate(["acknowledged", "failed", "unknown", "pending"]):
        sink.end(index, state)
    assert offsets(output.finished()) == []
    assert [[item.what for item in mended] for mended in sink.mended] == [[alert(2), alert(3)]]
    for index in (1, 2):
        sink.end(index)
    assert offsets(output.finished()) == [1]
    assert len(sink.mended) == 1


def test_what_a_predecessor_said_is_not_said_again() -> None:
    marks: list[dict[str, Any]] = [{"actions": {"0": 50, "1": 60}}, {"actions": {"0": 40}}]
    output, sink = topic_output(epoch=2, marks=marks)
    assert sink.asked == {0: 40, 1: 0}, "a partition that was not there then is read whole"
    output.send(delivery(1, alert(1), alert(2), letters=[letter(0)]))
    output.send(delivery(2, alert(3)))
    assert [item.what for item in sink.items] == [alert(2), [letter(0)]]
    sink.end(0)
    sink.end(1)
    first, second = output.finished()
    assert (first.alerts, len(first.visible_ms), second.alerts) == ([alert(2)], 1, [])


def test_an_owner_before_whom_nobody_was_reads_nothing_and_one_without_a_checkpoint_from_where_the_run_began() -> None:
    assert not hasattr(topic_output(epoch=1)[1], "asked")
    assert topic_output(epoch=2, marks=[{}])[1].asked == {0: 7, 1: 8}


def test_marks_are_ends_that_were_asked_before() -> None:
    output, _ = topic_output()
    assert output.marks() in [{"actions": {"0": 7, "1": 8}}, {"actions": {"0": 70, "1": 80}}], "the answer is not waited for"
    until = time.monotonic() + 10
    while output.marks() != {"actions": {"0": 70, "1": 80}}:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_trail_is_told_when_each_alert_became_visible(tmp_path: Path) -> None:
    output, sink = topic_output(tmp_path)
    output.send(delivery(1, alert(1), alert(2)))
    sink.end(0, at_ms=APPENDED_MS + 10.0)
    sink.end(1, at_ms=APPENDED_MS + 20.0)
    assert offsets(output.finished()) == [1]
    output.close()
    moments = read_moments(moments_path(tmp_path, trail_name(5, 1)))
    assert moments["visible"].to_list() == [APPENDED_MS + 10.0, APPENDED_MS + 20.0]


def test_what_is_in_the_topic_and_not_on_the_trail_of_its_dead_owner_is_noted_once(tmp_path: Path) -> None:
    before, sink = topic_output(tmp_path)
    before.send(delivery(1, alert(1), alert(3)))
    sink.end(0)
    assert offsets(before.finished()) == []  # alert 3 was acknowledged as its owner died
    before.close()
    earlier, sink = topic_output(tmp_path)
    earlier.send(delivery(1, alert(1)))
    sink.end(0)
    assert offsets(earlier.finished()) == [1]
    earlier.close()
    began_ms = time.time() * 1_000
    output, sink = topic_output(tmp_path, epoch=2, marks=[{}])
    output.send(delivery(1, alert(1), alert(2), alert(3)))
    assert [item.what for item in sink.items] == [alert(2)]
    sink.end(0)
    assert offsets(output.finished()) == [1]
    output.close()
    assert sorted(said_in(tmp_path)) == ["d-1", "d-2", "d-3"]
    moments = read_moments(moments_path(tmp_path, trail_name(5, 2)))
    late = moments.filter(alert_id=alert(3).alert_id)["visible"].to_list()
    assert len(late) == 1
    assert late[0] >= began_ms


@pytest.mark.parametrize("state", ["pending", "unknown"])
def test_an_end_waits_for_what_is_under_way_but_not_for_ever(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    monkeypatch.setattr(outputs, "CLOSE_WAIT_S", 0.1)
    output, sink = topic_output()
    output.send(delivery(1, alert(1)))
    output.send(delivery(2, alert(2)))
    sink.end(0)
    sink.end(1, state)
    assert not output.flush()
    assert offsets(output.finished()) == [1]
    assert output.pending() == 1
    output.close()
    assert sink.is_closed


# --- topics: the sink ---------------------------------------------------------------------------------------------------------
class Topic:
    """A topic of so many partitions whose records are kept; those over the limit are refused."""

    def __init__(self, partitions: int, record_bytes_max: int = 1 << 20) -> None:
        self.partitions, self.record_bytes_max, self.topic = partitions, record_bytes_max, "t"
        self.sent: list[SimpleNamespace] = []
        self.wakes = 0

    def producer(self) -> Topic:
        return self

    def lane(self, _topic: str, partition: int) -> int:
        return partition

    def send(self, lane: int, value: bytes, *, limit_bytes: int, on_outcome: Any, key: bytes | None = None, headers: Any = (), **_: Any) -> None:
        if len(value) > limit_bytes:
            raise RecordTooLarge(f"{len(value)} bytes")
        self.sent.append(SimpleNamespace(partition=lane, value=value, key=key, headers=headers, on_outcome=on_outcome))

    def send_records(self, lane: int, records: LetterRecords, *, on_outcomes: Any) -> None:
        while records.left:
            text, count = records.take(0, 1 << 20, 100)
            self.sent.append(SimpleNamespace(partition=lane, records=bytes(text), on_outcome=functools.partial(on_outcomes, records=count)))

    def wake(self) -> None:
        self.wakes += 1


def topic_sink(monkeypatch: pytest.MonkeyPatch, *, record_bytes_max: int = 1 << 20, run: str = "") -> tuple[TopicSink, Topic, Topic]:
    sink = TopicSink(None, None, KafkaConfig(), role="test", run=run)
    actions, dead = Topic(3, record_bytes_max), Topic(2, record_bytes_max)
    monkeypatch.setattr(sink, "_actions", actions)
    monkeypatch.setattr(sink, "_dead", dead)
    return sink, actions, dead


def encoded(*records: tuple[bytes, Headers]) -> bytes:
    """As the producer writes them one by one."""
    builder = BatchBuilder()
    for value, headers in records:
        builder.add(value, None, headers)
    return bytes(builder.records)


@given(
    st.lists(st.tuples(st.integers(0, (1 << 63) - 1), st.integers(0, 1 << 20), st.sampled_from(REASONS), st.binary(max_size=200)), max_size=20),
    st.integers(1, 20),
    st.integers(0, 3_000),
)
def test_letters_are_the_records_that_the_producer_would_write(rows: list[tuple[int, int, str, bytes]], records_max: int, more_bytes: int) -> None:
    letters = LetterBatch.of(DeadLetter(number, offset, line, reason, len(raw), raw) for number, (offset, line, reason, raw) in enumerate(rows))
    records, builder = LetterRecords(letters, 1 << 20), BatchBuilder()
    while records.left:
        room = records.bytes_least + more_bytes
        text, count = records.take(builder.count, room, records_max)
        assert 1 <= count <= records_max
        assert len(text) <= room
        builder.add_records(text, count)
    heads = ((("reason", x.reason), ("partition", x.partition), ("offset", x.offset), ("line", x.line), ("length", x.length)) for x in letters)
    texts = (tuple((name, str(value).encode()) for name, value in head) for head in heads)
    assert bytes(builder.records) == encoded(*((letter.raw, head) for letter, head in zip(letters, texts, strict=True)))


def test_dead_letters_are_there_when_the_last_of_them_is(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, _, dead = topic_sink(monkeypatch)
    items = [Item(LetterBatch.of(letter(offset) for offset in range(250)))]
    sink.send(items)
    assert [record.on_outcome.keywords["records"] for record in dead.sent] == [100, 100, 50]
    for record, state in zip(dead.sent, ["acknowledged", "failed", "acknowledged"], strict=True):
        assert items[0].state == "pending"
        record.on_outcome(SimpleNamespace(state=state))
    assert items[0].state == "failed"
    sink.mend(items)
    assert (items[0].state, len(dead.sent)) == ("pending", 6)
    for record in dead.sent[3:]:
        record.on_outcome(SimpleNamespace(state="acknowledged"))
    assert items[0].state == "acknowledged"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_an_action_has_its_device_as_key(device: str) -> None:
    key, value = action_record(Alert("a", "open_stall", device, "s", 1, None, 1, None, 235, {}, append_ts_ms=1))
    assert key == device.encode()
    assert json.loads(value)["device_id"] == device
    assert b"\n" not in value


def test_records_lie_where_any_client_looks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, actions, dead = topic_sink(monkeypatch)
    items = [*(Item(alert(number)) for number in range(20)), Item(LetterBatch.of([letter(7, b"x" * (DEAD_LETTER_BYTES_MAX + 5))]))]
    sink.send(items)
    assert [record.partition for record in actions.sent] == [partition_of(f"d-{number}", 3) for number in range(20)]
    [record] = dead.sent
    assert record.partition == 5 % 2
    headers = (("reason", b"invalid_json"), ("partition", b"5"), ("offset", b"7"), ("line", b"2"), ("length", b"65541"))
    assert record.records == encoded((b"x" * DEAD_LETTER_BYTES_MAX, headers))
    assert {item.state for item in items} == {"pending"}
    assert not sink.wait(items, wait_s=0.01)
    for record in (*actions.sent, *dead.sent):
        record.on_outcome(SimpleNamespace(state="acknowledged"))
    assert sink.wait(items, wait_s=0.01)
    assert all(item.done_ms > 0 for item in items)
    assert min(actions.wakes, dead.wakes) >= 1


def test_letters_say_which_runs_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, _, dead = topic_sink(monkeypatch, run="0f3a91c2")
    sink.send([Item(LetterBatch.of([letter(7, b"x")]))])
    headers = (("reason", b"invalid_json"), ("partition", b"5"), ("offset", b"7"), ("line", b"2"), ("length", b"1"), ("run", b"0f3a91c2"))
    assert dead.sent[0].records == encoded((b"x", headers))


def test_an_action_that_is_too_large_is_sent_without_its_dimensions_or_given_up_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(kafka.log.__class__, "error", lambda _self, message, *_args, **_fields: told.append(message))
    sink, actions, dead = topic_sink(monkeypatch, record_bytes_max=1_000)
    fits, too_large = Item(alert(1, region="r" * 2_000)), Item(Alert("a" * 32, "open_stall", "d" * 2_000, "s", 1, None, 1, None, 235, {}, append_ts_ms=1))
    lost = Item(LetterBatch.of([letter(1, b"x" * 1_001)]))
    sink.send([fits, too_large, lost])
    [record] = actions.sent
    assert json.loads(record.value)["region"] is None
    assert json.loads(record.value)["alert_id"] == alert(1).alert_id
    assert dead.sent == []
    assert [item.state for item in (fits, too_large, lost)] == ["pending", "acknowledged", "acknowledged"]
    assert sink.undeliverable == 2
    assert len(told) == 2


def test_a_letter_that_is_too_large_is_counted_once_however_often_the_others_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, _, dead = topic_sink(monkeypatch, record_bytes_max=1_000)
    items = [Item(LetterBatch.of([letter(1), letter(2, b"x" * 1_001), letter(3)]))]
    for turn in range(1, 4):
        sink.send(items)
        assert (sink.undeliverable, len(dead.sent), items[0].left) == (1, turn, 2)
        dead.sent[-1].on_outcome(SimpleNamespace(state="failed"))


def test_an_unknown_action_is_looked_for_before_it_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, actions, dead = topic_sink(monkeypatch)
    items = [Item(alert(number)) for number in range(3)] + [Item(LetterBatch.of([letter(0)]))]
    sink.send(items)
    for item, state in zip(items, ["unknown", "unknown", "failed", "unknown"], strict=True):
        item.state = state
    asked: list[int] = []

    def said_since(since_ms: int) -> set[str]:
        asked.append(since_ms)
        return {alert(0).alert_id}

    monkeypatch.setattr(sink, "said_since", said_since)
    sent_ms = items[0].sent_ms
    sink.mend(items)
    assert asked == [sent_ms - kafka.LOOK_BACK_MS]
    assert [item.state for item in items] == ["acknowledged", "pending", "pending", "pending"]
    assert [json.loads(record.value)["alert_id"] for record in actions.sent[3:]] == [alert(1).alert_id, alert(2).alert_id]
    assert len(dead.sent) == 2
    items[2].state = "failed"
    sink.mend(items[2:3])
    assert len(asked) == 1, "what certainly failed is not looked for"
