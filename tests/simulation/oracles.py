"""What must be so when everything has come to rest: the lake, the topics and the ledger hold what the slow reference says, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from keystone.actors.loop import RUNNING
from keystone.actors.owner import Owner
from keystone.sinks.iceberg.columns import ALERTS, EVENTS, SESSIONS
from tests.batches import canonical
from tests.reference import Result
from tests.simulation.owners import Place
from tests.simulation.supervisor import Supervisor
from tests.simulation.world import Violation


def is_complete(place: Place, supervisor: Supervisor, expected: Result) -> bool:
    """A quick look: every partition has its owner, and there are as many rows as there must be."""
    tables = place.catalog.tables
    counts = ((EVENTS, expected.rows), (SESSIONS, expected.sessions), (ALERTS, expected.alerts))
    return all(tables[name].rows >= len(rows) for name, rows in counts) and all(len(_owners(supervisor, p)) == 1 for p in range(place.log.partitions))


def check_all(place: Place, supervisor: Supervisor, expected: Result) -> None:
    _check_owned(place, supervisor)
    _check_lake(place, expected)
    _check_topics(place, expected)
    _check_ledger(place, expected)


def _check_owned(place: Place, supervisor: Supervisor) -> None:
    partitions = place.log.partitions
    for partition in range(partitions):
        owners = _owners(supervisor, partition)
        if len(owners) != 1:
            raise Violation(f"partition {partition} has {len(owners)} owners at the end")
        position, end = owners[0].owned[partition].reader.position(), place.log.end_offset(partition)
        if position != end:
            raise Violation(f"partition {partition} was read up to {position} of {end}")


def _owners(supervisor: Supervisor, partition: int) -> list[Owner]:
    return [actor.owner for actor in supervisor.owners() if actor.owner is not None and actor.state == RUNNING and partition in actor.owner.owned]


def _check_lake(place: Place, expected: Result) -> None:
    names = ("partition", "offset", "line", "append_ts", "ts", "duplicate", "late")
    rows = [tuple(int(row[name]) for name in names) for row in expected.rows]
    _same("rows of events", place.catalog.rows(EVENTS), rows)
    _same("session records", map(repr, canonical(place.catalog.rows(SESSIONS))), map(repr, canonical(expected.sessions)))
    _same("alerts in the lake", map(repr, canonical(place.catalog.rows(ALERTS))), map(repr, canonical(expected.alerts)))


def _check_topics(place: Place, expected: Result) -> None:
    wanted = {alert["alert_id"] for alert in expected.alerts}
    _same("alerts said", {said.alert_id for said in place.topics.said}, wanted)
    _same("dead letters", place.topics.letters, {(d["partition"], d["offset"], d["line"], d["reason"]) for d in expected.dead_letters})


def _check_ledger(place: Place, expected: Result) -> None:
    checkpoints = place.store.still()
    totals: Counter[str] = Counter()
    for partition in range(place.log.partitions):
        newest = checkpoints.latest(partition)
        if newest is None:
            raise Violation(f"partition {partition} has no checkpoint")
        newest.ledger.check()
        totals += Counter({name: count for name, count in newest.ledger.as_dict().items() if name not in ("sent", "lake_rows", "late")})
        totals["lake_rows"] += newest.counters["lake_rows"]
        totals["alerts"] += newest.counters["alerts"]
        totals["sessions"] += newest.counters["session_rows"]
    wanted = expected.ledger() | {"alerts": len(expected.alerts), "sessions": len(expected.sessions)}
    if +totals != +Counter(wanted):
        raise Violation(f"the checkpoints count {dict(totals)}, the reference {wanted}")


def _same(what: str, found: Iterable[Any], wanted: Iterable[Any]) -> None:
    have, want = Counter(found), Counter(wanted)
    if have == want:
        return
    missing, surplus = want - have, have - want
    raise Violation(f"{what}: {missing.total()} of {want.total()} are missing, {surplus.total()} are too many; the first: {min(missing or surplus)!s:.300}")
