"""What an owner hands on beside alerts, dead letters and lake: rows for routes, and its share of cohorts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keystone.actors.cohort_desk import Arrays, CohortDesk

if TYPE_CHECKING:
    from keystone.actors.routing import Routing
    from keystone.decode import Dictionaries
    from keystone.events import EventBatch
    from keystone.pipeline import StepResult


class Onward:
    """One thread calls it. Without a desk cohorts, without routing rows go nowhere."""

    def __init__(self, desk: CohortDesk | None = None, routing: Routing | None = None) -> None:
        self.desk, self.routing = desk, routing

    def own(self, partition: int, arrays: Arrays) -> None:
        """Go on where a checkpoint's arrays say; none: at the beginning."""
        if self.desk is not None:
            self.desk.own(partition, arrays)

    def disown(self, partition: int) -> None:
        if self.desk is not None:
            self.desk.disown(partition)

    def take(self, result: StepResult, passed_ms: int) -> None:
        """What a step gave. ``passed_ms``: log time, all before it is in what was given so far."""
        if self.desk is not None:
            self.desk.add(result.partition, result.cohorts, passed_ms)
        if self.routing is not None:
            self.routing.take(result, passed_ms)

    def take_events(self, batch: EventBatch, dictionaries: Dictionaries) -> None:
        """A batch of accepted events; it is overwritten afterwards."""
        if self.routing is not None and self.routing.takes_events:
            self.routing.take_events(batch, dictionaries)

    def end_turn(self) -> None:
        """Every partition was visited."""
        if self.routing is not None:
            self.routing.end_turn()

    def has_room(self) -> bool:
        """False: read nothing now."""
        return self.routing is None or self.routing.has_room()

    def snapshot(self, partition: int) -> Arrays:
        """For a partition's checkpoint."""
        return self.desk.snapshot(partition) if self.desk is not None else {}

    def mark(self) -> int:
        """Names all rows given so far, for ``is_kept``."""
        return self.routing.mark() if self.routing is not None else 0

    def is_kept(self, mark: int) -> bool:
        """A checkpoint may forget the rows before ``mark``."""
        return self.routing is None or self.routing.is_kept(mark)
