"""Any log by its URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keystone.config import KafkaConfig
from keystone.log.embedded import EmbeddedLog
from keystone.log.url import EmbeddedUrl, LogUrl, open_embedded, parse_log_url

if TYPE_CHECKING:
    from keystone.log.kafka import KafkaLog


def open_log(url: str | LogUrl, config: KafkaConfig, *, is_made: bool = False) -> EmbeddedLog | KafkaLog:
    """The log that ``url`` names. ``UsageError``, one line that says what to change, where it cannot be opened.

    ``is_made``: an embedded log that is not there yet is made. A topic is made by ``keystone topics create`` only.
    """
    place = parse_log_url(url) if isinstance(url, str) else url
    if isinstance(place, EmbeddedUrl):
        return open_embedded(place, is_made=is_made)
    from keystone.log.kafka import KafkaLog

    return KafkaLog.open(place, config)
