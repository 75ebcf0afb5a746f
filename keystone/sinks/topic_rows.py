"""Rows as records of a Kafka topic, each acknowledged by every replica in sync.

A record's key is a field of the row, so that whatever shares it keeps its order in one partition, or the row's id; the value is the row as
JSON; headers say ``kind``, ``id``, and ``revision`` where it has one. A topic takes the same row twice where an outcome was unknown, or a
run began again: readers drop repeats by ``id``, and take the highest ``revision``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import orjson

from keystone.config import KafkaConfig
from keystone.errors import LogError, RecordTooLarge, SinkBusy
from keystone.log.kafka import KafkaLog
from keystone.log.url import KafkaUrl
from keystone.partition import partition_of
from keystone.sinks.base import DONE, NOT_REVISED, Answer, Document, Outcome

OUTCOME_WAIT_BEYOND_S: Final = 15.0  # kafka.delivery_timeout_ms, by which the producer has every outcome


class TopicRows:
    """A ``RawSink``. ``key_field``: whose value, where the row has it as text, is the key (``device_id``); None, or without it: the row's id.

    ``UsageError`` at once where the topic is not there, or may not be written. A batch takes ``kafka.delivery_timeout_ms`` at most.
    """

    def __init__(self, url: KafkaUrl, config: KafkaConfig, *, role: str, key_field: str | None = None) -> None:
        self._log = KafkaLog.open(url, config, action="write", role=role)
        self._key_field = key_field
        self._wait_s = config.delivery_timeout_ms / 1_000 + OUTCOME_WAIT_BEYOND_S

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        told = _Told(len(documents))
        try:
            for place, document in enumerate(documents):
                self._send(document, told, place)
            self._log.producer().wake()
        except LogError as error:  # no room comes, or it was closed; what was handed over may arrive all the same
            raise SinkBusy(str(error)) from error
        answers = told.wait(self._wait_s)
        if all(answer.outcome is Outcome.AGAIN for answer in answers):
            raise SinkBusy(answers[0].reason)
        return answers

    def close(self) -> None:
        """May be repeated."""
        self._log.close()

    def _send(self, document: Document, told: _Told, place: int) -> None:
        key, producer = self._key(document), self._log.producer()
        headers = [("kind", document.kind.encode()), ("id", document.id.encode())]
        if document.revision != NOT_REVISED:
            headers.append(("revision", b"%d" % document.revision))
        lane = producer.lane(self._log.topic, partition_of(key, self._log.partitions))
        try:
            producer.send(
                lane, document.body, key=key, headers=tuple(headers), on_outcome=lambda outcome: told.tell(place, outcome),
                is_urgent=True, wakes=False, limit_bytes=self._log.record_bytes_max,
            )  # fmt: skip
        except RecordTooLarge as error:
            told.answer(place, Answer(Outcome.REFUSED, str(error)))

    def _key(self, document: Document) -> bytes:
        if self._key_field is not None:
            value = orjson.loads(document.body).get(self._key_field)
            if isinstance(value, str):
                return value.encode()
        return document.id.encode()


class _Told:
    """What became of each record of a batch, as the producer's thread says it."""

    def __init__(self, records: int) -> None:
        self._answers: list[Answer | None] = [None] * records
        self._left = records
        self._changed = threading.Condition()

    def answer(self, place: int, answer: Answer) -> None:
        with self._changed:
            if self._answers[place] is None:
                self._answers[place] = answer
                self._left -= 1
                if not self._left:
                    self._changed.notify_all()

    def tell(self, place: int, outcome: Any) -> None:
        if outcome.state == "acknowledged":
            self.answer(place, DONE)
        elif isinstance(outcome.error, RecordTooLarge):
            self.answer(place, Answer(Outcome.REFUSED, str(outcome.error)))
        else:
            self.answer(place, Answer(Outcome.AGAIN, f"{outcome.state}: {outcome.error}"))

    def wait(self, limit_s: float) -> list[Answer]:
        with self._changed:
            self._changed.wait_for(lambda: not self._left, limit_s)
            return [answer or Answer(Outcome.AGAIN, "no outcome within kafka.delivery_timeout_ms") for answer in self._answers]
