"""Actors that outlive whoever made them: found by name in the cluster that this process has joined."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from keystone.actors.joining import NAMESPACE
from keystone.actors.runtime import remote_class
from keystone.errors import KeystoneError

PREFIX: Final = "lasting-"  # of names in Ray
ANSWER_S: Final = 10.0


class Unanswered(KeystoneError):
    """An actor did not answer: it, or its node, is dead or being started anew."""


def begin(name: str, cls: type, *arguments: Any) -> Any:
    """Make one. Ray starts it anew, with the same arguments, whenever its process or node is lost, and asks it again what it owes an answer to."""
    return remote_class(cls, name=PREFIX + name, lifetime="detached", max_restarts=-1, max_task_retries=-1).remote(*arguments)


def find(name: str) -> Any:
    """The actor of that name; None where there is none."""
    import ray

    with suppress(ValueError):
        return ray.get_actor(PREFIX + name, namespace=NAMESPACE)
    return None


def names() -> list[str]:
    """Of all that there are."""
    import ray

    found = ray.util.list_named_actors(all_namespaces=True)
    return sorted(one["name"].removeprefix(PREFIX) for one in found if one["namespace"] == NAMESPACE and one["name"].startswith(PREFIX))


def ask(actor: Any, method: str, *, wait_s: float = ANSWER_S) -> Any:
    """What ``method`` returns. Raises ``Unanswered``."""
    import ray

    try:
        return ray.get(getattr(actor, method).remote(), timeout=wait_s)
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError, ConnectionError) as error:  # the last: of the way to it, through a client server
        raise Unanswered(f"no answer within {wait_s:.0f} s ({type(error).__name__})") from error


def end(actor: Any) -> None:
    """End its process, and the actors that it made."""
    import ray

    ray.kill(actor)
