"""Actions of some alerts only, where a route says which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keystone.routes_sources import alerts_frame

if TYPE_CHECKING:
    from keystone.actors.outputs import Delivery, Output
    from keystone.metrics import LatencyHistogram
    from keystone.routes import Route


class FilteredActions:
    """An ``Output`` that gives ``inner`` the alerts that ``route`` keeps, and all dead letters. ``held_back``: alerts without an action."""

    def __init__(self, inner: Output, route: Route) -> None:
        self._inner, self._route = inner, route
        self.held_back = 0

    @property
    def alerts(self) -> int:
        return self._inner.alerts

    @property
    def detect(self) -> LatencyHistogram:
        return self._inner.detect

    def send(self, delivery: Delivery) -> None:
        if delivery.alerts:
            kept = self._route.keep(alerts_frame(delivery.alerts)).to_list()
            self.held_back += len(kept) - sum(kept)
            for name in ("alerts", "decoded_ms", "alerted_ms"):
                setattr(delivery, name, [one for one, is_kept in zip(getattr(delivery, name), kept, strict=True) if is_kept])
        self._inner.send(delivery)

    def own(self, epochs: Mapping[int, int], marks: Sequence[Mapping[str, Any]]) -> None:
        self._inner.own(epochs, marks)

    def disown(self, partition: int) -> None:
        self._inner.disown(partition)

    def marks(self) -> dict[str, Any]:
        return self._inner.marks()

    def finished(self) -> Iterator[Delivery]:
        return self._inner.finished()

    def pending(self) -> int:
        return self._inner.pending()

    def flush(self) -> bool:
        return self._inner.flush()

    def close(self) -> None:
        self._inner.close()
