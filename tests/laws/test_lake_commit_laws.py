"""Whatever order, repeats, crashes between the three commits, lost answers and late committers: each segment once in each table."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone.config import LakeConfig
from keystone.errors import Fenced, SinkBusy
from keystone.segments import DataFile, Segment
from keystone.sinks.iceberg import producers
from keystone.sinks.iceberg import tables as tables_module
from keystone.sinks.iceberg.chain import chain_of
from keystone.sinks.iceberg.places import place_of
from keystone.sinks.iceberg.producers import ChainMoved, Head
from keystone.sinks.iceberg.tables import ORDER, LakeTables
from tests.examples import examples


class Killed(BaseException):
    """The process ends here."""


@dataclass
class FakeTable:
    name: str
    head: Head = field(default_factory=Head)
    files: list[str] = field(default_factory=list)
    version: int = 0


class FakeLake:
    """Three tables behind compare-and-set, and a fate for each commit."""

    def __init__(self, dice):
        self.tables = {name: FakeTable(name) for name in ORDER}
        self.dice = dice
        self.trouble = True
        self.others = []  # committers that may act in the midst of another's commit

    def append(self, table, files, planned_on, chain, added, epoch):
        del added
        fate = self.dice.choice(["in", "in", "in", "lost", "failed", "killed before", "killed after"]) if self.trouble else "in"
        if self.trouble and self.others and self.dice.random() < 0.3:
            other, self.others = self.others.pop(), []
            other()
        current = self.tables[table.name]
        if fate == "failed":
            raise ConnectionError
        if fate == "killed before":
            raise Killed
        if current.version != table.version and current.head != planned_on:
            raise ChainMoved("moved")
        self.tables[table.name] = FakeTable(table.name, Head(chain_of(chain), epoch, chain), current.files + files, current.version + 1)
        if fate == "lost":
            raise ConnectionError
        if fate == "killed after":
            raise Killed


class FakeTables(LakeTables):
    def __init__(self, lake):
        super().__init__(place_of("/lake"), None, LakeConfig())
        self.lake = lake

    def load(self, name):
        return copy.copy(self.lake.tables[name])

    def committed(self, name="events"):
        return self.load(name).head.chain

    def _describe(self, name, table, plan, described):
        described.update({f.path: f.path for s in plan.take for f in s.files if f.table == name})
        return {}

    @staticmethod
    def _head(table):
        return table.head


def segments_of(dice, partitions, each):
    """Some without files of a table, some where only time passed, some of a later owner."""
    found = {}
    for p in range(partitions):
        offset, epoch, chain = 0, 1, []
        for k in range(each):
            epoch += dice.random() < 0.2
            size = dice.choice([0, 1, 7])
            names = [name for name in ORDER if dice.random() < 0.6 and (size or name != "events")]
            files = tuple(DataFile(name, f"data/{name}/{p}-{k}", 1 + k, 1, None) for name in names)
            chain.append(Segment(p, epoch, offset, offset + size, 0, k, files))
            offset += size
        found[p] = chain
    return found


@settings(max_examples=examples(150), deadline=None)
@given(seed=st.integers(0, 2**48))
def test_each_segment_is_in_each_table_once(seed):
    dice = random.Random(seed)
    lake = FakeLake(dice)
    written = segments_of(dice, partitions=dice.randint(1, 3), each=dice.randint(1, 6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(producers, "append", lake.append)
        patch.setattr(tables_module.time, "sleep", lambda s: None)

        def turn(epoch, segments):
            """One turn of a committer, which may be the end of it."""
            with contextlib.suppress(Killed, SinkBusy, Fenced):
                FakeTables(lake).commit(segments, epoch)

        everything = [segment for chain in written.values() for segment in chain]
        for epoch in sorted(dice.randint(1, 4) for _ in range(dice.randint(0, 6))):
            known = FakeTables(lake).committed()
            pending = [s for p, chain in written.items() for s in chain[known[p].next_sequence if p in known else 0 :]]
            late = pending if dice.random() < 0.5 else everything
            lake.others = [functools.partial(turn, dice.randint(1, 4), late)]
            upto = {p: dice.randint(0, len(chain)) for p, chain in written.items()}
            given_now = [s for s in everything if s.sequence < upto[s.partition]]
            dice.shuffle(given_now)
            turn(epoch, given_now)
        lake.trouble, lake.others = False, []
        done = FakeTables(lake).commit(everything, 9)
    assert done.refused == {}
    for name in ORDER:
        expected = sorted(f.path for s in everything for f in s.files if f.table == name)
        assert sorted(lake.tables[name].files) == expected
    assert {p: link.next_sequence for p, link in done.chain.items()} == {p: len(chain) for p, chain in written.items()}
    assert {p: link.rows for p, link in done.chain.items()} == {
        p: sum(f.rows for s in chain for f in s.files if f.table == "events") for p, chain in written.items()
    }


def test_the_law_can_fail():
    """Without the comparison in the midst of a commit, the same fates double a segment."""
    doubled = 0
    for seed in range(40):
        dice = random.Random(seed)
        lake = FakeLake(dice)
        written = segments_of(dice, 1, 4)[0]
        with pytest.MonkeyPatch.context() as patch:

            def careless(table, files, planned_on, chain, added, epoch, lake=lake):
                table.version, lake.trouble = lake.tables[table.name].version, True
                if lake.others:
                    lake.others.pop()()
                current = lake.tables[table.name]
                lake.tables[table.name] = FakeTable(table.name, Head(chain_of(chain), epoch, chain), current.files + files, current.version + 1)

            patch.setattr(producers, "append", careless)
            lake.others = [lambda lake=lake, written=written: FakeTables(lake).commit(written, 1)]
            FakeTables(lake).commit(written, 1)
        doubled += any(len(set(t.files)) < len(t.files) for t in lake.tables.values())
    assert doubled > 10
