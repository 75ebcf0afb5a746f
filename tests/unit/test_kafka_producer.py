"""The producer against brokers that fail as planned: order, no duplicates, and an outcome for every record that is the truth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka import errors

from keystone.errors import LogClosed, LogFull, LogUnreachable, RecordTooLarge, UsageError
from keystone.events import DeadLetter
from keystone.letter_batch import LetterBatch
from keystone.log.kafka import producer as module
from keystone.log.kafka.batches import BatchBuilder
from keystone.log.kafka.lanes import ACKNOWLEDGED, FAILED, UNKNOWN, Batch, Lane, Outcome, Verdict, verdict
from keystone.log.kafka.producer import Producer
from keystone.sinks.letter_records import LetterRecords
from tests.examples import examples
from tests.kafka_brokers import APPEND_MS, DOWN, HOLD, LOSE_ANSWER, LOSE_REQUEST, STORE, Brokers, sequence_of

FLUSH_S = 20.0
AFTER_APPEND = (STORE, errors.NotEnoughReplicasAfterAppendError)  # stored, and answered by this
MOVED_AFTER_APPEND = (STORE, errors.NotLeaderForPartitionError)
PASSING = [errors.NotLeaderForPartitionError, errors.LeaderNotAvailableError, errors.NotEnoughReplicasError, errors.UnknownTopicOrPartitionError]

Start = Callable[..., tuple[Brokers, Producer, Lane]]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_MS", 1)
    monkeypatch.setattr(module, "RETRY_MAX_MS", 2)


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[Brokers] = []

    def start(*plans: Any, **options: Any) -> tuple[Brokers, Producer, Lane]:
        brokers = Brokers(plans=plans, **options)
        made.append(brokers)
        producer = Producer(brokers)  # type: ignore[arg-type]
        return brokers, producer, producer.lane("t", 0)

    yield start
    for brokers in made:
        brokers.close()


def sums(lane: Lane) -> tuple[int, int, int]:
    return lane.sent.acknowledged, lane.sent.failed, lane.sent.unknown


def numbers(count: int) -> list[bytes]:
    return [b"%d" % i for i in range(count)]


# --- what an answer means -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "records", "may_be_there", "expected"),
    [
        (errors.NoError, 1, False, Verdict.DONE),
        (errors.DuplicateSequenceNumberError, 1, True, Verdict.DONE),
        (errors.OutOfOrderSequenceNumberError, 1, False, Verdict.ANEW),
        (errors.UnknownProducerIdError, 9, True, Verdict.LOST),
        (errors.MessageSizeTooLargeError, 2, False, Verdict.SPLIT),
        (errors.MessageSizeTooLargeError, 1, False, Verdict.REFUSED),
        (errors.RecordListTooLargeError, 2, True, Verdict.REFUSED),
        (errors.RequestTimedOutError, 1, False, Verdict.AGAIN_MAYBE),
        (errors.NotLeaderForPartitionError, 1, False, Verdict.AGAIN_MAYBE),
        (errors.NotEnoughReplicasError, 1, False, Verdict.AGAIN),
        (errors.CorruptRecordError, 1, False, Verdict.AGAIN),
        (errors.TopicAuthorizationFailedError, 1, False, Verdict.REFUSED),
        (errors.InvalidTopicError, 1, False, Verdict.REFUSED),
    ],
)
def test_what_an_answer_means(error: Any, records: int, may_be_there: bool, expected: Verdict) -> None:
    assert verdict(error, records=records, may_be_there=may_be_there) is expected


@given(sizes=st.lists(st.integers(0, 300), min_size=2, max_size=150), data=st.data())
def test_halves_of_a_batch_are_what_two_batches_would_be(sizes: list[int], data: Any) -> None:
    at = data.draw(st.integers(1, len(sizes) - 1))
    records = [
        (None if size % 7 == 3 else bytes([size % 256]) * size, b"k" * (size % 9) or None, (("h", b"v" * size),) if size % 5 == 0 else ()) for size in sizes
    ]
    whole, first, second = BatchBuilder(), BatchBuilder(), BatchBuilder()
    for place, record in enumerate(records):
        whole.add(*record)
        (first if place < at else second).add(*record)
    rest = whole.split(at)
    assert (whole.count, bytes(whole.records)) == (first.count, bytes(first.records))
    assert (rest.count, bytes(rest.records)) == (second.count, bytes(second.records))


def test_a_split_batch_keeps_events_and_callbacks_with_their_records() -> None:
    batch, told = Batch(Lane("t", 0, 1 << 20), 0.0), list[str]()
    for i in range(5):
        batch.builder.add(b"%d" % i)
        batch.events.append(10 * i)
        batch.callbacks.append((i, lambda outcome, i=i: told.append(f"{i}:{outcome.offset}")))
    rest = batch.split()
    assert (batch.builder.count, rest.builder.count) == (2, 3)
    assert (list(batch.events), list(rest.events)) == ([0, 10], [20, 30, 40])
    for part in (batch, rest):
        for place, tell in part.callbacks:
            tell(Outcome(ACKNOWLEDGED, place, 0))
    assert told == ["0:0", "1:1", "2:0", "3:1", "4:2"]


def test_a_split_batch_divides_groups() -> None:
    batch, told = Batch(Lane("t", 0, 1 << 20), 0.0), list[str]()
    for i in range(7):
        batch.builder.add(b"%d" % i)
        batch.events.append(1)
    batch.groups = [(first, count, lambda _, records, first=first: told.append(f"{first}:{records}")) for first, count in ((0, 2), (2, 3), (5, 2))]
    rest = batch.split()
    assert [(place, count) for place, count, _ in batch.groups] == [(0, 2), (2, 1)]
    assert [(place, count) for place, count, _ in rest.groups] == [(0, 2), (2, 2)]
    for part in (batch, rest):
        for _, count, tell in part.groups:
            tell(Outcome(ACKNOWLEDGED, 0, 0), count)
    assert told == ["0:2", "2:1", "2:2", "5:2"]


# --- good days ------------------------------------------------------------------------------------------------------------
def test_records_of_one_linger_share_a_batch(start: Start) -> None:
    brokers, producer, lane = start(linger_ms=200)
    for value in numbers(100):
        producer.send(lane, value, events=3)
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == numbers(100)
    assert brokers.requests == 1
    assert (sums(lane), lane.sent.acknowledged_events, producer.held_bytes, lane.pending) == ((100, 0, 0), 300, 0, 0)


def test_each_record_is_told_its_place_and_time(start: Start) -> None:
    _, producer, lane = start()
    told: list[Outcome] = []
    for i in range(10):
        producer.send(lane, b"x", on_outcome=told.append if i % 3 == 0 else None)
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert told == [Outcome(ACKNOWLEDGED, i, APPEND_MS) for i in (0, 3, 6, 9)]


def letters_of(values: list[bytes]) -> LetterRecords:
    return LetterRecords(LetterBatch.of(DeadLetter(0, n, 0, "bad_type", len(value), value) for n, value in enumerate(values)), 1 << 20)


def test_records_that_bring_their_bytes_lie_between_others_and_each_is_told(start: Start) -> None:
    brokers, producer, lane = start(linger_ms=50, batch_bytes_max=5_000)
    told: list[tuple[int, int]] = []
    producer.send(lane, b"first")
    producer.send_records(lane, letters_of([bytes([65 + n]) * 400 for n in range(26)]), on_outcomes=lambda outcome, count: told.append((outcome.offset, count)))
    producer.send(lane, b"last")
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == [b"first", *(bytes([65 + n]) * 400 for n in range(26)), b"last"]
    assert [offset for offset, _ in told] == np.cumsum([1, *(count for _, count in told[:-1])]).tolist()
    assert sum(count for _, count in told) == 26
    assert len(told) > 1
    assert (sums(lane), lane.sent.acknowledged_events, producer.held_bytes, lane.pending) == ((28, 0, 0), 28, 0, 0)


def test_records_that_bring_their_bytes_are_split_and_wait_for_room(start: Start) -> None:
    brokers, producer, lane = start(bytes_max=2_000, codec="none", send_bytes_max=20_000)
    values = [bytes([n]) * 300 for n in range(200)]
    told: list[int] = []
    producer.send_records(lane, letters_of(values), on_outcomes=lambda _, count: told.append(count))
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert (brokers.values(), sum(told), sums(lane), producer.held_bytes) == (values, 200, (200, 0, 0), 0)


def test_one_who_fails_when_told_of_many_harms_no_other(start: Start) -> None:
    _, producer, lane = start(linger_ms=50)
    told: list[int] = []

    def fails(_: Outcome, count: int) -> None:
        raise ZeroDivisionError(count)

    producer.send_records(lane, letters_of(numbers(3)), on_outcomes=fails)
    producer.send_records(lane, letters_of(numbers(4)), on_outcomes=lambda _, count: told.append(count))
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert (told, sums(lane), producer.held_bytes) == ([4], (7, 0, 0), 0)


def test_values_are_copied_whatever_holds_them(start: Start) -> None:
    brokers, producer, lane = start()
    array, source = np.arange(4, dtype=np.uint8), bytearray(b"abc")
    for value in (array, memoryview(source)[1:], source, None, b""):
        producer.send(lane, value)
    array[:] = 0
    source[:] = b"zzz"
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == [bytes(range(4)), b"bc", b"abc", None, b""]


def test_what_has_no_bytes_is_refused_and_leaves_nothing_behind(start: Start) -> None:
    brokers, producer, lane = start()
    for wrong in ("text", 5, np.zeros((4, 4), np.uint8)[:, :2]):
        with pytest.raises((TypeError, BufferError)):
            producer.send(lane, wrong)
    with pytest.raises(RecordTooLarge, match="record_bytes_max"):
        producer.send(lane, bytes(2_000_000))
    assert (lane.pending, producer.held_bytes, brokers.requests) == (0, 0, 0)
    assert producer.flush([lane], wait_s=FLUSH_S)


def test_lanes_of_one_broker_share_a_request(start: Start) -> None:
    brokers, producer, first = start(linger_ms=50)
    second = producer.lane("t", 1)
    for lane in (first, second, producer.lane("u", 0)):
        producer.send(lane, b"x")
    assert producer.flush([first, second], wait_s=FLUSH_S)
    assert brokers.requests == 1
    assert producer.lane("t", 1) is second


def test_what_lingers_for_a_broker_goes_along_with_what_is_due_and_other_brokers_wait(start: Start) -> None:
    brokers, producer, urgent = start(linger_ms=10_000, nodes=2)
    lingers, elsewhere = producer.lane("t", 2), producer.lane("t", 1)
    for lane in (lingers, elsewhere):
        producer.send(lane, b"lingers")
    producer.send(urgent, b"urgent", is_urgent=True)
    assert producer.flush([urgent], wait_s=FLUSH_S)
    assert producer.flush([lingers], wait_s=FLUSH_S)
    assert (sums(lingers), sums(elsewhere), brokers.requests) == ((1, 0, 0), (0, 0, 0), 1)
    assert producer.flush([elsewhere], wait_s=FLUSH_S)


def test_a_send_to_an_idle_broker_does_not_wait_for_one_that_hangs(start: Start) -> None:
    brokers, producer, lane = start(HOLD, nodes=2)
    other = producer.lane("t", 1)
    producer.send(lane, b"hangs")
    brokers.wait_requests(1)
    producer.send(other, b"goes")
    assert producer.flush([other], wait_s=FLUSH_S)
    producer.send(other, b"goes too")  # nobody flushes: its linger must be noticed by itself
    brokers.wait_requests(3)
    assert brokers.values() == [b"hangs"]
    assert brokers.values(1) == [b"goes", b"goes too"]
    brokers.answer_held()
    assert producer.flush([lane], wait_s=FLUSH_S)


# --- bad days -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("plan", [DOWN, LOSE_REQUEST, LOSE_ANSWER, AFTER_APPEND, MOVED_AFTER_APPEND, "nothing", *PASSING], ids=str)
def test_what_may_pass_is_tried_again_in_order_and_once(start: Start, plan: Any) -> None:
    brokers, producer, lane = start(STORE, plan, plan, STORE, plan)
    for part in range(4):
        for i in range(25):
            producer.send(lane, b"%d" % (25 * part + i))
        assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == numbers(100)
    assert sums(lane) == (100, 0, 0)
    assert brokers.ids == 1


def test_an_answer_that_the_sequence_is_known_counts_as_acknowledged(start: Start) -> None:
    brokers, producer, lane = start(LOSE_ANSWER, errors.DuplicateSequenceNumberError)
    told: list[Outcome] = []
    producer.send(lane, b"x", on_outcome=told.append)
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert told == [Outcome(ACKNOWLEDGED, -1, APPEND_MS)]
    producer.send(lane, b"y")
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == [b"x", b"y"]


@pytest.mark.parametrize("error", [errors.UnknownProducerIdError, errors.OutOfOrderSequenceNumberError, errors.InvalidProducerEpochError])
def test_who_is_forgotten_comes_anew(start: Start, error: Any) -> None:
    brokers, producer, lane = start(STORE, error)
    for value in (b"x", b"y"):
        producer.send(lane, value)
        assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == [b"x", b"y"]
    assert (sums(lane), brokers.ids) == ((2, 0, 0), 2)


@pytest.mark.parametrize("plan", [LOSE_ANSWER, LOSE_REQUEST, AFTER_APPEND, MOVED_AFTER_APPEND], ids=str)
def test_who_is_forgotten_after_an_attempt_without_an_answer_says_so(start: Start, plan: Any) -> None:
    brokers, producer, lane = start(plan, errors.UnknownProducerIdError)
    told: list[Outcome] = []
    producer.send(lane, b"x", on_outcome=told.append, events=5)
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert [(outcome.state, type(outcome.error)) for outcome in told] == [(UNKNOWN, LogUnreachable)]
    assert (sums(lane), lane.sent.unknown_events, lane.sent.reasons) == ((0, 0, 1), 5, {"LogUnreachable": 1})
    producer.send(lane, b"y")
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values()[-1:] == [b"y"]
    assert brokers.ids == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [(errors.TopicAuthorizationFailedError, UsageError), (errors.InvalidTopicError, UsageError), (errors.MessageSizeTooLargeError, RecordTooLarge)],
)
def test_what_is_refused_failed_and_leaves_no_hole(start: Start, error: Any, kind: type[Exception]) -> None:
    brokers, producer, lane = start(STORE, error)
    told: list[Outcome] = []
    for value in (b"x", b"refused", b"y"):
        producer.send(lane, value, on_outcome=told.append)
        assert producer.flush([lane], wait_s=FLUSH_S)
    assert [(outcome.state, outcome.offset) for outcome in told] == [(ACKNOWLEDGED, 0), (FAILED, -1), (ACKNOWLEDGED, 1)]
    assert isinstance(told[1].error, kind)
    assert brokers.values() == [b"x", b"y"]
    assert brokers.ids == 1


def test_what_nobody_took_in_time_failed(start: Start) -> None:
    _, producer, lane = start(*[DOWN] * 10_000, delivery_timeout_ms=150)
    told: list[Outcome] = []
    producer.send(lane, b"x", on_outcome=told.append)
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert [(outcome.state, type(outcome.error)) for outcome in told] == [(FAILED, LogUnreachable)]


@pytest.mark.parametrize("plan", [LOSE_ANSWER, LOSE_REQUEST])
def test_what_was_handed_over_and_not_answered_in_time_is_unknown(start: Start, plan: str) -> None:
    brokers, producer, lane = start(*[plan] * 10_000, delivery_timeout_ms=150)
    told: list[Outcome] = []
    producer.send(lane, b"x", on_outcome=told.append)
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert [outcome.state for outcome in told] == [UNKNOWN]
    brokers.plans[0].clear()
    producer.send(lane, b"y")
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == ([b"x", b"y"] if plan == LOSE_ANSWER else [b"y"])
    assert brokers.ids == 2


def test_without_a_leader_records_wait(start: Start) -> None:
    brokers, producer, lane = start()
    brokers.is_leaderless = True
    producer.send(lane, b"x")
    assert not producer.flush([lane], wait_s=0.1)
    assert brokers.updates > 0
    brokers.is_leaderless = False
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == [b"x"]


# --- too large ------------------------------------------------------------------------------------------------------------
def test_a_batch_that_is_too_large_is_split_until_it_fits(start: Start) -> None:
    brokers, producer, lane = start(bytes_max=2_000, codec="none", linger_ms=200)
    values = [bytes([i]) * 300 for i in range(100)]
    told: list[Outcome] = []
    for value in values:
        producer.send(lane, value, events=2, on_outcome=told.append)
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == values
    assert [outcome.offset for outcome in told] == list(range(100))
    assert (sums(lane), lane.sent.acknowledged_events, producer.held_bytes) == ((100, 0, 0), 200, 0)
    before = brokers.requests
    for value in values:
        producer.send(lane, value)
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.requests - before <= 40, "the limit was not learned"
    assert brokers.values() == values * 2


def test_one_record_that_is_too_large_harms_no_other(start: Start) -> None:
    brokers, producer, lane = start(bytes_max=2_000, codec="none", linger_ms=200)
    values = [b"%d" % i for i in range(40)]
    values[17] = bytes(3_000)
    told: list[Outcome] = []
    for value in values:
        producer.send(lane, value, on_outcome=told.append)
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == values[:17] + values[18:]
    assert (sums(lane), lane.sent.reasons) == ((39, 1, 0), {"RecordTooLarge": 1})
    assert [i for i, outcome in enumerate(told) if outcome.state == FAILED] == [17]
    assert "max.message.bytes" in str(told[17].error)


# --- room -----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_senders_wait_for_room_and_are_counted(start: Start) -> None:
    brokers, producer, lane = start(HOLD, send_bytes_max=10_000, linger_ms=10_000)
    done = threading.Event()

    def send() -> None:
        for _ in range(30):
            producer.send(lane, bytes(1_000))
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    brokers.wait_requests(1)  # although its linger is not over
    assert not done.wait(0.3)
    assert 8_000 <= producer.held_bytes <= 10_000
    brokers.answer_held()
    thread.join(20)
    assert done.is_set()
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == [bytes(1_000)] * 30
    assert lane.sent.waited_ms >= 200


@pytest.mark.slow
def test_empty_records_need_room_too(start: Start) -> None:
    _, producer, lane = start(HOLD, send_bytes_max=5_000)
    sent, ended = [], []

    def send() -> None:
        try:
            while True:
                producer.send(lane, b"")
                sent.append(1)
        except LogClosed as error:
            ended.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    assert producer.held_bytes <= 5_000
    assert 100 < len(sent) < 5_000
    producer.close()
    thread.join(20)
    assert len(ended) == 1


@pytest.mark.slow
def test_room_that_never_comes_is_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM_WAIT_BEYOND_S", 0.2)
    _, producer, lane = start(HOLD, send_bytes_max=1_000, delivery_timeout_ms=100)
    producer.send(lane, bytes(900))
    with pytest.raises(LogFull, match="send_bytes_max"):
        producer.send(lane, bytes(900))


def test_a_record_larger_than_all_the_room_goes_alone(start: Start) -> None:
    brokers, producer, lane = start(send_bytes_max=1_000)
    for _ in range(3):
        producer.send(lane, bytes(5_000))
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert len(brokers.values()) == 3


# --- the end --------------------------------------------------------------------------------------------------------------
def test_close_in_flight_is_unknown_and_an_answer_after_it_changes_nothing(start: Start) -> None:
    brokers, producer, lane = start(HOLD, linger_ms=1)
    told: list[Outcome] = []
    producer.send(lane, b"handed over", on_outcome=told.append)
    brokers.wait_requests(1)
    producer.send(lane, b"waits", on_outcome=told.append)
    producer.close()
    producer.close()
    assert [outcome.state for outcome in told] == [UNKNOWN, FAILED]
    brokers.answer_held()
    for _ in range(10):  # turns of its thread
        brokers.net.run(lambda: None)
    assert (sums(lane), lane.pending, producer.held_bytes) == ((0, 1, 1), 0, 0)
    assert len(told) == 2
    with pytest.raises(LogClosed):
        producer.send(lane, b"x")
    assert producer.flush([lane], wait_s=FLUSH_S)  # everything has its outcome


def test_close_ends_who_waits_for_room_or_for_an_outcome(start: Start) -> None:
    brokers, producer, lane = start(HOLD, send_bytes_max=1_000)
    producer.send(lane, bytes(900))
    brokers.wait_requests(1)
    found: list[Any] = []

    def send() -> None:
        try:
            producer.send(lane, bytes(900))
        except LogClosed as error:
            found.append(error)

    threads = [threading.Thread(target=send), threading.Thread(target=lambda: found.append(producer.flush([lane], wait_s=60)))]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    producer.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(found) == 2


def test_a_sequence_begins_anew_after_two_billion_records(start: Start) -> None:
    brokers, producer, lane = start()
    producer.send(lane, b"x")
    assert producer.flush([lane], wait_s=FLUSH_S)
    lane.sequence = 0x7FFFFFFF
    brokers.partitions["t", 0].next_sequence[lane.producer_id] = 0x7FFFFFFF
    brokers.partitions["t", 0].taken.clear()  # real ones remember five batches
    for value in (b"y", b"z"):
        producer.send(lane, value)
        assert producer.flush([lane], wait_s=FLUSH_S)
    assert brokers.values() == [b"x", b"y", b"z"]
    assert lane.sequence == 1


def test_a_retry_is_the_same_bytes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    brokers, producer, lane = start(LOSE_REQUEST, LOSE_ANSWER)
    seen: list[bytes] = []
    take = brokers._take
    monkeypatch.setattr(brokers, "_take", lambda plan, topic, index, wire: (seen.append(wire), take(plan, topic, index, wire))[1])
    producer.send(lane, b"x")
    assert producer.flush([lane], wait_s=FLUSH_S)
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert sequence_of(seen[0]) == 0


# --- any day --------------------------------------------------------------------------------------------------------------
PLANS = st.sampled_from(
    [
        STORE, DOWN, LOSE_ANSWER, LOSE_REQUEST, AFTER_APPEND, MOVED_AFTER_APPEND, "nothing", *PASSING,
        errors.UnknownProducerIdError, errors.TopicAuthorizationFailedError, errors.MessageSizeTooLargeError, errors.RequestTimedOutError,
    ]
)  # fmt: skip


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plans=st.lists(PLANS, max_size=25), groups=st.lists(st.integers(1, 12), min_size=1, max_size=12), bytes_max=st.sampled_from([200, 1 << 20]))
def test_every_outcome_is_the_truth(start: Start, plans: list[Any], groups: list[int], bytes_max: int) -> None:
    """Whatever brokers do: acknowledged is there once and in order, failed is not there, unknown at most once; nothing is uncounted."""
    brokers, producer, lane = start(*plans, bytes_max=bytes_max, codec="none")
    outcomes: dict[int, Outcome] = {}
    count = 0
    for group in groups:
        for _ in range(group):
            producer.send(lane, b"%06d" % count, on_outcome=lambda outcome, i=count: outcomes.setdefault(i, outcome))
            count += 1
        if group % 3 == 0:
            assert producer.flush([lane], wait_s=FLUSH_S)
    assert producer.flush([lane], wait_s=FLUSH_S)
    there = [int(value or b"") for value in brokers.values()]
    assert len(outcomes) == count == sum(sums(lane))
    assert len(set(there)) == len(there)
    states = {i: outcome.state for i, outcome in outcomes.items()}
    assert {i for i in states if states[i] == ACKNOWLEDGED} <= set(there)
    assert not {i for i in states if states[i] == FAILED} & set(there)
    assert [i for i in there if states[i] == ACKNOWLEDGED] == sorted(i for i in there if states[i] == ACKNOWLEDGED)
    assert all(there[outcome.offset] == i for i, outcome in outcomes.items() if outcome.offset >= 0)
    assert (producer.held_bytes, lane.pending) == (0, 0)
    brokers.close()
