"""The circuit opens after failures, lets one try through, and waits ever longer; waits are drawn from their whole range."""

from __future__ import annotations

from keystone.sinks.circuit import Backoff, Circuit, State


def test_waits_double_up_to_their_bound_and_are_drawn_from_nothing_to_it() -> None:
    assert [Backoff(100, 1_000, lambda: 0.999).wait_ms(n) for n in (1, 2, 3, 4, 5, 100)] == [99, 199, 399, 799, 999, 999]
    assert Backoff(100, 1_000, lambda: 0.0).wait_ms(50) == 0


def test_it_opens_tries_once_and_closes() -> None:
    circuit = Circuit(2, Backoff(100, 1_000, lambda: 1.0))
    circuit.fail(0)
    assert circuit.may_try(0)
    circuit.fail(0)
    assert (circuit.state, circuit.opened) == (State.OPEN, 1)
    assert not circuit.may_try(199)
    assert circuit.may_try(200)
    assert circuit.start()
    assert not circuit.may_try(10_000)
    circuit.fail(300)
    assert not circuit.may_try(699)
    assert circuit.may_try(700)
    assert circuit.opened == 1
    circuit.start()
    circuit.succeed()
    assert (circuit.state, circuit.failures) == (State.CLOSED, 0)
    assert not circuit.start()


def test_a_receiver_that_names_a_time_is_left_alone_so_long() -> None:
    circuit = Circuit(5, Backoff(100, 1_000, lambda: 0.0))
    circuit.fail(0, wait_ms=7_000)
    assert not circuit.may_try(6_999)
    assert circuit.may_try(7_000)
