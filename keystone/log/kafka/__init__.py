"""Kafka as the log. Nothing outside this package imports kafka-python."""

from __future__ import annotations

from keystone.log.kafka.log import KafkaLog
from keystone.log.kafka.reader import KafkaReader
from keystone.log.kafka.writer import KafkaWriter

__all__ = ["KafkaLog", "KafkaReader", "KafkaWriter"]
