"""``keystone doctor``: each thing that a run needs, one line each, with what to do where it is missing."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from keystone.errors import KeystoneError, UsageError
from keystone.run.options import CONTEXT, config_options, load_config

EXIT_FAIL: Final = 1
PYTHON_MIN: Final = (3, 11)
MEMORY_MIN_BYTES: Final = 2 << 30  # Ray, the interpreters, batches: what a small run takes
SHM_MIN_BYTES: Final = 256 << 20  # Ray's object store, and the embedded log's least
DISK_MIN_BYTES: Final = 1 << 30


class Check(NamedTuple):
    """One line: ``state`` is ok, note or FAIL."""

    state: str
    name: str
    text: str


@click.command("doctor", context_settings=CONTEXT)
@click.option("--log", "log", default=None, metavar="URL", help="The log a run would read.  [default: this user's embedded log]")
@click.option("--lake", default=None, metavar="DIR|s3://...", help="The lake a run would write.  [default: not looked at]")
@config_options
def doctor_command(**given: Any) -> None:
    """Look at everything a run needs. Exit status 1 if anything fails."""
    config = load_config(given["config_file"], given["settings"])
    from keystone import logs
    from keystone.actors.stopping import StopSignal

    failed = False
    with closing(logs.configure(config.logs)), StopSignal() as stop:  # in the middle of its start, Ray would leave its processes
        for check in checks(given["log"] or config.run.log, given["lake"] or config.run.lake, config):
            failed |= check.state == "FAIL"
            click.echo(f"{check.state:<4}  {check.name:<10} {check.text}")
            if stop.is_asked():
                raise KeyboardInterrupt
    sys.exit(EXIT_FAIL if failed else 0)


def checks(log: str | None, lake: str | None, config: Any) -> Iterator[Check]:
    """Every check, in the order in which a run would need it; one that breaks is a line too."""
    steps: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python), ("kernels", _kernels), ("ray", _ray), ("memory", _memory), ("shm", _shm),
        ("log", lambda: _log(log, config)),
    ]  # fmt: skip
    if lake is not None:
        steps.append(("lake", lambda: _bucket(lake) if "://" in lake else _lake(Path(lake))))
    for name, step in steps:
        try:
            yield from step()
        except KeystoneError as error:
            yield Check("FAIL", name, str(error))
        except Exception as error:  # noqa: BLE001 - a doctor that dies says nothing of the rest
            yield Check("FAIL", name, f"{type(error).__name__}: {error}".replace("\n", " "))


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON_MIN:
        yield Check("FAIL", "python", f"{version}: install Python 3.11 or newer")
    elif sys.byteorder != "little" or not sys.platform.startswith("linux"):
        yield Check("FAIL", "python", f"{sys.platform}, {sys.byteorder}-endian: kernels need Linux on a little-endian processor")
    else:
        yield Check("ok", "python", version)


def _kernels() -> Iterator[Check]:
    from keystone.kernels import warm

    warmth = warm()
    if warmth.directory is None:
        yield Check("note", "kernels", "compiled code cannot be kept: set KEYSTONE_CACHE_DIR to a directory that can be written, or each start compiles")
    else:
        yield Check("ok", "kernels", str(warmth))


def _ray() -> Iterator[Check]:
    from importlib.metadata import version

    from keystone.actors.runtime import probe

    yield Check("ok", "ray", f"{version('ray')}: started, and an actor answered (process {probe()})")


def _memory() -> Iterator[Check]:
    import psutil

    free = psutil.virtual_memory().available
    if free < MEMORY_MIN_BYTES:
        yield Check("FAIL", "memory", f"{free >> 20:,} MiB free, a run takes {MEMORY_MIN_BYTES >> 20:,} at least: end something else")
    else:
        yield Check("ok", "memory", f"{free >> 20:,} MiB free: about {free // 2 // 150 / 1e6:,.0f} million active sessions")


def _shm() -> Iterator[Check]:
    place = Path("/dev/shm")  # noqa: S108 - looked at, not written
    free = shutil.disk_usage(place).free if place.is_dir() else 0
    if free < SHM_MIN_BYTES:
        yield Check(
            "note", "shm", f"{place} has {free >> 20:,} MiB free: Ray and the embedded log go to {tempfile.gettempdir()} (in a container: --shm-size=2g)"
        )
    else:
        yield Check("ok", "shm", f"{place} has {free >> 20:,} MiB free")


def _log(text: str | None, config: Any) -> Iterator[Check]:
    from keystone.log.url import EmbeddedUrl, default_log_url, parse_log_url

    url = parse_log_url(text) if text is not None else default_log_url()
    if isinstance(url, EmbeddedUrl):
        yield from _embedded(url)
    else:
        yield from _kafka(url, config)


def _embedded(url: Any) -> Iterator[Check]:
    from keystone.log.url import open_embedded

    if not url.directory.exists():
        yield Check("ok", "log", f"{url}: not there yet, made by whoever comes first")
        return
    log = open_embedded(url, is_made=False)
    stats = [log.stats(p) for p in range(log.partitions)]
    log.close()
    yield Check("ok", "log", f"{url}: {len(stats)} partitions, {sum(s.events_appended for s in stats):,} events, {sum(s.lag_events for s in stats):,} not read")


def _kafka(url: Any, config: Any) -> Iterator[Check]:
    from keystone.log.kafka.client import KafkaClient
    from keystone.run.topics import findings

    client = KafkaClient(url.servers, config.kafka, role="doctor")
    try:
        client.connect()
        version = client.control.broker_version
        yield Check(
            "ok", "log", f"{url}: reached, Kafka {'.'.join(map(str, version)) if version else '?'} or newer, {len(client.control.cluster.brokers())} brokers"
        )
        found = list(findings(url, client, config, partitions=0))
        for finding in found:
            yield Check("FAIL" if finding.hurts else "note", "topics", f"{finding.topic}: {finding.text}")
        if not any(finding.hurts for finding in found):
            client.need_topic(url.topic, action="read")
            for name in (config.kafka.actions_topic, config.kafka.dead_letters_topic):
                client.need_topic(name, action="write")
            yield Check("ok", "topics", "nothing hurts; telemetry may be read, actions and dead letters written")
    finally:
        client.close()


def _bucket(lake: str) -> Iterator[Check]:
    from keystone.store import look_at_bucket, open_bucket

    open_bucket(lake)
    look_at_bucket(lake, makes_once=False)
    yield Check("ok", "lake", f"{lake}: can be listed, written, read and deleted from")
    try:
        look_at_bucket(lake, makes_once=True)
    except UsageError as error:
        yield Check("note", "lake", str(error))


def _lake(lake: Path) -> Iterator[Check]:
    try:
        lake.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=lake.parent, prefix=".keystone-doctor-"):
            pass
        with tempfile.TemporaryDirectory(dir=lake, prefix=".keystone-doctor-"):
            pass
    except OSError as error:
        yield Check("FAIL", "lake", f"{lake}: cannot be written: {error.strerror}: name another directory")
        return
    free = shutil.disk_usage(lake).free
    state = "ok" if free >= DISK_MIN_BYTES else "FAIL"
    yield Check(state, "lake", f"{lake}: can be written, {free >> 20:,} MiB free{'' if state == 'ok' else ': free some, a million events take 40 MiB'}")
