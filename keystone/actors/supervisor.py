"""Creates the actors, asks for their health several times a second, notices deaths, restarts and silence, and collects results.

A plain object in the driver. Who owns which partition is decided by an actor of its own (``supervising``), which this one creates:
it can die, and the driver can be slow, without the other. Ray restarts the process of any actor but a fleet's, which
sends by a schedule that does not wait.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keystone.actors.loop import FAILED, FINISHED, NEW, OVER, READY, RUNNING
from keystone.actors.nodes import FLEET, SESSION, SUPERVISOR, Placement
from keystone.actors.runtime import remote_class
from keystone.errors import KeystoneError

Arguments = Mapping[str, tuple[Any, ...]]  # of a call, by the actor's name; none without

SILENCE_MAX_S = 20.0  # without an answer: dead or starved; either way the run cannot be trusted
STARTING_MAX_S = 120.0  # ... since it was created: its process starts on another node, perhaps, beside many others
BUILD_AFTER_S = 3.0  # of the death of a session actor: building takes ~3 s of CPU, and taking over ~1 s
SILENCE_S = 5.0  # of a session actor alone, after which others take its partitions: answers take 0.1 s on a busy machine, 1 s at worst
DEATHS_MAX = 10  # of session actors within DEATHS_OVER_S: what kills them again and again will not stop killing them
DEATHS_OVER_S = 60.0
WARNINGS_MAX = 200  # of all actors, not taken yet
CALL_WAIT_S = 30.0  # for an order or a result
SETTLE_PAUSE_S = 0.05  # between looks whether they have
SETTLE_MAX_S = 5.0  # for partitions that move as the end comes: they take 0.3 to 1 s


def shares(partitions: int, actors: int) -> list[tuple[int, ...]]:
    """Partitions dealt out to actors in turn; sizes differ by one at most."""
    return [tuple(range(actor, partitions, actors)) for actor in range(actors)]


def covers(partitions: tuple[int, ...]) -> str:
    """The partitions of an actor, for messages."""
    named = ", ".join(map(str, partitions[:8]))
    return f"partition{'s' if len(partitions) > 1 else ''} {named}{', ...' if len(partitions) > 8 else ''}"


class SupervisionError(KeystoneError):
    """An actor did not become what it was told to become."""


@dataclass(slots=True)
class Ward:
    """One actor under supervision. ``status`` is its last answer."""

    name: str
    kind: str  # FLEET, SESSION, COMMITTER or SUPERVISOR
    covers: str  # what is lost with it, for messages: "partitions 0, 2"
    handle: Any
    actor_name: str = ""  # in Ray
    status: dict[str, Any] = field(default_factory=dict)
    pending: Any = None  # the question under way
    answered_at: float = field(default_factory=time.monotonic)
    restarts: int = 0
    died_s: float = float("-inf")
    is_down: bool = False
    is_gone: bool = False  # down, and for good
    is_lost: bool = False  # its partitions were taken away, and it does not know
    fault: str | None = None

    @property
    def state(self) -> str:
        return str(self.status.get("state", NEW))


class Supervisor:
    """``add`` all -> ``wait_ready`` -> ``supervising.appoint`` -> ``wait_owned`` -> ``poll`` often -> ``order("finish")`` -> ``results`` -> ``stop``."""

    drains = True  # warnings and the like are told once: to this one

    def __init__(self, work_dir: Path, placement: Placement | None = None) -> None:
        self.work_dir = work_dir
        self.placement = placement or Placement()
        self._run = secrets.token_hex(4)  # actors of earlier runs in this Ray may not be gone yet
        self.wards: list[Ward] = []
        self.notes: list[str] = []  # restarts that happened
        self._fenced: dict[str, int] = {}  # by incarnation of the supervisor actor
        self.recoveries: list[dict[str, Any]] = []  # partitions taken over: by whom, how long it took
        self.warnings: deque[tuple[str, str]] = deque(maxlen=WARNINGS_MAX)  # (actor, line) of actors' logs, for whoever drains it
        self._was_owned = False
        self._finishing: set[str] = set()  # kinds that were told to finish: so is one that is started anew
        self._deaths: deque[float] = deque(maxlen=DEATHS_MAX)

    def add(self, kind: str, name: str, covers: str, cls: type, *arguments: Any) -> None:
        """Create an actor and tell it to begin."""
        actor_name = self.actor_name(name)
        restarts = 0 if kind == FLEET else -1
        handle = remote_class(cls, max_restarts=restarts, max_task_retries=0, name=actor_name, **self.placement.options(kind)).remote(*arguments)
        handle.begin.remote()
        self.wards.append(Ward(name, kind, covers, handle, actor_name))

    def actor_name(self, name: str) -> str:
        """What Ray knows it by."""
        return f"{name}-{self._run}"

    @property
    def fenced_writes(self) -> int:
        """Owners that came back, were refused, and ended themselves."""
        return sum(self._fenced.values())

    def of_kind(self, kind: str) -> list[Ward]:
        return [w for w in self.wards if w.kind == kind]

    def faults(self) -> list[str]:
        """One line for each actor that cannot go on."""
        return [w.fault for w in self.wards if w.fault is not None]

    def poll(self) -> None:
        """Take the answers that are there and ask again; waits for nothing."""
        import ray

        for ward in self.wards:
            if ward.fault is not None or ward.is_gone or ward.state == FINISHED:
                continue
            if ward.pending is not None:
                ready, _ = ray.wait([ward.pending], timeout=0)
                if ready:
                    self._take(ward)
                else:
                    self._note_silence(ward, time.monotonic() - ward.answered_at)
            if ward.pending is None and ward.fault is None and not ward.is_gone:
                ward.pending = ward.handle.status.remote(self.drains)

    def _take(self, ward: Ward) -> None:
        import ray

        try:
            status = ray.get(ward.pending)
        except ray.exceptions.RayActorError as error:
            self._note_death(ward, error)
            return
        finally:
            ward.pending = None
        before, ward.status, ward.answered_at = ward.status, status, time.monotonic()
        self.warnings += [(ward.name, line) for line in status.get("warnings", ())]
        if before and before["incarnation"] != status["incarnation"]:
            self._note_restart(ward)
        if ward.kind in self._finishing and (not before or before["incarnation"] != status["incarnation"]):
            ward.handle.finish.remote()  # it was not there when the others were told
        if status["state"] == NEW and self._may_build(ward):
            ward.handle.begin.remote()
        elif status["state"] == FAILED and status["is_fenced"]:
            self._note_fenced(ward)
        elif status["state"] == FAILED:
            ward.fault = f"{status['error']} ({self._covers(ward)})"
        else:
            self._note_answer(ward, before)

    def _may_build(self, ward: Ward) -> bool:
        """Not while another takes over what it owned: that cannot wait for the cores, this can."""
        others = (other for other in self.of_kind(ward.kind) if other is not ward and other.state in (READY, RUNNING) and not other.is_down)
        return ward.kind != SESSION or time.monotonic() - ward.died_s > BUILD_AFTER_S or not any(others)

    # --- what comes of answers ------------------------------------------------------------------------------------------
    def _note_answer(self, ward: Ward, before: dict[str, Any]) -> None:  # noqa: ARG002 - the other supervisor's concern
        status = ward.status
        self.recoveries += [{"actor": ward.name, **taking} for taking in status.get("takings", ())]
        if ward.kind == SUPERVISOR and status["state"] == RUNNING:
            self.notes += status["notes"]
            self._fenced[status["incarnation"]] = status["fenced_writes"]
            for other in self.of_kind(SESSION):
                other.is_lost = other.name in status["lost"]

    def _note_fenced(self, ward: Ward) -> None:
        """Another owns what it owned: the supervisor that gave it away starts it anew."""

    def _note_silence(self, ward: Ward, silent_s: float) -> None:
        limit_s = SILENCE_MAX_S if ward.status else STARTING_MAX_S
        if silent_s > limit_s and not (ward.kind == SESSION and self.other_answers(ward)):
            ward.fault = f"{ward.name} ({self._covers(ward)}) has not answered for {limit_s:.0f} s"

    def other_answers(self, ward: Ward) -> bool:
        """Whether another of its kind does: else it is this process, or the machine, that is slow."""
        now_s = time.monotonic()
        others = [other for other in self.of_kind(ward.kind) if other is not ward and not other.is_lost and not other.is_down]
        return any(now_s - other.answered_at < SILENCE_S / 2 for other in others)

    def _note_death(self, ward: Ward, error: Exception) -> None:
        import ray

        is_for_good = isinstance(error, ray.exceptions.ActorDiedError)
        if is_for_good and ward.kind == SESSION and self._has_others(ward):  # its node was drained: Ray makes it nowhere else
            if not ward.is_down:
                self._count_death(ward)
            ward.is_gone = True
            self.notes.append(f"{ward.name} ({self._covers(ward)}) is gone for good, as when its node leaves: others take what it owned")
        elif ward.kind == FLEET or is_for_good:
            ward.fault = f"{ward.name} ({self._covers(ward)}) died{self._crash(ward.name)}"
        elif not ward.is_down:
            self._count_death(ward)

    def _has_others(self, ward: Ward) -> bool:
        """Whether another session actor is there that can own partitions."""
        return any(other is not ward and other.state in (READY, RUNNING) and not other.is_down and not other.is_lost for other in self.of_kind(SESSION))

    def _note_restart(self, ward: Ward) -> None:
        if not ward.is_down:  # it was dead and alive again between two answers
            self._count_death(ward)
        ward.restarts += 1
        ward.is_down = ward.is_lost = False
        self.notes.append(f"{ward.name} ({self._covers(ward)}) died and was restarted{self._crash(ward.name)}")

    def _count_death(self, ward: Ward) -> None:
        ward.is_down = True
        ward.died_s = now_s = time.monotonic()
        if len(self._deaths) == DEATHS_MAX and now_s - self._deaths[0] < DEATHS_OVER_S:
            ward.fault = f"{DEATHS_MAX} actors died within {DEATHS_OVER_S:.0f} s, the last was {ward.name} ({self._covers(ward)}){self._crash(ward.name)}"
        self._deaths.append(now_s)

    def _covers(self, ward: Ward) -> str:
        """What is lost with it, for messages."""
        if ward.kind == SESSION and ward.status.get("partitions"):
            return covers(tuple(ward.status["partitions"]))
        return ward.covers

    def _crash(self, name: str) -> str:
        """The first line of what the dying process left, if it was a fatal signal of its own making."""
        path = self.work_dir / f"{name}.crash"
        text = path.read_text(errors="replace") if path.exists() else ""
        return f": {text.splitlines()[0]}" if text else ""

    def wait_until(self, states: tuple[str, ...], kind: str, *, seconds: float, is_stopped: Callable[[], bool] = lambda: False, pause_s: float = 0.05) -> bool:
        """Poll until every actor of ``kind`` is in one of ``states``, faulty, or the time is over, or ``is_stopped()``.

        True when all are in ``states``. Who has been replaced is not waited for to be over.
        """
        until = time.monotonic() + seconds
        while True:
            self.poll()
            wards = [ward for ward in self.of_kind(kind) if states != OVER or not self._is_replaced(ward)]
            if all(w.state in states and not w.is_down for w in wards):
                return True
            if any(w.fault for w in wards) or time.monotonic() > until or is_stopped():
                return False
            time.sleep(pause_s)

    def _is_replaced(self, ward: Ward) -> bool:
        """Whether it is gone, and others own all that it owned: where its node has left, nobody comes back, and it has nothing left to end."""
        if ward.kind != SESSION or (ward.status and not ward.is_down):
            return False
        others = (other.status.get("partitions", ()) for other in self.of_kind(SESSION) if other is not ward and not other.is_down and not other.is_lost)
        return set(ward.status.get("partitions", ())).issubset(set().union(*others))

    def wait_ready(self, *, seconds: float, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Until all are ready (or running). Raises ``SupervisionError`` with the reason when one cannot."""
        for kind in dict.fromkeys(ward.kind for ward in self.wards):
            if not self.wait_until((READY, RUNNING, *OVER), kind, seconds=seconds, is_stopped=is_stopped) and not is_stopped():
                late = [w.fault or f"{w.name} is not ready after {seconds:.0f} s ({w.state})" for w in self.of_kind(kind) if w.state not in (READY, RUNNING)]
                raise SupervisionError("; ".join(late) or f"{kind} actors are not ready")

    def wait_owned(self, *, seconds: float, is_stopped: Callable[[], bool] = lambda: False, pause_s: float = 0.05) -> None:
        """Until every partition is owned, and every owner has said so, or a stop. Raises ``SupervisionError`` where that takes too long."""
        until = time.monotonic() + seconds
        while not self.is_owned() and not is_stopped():
            if self.faults() or time.monotonic() > until:
                raise SupervisionError("; ".join(self.faults()) or f"not every partition has an owner after {seconds:.0f} s")
            time.sleep(pause_s)
            self.poll()
        self._was_owned = self.is_owned()

    def settle(self) -> None:
        """Before session actors are told to finish: what moves arrives, and nothing else begins to.

        Waits ``SETTLE_MAX_S`` at most, and not at all where not everything was ever owned.
        """
        until = time.monotonic() + SETTLE_MAX_S
        for ward in self.of_kind(SUPERVISOR):
            ward.handle.settle.remote()
        while self._was_owned and self._is_settling() and not self.faults() and time.monotonic() < until:
            time.sleep(SETTLE_PAUSE_S)
            self.poll()

    def _is_settling(self) -> bool:
        return any(not ward.is_down and not ward.status.get("is_settled", False) for ward in self.of_kind(SUPERVISOR))

    def is_owned(self) -> bool:
        """Whether, as far as is known here, every partition has an owner that has taken it over."""
        return any(not ward.is_down and ward.status.get("is_owned", False) for ward in self.of_kind(SUPERVISOR))

    def gather(self, kind: str, method: str, pending: dict[str, Any]) -> list[tuple[str, Any]]:
        """Answers that have come to ``method``, and ask again (``collect``, ``ask``)."""
        answers = self.collect(pending)
        self.ask(kind, method, pending)
        return answers

    def collect(self, pending: dict[str, Any]) -> list[tuple[str, Any]]:
        """Answers that have come to what was asked, with the names of actors; waits for nothing. ``pending`` is the caller's memory between calls."""
        import ray

        answers = []
        for name, call in list(pending.items()):
            ready, _ = ray.wait([call], timeout=0)
            if ready:
                del pending[name]
                with suppress(ray.exceptions.RayError):  # ``poll`` tells of its death
                    answers.append((name, ray.get(call)))
        return answers

    def ask(self, kind: str, method: str, pending: dict[str, Any], arguments: Arguments | None = None) -> None:
        """Ask every living actor of ``kind`` that owes no answer."""
        for ward in self.of_kind(kind):
            if ward.name not in pending and ward.fault is None and not ward.is_gone:
                pending[ward.name] = getattr(ward.handle, method).remote(*(arguments or {}).get(ward.name, ()))

    def ask_all(self, kind: str, method: str, seconds: float, arguments: Arguments | None = None) -> list[tuple[str, Any]]:
        """What every living actor of ``kind`` answers to ``method`` within ``seconds``, with its name."""
        import ray

        pending: dict[str, Any] = {}
        self.ask(kind, method, pending, arguments)
        until_s = time.monotonic() + seconds
        answers = []
        for name, call in pending.items():
            with suppress(ray.exceptions.RayError):  # ``poll`` tells of its death
                answers.append((name, ray.get(call, timeout=max(0.0, until_s - time.monotonic()))))
        return answers

    def order(self, kind: str, method: str, *arguments: Any) -> None:
        """Call ``method`` on every living actor of ``kind`` and wait until all have taken the order; who has not come up yet is told to finish then."""
        import ray

        if method == "finish":
            self._finishing.add(kind)
        calls = [getattr(w.handle, method).remote(*arguments) for w in self.of_kind(kind) if w.fault is None and not w.is_gone and w.status]
        for call in calls:
            try:
                ray.get(call, timeout=CALL_WAIT_S)
            except ray.exceptions.RayError as error:
                self.notes.append(f"{kind} actor did not take the order {method}: {type(error).__name__}")

    def results(self, kind: str) -> list[Any]:
        """The results of the actors of ``kind`` that finished."""
        import ray

        found = []
        for ward in self.of_kind(kind):
            if ward.state != FINISHED:
                continue
            try:
                result = ray.get(ward.handle.result.remote(), timeout=CALL_WAIT_S)
                found += [result] if result is not None else []  # none of one that was never built
            except ray.exceptions.RayError as error:
                ward.fault = f"{ward.name} ({ward.covers}) lost its result: {type(error).__name__}"
        return found

    def part_of(self, pid: int) -> str:
        """The part of the bill that a process belongs to: fleet, sessions or other."""
        for ward in self.wards:
            if ward.status.get("pid") == pid and not self.placement.is_joined:
                return self._part(ward)
        return "other"

    def used(self) -> list[tuple[str, str, float, int]]:
        """What actors of a cluster, which are no children of this process, last told: incarnation, part of the bill, CPU s, bytes of memory."""
        if not self.placement.is_joined:
            return []
        told = [(ward, ward.status) for ward in self.wards if ward.status]
        return [(s["incarnation"], self._part(ward), float(s["cpu_s"]), int(s["rss_bytes"])) for ward, s in told]

    @staticmethod
    def _part(ward: Ward) -> str:
        return "fleet" if ward.kind == FLEET else "sessions"

    def by_node(self, kind: str) -> dict[str, int]:
        """How many actors of ``kind`` are on each node, by its id, as they last said."""
        nodes = [str(ward.status["node"]) for ward in self.of_kind(kind) if ward.status and not ward.is_down]
        return {node: nodes.count(node) for node in sorted(set(nodes))}

    def stop(self) -> None:
        """End all actors at once."""
        import ray

        for ward in self.wards:
            ray.kill(ward.handle, no_restart=True)
        self.wards = []
