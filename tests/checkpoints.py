"""Checkpoints of small pipelines, and what a pipeline gave out, in a form to compare."""

from __future__ import annotations

import json
from typing import Any

from keystone.checkpoint import Checkpoint
from keystone.config import Config, DetectionConfig, SessionConfig
from keystone.decode import Decoder
from keystone.events import DICTIONARY_COLUMNS, FIRST_DIMENSION, Records
from keystone.metrics import Ledger
from keystone.pipeline import PartitionPipeline, StepResult
from keystone.segments import DataFile, Segment
from keystone.session_snapshot import packed
from tests.batches import canonical
from tests.cohorts import by_key, told_of

SEED = 2**100 + 7


def config_of(session: dict[str, int], detection: dict[str, Any]) -> Config:
    return Config(session=SessionConfig(**session), detection=DetectionConfig(**detection))


def records_of(events: list[tuple[dict[str, Any], int]], first_offset: int, partition: int = 0) -> Records:
    """One event a record, absent fields left out."""
    lines: list[bytes | None] = [json.dumps({name: value for name, value in item.items() if value is not None}).encode() for item, _ in events]
    return Records.of(lines, partition=partition, first_offset=first_offset, append_ts_ms=[time for _, time in events])


class Owner:
    """A decoder and a pipeline, as an owner of the partition makes them; ``stranger`` strings were seen in other partitions before."""

    def __init__(self, config: Config, *, partition: int = 0, strangers: int = 0, seed: int = SEED) -> None:
        self.decoder = Decoder(seed=seed)
        for column in range(FIRST_DIMENSION, len(DICTIONARY_COLUMNS)):
            for number in range(strangers):
                self.decoder.dictionaries.intern(column, b"stranger %d" % number)
        self.pipeline = PartitionPipeline(partition, self.decoder, config)
        self.results: list[StepResult] = []

    def step(self, records: Records, now_ms: int | None = None) -> None:
        self.results.append(self.pipeline.step(records, now_ms))

    def cohorts(self) -> dict[Any, Any]:
        """The rows of all windows so far, the one under way included: nothing may be stepped after it."""
        return by_key(told_of([partial for result in (*self.results, self.pipeline.end_range()) for partial in result.cohorts]))

    def outcome(self) -> tuple[list[Any], list[Any], Ledger]:
        alerts, sessions, ledger = [], [], Ledger()
        for result in self.results:
            ledger += result.ledger
            sessions += [row for part in result.sessions for row in part.to_arrow().to_pylist()]
            for alert in result.alerts:
                fields = {name: getattr(alert, name) for name in alert.__dataclass_fields__ if name != "dimensions"}
                alerts.append(fields | alert.dimensions)
        return canonical(alerts), canonical(sessions), ledger


def checkpoint_of(pipeline: PartitionPipeline, *, epoch: int = 1, sequence: int = 0, next_offset: int = 0, **fields: Any) -> Checkpoint:
    arrays = packed(pipeline.snapshot())
    return Checkpoint(pipeline.partition, epoch, sequence, next_offset, pipeline.log_time_ms, Ledger(), arrays=arrays, **fields)


def segment(sequence: int = 0, *, partition: int = 0, epoch: int = 1, files: int = 1) -> Segment:
    written = tuple(DataFile("events", f"data/events/event_date=2026-09-21/p{partition:05}-{sequence}-{k}.parquet", 7, 900, 20_717) for k in range(files))
    return Segment(partition, epoch, 10 * sequence, 10 * sequence + 10, 1_790_000_000_000, sequence, written)
