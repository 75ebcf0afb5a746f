"""The supervisor: ``keystone.actors.supervising.Keeper`` without Ray; what it tells ``Ownership`` is the same.

Beyond it, a committer that has long been silent gets a successor while it may still go on: two at once must do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from keystone.actors.loop import FAILED, READY, RUNNING
from keystone.actors.supervising import ADOPT_WAIT_S
from keystone.actors.supervisor import SILENCE_S
from keystone.ownership import Ownership
from tests.simulation.owners import CONFIG, Actor, CommitterProcess, OwnerProcess, Place
from tests.simulation.world import Mailbox, Process

SESSION, COMMITTER = "session", "committer"


@dataclass
class Ward:
    name: str
    kind: str
    actor: Actor
    to: Mailbox
    back: Mailbox
    status: dict[str, Any] = field(default_factory=dict)
    is_asked: bool = False
    answered_ms: int = 0
    is_down: bool = False
    is_lost: bool = False
    let_go: dict[int, int] = field(default_factory=dict)
    doubled: int = 0  # how often another was started beside it: what was asked of the earlier one is not this one's answer


class Supervisor(Process):
    def __init__(self, place: Place, owners: int, wanted: int, partitions: int, before: Supervisor | None = None) -> None:
        """``before``: one that died, whose actors go on."""
        super().__init__(place.world, "supervisor")
        self.place = place
        self.ownership = Ownership(range(partitions), wanted, CONFIG.balance)
        self._news: list[tuple[Ward, int, Actor, dict[str, Any] | None]] = []  # int: ``doubled`` when it was asked
        self._adopting_until_ms = self.world.now_ms + int(ADOPT_WAIT_S * 1_000) if before is not None else 0
        if before is not None:
            self.wards = [self._adopted(ward) for ward in before.wards]
        else:
            self.wards = [self._ward(f"s{number}", SESSION) for number in range(owners)] + [self._ward("c", COMMITTER)]
        self.spawn("polls", self._live)

    def sessions(self) -> list[Ward]:
        return [ward for ward in self.wards if ward.kind == SESSION]

    def owners(self) -> list[OwnerProcess]:
        return [ward.actor for ward in self.sessions() if isinstance(ward.actor, OwnerProcess) and not ward.actor.is_dead]

    def want(self, owners: int) -> None:
        self.ownership._wanted = owners

    def double_committer(self) -> None:
        """Another, while the one there goes on until it notices."""
        for ward in self.wards:
            if ward.kind == COMMITTER:
                self._double(ward)

    def _double(self, ward: Ward) -> None:
        ward.doubled += 1
        self._start(ward, 0)

    # --- actors -------------------------------------------------------------------------------------------------------------
    def _ward(self, name: str, kind: str) -> Ward:
        ward = Ward(name, kind, None, None, None, answered_ms=self.world.now_ms)  # type: ignore[arg-type]
        self._start(ward, 0)
        return ward

    def _adopted(self, before: Ward) -> Ward:
        actor = before.actor
        ward = Ward(before.name, before.kind, actor, before.to, Mailbox(self.world, self), answered_ms=self.world.now_ms)
        actor.on_death = lambda: self._restart(ward, actor)
        if actor.is_dead:
            self._start(ward, 1_000)
        return ward

    def _start(self, ward: Ward, delay_ms: int) -> None:
        actor = OwnerProcess(self.place, ward.name, delay_ms) if ward.kind == SESSION else CommitterProcess(self.place, ward.name, delay_ms)
        ward.actor, ward.to, ward.back = actor, Mailbox(self.world, actor), Mailbox(self.world, self)
        ward.is_asked = False
        actor.on_death = lambda: self._restart(ward, actor)

    def _restart(self, ward: Ward, dead: Actor) -> None:
        """Ray's part: a dead process is noticed and started anew."""
        if self.is_dead or ward.actor is not dead:
            return
        to_us, delay_ms = Mailbox(self.world, self), self.world.rng.choice((0, 100, 1_000))
        was_asked = ward.is_asked
        has_answered = bool(ward.back.letters) or any(w is ward and d == ward.doubled for w, d, *_ in self._news)  # a question has one outcome
        self._start(ward, self.world.rng.choice((500, 4_000)))
        ward.is_asked = was_asked
        if was_asked and not has_answered:
            doubled = ward.doubled
            to_us.send(lambda: self._news.append((ward, doubled, dead, None)), delay_ms)

    def _delay_ms(self) -> int:
        return self.world.rng.choice((0, 1, 5, 200))

    def _ask(self, ward: Ward) -> None:
        actor, back, doubled = ward.actor, ward.back, ward.doubled

        def answer() -> None:
            status = actor.status()
            back.send(lambda: self._news.append((ward, doubled, actor, status)), self._delay_ms())

        ward.is_asked = True
        ward.to.send(answer, self._delay_ms())

    def _order(self, ward: Ward, what: str, told: Any) -> None:
        actor = ward.actor
        assert isinstance(actor, OwnerProcess)
        self.world.tell(f"order to {actor.incarnation}: {what} {told}")
        ward.to.send(lambda: actor.orders.append((what, told)), self._delay_ms())

    # --- the loop: see Supervisor.poll ----------------------------------------------------------------------------------------
    def _live(self) -> None:
        while True:
            self._poll()
            self.world.sleep(self.world.rng.choice((200, 600)))

    def _poll(self) -> None:
        news, self._news = self._news, []
        for ward, doubled, actor, status in news:
            if doubled != ward.doubled:
                continue
            ward.is_asked = False
            if status is None:
                self._note_death(ward)
            else:
                self._take(ward, actor, status)
        for ward in self.wards:
            if ward.is_asked:
                self._note_silence(ward)
            else:
                self._ask(ward)
        if all(ward.status.get("state") in (READY, RUNNING) for ward in self.sessions()) or self.world.now_ms >= self._adopting_until_ms:
            self._adopting_until_ms = 0
            self._carry_out()

    def _take(self, ward: Ward, actor: Actor, status: dict[str, Any]) -> None:
        before, ward.status, ward.answered_ms = ward.status, status, self.world.now_ms
        if before and before["incarnation"] != status["incarnation"]:
            self._note_restart(ward)
        if status["state"] == FAILED:
            if not ward.is_down:
                self._start_anew(ward, actor)
        elif ward.kind == SESSION:
            self._take_session(ward, actor)
        elif status["committed"] and status["committed"] != before.get("committed"):
            for session in self.sessions():
                self._order(session, "committed", status["committed"])

    def _take_session(self, ward: Ward, actor: Actor) -> None:
        ownership, status = self.ownership, ward.status
        if status["state"] not in (READY, RUNNING):
            return
        member = ownership.members.get(ward.name)
        if member is None:
            ward.is_lost = ward.is_down = False
            ward.let_go = dict(status["let_go"])
            ownership.join(ward.name, ownership.free.intersection(status["partitions"]))
            ownership.note_loads(ward.name, status["loads"])
            self.world.tell(f"{actor.incarnation} joins with {ownership.members[ward.name].given}")
            return
        before, ward.let_go = ward.let_go, dict(status["let_go"])
        ownership.released(ward.name, {p for p, count in ward.let_go.items() if count > before.get(p, 0)}.difference(status["partitions"]))
        ownership.gain(range(status["log_partitions"]))
        ownership.note_loads(ward.name, status["loads"])

    def _carry_out(self) -> None:
        by_name = {ward.name: ward for ward in self.sessions()}
        while orders := self.ownership.orders(self.world.now_s()):
            for order in orders:
                if order.give:
                    self._order(by_name[order.member], "give", order.give)
                if order.release:
                    self._order(by_name[order.member], "release", order.release)
        for note in self.ownership.notes:
            self.world.count("moved by load" if " to " in note else "too hot", note)
        self.ownership.notes.clear()

    def _note_silence(self, ward: Ward) -> None:
        silent_ms = self.world.now_ms - ward.answered_ms
        if silent_ms <= SILENCE_S * 1_000:
            return
        if ward.kind == COMMITTER:
            ward.answered_ms = self.world.now_ms
            self._double(ward)
        elif not ward.is_lost and self._can_replace(ward):
            ward.is_lost = True
            self.world.count("lost", f"{ward.name} is silent")
            self.ownership.lose(ward.name)

    def _can_replace(self, ward: Ward) -> bool:
        late_ms = self.world.now_ms - SILENCE_S * 500
        return any(other is not ward and not other.is_lost and not other.is_down and other.answered_ms > late_ms for other in self.sessions())

    def _note_death(self, ward: Ward) -> None:
        if not ward.is_down:
            ward.is_down = True
            self.ownership.lose(ward.name)

    def _note_restart(self, ward: Ward) -> None:
        if not ward.is_down:
            self.ownership.lose(ward.name)
        ward.is_down = ward.is_lost = False

    def _start_anew(self, ward: Ward, actor: Actor) -> None:
        """It was fenced, and ended itself."""
        self.ownership.lose(ward.name)
        ward.is_down = True
        if not actor.is_dead:
            self.world.kill(actor, "told to end")
