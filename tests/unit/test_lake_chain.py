"""Which segments are in, chain on, or are refused."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone.errors import ChainBroken, LakeDamaged
from keystone.segments import DataFile, Segment
from keystone.sinks.iceberg.chain import Link, Span, chain_of, in_portions, plan, spans_of, to_text


def segment(sequence, first, end, *, partition=0, epoch=1, rows=10, table="events", files=None):
    name = f"data/{table}/p{partition:05d}-{sequence}.parquet"
    files = (DataFile(table, name, rows, 100, 20_000 if table == "events" else None),) if files is None else files
    return Segment(partition, epoch, first, end, 0, sequence, files)


def chained(sizes, *, partition=0, epoch=1):
    ends = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return [segment(k, ends[k], ends[k + 1], partition=partition, epoch=epoch, rows=sizes[k]) for k in range(len(sizes))]


SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=8)


@given(SIZES, st.integers(0, 2**32))
def test_any_order_any_repeats_any_cuts_take_each_segment_once(sizes, seed):
    every, dice = chained(sizes), random.Random(seed)
    taken, chain = [], {}
    while len(taken) < len(every):
        upto = dice.randint(len(taken), len(every))
        shown = every[dice.randint(0, len(taken)) : upto]
        shown += [dice.choice(shown) for _ in range(dice.randint(0, 3)) if shown]
        dice.shuffle(shown)
        got = plan(chain, shown, "events")
        assert not got.refused
        assert got.take == every[len(taken) : upto]
        taken, chain = taken + got.take, got.chain
    assert taken == every
    assert chain[0] == Link(0, sum(sizes), len(sizes), 1, sum(sizes))


@given(SIZES, st.data())
def test_a_missing_segment_is_a_hole_and_nothing_of_the_partition_is_taken(sizes, data):
    every = chained([*sizes, 1])
    missing = data.draw(st.integers(0, len(every) - 2))
    got = plan({}, [s for k, s in enumerate(every) if k != missing], "events")
    assert got.take == []
    assert got.added == {}
    assert 0 in got.refused


@pytest.mark.parametrize(
    ("given_segment", "reason"),
    [
        (segment(3, 101, 120), "hole"),
        (segment(3, 99, 120), "overlaps"),
        (segment(4, 100, 120), "segments 3 to 3 are missing"),
        (segment(3, 100, 120, epoch=4), "epoch 4"),
        (segment(2, 90, 99, epoch=5), "older state"),
        (segment(2, 90, 100, epoch=4), "older state"),
        (segment(1, 90, 101, epoch=5), "older state"),
    ],
)
def test_what_contradicts_the_lake_is_refused(given_segment, reason):
    got = plan({0: Link(0, 100, 3, 5, 77)}, [given_segment], "events")
    assert reason in got.refused[0]
    assert got.take == []


def test_a_bad_partition_leaves_the_others_alone():
    good = segment(0, 5, 9, partition=1)
    got = plan({}, [segment(1, 0, 9), good], "events")
    assert got.take == [good]
    assert got.added == {1: Span(5, 9, 0, 1, 1, 10)}
    assert "not the lake" in got.refused[0]


def test_time_alone_advances_the_sequence():
    got = plan({0: Link(0, 100, 3, 5, 77)}, [segment(3, 100, 100, epoch=5, files=())], "events")
    assert got.chain[0] == Link(0, 100, 4, 5, 77)
    assert got.added[0].rows == 0


def test_a_table_that_had_nothing_to_add_stands_where_events_stand():
    floor = {0: Link(0, 100, 3, 5, 77)}
    got = plan({0: Link(0, 10, 1, 1, 4)}, [segment(3, 100, 120, epoch=5, rows=2, table="alerts")], "alerts", floor=floor)
    assert got.chain[0] == Link(0, 120, 4, 5, 6)
    ahead = plan({0: Link(0, 120, 4, 5, 6)}, [segment(3, 100, 120, epoch=5, table="alerts")], "alerts", floor=floor)
    assert (ahead.take, ahead.known, ahead.refused) == ([], 1, {})


def test_portions_keep_the_order_of_a_partition():
    every = chained([1, 2, 3, 4, 5]) + chained([7], partition=3)
    portions = list(in_portions(every[::-1], 2))
    assert [len(p) for p in portions] == [2, 2, 2]
    assert [s for p in portions for s in p if s.partition == 0] == every[:5]
    chain = {}
    for portion in portions:
        got = plan(chain, portion, "events")
        assert not got.refused
        chain = got.chain
    assert list(in_portions([], 2)) == []


@given(st.dictionaries(st.integers(0, 99_999), st.tuples(*[st.integers(0, 2**63 - 1)] * 5), max_size=5))
def test_chains_travel_as_text(links):
    chain = {partition: Link(*numbers) for partition, numbers in links.items()}
    assert chain_of(to_text(chain)) == chain


def test_refusals_travel_between_processes():
    error = pickle.loads(pickle.dumps(ChainBroken({3: "a hole", 7: "x"})))
    assert error.refused == {3: "a hole", 7: "x"}
    assert str(error) == "not committed to the lake: partition 3 (and 1 more): a hole"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":[1,2,3,4,5]}', '{"1":[1,2,3,4]}', '{"1":[1,2,3,4,true]}', '{"1":[1,2,3,4,"5"]}', '{"1":3}'])
def test_what_is_no_chain_is_damage(text):
    with pytest.raises(LakeDamaged):
        chain_of(text)
    with pytest.raises(LakeDamaged):
        spans_of(text)
