"""What the simulated traffic is once it is under way: bytes packed by each codec, sessions and alerts of a device, bytes of a document.

    python benchmarks/workload.py [--devices 10000] [--seconds 1200] [--json FILE]

A bench of a minute begins many sessions and ends few; capacity is planned for the steady state, so the first half is left out. ``ratio`` is raw
bytes over packed ones, of record batches of ``kafka.batch_bytes_max`` as a producer of ours packs them. Documents are those that an index is
sent. Counts, not speeds: they are the same on every machine.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from benchmarks.measure import report
from keystone.config import Config
from keystone.decode import Decoder
from keystone.events import Records
from keystone.log.kafka.batches import CODECS, BatchBuilder
from keystone.pipeline import PartitionPipeline
from keystone.sim.fleet import PartitionFleet
from keystone.sim.plan import FleetPlan
from keystone.sinks.documents import AlertRows, SessionRows

EVENT_S = 5.0  # a device sends about every 5 s, as in a bench
TICK_MS = 20
STEP_TICKS = 25  # of ticks that the pipeline reads at once
FRAMES = 400  # that are packed: the last ones


class Counts:
    """What devices sent and what was found, while it is counted."""

    def __init__(self) -> None:
        self.events = self.bytes = self.closed = self.alerts = 0
        self.bytes_of: dict[str, list[int]] = {"alert": [], "session": []}


def run(devices: int, seconds: int) -> tuple[Counts, list[bytes]]:
    """The second half of ``seconds``; the last frames."""
    plan = FleetPlan(eps=devices / EVENT_S, seconds=seconds, devices=devices, seed=1, partitions=1, tick_ms=TICK_MS)
    fleet, pipeline = PartitionFleet(plan, 0), PartitionPipeline(0, Decoder(), Config())
    counts, frames, times = Counts(), [], []
    last: list[bytes] = []
    while (sent := fleet.tick()) is not None:
        frames += [sent.text[int(a) : int(b)].tobytes() for a, b in zip(sent.starts, sent.ends, strict=True)]
        times += [plan.epoch_ms + sent.due_ms] * len(sent)
        if len(frames) < STEP_TICKS:
            continue
        result = pipeline.step(Records.of(frames, append_ts_ms=times), None)
        if sent.due_ms >= plan.run_ms // 2:
            note(counts, result, sum(map(len, frames)) + len(frames), pipeline.log_time_ms)
        last = [*last, *frames][-FRAMES:]
        frames, times = [], []
    return counts, last


def note(counts: Counts, result: Any, size: int, now_ms: int) -> None:
    counts.events += result.ledger.received
    counts.bytes += size
    counts.alerts += len(result.alerts)
    counts.bytes_of["alert"] += [len(document.body) for document in AlertRows(result.alerts).documents(0, len(result.alerts))]
    for records in result.sessions:
        rows = SessionRows(records.to_arrow(), now_ms)
        counts.closed += rows.rows
        counts.bytes_of["session"] += [len(document.body) for document in rows.documents(0, rows.rows)]


def ratios(frames: list[bytes], batch_bytes: int) -> list[dict[str, Any]]:
    """Of every codec, over batches as full as a producer of ours fills them."""
    rows = []
    for codec in CODECS:
        raw = packed = at = 0
        while at < len(frames):
            batch = BatchBuilder()
            while at < len(frames) and len(batch) < batch_bytes:
                batch.add(frames[at])
                raw += len(frames[at])
                at += 1
            packed += len(batch.encode(codec, now_ms=1_790_000_000_000, producer_id=1, producer_epoch=0, sequence=0))
        rows.append({"codec": codec, "raw MB": round(raw / 1e6, 3), "packed MB": round(packed / 1e6, 3), "ratio": round(raw / packed, 3)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="What the simulated traffic is.")
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=1_200)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    counts, frames = run(arguments.devices, arguments.seconds)
    device_s = arguments.devices * arguments.seconds / 2
    rows = ratios(frames, Config().kafka.batch_bytes_max)
    report(
        "workload", rows, arguments.json,
        devices=arguments.devices, seconds=arguments.seconds, events=counts.events,
        bytes_per_event=round(counts.bytes / counts.events, 2),
        sessions_closed_per_device_hour=round(counts.closed / device_s * 3_600, 4),
        alerts_per_device_hour=round(counts.alerts / device_s * 3_600, 4),
        document_bytes={kind: round(statistics.fmean(sizes), 1) for kind, sizes in counts.bytes_of.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
