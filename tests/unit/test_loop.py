"""An actor's life as a plain object: built patiently, ended early, fenced."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keystone.actors import loop
from keystone.actors.loop import FAILED, FINISHED, RUNNING, LoopActor
from keystone.errors import Fenced, KeystoneError, LogUnreachable, SessionsFull, StoreUnavailable, UsageError


class Actor(LoopActor):
    """Its building does what it is told, and so do its turns."""

    def __init__(self, work_dir: Path, build: Callable[[], Any], *, patience_s: float = 60.0, turn: Callable[[], Any] = lambda: None) -> None:
        super().__init__("a", str(work_dir))
        self._builds, self._turns_do, self._patience_s = build, turn, patience_s

    def _build(self) -> None:
        self._patiently(self._builds, self._patience_s)

    def _turn(self) -> float:
        self._turns_do()
        return 0.01

    def _is_over(self) -> bool:
        return self._finish_asked.is_set()

    def _close(self) -> str:
        return "closed"

    def _counters(self) -> dict[str, Any]:
        return {}


def wait_for(actor: Actor, state: str) -> dict[str, Any]:
    until = time.monotonic() + 20
    while (status := actor.status())["state"] != state:
        assert time.monotonic() < until, status
        time.sleep(0.005)
    return status


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "BUILD_AGAIN_S", 0.01)


def failing(errors: list[KeystoneError]) -> Callable[[], None]:
    def build() -> None:
        if errors:
            raise errors.pop(0)

    return build


@pytest.mark.slow
def test_what_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    errors: list[KeystoneError] = [UsageError("nothing listens there"), LogUnreachable("no leader"), StoreUnavailable("full")]
    actor = Actor(tmp_path, failing(errors))
    actor.begin()
    wait_for(actor, RUNNING)
    assert errors == []
    actor.finish()
    wait_for(actor, FINISHED)
    assert actor.result() == "closed"


def test_what_cannot_pass_is_not_waited_for(tmp_path: Path) -> None:
    actor = Actor(tmp_path, failing([SessionsFull("too many")]))
    actor.begin()
    assert "SessionsFull: too many" in wait_for(actor, FAILED)["error"]


def test_patience_ends(tmp_path: Path) -> None:
    actor = Actor(tmp_path, failing([StoreUnavailable("full")] * 10_000), patience_s=0.05)
    actor.begin()
    assert wait_for(actor, FAILED)["error"] == "a: StoreUnavailable: full"


def test_one_that_is_told_to_finish_before_it_is_built_has_nothing_to_close(tmp_path: Path) -> None:
    actor = Actor(tmp_path, failing([StoreUnavailable("full")] * 10_000))
    actor.begin()
    time.sleep(0.05)
    actor.finish()
    assert wait_for(actor, FINISHED)["error"] is None
    assert actor.result() is None


@pytest.mark.slow
def test_one_that_lost_what_it_owns_says_so(tmp_path: Path) -> None:
    def fenced() -> None:
        raise Fenced("p00003", 1, 2)

    actor = Actor(tmp_path, lambda: None, turn=fenced)
    actor.begin()
    status = wait_for(actor, FAILED)
    assert status["is_fenced"]
    assert "p00003" in status["error"]


def test_what_is_told_once_is_told_to_whoever_drains(tmp_path: Path) -> None:
    actor = Actor(tmp_path, lambda: None)
    assert "warnings" in actor.status()
    assert "warnings" not in actor.status(drains=False)


@pytest.mark.slow
def test_a_process_collects_garbage_again_when_its_actor_is_over(tmp_path: Path) -> None:
    frozen, running = gc.get_freeze_count(), list[bool]()
    actor = Actor(tmp_path, lambda: None, turn=lambda: running.append(gc.isenabled()))
    actor.begin()
    wait_for(actor, RUNNING)
    actor.finish()
    wait_for(actor, FINISHED)
    assert set(running) == {False}
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
