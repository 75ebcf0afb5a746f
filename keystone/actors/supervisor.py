"""Creates the actors, asks for their health a few times a second, notices deaths, restarts, silence, and collects results.

A plain object in the driver. Ray restarts a session actor's process; the supervisor tells the new one to begin, and the
actor itself decides whether it can rebuild its state from what the log retains. A fleet actor is not restarted: the
schedule does not wait.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keystone.actors.loop import FAILED, FINISHED, NEW, OVER, READY, RUNNING
from keystone.actors.runtime import remote_class
from keystone.errors import KeystoneError

SILENCE_MAX_S = 20.0  # without an answer: dead or starved; either way the run cannot be trusted
RESTARTS_MAX = 5  # of one actor: what kills it again and again will not stop killing it
WARNINGS_MAX = 200  # of all actors, not taken yet
CALL_WAIT_S = 30.0  # for an order or a result


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
    kind: str  # fleet | session
    covers: str  # what is lost with it, for messages: "partitions 0, 2"
    handle: Any
    status: dict[str, Any] = field(default_factory=dict)
    pending: Any = None  # the question under way
    answered_at: float = field(default_factory=time.monotonic)
    restarts: int = 0
    is_down: bool = False
    fault: str | None = None

    @property
    def state(self) -> str:
        return str(self.status.get("state", NEW))


class Supervisor:
    """``launch`` -> ``wait_until(READY...)`` -> ``poll`` now and then -> ``order("finish")`` -> ``results`` -> ``stop``."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self.wards: list[Ward] = []
        self.notes: list[str] = []  # restarts that happened
        self.warnings: deque[tuple[str, str]] = deque(maxlen=WARNINGS_MAX)  # (actor, line) of actors' logs, for whoever drains it

    def add(self, kind: str, name: str, covers: str, cls: type, *arguments: Any) -> None:
        """Create an actor and tell it to begin. Session actors are restarted by Ray when their process dies."""
        restarts = RESTARTS_MAX if kind == "session" else 0
        handle = remote_class(cls, max_restarts=restarts, max_task_retries=0).remote(*arguments)
        handle.begin.remote()
        self.wards.append(Ward(name, kind, covers, handle))

    def of_kind(self, kind: str) -> list[Ward]:
        return [w for w in self.wards if w.kind == kind]

    def faults(self) -> list[str]:
        """One line for each actor that cannot go on."""
        return [w.fault for w in self.wards if w.fault is not None]

    def poll(self) -> None:
        """Take the answers that are there and ask again; waits for nothing."""
        import ray

        for ward in self.wards:
            if ward.fault is not None or ward.state == FINISHED:
                continue
            if ward.pending is not None:
                ready, _ = ray.wait([ward.pending], timeout=0)
                if ready:
                    self._take(ward)
                elif time.monotonic() - ward.answered_at > SILENCE_MAX_S:
                    ward.fault = f"{ward.name} ({ward.covers}) has not answered for {SILENCE_MAX_S:.0f} s"
            if ward.pending is None and ward.fault is None:
                ward.pending = ward.handle.status.remote()

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
            ward.restarts += 1
            ward.is_down = False
            self.notes.append(f"{ward.name} ({ward.covers}) died and was restarted{self._crash(ward.name)}")
        if status["state"] == NEW:
            ward.handle.begin.remote()
        if status["state"] == FAILED:
            ward.fault = f"{status['error']} ({ward.covers})"

    def _note_death(self, ward: Ward, error: Exception) -> None:
        import ray

        is_final = ward.kind != "session" or isinstance(error, ray.exceptions.ActorDiedError)
        if is_final:
            ward.fault = f"{ward.name} ({ward.covers}) died{self._crash(ward.name)}"
        elif not ward.is_down:
            ward.is_down = True

    def _crash(self, name: str) -> str:
        """The first line of what the dying process left, if it was a fatal signal of its own making."""
        path = self._work_dir / f"{name}.crash"
        text = path.read_text(errors="replace") if path.exists() else ""
        return f": {text.splitlines()[0]}" if text else ""

    def wait_until(self, states: tuple[str, ...], kind: str, *, seconds: float, is_stopped: Callable[[], bool] = lambda: False, pause_s: float = 0.05) -> bool:
        """Poll until every actor of ``kind`` is in one of ``states``, faulty, or the time is over, or ``is_stopped()``.

        True when all are in ``states``.
        """
        until = time.monotonic() + seconds
        while True:
            self.poll()
            wards = self.of_kind(kind)
            if all(w.state in states and not w.is_down for w in wards):
                return True
            if any(w.fault for w in wards) or time.monotonic() > until or is_stopped():
                return False
            time.sleep(pause_s)

    def wait_ready(self, *, seconds: float, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Until all are ready (or running). Raises ``SupervisionError`` with the reason when one cannot."""
        for kind in ("session", "fleet"):
            if not self.wait_until((READY, RUNNING, *OVER), kind, seconds=seconds, is_stopped=is_stopped) and not is_stopped():
                late = [w.fault or f"{w.name} is not ready after {seconds:.0f} s ({w.state})" for w in self.of_kind(kind) if w.state not in (READY, RUNNING)]
                raise SupervisionError("; ".join(late) or f"{kind} actors are not ready")

    def gather(self, kind: str, method: str, pending: dict[str, Any]) -> list[Any]:
        """Answers that have come to ``method``, and ask again; waits for nothing. ``pending`` is the caller's memory between calls."""
        import ray

        answers = []
        for ward in self.of_kind(kind):
            call = pending.get(ward.name)
            if call is not None:
                ready, _ = ray.wait([call], timeout=0)
                if not ready:
                    continue
                with suppress(ray.exceptions.RayError):  # ``poll`` tells of its death
                    answers.append(ray.get(call))
            pending[ward.name] = None if ward.fault is not None else getattr(ward.handle, method).remote()
        return answers

    def order(self, kind: str, method: str, *arguments: Any) -> None:
        """Call ``method`` on every living actor of ``kind`` and wait until all have taken the order."""
        import ray

        calls = [getattr(w.handle, method).remote(*arguments) for w in self.of_kind(kind) if w.fault is None]
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
                found.append(ray.get(ward.handle.result.remote(), timeout=CALL_WAIT_S))
            except ray.exceptions.RayError as error:
                ward.fault = f"{ward.name} ({ward.covers}) lost its result: {type(error).__name__}"
        return found

    def part_of(self, pid: int) -> str:
        """The part of the bill that a process belongs to: fleet, sessions or other."""
        for ward in self.wards:
            if ward.status.get("pid") == pid:
                return "fleet" if ward.kind == "fleet" else "sessions"
        return "other"

    def stop(self) -> None:
        """End all actors at once."""
        import ray

        for ward in self.wards:
            ray.kill(ward.handle, no_restart=True)
        self.wards = []
