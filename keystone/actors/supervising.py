"""The supervisor actor: sees that every partition has an owner, from a process of its own.

What it knows it can ask for anew, so its death is survived: the one that Ray starts after it finds the session actors by their names,
hears what they own, and goes on. Partitions of one that died, or that has not answered for ``SILENCE_S``, go to one that stands
by, or to the survivors, at once. One that was only silent finds itself fenced when it goes on, ends itself, and is started anew.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keystone.actors.loop import READY, RUNNING, LoopActor
from keystone.actors.nodes import COMMITTER, SESSION, SUPERVISOR
from keystone.actors.supervisor import SILENCE_S, Supervisor, Ward, covers
from keystone.config import BalanceConfig
from keystone.ownership import BALANCE, Ownership

LOOK_EVERY_S: Final = 0.1  # a death is known when the answer to a question fails: so long after it at most; a question costs ~1 ms of CPU
ADOPT_WAIT_S: Final = SILENCE_S  # for what the actors say they own, before anything is given away
BUILD_WAIT_S: Final = 120.0  # more, where nobody owns anything yet: all are being built
OWN: Final = "own"  # count of those that were fenced
EXPECTED_EVERY_S: Final = 1.0  # between two looks for actors that are still to come
NOTES_MAX: Final = 100  # not told yet


class Keeper(Supervisor):
    """A ``Supervisor`` of actors that another one made, which gives them their partitions."""

    drains = False

    def __init__(self, work_dir: Path, partitions: tuple[int, ...], owners_wanted: int, balance: BalanceConfig = BALANCE) -> None:
        super().__init__(work_dir)
        self._ownership = Ownership(partitions, owners_wanted, balance)
        self._adopting_until_s: float | None = time.monotonic() + ADOPT_WAIT_S
        self._seen: dict[str, set[int]] = {}  # partitions that an actor has said to own
        self._let_go: dict[str, dict[int, int]] = {}  # how often an actor has said to have let go of each partition
        self._committed: dict[int, int] = {}
        self._expected: list[tuple[str, str, str]] = []  # kind, name and name in Ray of actors that are not there yet
        self._looked_s = float("-inf")  # for these

    def adopt(self, kind: str, name: str, actor_name: str) -> None:
        """Watch over an actor, as soon as it is there."""
        self._expected.append((kind, name, actor_name))

    def want(self, owners: int, wards: Iterable[tuple[str, str, str]], retiring: Iterable[str]) -> None:
        """So many session actors shall own partitions, none of them ``retiring``; ``wards`` are all that there are, those to come included."""
        known = {ward.name for ward in self.wards} | {name for _, name, _ in self._expected}
        self._expected += [ward for ward in wards if ward[1] not in known]
        self._ownership.want(owners)
        self._ownership.retire(retiring)

    @property
    def retiring(self) -> list[str]:
        """Session actors that shall own nothing, for their nodes leave."""
        return sorted(self._ownership.retiring)

    def settle(self) -> None:
        """The end is near: nothing moves any more, so that no owner ends while something is on its way to it."""
        self._ownership.stay()

    @property
    def is_settled(self) -> bool:
        """Whether every owner has said to own what it is to keep."""
        return self._ownership.is_settled and self.is_owned()

    @property
    def owners_wanted(self) -> int:
        """How many session actors shall own partitions."""
        return self._ownership.owners_wanted

    def _adopt_expected(self) -> None:
        import ray

        self._looked_s = time.monotonic()
        for expected in list(self._expected):
            kind, name, actor_name = expected
            with suppress(ValueError):  # it is not there yet
                self.wards.append(Ward(name, kind, "nothing yet", ray.get_actor(actor_name, namespace="keystone"), actor_name))
                self._expected.remove(expected)

    def poll(self) -> None:
        if self._expected and time.monotonic() - self._looked_s > EXPECTED_EVERY_S:
            self._adopt_expected()
        super().poll()
        if self._adopting_until_s is not None:
            are_owned = any(ward.status.get("partitions") for ward in self.of_kind(SESSION))
            until_s = self._adopting_until_s + (0.0 if are_owned else BUILD_WAIT_S)
            if any(ward.state not in (READY, RUNNING) for ward in self.of_kind(SESSION)) and time.monotonic() < until_s:
                return
            self._adopting_until_s = None
        self._carry_out()

    def is_owned(self) -> bool:
        """Whether every partition was given to somebody who has said that it owns it."""
        members = self._ownership.members
        return not self._ownership.free and all(member.given <= self._seen.get(name, set()) for name, member in members.items())

    def lost(self) -> list[str]:
        return [ward.name for ward in self.of_kind(SESSION) if ward.is_lost]

    # --- what comes of answers ------------------------------------------------------------------------------------------
    def _note_answer(self, ward: Ward, before: dict[str, Any]) -> None:  # noqa: ARG002 - compared with what was passed on
        if ward.kind == COMMITTER:
            self._pass_on_committed(ward.status.get("committed", {}))
        elif ward.kind == SESSION and ward.status["state"] in (READY, RUNNING):
            self._note_session(ward)

    def _note_session(self, ward: Ward) -> None:
        owned = set(ward.status.get("partitions", ()))
        before, self._let_go[ward.name] = self._let_go.get(ward.name, {}), dict(ward.status.get("let_go", {}))
        member = self._ownership.members.get(ward.name)
        if member is None:  # what it believes to own is its own, unless others were given it: then it will find itself fenced
            ward.is_lost = ward.is_down = False  # what was unavailable may come back as it was
            self._seen[ward.name] = owned
            self._ownership.join(ward.name, owned & self._ownership.free)
            self._ownership.note_loads(ward.name, ward.status.get("loads", {}))
            return
        seen = self._seen.setdefault(ward.name, set())
        # Not what it does not own: it may have been asked before it took over, or have let go before it was asked again. And also
        # what we did not tell it to: a supervisor before us may have.
        self._ownership.released(ward.name, {p for p, count in self._let_go[ward.name].items() if count > before.get(p, 0)} - owned)
        self._seen[ward.name] = seen & member.given | owned
        self._ownership.gain(range(ward.status.get("log_partitions", 0)))
        self._ownership.note_loads(ward.name, ward.status.get("loads", {}))

    def _note_fenced(self, ward: Ward) -> None:
        """It came back, found that others own its partitions, and ended itself."""
        import ray

        if ward.is_down:  # it was told to end, and answers once more
            return
        self._fenced[OWN] = self.fenced_writes + 1
        self.notes.append(f"{ward.status['error']}: started anew")
        self._lose(ward, "was fenced")
        ward.is_down = True
        ray.kill(ward.handle, no_restart=False)

    def _note_silence(self, ward: Ward, silent_s: float) -> None:
        if ward.kind == SESSION and silent_s > SILENCE_S and not ward.is_lost and self.other_answers(ward):
            ward.is_lost = True
            self._lose(ward, f"has not answered for {SILENCE_S:.0f} s")

    def _note_restart(self, ward: Ward) -> None:
        super()._note_restart(ward)
        self.notes.pop()  # the one who made it says so

    def _count_death(self, ward: Ward) -> None:
        super()._count_death(ward)
        self._lose(ward, "died")

    # --- what is done about it --------------------------------------------------------------------------------------------
    def _lose(self, ward: Ward, why: str) -> None:
        self._seen.pop(ward.name, None)
        free = self._ownership.lose(ward.name)
        if free:
            self.notes.append(f"{ward.name} {why}: {covers(free)} to be taken over")

    def _carry_out(self) -> None:
        handles = {ward.name: ward.handle for ward in self.of_kind(SESSION)}
        while orders := self._ownership.orders(time.monotonic(), may_move=self.is_owned()):
            for order in orders:
                if order.give:
                    handles[order.member].give.remote(order.give)
                if order.release:
                    handles[order.member].release.remote(order.release)
        self.notes += self._ownership.notes
        self._ownership.notes.clear()

    def _pass_on_committed(self, committed: dict[int, int]) -> None:
        if committed and committed != self._committed:
            self._committed = committed
            for session in self.of_kind(SESSION):
                session.handle.committed.remote(committed)


@dataclass(frozen=True, slots=True)
class SupervisorSpec:
    """``wards``: kind, name and name in Ray of each actor to watch over. ``owners_wanted``: of these, how many session actors own partitions."""

    name: str
    work_dir: str
    wards: tuple[tuple[str, str, str], ...]
    partitions: tuple[int, ...]
    owners_wanted: int
    balance: BalanceConfig = BALANCE


class SupervisorActor(LoopActor):
    """A ``Keeper`` in a process of its own."""

    def __init__(self, spec: SupervisorSpec) -> None:
        super().__init__(spec.name, spec.work_dir)
        self._spec = spec
        self._keeper: Keeper | None = None
        self._notes: deque[str] = deque(maxlen=NOTES_MAX)
        self._settle_asked = threading.Event()
        self._is_settling = False
        self._wishes: deque[tuple[int, tuple[tuple[str, str, str], ...], tuple[str, ...]]] = deque()

    def want(self, owners: int, wards: tuple[tuple[str, str, str], ...], retiring: tuple[str, ...]) -> None:
        """More session actors shall own partitions, or others (``Keeper.want``)."""
        self._wishes.append((owners, wards, retiring))

    def settle(self) -> None:
        """Nothing moves any more (``Keeper.settle``); ``status`` tells ``is_settled`` when what was on its way has arrived."""
        self._settle_asked.set()

    def _build(self) -> None:
        spec = self._spec
        self._keeper = Keeper(Path(spec.work_dir), spec.partitions, spec.owners_wanted, spec.balance)
        for kind, name, actor_name in spec.wards:
            self._keeper.adopt(kind, name, actor_name)

    def _turn(self) -> float:
        assert self._keeper is not None  # noqa: S101 - built
        while self._wishes:
            self._keeper.want(*self._wishes.popleft())
        if self._settle_asked.is_set() and not self._is_settling:
            self._is_settling = True
            self._keeper.settle()
        self._keeper.poll()
        while self._keeper.notes:
            self._notes.append(self._keeper.notes.pop(0))
        return LOOK_EVERY_S

    def _is_over(self) -> bool:
        return self._finish_asked.is_set()

    def _close(self) -> None:
        """The actors go on; somebody else ends them."""

    def _told_once(self) -> dict[str, Any]:
        return super()._told_once() | {"notes": [self._notes.popleft() for _ in range(len(self._notes))]}

    def _counters(self) -> dict[str, Any]:
        keeper = self._keeper
        return {
            "owners_wanted": keeper.owners_wanted if keeper is not None else self._spec.owners_wanted,
            "retiring": keeper.retiring if keeper is not None else [],
            "is_owned": keeper is not None and keeper.is_owned(),
            "is_settled": keeper is not None and self._is_settling and keeper.is_settled,
            "fenced_writes": keeper.fenced_writes if keeper is not None else 0,
            "lost": keeper.lost() if keeper is not None else [],
            "faults": keeper.faults() if keeper is not None else [],
        }


def appoint(supervisor: Supervisor, partitions: Iterable[int], owners_wanted: int, later: Iterable[str] = (), balance: BalanceConfig = BALANCE) -> None:
    """From now on every one of ``partitions`` shall have an owner among the session actors, and another when that is lost.

    ``later``: names of session actors that are added afterwards. ``balance``: when partitions move because loads are uneven.
    """
    wards = tuple((ward.kind, ward.name, ward.actor_name) for ward in supervisor.wards if ward.kind in (SESSION, COMMITTER))
    wards += tuple((SESSION, name, supervisor.actor_name(name)) for name in later)
    spec = SupervisorSpec(SUPERVISOR, str(supervisor.work_dir), wards, tuple(partitions), owners_wanted, balance)
    supervisor.add(SUPERVISOR, SUPERVISOR, "who owns what", SupervisorActor, spec)
