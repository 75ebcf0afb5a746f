"""What readers and writers need of the log that gave them."""

from __future__ import annotations

from typing import Any, Protocol

from keystone.config import KafkaConfig


class Owner(Protocol):
    """A topic that is open."""

    url: str
    topic: str
    config: KafkaConfig
    topic_id: Any
    has_append_time: bool

    @property
    def is_closed(self) -> bool: ...

    def append_late_max_ms(self) -> int: ...

    def know_topic(self) -> None: ...

    def offset(self, partition: int, when: int) -> int: ...

    def release(self, partition: int) -> None: ...
