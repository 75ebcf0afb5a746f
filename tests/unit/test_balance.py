"""Who moves where, by example: what a skewed log leads to, what pays, what cannot be helped."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from keystone.actors.load import LoadMeter, Look
from keystone.actors.owned import Owned, PartitionTotals
from keystone.balance import LOOKS_APART_MAX_S, Move, Patience, evening, filling, too_hot
from keystone.config import BalanceConfig
from keystone.errors import LogUnreachable
from keystone.metrics import Ledger
from keystone.ownership import MOVES_AT_ONCE, Order, Ownership

PATIENCE_S = 60.0
PERCENTS = {"uneven_percent": 125, "gain_percent": 20}


# --- arithmetic -----------------------------------------------------------------------------------------------------------
def test_the_neighbours_of_a_hot_partition_move_away_from_it() -> None:
    owned = {"a": {0, 2, 4, 6}, "b": {1, 3, 5, 7}}
    moves = evening(owned, {0: 10, **dict.fromkeys(range(1, 8), 1)}, **PERCENTS)
    assert moves == [Move(2, "a", "b"), Move(4, "a", "b"), Move(6, "a", "b")]


def test_the_partition_that_evens_most_moves_alone() -> None:
    assert evening({"a": {0, 1, 2}, "b": {3}}, {0: 50, 1: 30, 2: 5, 3: 20}, **PERCENTS) == [Move(1, "a", "b")]


def test_what_gains_little_more_does_not_move_as_well() -> None:
    owned = {"a": {0, 1}, "b": {2, 3, 4}}
    assert evening(owned, {0: 90, 1: 90, 2: 5, 3: 1, 4: 1}, **PERCENTS) == [Move(1, "a", "b")]


def test_several_owners_that_are_too_full_let_go_at_once() -> None:
    """To make one of them less would lower nothing."""
    owned = {"a": {0, 1}, "b": {2, 3}, "c": {4}, "d": {5}}
    assert evening(owned, dict.fromkeys(range(4), 10) | {4: 1, 5: 1}, **PERCENTS) == [Move(1, "a", "c"), Move(3, "b", "d")]


@pytest.mark.parametrize(
    ("owned", "weights"),
    [
        ({"a": {0, 1}, "b": {2, 3}}, {0: 10, 1: 1, 2: 1, 3: 1}),  # 11 would become 10
        ({"a": {0, 1, 2}, "b": {3, 4}}, dict.fromkeys(range(5), 7)),  # as even as it can be
        ({"a": {0, 1, 2, 3, 4}, "b": {5, 6, 7}}, dict.fromkeys(range(8), 100)),  # 1.25 times the mean, not over it
        ({"a": {0}, "b": {1}}, {0: 99, 1: 1}),
        ({"a": {0, 1}}, {0: 99, 1: 1}),
        ({}, {}),
    ],
)
def test_what_does_not_pay_does_not_move(owned: dict[str, set[int]], weights: dict[int, int]) -> None:
    assert evening(owned, weights, **PERCENTS) == []


def test_who_is_new_takes_the_hot_partition_rather_than_all_others() -> None:
    assert filling({"a": {0, 1, 2, 3}}, ["b"], {0: 10, 1: 1, 2: 1, 3: 1}) == [Move(0, "a", "b")]


def test_a_partition_is_too_hot_where_it_is_too_much_for_an_owner_of_its_own() -> None:
    weights = {0: 62, 1: 1, 2: 30, 3: 7}
    assert too_hot(weights, 3, 125) == 0
    assert too_hot(weights, 2, 125) is None, "half is nobody's fault"
    assert too_hot(weights, 1, 125) is None
    assert too_hot({}, 0, 125) is None


def test_patience_counts_from_when_something_began_to_be_so() -> None:
    patience = Patience(10.0)
    looks = [(0.0, True), (4.0, True), (8.0, False), (9.0, True), (13.0, True), (18.0, True), (19.0, True)]
    assert [patience.has_lasted(now_s, is_so=is_so) for now_s, is_so in looks] == [False] * 6 + [True]


def test_who_has_not_looked_for_long_has_waited_for_nothing() -> None:
    patience = Patience(10.0)
    assert not patience.has_lasted(0.0, is_so=True)
    assert not patience.has_lasted(LOOKS_APART_MAX_S + 10.1, is_so=True)


# --- the measure ------------------------------------------------------------------------------------------------------------
def measured(meter: LoadMeter, seconds: range, *, appended: int, read: int, per_record: int = 1) -> list[int | None]:
    """``appended`` and ``read`` records a second."""
    told = []
    for second in seconds:
        meter.look(Look(second, appended * second, read * second, read * second * per_record), 30.0)
        told.append(meter.events_per_s)
    return told


def test_nothing_is_known_before_a_window_has_passed() -> None:
    told = measured(LoadMeter(), range(40), appended=500, read=500)
    assert told == [None] * 30 + [500] * 10


def test_what_comes_in_counts_not_what_is_managed() -> None:
    """An owner that is too slow tells the whole load, in events, of records that hold many."""
    assert measured(LoadMeter(), range(31), appended=400, read=100, per_record=20)[-1] == 8_000


def test_a_load_has_three_digits() -> None:
    assert measured(LoadMeter(), range(31), appended=123_456, read=1)[-1] == 123_000


def test_a_window_forgets_what_is_before_it() -> None:
    meter = LoadMeter()
    measured(meter, range(31), appended=1_000, read=1_000)
    for second in range(31, 61):
        meter.look(Look(second, 30_000, 30_000, 30_000), 30.0)
    assert meter.events_per_s == 0
    assert len(meter._looks) == 31


def test_a_log_that_was_made_anew_is_measured_anew_and_what_was_known_stands_meanwhile() -> None:
    meter = LoadMeter()
    measured(meter, range(31), appended=1_000, read=1_000)
    for second in range(31, 61):
        meter.look(Look(second, 10 * (second - 31), 10 * (second - 31), 30_000), 30.0)
    assert meter.events_per_s == 1_000
    meter.look(Look(61, 300, 300, 30_300), 30.0)
    assert meter.events_per_s == 10


def test_what_nobody_can_say_changes_nothing() -> None:
    meter = LoadMeter()
    measured(meter, range(31), appended=1_000, read=1_000)
    meter.begin_anew(31.0)
    meter.look(Look(90, 31_000, 31_000, 31_000), 30.0)
    assert meter.events_per_s == 1_000


class Reader:
    """Of a log that is at its end, and says so as long as it answers. ``end_known``: as Kafka's readers have it, who would have to ask for the end."""

    def __init__(self, *, is_kafka: bool) -> None:
        self.offset = 0
        if is_kafka:
            self.end_known = self.position
        else:
            self.end_offset = self.position

    def position(self) -> int:
        return self.offset

    def end_offset(self) -> int:
        raise LogUnreachable("nobody is to be asked for this")


@pytest.mark.parametrize("is_kafka", [False, True])
def test_a_log_that_does_not_answer_has_no_load_that_could_be_known(*, is_kafka: bool) -> None:
    """One that answers and is silent has none."""
    owned = Owned(0, 1, Reader(is_kafka=is_kafka), SimpleNamespace(), PartitionTotals(), "a log", 0)  # type: ignore[arg-type]
    for second in range(1, 40):
        owned.reader.offset = 20 * second  # type: ignore[attr-defined]
        owned.totals.ledger = Ledger(received=60 * second)
        owned.measure(float(second), 30.0)
    assert owned.load.events_per_s == 60
    for second in range(40, 140):
        owned.measure(float(second), 30.0)
    assert owned.load.events_per_s == 60, "it has not been heard of"
    for second in range(140, 175):
        owned.heard_s = second - 0.1
        owned.measure(float(second), 30.0)
    assert owned.load.events_per_s == 0


# --- ownership by load --------------------------------------------------------------------------------------------------------
class Told:
    """An ``Ownership`` that is told the same loads again and again, and whose orders are carried out at once unless ``arrive`` is False."""

    def __init__(self, loads: dict[int, int], members: int = 2, wanted: int | None = None, **rules: int | bool) -> None:
        self.ownership = Ownership(loads, members if wanted is None else wanted, BalanceConfig(**{"partition_cost_eps": 1, **rules}))
        self.loads = loads
        self.now_s = 0.0
        for number in range(members):
            self.ownership.join(f"m{number}")
        while self.ownership.orders():  # until everything is given, and looked at, before any load is known
            pass

    def pass_time(self, seconds: float, *, arrive: bool = True) -> list[Order]:
        done = []
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            for name, member in self.ownership.members.items():
                self.ownership.note_loads(name, {p: self.loads[p] for p in member.given if p in self.loads})
            while orders := self.ownership.orders(self.now_s):
                done += orders
            if arrive:
                self.arrive()
            self.now_s += 1.0
        return done

    def arrive(self) -> None:
        for name, member in self.ownership.members.items():
            self.ownership.released(name, set(member.leaving))

    def given(self) -> dict[str, set[int]]:
        return {name: member.given for name, member in self.ownership.members.items()}


SKEWED = {0: 10_000, **dict.fromkeys(range(1, 8), 1_000)}


def test_a_skewed_log_makes_an_owner_give_partitions_away_once_that_has_paid_for_long_enough() -> None:
    told = Told(SKEWED)
    assert told.pass_time(PATIENCE_S) == []
    assert told.pass_time(3) == [Order("m0", release=(2, 4, 6)), Order("m1", give=(2, 4, 6))]
    assert told.given() == {"m0": {0}, "m1": set(range(1, 8))}
    assert told.pass_time(600) == []


def test_it_is_told_once_who_moved_and_what_cannot_be_helped() -> None:
    told = Told({0: 62_000, 1: 8_000, 2: 15_000, 3: 15_000})
    told.pass_time(600)
    assert told.ownership.notes == []
    told = Told({0: 64_000, 1: 8_000, 2: 20_000, 3: 8_000})
    told.pass_time(600)
    assert told.ownership.notes == [
        "partition 0 alone carries 63 % of the load: more partitions, or another key",
        "m0 carries 83 % of the load: partition 2 to m1",
    ]


def test_spreading_by_load_can_be_switched_off() -> None:
    told = Told(SKEWED, enabled=False)
    assert told.pass_time(600) == []
    assert told.ownership.notes == []


def test_loads_that_are_small_beside_what_a_partition_costs_move_nothing() -> None:
    """A demonstration of a few devices is always skewed, and nobody is overloaded by it."""
    assert Told({0: 400, **dict.fromkeys(range(1, 8), 40)}, partition_cost_eps=2_000).pass_time(600) == []
    assert Told({0: 400_000, **dict.fromkeys(range(1, 8), 40_000)}, partition_cost_eps=2_000).pass_time(600) != []


def test_free_partitions_go_to_the_least_load_the_heaviest_first() -> None:
    told = Told({0: 900, 1: 100, 2: 800, 3: 700, 4: 50, 5: 10}, members=3)
    told.pass_time(2)
    assert told.given() == {"m0": {0, 3}, "m1": {1, 4}, "m2": {2, 5}}
    told.ownership.lose("m0")
    assert told.pass_time(1) == [Order("m1", give=(0,)), Order("m2", give=(3,))]


def test_a_partition_that_nobody_has_measured_counts_as_the_mean() -> None:
    told = Told({0: 900, 1: 100}, members=2)
    told.pass_time(2)
    told.ownership.gain(range(4))
    assert told.pass_time(1) == [Order("m1", give=(2, 3))] or told.given() == {"m0": {0, 3}, "m1": {1, 2}}


def test_nothing_moves_as_long_as_one_of_them_is_not_known() -> None:
    told = Told(SKEWED)
    told.ownership.gain(range(9))
    assert told.pass_time(3 * PATIENCE_S) == [Order("m1", give=(8,))]
    told.loads = SKEWED | {8: 1_000}
    assert told.pass_time(2 * PATIENCE_S) != []


def test_who_joins_where_owners_are_too_few_gets_its_share_at_once() -> None:
    told = Told(SKEWED, members=1, wanted=2)
    told.pass_time(2)
    told.ownership.join("m1")
    assert told.pass_time(2) == [Order("m0", release=(0,)), Order("m1", give=(0,))]


def test_a_few_move_at_a_time_and_each_goes_where_it_was_meant_to() -> None:
    loads = {0: 20_000, **dict.fromkeys(range(1, 20), 1_000)}
    told = Told(loads)
    told.pass_time(PATIENCE_S + 1, arrive=False)
    leaving = {p for member in told.ownership.members.values() for p in member.leaving}
    assert len(leaving) == MOVES_AT_ONCE
    assert told.pass_time(10, arrive=False) == [], "not while something is on its way"
    assert not told.ownership.is_settled
    told.pass_time(5)
    assert told.given()["m0"] == {0}
    assert told.ownership.is_settled


def test_what_moves_is_given_to_whom_it_was_taken_for_also_where_another_has_become_emptier() -> None:
    told = Told({0: 9_000, 1: 100, 2: 5_000, 3: 9_000, 4: 100, 5: 500}, members=3)
    [order] = told.pass_time(PATIENCE_S + 1, arrive=False)
    [partition] = order.release
    target = told.ownership._targets[partition]
    for name, member in told.ownership.members.items():
        if name != target:
            told.ownership.note_loads(name, dict.fromkeys(member.given, 0))
    told.ownership.released(order.member, {partition})
    assert told.ownership.orders(told.now_s) == [Order(target, give=(partition,))]


def test_what_was_decided_is_dropped_when_owners_change() -> None:
    told = Told({0: 20_000, **dict.fromkeys(range(1, 20), 1_000)}, members=3, wanted=2)
    told.pass_time(PATIENCE_S + 1, arrive=False)
    assert told.ownership._moves
    assert told.ownership.lose("m2") == (), "it stood by"
    assert not told.ownership._moves
    assert not told.ownership._targets


def test_nothing_moves_while_it_may_not_and_patience_begins_again() -> None:
    told = Told(SKEWED)
    told.pass_time(PATIENCE_S)
    assert told.ownership.orders(told.now_s, may_move=False) == []
    told.now_s += 1.0
    assert told.pass_time(PATIENCE_S) == []
    assert told.pass_time(2) != []


def test_near_the_end_everything_stays_and_what_is_lost_is_given_to_others_all_the_same() -> None:
    told = Told(SKEWED)
    told.ownership.stay()
    assert told.pass_time(600) == []
    told.ownership.lose("m0")
    assert not told.ownership.is_settled
    assert told.pass_time(1) == [Order("m1", give=(0, 2, 4, 6))]
    assert told.ownership.is_settled


def test_a_new_supervisor_that_adopts_what_was_spread_by_load_leaves_it_so() -> None:
    ownership = Ownership(range(8), 2, BalanceConfig())
    for name, owned in (("m0", {0}), ("m1", set(range(1, 8)))):
        ownership.join(name, owned)
        ownership.note_loads(name, {p: SKEWED[p] for p in owned})
    assert [ownership.orders(float(now_s)) for now_s in range(300)] == [[]] * 300


def test_what_an_owner_says_of_a_partition_that_it_does_not_own_is_not_believed() -> None:
    told = Told({0: 100, 1: 100})
    told.ownership.note_loads("m0", {0: 5, 1: 7, 9: 1})
    assert told.ownership._loads == {0: 5}
