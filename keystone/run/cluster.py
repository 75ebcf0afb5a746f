"""A run on a Ray cluster: how many actors it takes, and that all nodes reach what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from keystone.actors.nodes import FLEET, SESSION, Placement, check_shared, living_nodes
from keystone.bench.machine import usable_cores
from keystone.config import Config
from keystone.errors import UsageError
from keystone.log.url import EmbeddedUrl
from keystone.run.places import Places

SHARED: Final = "name a directory that every node mounts, or s3://BUCKET/PREFIX"


def joined() -> Placement:
    """The nodes of the cluster that we have joined."""
    return Placement(tuple(living_nodes()), is_joined=True)


def fitted(wanted: int | None, partitions: int, standbys: int, placement: Placement) -> tuple[int, int]:
    """Session actors that own partitions, and such that stand by. ``wanted`` None: as many as there is room for, one of them for who stands by."""
    if not placement.is_spread and not placement.offered(SESSION):
        return min(partitions, wanted or max(1, usable_cores() - 1)), standbys
    offered = placement.offered(SESSION)
    actors = min(partitions, wanted or max(1, placement.session_actors() - (standbys if offered else 0)))
    placement.check_room({SESSION: actors, FLEET: 0})
    return actors, min(standbys, offered - actors) if offered else standbys


def check_places(places: Places, config: Config, placement: Placement) -> None:
    """``UsageError`` for what is of one machine, where there are several. A directory is asked for on every node."""
    if not placement.is_spread:
        return
    nodes = len(placement.nodes)
    if isinstance(places.log, EmbeddedUrl):
        raise UsageError(f"--log {places.log} is of one machine, and this cluster has {nodes} nodes: say kafka://HOST:PORT, which all of them reach")
    if places.state is None:
        raise UsageError(f"on {nodes} nodes checkpoints must be where whoever takes over finds them: say --state s3://BUCKET/PREFIX, or a directory of all")
    if places.lake_url is not None and not config.lake.catalog:
        raise UsageError(
            f"--lake {places.lake_url}: its catalog is a file of this machine, and this cluster has {nodes} nodes:"
            " set lake.catalog to one that all of them reach"
        )
    check_shared(_directories(places), placement.nodes, SHARED)


def _directories(places: Places) -> dict[str, Path]:
    """Those that processes on several nodes write to or read from, by what names them."""
    found: dict[str, Path] = {}
    if places.state is not None and "://" not in places.state:
        found["--state"] = Path(places.state)
    if places.lake_dir is not None:
        found["--lake"] = places.lake_dir
    letters = places.output.dead_letters_dir
    if letters is not None and "://" not in letters:
        found["--dead-letters"] = Path(letters)
    if places.sinks is not None and places.sinks.elastic is not None:
        found["sinks.home_dir" if places.lake is None else "the lake's outbox"] = Path(places.sinks.outbox)
    return found
