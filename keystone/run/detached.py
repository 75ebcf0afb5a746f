"""A run that outlives whoever began it: an actor of the cluster, which Ray starts anew where its node is lost, and which then goes on.

``keystone run --detach NAME`` begins one, ``keystone status`` tells of all, ``keystone stop NAME`` ends one and shows what it did.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click

from keystone.actors import lasting
from keystone.actors.joining import AUTO, is_outside
from keystone.actors.runtime import INSIDE, RayRuntime, cluster_address
from keystone.config import Config
from keystone.errors import KeystoneError, UsageError
from keystone.run.options import ADDRESS, CONTEXT, check_target
from keystone.run.places import CONSOLE, NONE

LINES_MAX: Final = 50  # of what it said last
BEGIN_S: Final = 180.0  # until it says that it reads, or why not
END_S: Final = 300.0  # for its sums and last commits
LOOK_S: Final = 0.5
PLACES: Final = ("lake", "state", "dead_letters")  # options that may name a directory
STARTING, RUNNING, ENDED, FAILED = "starting", "running", "ended", "failed"


class Listener:
    """What a service says to people, kept for those who ask: the place of a screen."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=LINES_MAX)
        self.seen: dict[str, Any] = {}
        self.is_running = False

    def say(self, line: str, style: str | None = None) -> None:  # noqa: ARG002 - a screen's signature
        self.lines.append(line)

    def tell(self, scenes: list[dict[str, Any]]) -> None:
        """Nobody watches."""

    def status(self, at_s: float, seen: dict[str, Any]) -> None:  # noqa: ARG002 - a screen's signature
        self.seen, self.is_running = seen, True


class RunActor:
    """Begins at once. Started anew by Ray it resolves its places again, finds its state there, and goes on."""

    def __init__(self, name: str, given: dict[str, Any], config: Config) -> None:
        self._name, self._given, self._config = name, given, config
        self._listener = Listener()
        self._stop = threading.Event()
        self._began_s = time.time()
        self._report: dict[str, Any] | None = None
        self._error: str | None = None
        threading.Thread(target=self._live, name="run", daemon=True).start()

    def _live(self) -> None:
        from keystone import logs

        try:
            with closing(logs.configure(self._config.logs, path=Path(tempfile.gettempdir()) / f"keystone-{self._name}.log", role=self._name)):
                self._report = self._run()
        except KeystoneError as error:
            self._error = str(error)
        except Exception as error:  # noqa: BLE001 - told to whoever asks: nobody else would see it
            self._error = f"{type(error).__name__}: {error}"

    def _run(self) -> dict[str, Any]:
        from keystone.run.places import resolve
        from keystone.run.results import options_of, report_of
        from keystone.run.service import Service

        places = resolve(options_of(self._given, self._config), self._config)
        service = Service(
            places, self._config, session_actors=self._given["session_actors"], has_story=False, until_idle_s=self._given["until_idle"], address=INSIDE
        )
        return report_of(service.run(self._listener, self._stop.is_set), places, self._config)

    # --- asked ------------------------------------------------------------------------------------------------------------
    def status(self) -> dict[str, Any]:
        """``state began_s seen lines error``; ``seen``: rates and counts as a screen shows them."""
        state = FAILED if self._error else ENDED if self._report is not None else RUNNING if self._listener.is_running else STARTING
        return {
            "name": self._name,
            "state": state,
            "began_s": self._began_s,
            "seen": self._listener.seen,
            "lines": list(self._listener.lines),
            "error": self._error,
        }

    def stop(self) -> None:
        """Ask for a clean end."""
        self._stop.set()

    def report(self) -> dict[str, Any] | None:
        """What it did; None before its end."""
        return self._report


# --- commands -------------------------------------------------------------------------------------------------------------
def detach(given: dict[str, Any], config: Config) -> int:
    """Begin it, and wait until it reads; status 1 with its reason where it does not."""
    name = str(given["detach"])
    address = cluster_address(given["address"]) or AUTO
    given = placed(given, config, is_outside=is_outside(address))
    with RayRuntime(address=address):
        if lasting.find(name) is not None:
            raise UsageError(f"--detach {name}: there is a run of that name: keystone stop {name}, or another name")
        actor = lasting.begin(name, RunActor, name, given, config)
        _say_meanwhile(f"{name} is starting there: the first run on a machine compiles for about a minute")
        told = _begun(name, actor)
        for line in told["lines"]:
            click.echo(line)
        if told["state"] == FAILED:
            lasting.end(actor)
            raise UsageError(told["error"])
    where = f" --address {given['address']}" if given["address"] not in {None, AUTO} else ""
    if told["state"] == STARTING:
        click.echo(f"{name} does not read yet after {BEGIN_S:.0f} s: keystone status{where} tells when it does, or why not")
    click.echo(f"{name} goes on by itself: keystone status{where}, keystone stop {name}{where}")
    return 0


def _begun(name: str, actor: Any) -> dict[str, Any]:
    """Its status, once it says that it reads, or why not, or takes too long. ``UsageError`` where it does not come up."""
    until_s = time.monotonic() + BEGIN_S
    try:
        while (told := lasting.ask(actor, "status", wait_s=BEGIN_S))["state"] == STARTING and time.monotonic() < until_s:
            time.sleep(LOOK_S)
    except lasting.Unanswered as error:
        lasting.end(actor)
        raise UsageError(f"--detach {name}: it did not come up there ({error}): is the same Keystone installed on the nodes?") from error
    return dict(told)


@click.command("status", context_settings=CONTEXT)
@click.option("--address", default=AUTO, metavar=ADDRESS, help="The Ray cluster.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object a run, with its last lines.")
def status_command(address: str, is_json: bool) -> None:  # noqa: FBT001 - a flag
    """Tell of the detached runs of a cluster, one a line. Exit status: 0, or 1 where one has failed, or 2 where no cluster is."""
    with RayRuntime(address=address):
        told = [_status(name) for name in lasting.names()]
    for one in told:
        click.echo(json.dumps(one) if is_json else line_of(one))
    if not told and not is_json:
        click.echo("no detached run there: keystone run --detach NAME begins one")
    sys.exit(1 if any(one["state"] == FAILED for one in told) else 0)


@click.command("stop", context_settings=CONTEXT)
@click.argument("name")
@click.option("--address", default=AUTO, metavar=ADDRESS, help="The Ray cluster.")
@click.option("--report", type=click.Path(dir_okay=False), default=None, help="Write what the run did here, as JSON.")
def stop_command(name: str, address: str, report: str | None) -> None:
    """End a detached run: sums, last checkpoints and commits included. Exit status: 0, or 1 where its sums are not right."""
    check_target("--report", report)
    with RayRuntime(address=address):
        actor = lasting.find(name)
        if actor is None:
            raise UsageError(f"stop {name}: no detached run of that name there; these are: {', '.join(lasting.names()) or 'none'}")
        lasting.ask(actor, "stop")
        _say_meanwhile(f"{name} is ending: sums, last checkpoints and commits")
        until_s = time.monotonic() + END_S
        while (told := lasting.ask(actor, "status"))["state"] not in (ENDED, FAILED) and time.monotonic() < until_s:
            time.sleep(LOOK_S)
        found = lasting.ask(actor, "report")
        lasting.end(actor)
    if found is None:
        click.echo(f"{name}: {told['error'] or f'did not end within {END_S:.0f} s, and was killed: the next run goes on from its state'}", err=True)
        sys.exit(1)
    if report is not None:
        Path(report).write_text(json.dumps(found, indent=2) + "\n")
    ledger = found["ledger"]
    click.echo(f"{name}: {ledger['received']:,} events received in {found['seconds']:.0f} s, {found['alerts']:,} alerts, {found['sessions']:,} sessions")
    for failure in found["failures"]:
        click.echo(f"FAILED: {failure}", err=True)
    sys.exit(1 if found["failures"] else 0)


def line_of(told: dict[str, Any]) -> str:
    """One run, for people."""
    from keystone.run.scenes import span, status_line

    began = span(max(0.0, time.time() - told["began_s"]) * 1_000)
    about = status_line(told["seen"]) if told["state"] == RUNNING and told["seen"] else told["error"] or (told["lines"] or [""])[-1]
    return f"{told['name']}  {told['state']}, begun {began} ago  {about}"


def _say_meanwhile(line: str) -> None:
    """To a person who waits; nobody else reads it."""
    if sys.stderr.isatty():
        click.echo(line, err=True)


def placed(given: dict[str, Any], config: Config, *, is_outside: bool) -> dict[str, Any]:
    """``given`` with places as the actor finds them, which has another working directory. ``UsageError`` for what it would not find, or misses.

    ``is_outside``: this machine is no node of the cluster, so that a directory is one of the nodes' and can only be written from the root.
    """
    name = given["detach"]
    chosen = {option: given[option] if given[option] is not None else getattr(config.run, option) for option in ("log", *PLACES)}
    if given["report"] is not None:
        raise UsageError(f"--detach {name}: what a run did is known at its end: leave out --report here, and say keystone stop {name} --report FILE then")
    if chosen["state"] is None and chosen["lake"] is None:
        raise UsageError(f"--detach {name}: a run that may be started anew goes on from its state: say --state s3://BUCKET/PREFIX, or a directory of all nodes")
    if is_outside and chosen["log"] is None:
        raise UsageError(f"--detach {name}: the log of this machine is not the cluster's: say --log kafka://HOST:PORT, as the nodes reach it")
    for option in PLACES:
        place = chosen[option]
        if place is None or "://" in place or place in {CONSOLE, NONE}:
            continue
        if is_outside and not Path(place).is_absolute():
            word = f"--{option.replace('_', '-')} {place}"
            raise UsageError(f"{word}: seen from outside of a cluster, a directory is one of its nodes: write it from the root, such as /shared/{place}")
        chosen[option] = str(Path(place).absolute())
    return dict(given) | chosen


def _status(name: str) -> dict[str, Any]:
    try:
        told: dict[str, Any] = lasting.ask(lasting.find(name), "status")
    except (lasting.Unanswered, AttributeError) as error:
        return {"name": name, "began_s": time.time(), "seen": {}, "lines": [], "state": STARTING, "error": str(error)}
    return told
