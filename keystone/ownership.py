"""Which session actor owns which partition: decided here, from what is told, without Ray, clock or log; the supervisor carries it out.

A partition is *free* until it is given to a member, and given until that member is lost or has let go of it. Nothing is given
twice: who is suspected is declared lost first, and then kept from doing harm by its epoch (``keystone/checkpoint.py``), not by hope.

Owners shall have even loads. As long as nothing is known of loads, a partition is as good as another. Where they are known, what is free
goes to the owner of the least, and what is owned moves only where that pays and has paid for a while (``keystone/balance.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from keystone.balance import Move, Patience, evening, filling, too_hot
from keystone.config import BalanceConfig

LOOK_EVERY_S: Final = 1.0  # at loads: they are told anew as often
MOVES_AT_ONCE: Final = 4  # what moves is read by nobody meanwhile, ~0.3 s, and an owner saves one after the other: then the next ones
BALANCE: Final = BalanceConfig()


@dataclass(slots=True)
class Member:
    """A session actor as far as ownership goes. ``given``: what it was told to own; ``leaving``: of these, what it was told to let go of."""

    name: str
    given: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Order:
    """``give``: own these partitions from now on. ``release``: finish with these, save them, let go."""

    member: str
    give: tuple[int, ...] = ()
    release: tuple[int, ...] = ()


class Ownership:
    """``owners_wanted`` members own partitions, evenly; the others stand by, built and warm, for one that is lost.

    Tell it what happens (``join``, ``lose``, ``released``, ``gain``) and what partitions carry (``note_loads``); after each, ``orders`` says what to
    do, each order once, and ``notes`` has lines for people, for whoever takes them out.
    """

    def __init__(self, partitions: Iterable[int], owners_wanted: int, rules: BalanceConfig = BALANCE) -> None:
        self.members: dict[str, Member] = {}
        self.notes: list[str] = []
        self._wanted = owners_wanted
        self._retiring: frozenset[str] = frozenset()
        self.partitions = set(partitions)
        self._lost_together: list[set[int]] = []  # free partitions by their last owner: a member that stands by takes one whole
        self._rules = rules
        self._loads: dict[int, int] = {}  # events/s of each partition, as last told by whoever owned it
        self._moves: list[Move] = []  # decided, and not told to anybody yet
        self._targets: dict[int, str] = {}  # of those that were: who is given them when they are free
        self._looked_s = float("-inf")
        self._uneven = Patience(rules.patience_ms / 1_000)
        self._hot = Patience(rules.patience_ms / 1_000)
        self._called_hot: set[int] = set()
        self._newcomers: set[str] = set()  # who owned nothing when owners were too few, until they have their shares
        self._stays = False

    # --- what happens -------------------------------------------------------------------------------------------------
    def join(self, name: str, owned: Iterable[int] = ()) -> None:
        """A member is built. ``owned``: what it already owns, when a new supervisor adopts it."""
        self._think_anew()
        self.members[name] = Member(name, set(owned) & self.partitions)

    def lose(self, name: str) -> tuple[int, ...]:
        """A member is dead, or no longer believed in. Returns what is free now."""
        member = self.members.pop(name, None)
        if member is None:
            return ()
        self._think_anew()
        if member.given:
            self._lost_together.append(set(member.given))
        return tuple(sorted(member.given))

    def released(self, name: str, partitions: Iterable[int]) -> None:
        """A member has let go of these, as it was told, by whoever decided here or before."""
        member = self.members[name]
        gone = set(partitions) & member.given
        if gone - member.leaving:
            self._think_anew()
        member.given -= gone
        member.leaving -= gone

    def gain(self, partitions: Iterable[int]) -> None:
        """The log has more partitions than before."""
        if fresh := set(partitions) - self.partitions:
            self.partitions |= fresh
            self._think_anew()

    def want(self, owners: int) -> None:
        """So many members shall own partitions from now on."""
        self._wanted = owners
        self._think_anew()

    def stay(self) -> None:
        """From now on nothing moves from one living owner to another, but for what is on its way."""
        self._stays = True
        self._think_anew()

    def note_loads(self, name: str, loads: Mapping[int, int]) -> None:
        """What comes into partitions, events/s, as their owner measures it. Of what it does not own it knows nothing."""
        if self._rules.enabled:
            self._loads |= {partition: load for partition, load in loads.items() if partition in self.members[name].given}

    def _think_anew(self) -> None:
        """Who owns what changes by something else than a decision of ours: what was decided before rests on what is no more."""
        self._moves, self._targets = [], {}
        self._be_patient()

    def _be_patient(self) -> None:
        self._uneven.begin_anew()
        self._hot.begin_anew()

    def retire(self, names: Iterable[str]) -> None:
        """These members shall own nothing, for they will be gone soon; whoever was named before and is no more may own again."""
        retiring = frozenset(names)
        if retiring != self._retiring:
            self._retiring = retiring
            self._think_anew()

    # --- what is so ---------------------------------------------------------------------------------------------------
    @property
    def owners_wanted(self) -> int:
        """How many members shall own partitions."""
        return self._wanted

    @property
    def retiring(self) -> frozenset[str]:
        """Members that shall own nothing."""
        return self._retiring

    @property
    def free(self) -> set[int]:
        """Partitions that nobody was given."""
        return self.partitions.difference(*(member.given for member in self.members.values()))

    def owner_of(self, partition: int) -> str | None:
        return next((name for name, member in self.members.items() if partition in member.given), None)

    @property
    def is_settled(self) -> bool:
        """Whether every partition is given to somebody, for good as far as we know."""
        return not self.free and not self._moves and not any(member.leaving for member in self.members.values())

    def _weights(self) -> dict[int, int]:
        """What counts as a partition's load: what comes into it, and what it costs by itself. All are alike while nothing is known.

        One of which alone nothing is known, such as a new one, counts as the mean of the others.
        """
        known = self._loads
        if not known:
            return dict.fromkeys(self.partitions, 1)
        mean = sum(known.values()) // len(known)
        return {partition: known.get(partition, mean) + self._rules.partition_cost_eps for partition in self.partitions}

    # --- what to do ---------------------------------------------------------------------------------------------------
    def orders(self, now_s: float = 0.0, *, may_move: bool = True) -> list[Order]:
        """Give away what is free; where all is given and owners are too few or uneven, make the fullest let go, if it ``may_move``.

        ``now_s``: of a clock that never goes back.
        """
        given = self._give_whole()
        weights = self._weights()
        for partition in sorted(self.free, key=lambda partition: (-weights[partition], partition)):
            member = self._target_of(partition) or self._emptiest(weights)
            if member is None:
                break
            if not member.given:
                self._newcomers.add(member.name)
            member.given.add(partition)
            given.setdefault(member.name, []).append(partition)
        orders = [Order(name, give=tuple(sorted(partitions))) for name, partitions in given.items()]
        if orders or self.free or not may_move or self._stays:
            self._be_patient()
            return orders
        return self._move(weights, now_s)

    def _give_whole(self) -> dict[str, list[int]]:
        """What a lost member owned goes to one that stands by: it alone pauses for it, and it has nothing else to do."""
        given: dict[str, list[int]] = {}
        for lost in self._lost_together:
            group = lost & self.free
            idle = self._idle()
            if group and idle and len(self._owners()) < self._wanted:
                idle[0].given |= group
                given[idle[0].name] = sorted(group)
        self._lost_together = []
        return given

    def _target_of(self, partition: int) -> Member | None:
        """Who it was taken from its last owner for."""
        return self.members.get(self._targets.pop(partition, ""))

    def _move(self, weights: Mapping[int, int], now_s: float) -> list[Order]:
        """A few at a time, and none while partitions are on their way: what moves pauses."""
        if any(member.leaving for member in self.members.values()) or not self.members:
            return []
        for member in self.members.values():
            if member.given and member not in self._able():
                member.leaving |= member.given
                return [Order(member.name, release=tuple(sorted(member.given)))]
        if not self._loads:
            return self._even_out_counts()
        if not self._moves:
            self._moves = self._fill(weights) or self._even_out_loads(weights, now_s)
        now, self._moves = self._moves[:MOVES_AT_ONCE], self._moves[MOVES_AT_ONCE:]
        return self._release(now)

    def _release(self, moves: Iterable[Move]) -> list[Order]:
        leaving: dict[str, list[int]] = {}
        for move in moves:
            self.members[move.source].leaving.add(move.partition)
            self._targets[move.partition] = move.target
            leaving.setdefault(move.source, []).append(move.partition)
        return [Order(name, release=tuple(sorted(partitions))) for name, partitions in leaving.items()]

    def _even_out_counts(self) -> list[Order]:
        fullest = max(self._owners(), key=lambda member: len(member.given), default=None)
        emptiest = self._emptiest(dict.fromkeys(self.partitions, 1))
        if fullest is None or emptiest is None:
            return []
        too_many = (len(fullest.given) - len(emptiest.given)) // 2
        if too_many < 1:
            self._newcomers.clear()
            return []
        leaving = sorted(fullest.given)[-too_many:]
        fullest.leaving |= set(leaving)
        return [Order(fullest.name, release=tuple(leaving))]

    def _fill(self, weights: Mapping[int, int]) -> list[Move]:
        """Owners are too few, or were just now: who becomes one gets its share at once."""
        owners = self._owners()
        idle = [member.name for member in self._idle()[: max(0, self._wanted - len(owners))]]
        newcomers = [*self._newcomers.intersection(member.name for member in self._able()), *idle]
        moves = filling({member.name: member.given for member in owners}, newcomers, weights) if newcomers else []
        if not moves:
            self._newcomers.clear()
        return moves

    def _even_out_loads(self, weights: Mapping[int, int], now_s: float) -> list[Move]:
        """Moves, once it was worth it to make some at every look for ``patience_ms``, during which no partition changed its owner."""
        if now_s - self._looked_s < LOOK_EVERY_S:
            return []
        self._looked_s = now_s
        if not self.partitions <= self._loads.keys():
            self._be_patient()
            return []
        rules, owners = self._rules, self._owners()
        hot = too_hot(weights, len(owners), rules.uneven_percent)
        if self._hot.has_lasted(now_s, is_so=hot is not None) and hot is not None:
            self._call_hot(hot, weights)
        owned = {member.name: member.given for member in owners}
        moves = evening(owned, weights, uneven_percent=rules.uneven_percent, gain_percent=rules.gain_percent)
        if not self._uneven.has_lasted(now_s, is_so=bool(moves)):
            return []
        self._tell(moves, weights)
        self._be_patient()
        return moves

    def _call_hot(self, partition: int, weights: Mapping[int, int]) -> None:
        if partition not in self._called_hot:
            self._called_hot.add(partition)
            percent = 100 * weights[partition] // sum(weights.values())
            self.notes.append(f"partition {partition} alone carries {percent} % of the load: more partitions, or another key")

    def _tell(self, moves: Iterable[Move], weights: Mapping[int, int]) -> None:
        total = sum(weights.values())
        for name in dict.fromkeys(move.source for move in moves):
            percent = 100 * sum(weights[p] for p in self.members[name].given) // total
            gone = [move for move in moves if move.source == name]
            where = ", ".join(f"{move.partition} to {move.target}" for move in gone)
            self.notes.append(f"{name} carries {percent} % of the load: partition{'s' if len(gone) > 1 else ''} {where}")

    def _able(self) -> list[Member]:
        """Who may be given something: those that stay; where nobody does, all."""
        return [member for member in self.members.values() if member.name not in self._retiring] or list(self.members.values())

    def _owners(self) -> list[Member]:
        return [member for member in self._able() if member.given]

    def _idle(self) -> list[Member]:
        return [member for member in self._able() if not member.given]

    def _emptiest(self, weights: Mapping[int, int]) -> Member | None:
        """Who should own one more: someone who stands by while owners are too few, else the owner of the least, and among such of the fewest."""
        owners, idle = self._owners(), self._idle()
        if idle and (len(owners) < self._wanted or not owners):
            return idle[0]
        return min(owners, key=lambda member: (sum(weights[p] for p in member.given), len(member.given)), default=None)
