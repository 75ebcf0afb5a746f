"""An output whose dead letters go elsewhere than its alerts: to files of a directory, or to objects of a bucket."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from keystone.events import DeadLetter
from keystone.metrics import LatencyHistogram
from keystone.sinks.letter_objects import Ticket

if TYPE_CHECKING:
    from keystone.actors.outputs import Delivery, Output

FLUSH_WAIT_S: Final = 30.0  # for the last letters, at the end


class Taking(Protocol):
    """What takes dead letters: ``outputs.Letters``, ``letter_objects.LetterObjects``."""

    def own(self, partition: int, epoch: int) -> None: ...
    def disown(self, partition: int) -> None: ...
    def write(self, partition: int, letters: Sequence[DeadLetter]) -> Ticket | None: ...
    def flush(self, wait_s: float) -> bool: ...
    def close(self) -> None: ...


class WithLetters:
    """An ``Output``: a delivery is finished when its alerts are, by ``inner``, and its dead letters are where they belong."""

    def __init__(self, inner: Output, letters: Taking) -> None:
        self._inner, self._letters = inner, letters
        self._tickets: deque[Ticket | None] = deque()  # of all deliveries, in order
        self._alerted: deque[Delivery] = deque()  # finished by ``inner``; the first tickets are theirs

    @property
    def alerts(self) -> int:
        return self._inner.alerts

    @property
    def detect(self) -> LatencyHistogram:
        return self._inner.detect

    def own(self, epochs: Mapping[int, int], marks: Sequence[Mapping[str, Any]]) -> None:
        self._inner.own(epochs, marks)
        for partition, epoch in epochs.items():
            self._letters.own(partition, epoch)

    def disown(self, partition: int) -> None:
        self._inner.disown(partition)
        self._letters.disown(partition)

    def marks(self) -> dict[str, Any]:
        return self._inner.marks()

    def send(self, delivery: Delivery) -> None:
        letters, delivery.dead_letters = delivery.dead_letters, []
        self._inner.send(delivery)  # first: nobody waits for a letter
        self._tickets.append(self._letters.write(delivery.partition, letters) if letters else None)

    def finished(self) -> Iterator[Delivery]:
        self._alerted.extend(self._inner.finished())
        while self._alerted and (self._tickets[0] is None or self._tickets[0].is_done):
            self._tickets.popleft()
            yield self._alerted.popleft()

    def pending(self) -> int:
        return len(self._tickets)

    def flush(self) -> bool:
        is_letters, is_inner = self._letters.flush(FLUSH_WAIT_S), self._inner.flush()
        return is_letters and is_inner

    def close(self) -> None:
        self._inner.close()
        self._letters.close()
