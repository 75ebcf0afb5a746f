"""``keystone demo``: devices and a run in one terminal, over a log of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import click

from keystone.run.options import CONTEXT

END_WAIT_S: Final = 10.0


@click.command("demo", context_settings=CONTEXT)
@click.option("--eps", type=click.FloatRange(1), default=40.0, help="Events a second: what a person can read.")
@click.option("--seconds", type=click.FloatRange(1), default=None, help="How long.  [default: until Ctrl-C]")
@click.option("--bad-paths", type=click.FloatRange(0, 1), default=0.3, help="Share of devices on a bad network path: without any, little happens.")
@click.option("--seed", type=click.IntRange(0), default=1, help="Which devices, and what befalls them.")
@click.option("--log", "log", default=None, metavar="URL", help="kafka://HOST[:PORT][,...][/TOPIC].  [default: an embedded log that is removed at the end]")
def demo_command(**given: Any) -> None:
    """Simulated devices, and what a run makes of them, in one terminal."""
    from keystone.actors.stopping import StopSignal

    with tempfile.TemporaryDirectory(prefix="keystone-demo-") as place, StopSignal() as stop:
        url = given["log"] or f"embedded:{Path(place) / 'log'}"
        sys.exit(_demo(url, given, stop, Path(place)))


def _demo(url: str, given: dict[str, Any], stop: Any, place: Path) -> int:
    from keystone.config import load
    from keystone.run.places import LATEST, Options, resolve
    from keystone.run.screen import StoryScreen
    from keystone.run.service import Service, failures

    config = load()
    places = resolve(Options(log=url, begin=LATEST), config)
    devices: list[subprocess.Popen[bytes]] = []

    def is_over() -> bool:
        return stop.is_asked() or (bool(devices) and devices[0].poll() is not None)

    def begin() -> None:
        stop.install()
        length = [] if given["seconds"] is None else ["--seconds", str(given["seconds"])]
        command = [sys.executable, "-m", "keystone", "simulate", "--log", url, "--eps", str(given["eps"]), "--seed", str(given["seed"]),
                   "--bad-paths", str(given["bad_paths"]), *length]  # fmt: skip
        with (place / "devices.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)  # noqa: S603 - our own
        devices.append(process)

    service = Service(places, config, session_actors=1, has_story=True, until_idle_s=None)
    with StoryScreen(shows_story=True) as screen:
        screen.say("starting: the first run on a machine compiles for about a minute")
        try:
            result = service.run(screen, is_over, begin)
        finally:
            _end(devices)
    for failure in failures(result):
        click.echo(f"FAILED: {failure}", err=True)
    if devices and devices[0].returncode not in (0, 1):
        shutil.copyfileobj((place / "devices.log").open(encoding="utf-8", errors="replace"), sys.stderr)
    return 1 if failures(result) else 0


def _end(devices: list[subprocess.Popen[bytes]]) -> None:
    for process in devices:
        process.terminate()
        try:
            process.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
