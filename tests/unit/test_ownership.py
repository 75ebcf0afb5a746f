"""Who owns what: every partition has one owner, evenly, whatever happens to the members and in whatever order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keystone.ownership import Order, Ownership


def of(members: int, partitions: int, wanted: int) -> Ownership:
    ownership = Ownership(range(partitions), wanted)
    for number in range(members):
        ownership.join(f"m{number}")
    return ownership


def sizes(ownership: Ownership) -> list[int]:
    return sorted(len(member.given) for member in ownership.members.values())


def settle(ownership: Ownership) -> list[Order]:
    """Carry everything out at once."""
    done = []
    while orders := ownership.orders():
        done += orders
        for order in orders:
            ownership.released(order.member, order.release)
    return done


def test_at_the_start_owners_get_even_shares_and_the_others_stand_by() -> None:
    ownership = of(3, 5, wanted=2)
    assert settle(ownership) == [Order("m0", give=(0, 2, 4)), Order("m1", give=(1, 3))]
    assert ownership.owner_of(3) == "m1"
    assert ownership.free == set()
    assert ownership.orders() == []


def test_one_that_stands_by_takes_all_that_a_lost_one_owned() -> None:
    ownership = of(3, 6, wanted=2)
    settle(ownership)
    assert ownership.lose("m0") == (0, 2, 4)
    assert settle(ownership) == [Order("m2", give=(0, 2, 4))]
    ownership.join("m0")
    assert settle(ownership) == [], "it stands by now"


def test_without_one_that_stands_by_survivors_share_and_give_back_later() -> None:
    ownership = of(3, 6, wanted=3)
    settle(ownership)
    ownership.lose("m1")
    assert settle(ownership) == [Order("m0", give=(1,)), Order("m2", give=(4,))]
    ownership.join("m1")
    orders = settle(ownership)
    assert [order.member for order in orders if order.release] == ["m0", "m2"] or sizes(ownership) == [2, 2, 2]
    assert sizes(ownership) == [2, 2, 2]


def test_what_was_given_is_given_to_nobody_else_until_it_is_released() -> None:
    ownership = of(1, 4, wanted=2)
    settle(ownership)
    ownership.join("m1")
    [order] = ownership.orders()
    assert order == Order("m0", release=(2, 3))
    assert ownership.orders() == [], "once"
    ownership.released("m0", {2})
    assert ownership.orders() == [Order("m1", give=(2,))]
    ownership.released("m0", {3})
    assert ownership.orders() == [Order("m1", give=(3,))]


def test_what_a_member_let_go_of_by_an_order_from_before_is_free() -> None:
    ownership = of(1, 2, wanted=2)
    settle(ownership)
    ownership.released("m0", {1, 5})
    assert ownership.free == {1}
    assert ownership.orders() == [Order("m0", give=(1,))]


def test_one_that_is_lost_while_it_lets_go_loses_everything() -> None:
    ownership = of(1, 4, wanted=2)
    settle(ownership)
    ownership.join("m1")
    ownership.orders()
    assert ownership.lose("m0") == (0, 1, 2, 3)
    assert settle(ownership) == [Order("m1", give=(0, 1, 2, 3))]
    assert ownership.lose("m0") == ()


def test_a_new_supervisor_adopts_what_runs() -> None:
    ownership = Ownership(range(4), 2)
    ownership.join("m0", {0, 1})
    ownership.join("m1", {2})
    ownership.join("m2")
    assert settle(ownership) == [Order("m1", give=(3,))]


def test_partitions_that_the_log_gains_go_to_the_owner_of_the_fewest() -> None:
    ownership = of(2, 3, wanted=2)
    settle(ownership)
    ownership.gain(range(5))
    assert settle(ownership) == [Order("m1", give=(3,)), Order("m0", give=(4,))] or sizes(ownership) == [2, 3]


EVENTS = st.lists(st.tuples(st.sampled_from(["join", "lose", "release", "gain", "orders"]), st.integers(0, 4)), max_size=60)


@given(events=EVENTS, partitions=st.integers(1, 12), wanted=st.integers(1, 4))
def test_no_partition_is_ever_given_twice_and_in_the_end_all_are_owned_evenly(events: list[tuple[str, int]], partitions: int, wanted: int) -> None:
    ownership = Ownership(range(partitions), wanted)
    owned: dict[str, set[int]] = {}
    leaving: dict[str, set[int]] = {}

    def carry_out() -> None:
        for order in ownership.orders():
            for partition in order.give:
                assert not any(partition in other for other in owned.values()), "two owners"
                owned[order.member].add(partition)
            assert set(order.release) <= owned[order.member]
            leaving[order.member] |= set(order.release)

    for what, number in events:
        name = f"m{number}"
        if what == "join" and name not in owned:
            owned[name], leaving[name] = set(), set()
            ownership.join(name)
        elif what == "lose" and name in owned:
            assert set(ownership.lose(name)) == owned.pop(name)
            leaving.pop(name)
        elif what == "release" and leaving.get(name):
            gone = leaving[name].pop()
            owned[name].discard(gone)
            ownership.released(name, {gone})
        elif what == "gain":
            partitions += 1
            ownership.gain(range(partitions))
        else:
            carry_out()
    for name in owned or {"m0": set()}:
        if name not in ownership.members:
            owned[name], leaving[name] = set(), set()
            ownership.join(name)
    for _ in range(200):
        for name, gone in leaving.items():
            ownership.released(name, gone)
            owned[name] -= gone
            gone.clear()
        carry_out()
    assert set().union(*owned.values()) == set(range(partitions))
    owners = sorted(len(partitions) for partitions in owned.values() if partitions)
    assert len(owners) <= max(wanted, 1) or len(owners) <= len(owned)
    assert owners[-1] - owners[0] <= 1
    assert len(owners) >= min(wanted, len(owned), partitions)
