"""The supervisor between session actors and what is decided about them: loads come with their answers, orders go out, people are told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keystone.actors import supervising
from keystone.actors.loop import RUNNING
from keystone.actors.nodes import SESSION, SUPERVISOR
from keystone.actors.supervising import Keeper, SupervisorActor, SupervisorSpec
from keystone.actors.supervisor import Supervisor, Ward
from keystone.config import BalanceConfig

PATIENCE_S = 60
SKEWED = {0: 400_000, **dict.fromkeys(range(1, 8), 40_000)}


class Actor:
    """A session actor that obeys at once, unless it is ``slow``; and its handle."""

    def __init__(self, name: str) -> None:
        self.owned: set[int] = set()
        self.let_go: dict[int, int] = {}
        self.told: list[tuple[str, tuple[int, ...]]] = []
        self.is_slow = False
        self.ward = Ward(name, SESSION, "nothing yet", SimpleNamespace(give=self._call("give"), release=self._call("release")))

    def _call(self, what: str) -> Any:
        return SimpleNamespace(remote=lambda partitions: self.told.append((what, tuple(partitions))))

    def answer(self, loads: dict[int, int]) -> None:
        for what, partitions in self.told if not self.is_slow else ():
            if what == "give":
                self.owned |= set(partitions)
            for partition in self.owned.intersection(partitions if what == "release" else ()):
                self.owned.remove(partition)
                self.let_go[partition] = self.let_go.get(partition, 0) + 1
        self.told = self.told if self.is_slow else []
        known = {p: loads[p] for p in self.owned if p in loads}
        self.ward.status = {"state": RUNNING, "partitions": sorted(self.owned), "let_go": dict(self.let_go), "loads": known, "log_partitions": 8}


class Scene:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: dict[int, int], **rules: int | bool) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(supervising.time, "monotonic", lambda: self.now_s)
        self.keeper = Keeper(tmp_path, tuple(range(8)), 2, BalanceConfig(**rules))
        self.actors = [Actor("session-0"), Actor("session-1")]
        self.keeper.wards = [actor.ward for actor in self.actors]
        self.loads: dict[int, int] = {}
        self.pass_time(2)  # all is given before anything is known of loads
        self.loads = loads

    def pass_time(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            for actor in self.actors:
                actor.answer(self.loads)
                self.keeper._note_answer(actor.ward, {})
            self.keeper._carry_out()
            self.now_s += 0.25

    def owned(self) -> list[set[int]]:
        return [actor.owned for actor in self.actors]


EVEN = [{0, 2, 4, 6}, {1, 3, 5, 7}]
BY_LOAD = [{0}, set(range(1, 8))]


def test_an_owner_that_carries_too_much_gives_away_and_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch, SKEWED)
    assert scene.owned() == EVEN
    scene.pass_time(PATIENCE_S - 1)
    assert (scene.owned(), scene.keeper.notes) == (EVEN, [])
    scene.pass_time(5)
    assert scene.owned() == BY_LOAD
    assert scene.keeper.notes == ["session-0 carries 75 % of the load: partitions 2 to session-1, 4 to session-1, 6 to session-1"]
    scene.pass_time(10 * PATIENCE_S)
    assert scene.owned() == BY_LOAD
    assert len(scene.keeper.notes) == 1


@pytest.mark.slow
def test_even_loads_and_those_that_nobody_tells_move_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for loads in (dict.fromkeys(range(8), 70_000), {}):
        scene = Scene(tmp_path, monkeypatch, loads)
        scene.pass_time(10 * PATIENCE_S)
        assert (scene.owned(), scene.keeper.notes) == (EVEN, [])


def test_nothing_moves_while_a_partition_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch, SKEWED)
    scene.pass_time(PATIENCE_S / 2)
    slow = scene.actors[1]
    slow.is_slow = True
    slow.owned.discard(1)
    slow.let_go[1] = 1  # given again, to whoever has least: itself
    scene.pass_time(2 * PATIENCE_S)
    assert slow.told == [("give", (1,))]
    assert scene.actors[0].owned == EVEN[0]
    slow.is_slow = False
    scene.pass_time(PATIENCE_S - 1)
    assert scene.owned() == EVEN, "patience begins when it is owned again"
    scene.pass_time(5)
    assert scene.owned() == BY_LOAD


def test_one_that_follows_another_leaves_what_was_spread_by_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch, SKEWED)
    scene.pass_time(2 * PATIENCE_S)
    assert scene.owned() == BY_LOAD
    scene.keeper = Keeper(tmp_path, tuple(range(8)), 2, BalanceConfig())
    scene.keeper.wards = [actor.ward for actor in scene.actors]
    scene.pass_time(3 * PATIENCE_S)
    assert (scene.owned(), scene.keeper.notes) == (BY_LOAD, [])


def test_near_the_end_what_moves_arrives_and_nothing_else_begins_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch, SKEWED)
    scene.actors[0].is_slow = True
    scene.pass_time(PATIENCE_S + 2)
    assert scene.actors[0].told == [("release", (2, 4, 6))]
    scene.keeper.settle()
    assert not scene.keeper.is_settled
    scene.actors[0].is_slow = False
    scene.pass_time(1)
    assert scene.owned() == BY_LOAD
    assert scene.keeper.is_settled
    scene.loads = dict.fromkeys(range(8), 40_000)
    scene.pass_time(3 * PATIENCE_S)
    assert scene.owned() == BY_LOAD


def test_the_actor_around_it_tells_when_all_is_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch, SKEWED)
    actor = SupervisorActor(SupervisorSpec("supervisor", str(tmp_path), (), tuple(range(8)), 2))
    monkeypatch.setattr(scene.keeper, "poll", lambda: scene.pass_time(1))
    actor._keeper = scene.keeper
    actor._turn()
    assert not actor.status()["is_settled"]
    actor.settle()
    actor._turn()
    assert actor.status()["is_settled"]
    for _ in range(3 * PATIENCE_S):
        actor._turn()
    assert scene.owned() == EVEN


# --- the driver's side --------------------------------------------------------------------------------------------------------
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, answers_after: int) -> tuple[Supervisor, list[int]]:
    """One whose supervisor actor says ``is_settled`` at that look, and the numbers of looks that were taken."""
    supervisor, looks = Supervisor(tmp_path), [0]
    keeper = Ward(SUPERVISOR, SUPERVISOR, "who owns what", SimpleNamespace(settle=SimpleNamespace(remote=lambda: None)))
    keeper.status = {"state": RUNNING, "is_owned": True, "is_settled": False}
    supervisor.wards = [keeper]

    def poll() -> None:
        looks[0] += 1
        keeper.status["is_settled"] = looks[0] >= answers_after

    monkeypatch.setattr(supervisor, "poll", poll)
    monkeypatch.setattr("keystone.actors.supervisor.SETTLE_PAUSE_S", 0.0)
    return supervisor, looks


def test_the_end_waits_until_nothing_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, looks = driver(tmp_path, monkeypatch, answers_after=3)
    supervisor.wait_owned(seconds=1)
    supervisor.settle()
    assert looks == [3]


def test_the_end_does_not_wait_for_what_never_was_or_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, looks = driver(tmp_path, monkeypatch, answers_after=1_000)
    supervisor.settle()
    assert looks == [0], "it was stopped before everything was owned"
    supervisor.wait_owned(seconds=1)
    supervisor.wards[0].is_down = True
    supervisor.settle()
    assert looks == [0], "nobody is there who could move anything"
    supervisor.wards[0].is_down, supervisor.wards[0].fault = False, "it died for good"
    supervisor.settle()
    assert looks == [0]
