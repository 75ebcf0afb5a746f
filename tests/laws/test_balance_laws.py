"""Partitions go where the load is least, soon come to rest there, and stay: whatever the loads, whoever comes and goes, whatever noise is in the figures."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keystone.actors.load import LoadMeter, Look
from keystone.balance import CLOSE_PERCENT, evening, filling
from keystone.config import BalanceConfig
from keystone.ownership import Order, Ownership
from tests.examples import examples

RULES = BalanceConfig(partition_cost_eps=1)
PATIENCE_S = RULES.patience_ms / 1_000
WINDOW_S = RULES.window_ms / 1_000
EVEN_EPS = 100_000  # of each partition, where all have the same
MEAN_SHARE, GAIN_LEFT = RULES.uneven_percent / 100, 1 - RULES.gain_percent / 100

SEEDS = st.integers(0, 2**32)  # of noise: thousands of numbers, of which hypothesis would choose each
LOADS = st.lists(st.one_of(st.integers(0, 100), st.integers(0, 1_000_000)), min_size=1, max_size=16)


class Scene:
    """Members that do what they are told, an order at a time, and an eye on what they own.

    ``moved`` counts partitions that left one living owner for another, ``times_s`` when.
    """

    def __init__(self, partitions: int, wanted: int, rules: BalanceConfig = RULES) -> None:
        self.ownership = Ownership(range(partitions), wanted, rules)
        self.now_s = 1_000.0
        self.owned: dict[str, set[int]] = {}
        self.leaving: dict[str, set[int]] = {}
        self.loads: dict[int, int] = {}
        self.times_s: list[float] = []

    def join(self, name: str, owned: Iterable[int] = ()) -> None:
        self.owned[name], self.leaving[name] = set(owned), set()
        self.ownership.join(name, owned)

    def lose(self, name: str) -> None:
        assert set(self.ownership.lose(name)) == self.owned.pop(name)
        self.leaving.pop(name)

    def look(self, *, may_move: bool = True) -> list[Order]:
        """What the supervisor does ten times a second, at ``now_s``; every promise about who owns what is looked at."""
        for name, partitions in self.owned.items():
            self.ownership.note_loads(name, {p: self.loads[p] for p in partitions if p in self.loads})
        done = []
        while orders := self.ownership.orders(self.now_s, may_move=may_move):
            done += orders
            for order in orders:
                self._obey(order)
        on_their_way = self.ownership.free
        for partition in self.ownership.partitions:
            owners = [name for name, partitions in self.owned.items() if partition in partitions]
            assert len(owners) == (partition not in on_their_way), "each has one owner, or is free"
            assert owners == [name for name in [self.ownership.owner_of(partition)] if name is not None]
        return done

    def _obey(self, order: Order) -> None:
        for partition in order.give:
            assert not any(partition in other for other in self.owned.values()), "two owners"
            self.owned[order.member].add(partition)
        assert set(order.release) <= self.owned[order.member] - self.leaving[order.member], "told twice, or not its own"
        self.leaving[order.member] |= set(order.release)
        self.times_s += [self.now_s] * len(order.release)

    def arrive(self) -> None:
        """What is leaving has left."""
        for name, gone in self.leaving.items():
            self.owned[name] -= gone
            self.ownership.released(name, gone)
            gone.clear()

    def pass_time(self, seconds: float, every_s: float = 1.0) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.look()
            self.arrive()
            self.now_s += every_s

    @property
    def moved(self) -> int:
        return len(self.times_s)

    def sums(self) -> list[int]:
        """What owners carry, each partition's own cost included."""
        return sorted(sum(self.loads.get(p, 0) + 1 for p in partitions) for partitions in self.owned.values() if partitions)

    def sizes(self) -> list[int]:
        return sorted(len(partitions) for partitions in self.owned.values() if partitions)


def dealt(data: st.DataObject, partitions: int, owners: int) -> dict[str, set[int]]:
    """Any way to own them in which each owner has one at least."""
    assume(partitions >= owners)
    whose = [*range(owners), *data.draw(st.lists(st.integers(0, owners - 1), min_size=partitions - owners, max_size=partitions - owners))]
    return {f"m{number}": {p for p, owner in enumerate(whose) if owner == number} for number in range(owners)}


def greedy(weights: Iterable[int], owners: int) -> int:
    """The highest sum where each, the heaviest first, goes to who has least (LPT)."""
    sums = [0] * owners
    for weight in sorted(weights, reverse=True):
        sums[sums.index(min(sums))] += weight
    return max(sums)


@pytest.mark.slow
@given(loads=LOADS, owners=st.integers(1, 6), data=st.data())
def test_under_constant_loads_moves_end_and_leave_little_to_gain(loads: list[int], owners: int, data: st.DataObject) -> None:
    scene = Scene(len(loads), owners)
    scene.loads = dict(enumerate(loads))
    for name, owned in dealt(data, len(loads), owners).items():
        scene.join(name, owned)
    rounds_max = 1 + max(0, math.ceil(math.log(max(1.0, owners / MEAN_SHARE)) / -math.log(GAIN_LEFT)))  # each lowers the highest by a fifth
    highest_before = max(scene.sums())
    scene.pass_time((rounds_max + 1) * (PATIENCE_S + len(loads)), every_s=0.9)
    moved, highest, mean = scene.moved, max(scene.sums()), sum(scene.sums()) / owners
    assert moved <= rounds_max * len(loads)
    assert highest <= highest_before
    left = 2 * owners / (owners + 1)  # see keystone/balance.py
    least = (1 + CLOSE_PERCENT / 100) / GAIN_LEFT
    assert highest <= max(MEAN_SHARE * mean, least * max(max(loads) + 1, left * mean))
    assert highest <= max(MEAN_SHARE, least * left) * greedy([load + 1 for load in loads], owners)
    scene.pass_time(10 * PATIENCE_S, every_s=3.0)
    assert scene.moved == moved, "at rest, for ever"


@pytest.mark.slow
@given(loads=LOADS, owners=st.integers(2, 6), data=st.data())
def test_no_move_but_after_patience_and_none_that_does_not_pay(loads: list[int], owners: int, data: st.DataObject) -> None:
    scene = Scene(len(loads), owners)
    scene.loads = dict(enumerate(loads))
    for name, owned in dealt(data, len(loads), owners).items():
        scene.join(name, owned)
    began_s, before = scene.now_s, max(scene.sums())
    while scene.now_s < began_s + 3 * PATIENCE_S and not scene.moved:
        scene.look()
        scene.now_s += 1.0
    if scene.moved:
        assert scene.now_s - began_s >= PATIENCE_S
        assert before > MEAN_SHARE * sum(scene.sums()) / owners
        scene.arrive()
        while not scene.ownership.is_settled or scene.ownership.free:
            scene.look()
            scene.arrive()
        assert max(scene.sums()) <= GAIN_LEFT * before


@given(weights=st.lists(st.integers(1, 1_000), min_size=1, max_size=20), owners=st.integers(1, 6), newcomers=st.integers(1, 3), data=st.data())
def test_who_is_new_gets_a_share_and_the_others_exchange_nothing(weights: list[int], owners: int, newcomers: int, data: st.DataObject) -> None:
    owned = dealt(data, len(weights), owners)
    fresh = [f"n{number}" for number in range(newcomers)]
    by_partition = dict(enumerate(weights))
    moves = filling(owned, fresh, by_partition)
    assert all(move.target in fresh and move.partition in owned[move.source] for move in moves)
    assert len({move.partition for move in moves}) == len(moves)
    gone = {move.partition for move in moves}
    sums = {name: sum(by_partition[p] for p in partitions - gone) for name, partitions in owned.items()}
    given_to = {name: sum(by_partition[move.partition] for move in moves if move.target == name) for name in fresh}
    assert max([*sums.values(), *given_to.values()]) <= max(sum(by_partition[p] for p in partitions) for partitions in owned.values())
    if any(len(partitions) > 1 for partitions in owned.values()):
        assert min(given_to.values()) > 0 or len(weights) < owners + newcomers


# --- even loads ---------------------------------------------------------------------------------------------------------
EVENTS = st.lists(st.tuples(st.sampled_from(["join", "lose", "arrive", "gain", "want", "look"]), st.integers(0, 4)), max_size=40)


@pytest.mark.slow
@given(events=EVENTS, partitions=st.integers(1, 12), wanted=st.integers(1, 4), load=st.one_of(st.none(), st.integers(0, 1_000_000)))
def test_with_equal_or_unknown_loads_numbers_are_even(events: list[tuple[str, int]], partitions: int, wanted: int, load: int | None) -> None:
    scene = Scene(partitions, wanted)

    def know() -> None:
        scene.loads = {} if load is None else dict.fromkeys(range(partitions), load)

    know()
    for what, number in events:
        name = f"m{number}"
        if what == "join" and name not in scene.owned:
            scene.join(name)
        elif what == "lose" and name in scene.owned:
            scene.lose(name)
        elif what == "arrive":
            scene.arrive()
        elif what == "gain":
            partitions += 1
            scene.ownership.gain(range(partitions))
            know()
        elif what == "want" and number:
            wanted = number
            scene.ownership.want(wanted)
        else:
            scene.look()
            scene.now_s += 0.1
    for number in range(5):
        if f"m{number}" not in scene.owned:
            scene.join(f"m{number}")
    for _ in range(30):  # without time for patience: what is even again is so at once
        scene.look()
        scene.arrive()
    assert sum(scene.sizes()) == partitions
    assert len(scene.sizes()) >= min(wanted, 5, partitions)
    assert scene.sizes()[-1] - scene.sizes()[0] <= 1
    moved = scene.moved
    scene.pass_time(3 * PATIENCE_S)
    assert scene.moved == moved


@given(seeds=st.randoms(use_true_random=False), owners=st.integers(1, 6), each=st.integers(1, 6))
def test_loads_that_differ_by_a_fifth_move_nothing_where_numbers_are_equal(seeds: random.Random, owners: int, each: int) -> None:
    """However they differ: that leaves a sixth to gain."""
    weights = {p: seeds.choice((80, 120, seeds.randint(80, 120))) for p in range(owners * each)}
    owned = {f"m{number}": set(range(number, len(weights), owners)) for number in range(owners)}
    assert evening(owned, weights, uneven_percent=RULES.uneven_percent, gain_percent=RULES.gain_percent) == []


class Stream:
    """A log's partition under a meter: ``events(s)`` come in that second, and its owner reads at most ``reads_max`` of them."""

    def __init__(self, events: Callable[[float], float], *, reads_max: float = math.inf) -> None:
        self.meter = LoadMeter()
        self._events, self._reads_max = events, reads_max
        self._end, self._position = 0.0, 0.0

    def second(self, now_s: float) -> int | None:
        self._end += self._events(now_s)
        self._position = min(self._end, self._position + self._reads_max)
        self.meter.look(Look(now_s, int(self._end), int(self._position), int(self._position)), WINDOW_S)
        return self.meter.events_per_s


def watch(scene: Scene, streams: Mapping[int, Stream], seconds: int) -> Iterator[float]:
    began_s = scene.now_s
    for second in range(seconds):
        scene.now_s = began_s + second
        told = {partition: stream.second(scene.now_s) for partition, stream in streams.items()}
        scene.loads = {partition: load for partition, load in told.items() if load is not None}
        scene.look()
        scene.arrive()
        yield scene.now_s - began_s


def begin(partitions: int, owners: int, standbys: int = 1) -> Scene:
    """With the rules of a real run."""
    scene = Scene(partitions, owners, BalanceConfig())
    for number in range(owners + standbys):
        scene.join(f"m{number}")
    return scene


@pytest.mark.slow
@settings(max_examples=examples(40))
@given(partitions=st.integers(1, 12), owners=st.integers(1, 5), eps=st.sampled_from((30.0, 3_000.0, 300_000.0)), seed=SEEDS)
def test_noise_moves_nothing(partitions: int, owners: int, eps: float, seed: int) -> None:
    """Seconds that differ by a fifth, for ten minutes, also where numbers cannot be even and where owners are too slow."""
    scene = begin(partitions, owners)
    seeds = random.Random(seed)
    streams = {p: Stream(lambda _: eps * seeds.uniform(0.8, 1.2), reads_max=seeds.choice((math.inf, eps / 2))) for p in range(partitions)}
    assert [at_s for at_s in watch(scene, streams, 600) if scene.moved] == []


@pytest.mark.slow
@settings(max_examples=examples(40))
@given(partitions=st.integers(1, 12), owners=st.integers(1, 5), seed=SEEDS)
def test_a_start_and_an_end_move_nothing(partitions: int, owners: int, seed: int) -> None:
    """Loads that begin up to 20 s apart, take up to a minute to grow, and end up to 20 s apart."""
    scene = begin(partitions, owners)
    seeds = random.Random(seed)

    def life() -> Callable[[float], float]:
        begins_s, ends_s = 1_000 + seeds.uniform(0, 20), 1_000 + seeds.uniform(200, 220)
        return lambda now_s: EVEN_EPS * min(1.0, max(0.0, now_s - begins_s) / grows_s) * seeds.uniform(0.8, 1.2) * (now_s < ends_s)

    grows_s = seeds.uniform(0.1, 60)
    streams = {p: Stream(life()) for p in range(partitions)}
    assert [at_s for at_s in watch(scene, streams, 400) if scene.moved] == []


@settings(max_examples=examples(40))
@given(loads=st.lists(st.integers(0, 300_000), min_size=1, max_size=12), owners=st.integers(1, 5), seed=SEEDS)
def test_nothing_moves_in_the_first_90_seconds(loads: list[int], owners: int, seed: int) -> None:
    """A window and patience: short benches see no move, however uneven they are."""
    scene = begin(len(loads), owners)
    seeds = random.Random(seed)
    streams = {p: Stream(lambda _, load=load: load * seeds.uniform(0.8, 1.2)) for p, load in enumerate(loads)}  # type: ignore[misc]
    assert [at_s for at_s in watch(scene, streams, 90) if scene.moved] == []


@pytest.mark.slow
@settings(max_examples=examples(20))
@given(loads=st.lists(st.integers(0, 300_000), min_size=2, max_size=10), owners=st.integers(2, 5), seed=SEEDS)
def test_uneven_loads_with_noise_come_to_rest(loads: list[int], owners: int, seed: int) -> None:
    """The figures shake, and nothing goes to and fro: no more moves in 40 minutes than twice what there are partitions, none in the second half."""
    scene = begin(len(loads), owners)
    seeds = random.Random(seed)
    streams = {p: Stream(lambda _, load=load: load * seeds.uniform(0.8, 1.2)) for p, load in enumerate(loads)}  # type: ignore[misc]
    for _ in watch(scene, streams, 1_200):
        pass
    assert scene.moved <= 2 * len(loads)
    moved = scene.moved
    for _ in watch(scene, streams, 1_200):
        pass
    assert scene.moved == moved
