"""What a sink in trouble costs detection and its neighbour: dead, answering after 30 s, busy, refusing every row.

    python benchmarks/sink_neighbours.py [--seconds 30] [--json FILE]

One thread, as a session actor's, hands the same rows to two sinks each 10 ms: 200 alerts/s and 2,000 sessions/s, asks for a mark (a checkpoint)
each second, and is timed. The healthy sink writes to a real OpenSearch on this machine; the other one goes through the tests' fault proxy, in
a process of its own, to the same server. ``held``: how long both ``offer`` and ``has_room`` keep the thread. ``late``: how much later than planned a turn
begins, whatever the reason: what detection would feel. ``acked``: from ``offer`` until the healthy server has an alert. ``mark``: until the sick
sink's checkpoint may go on (1 s for the receiver, then the disk). RSS is of this process with both sinks. The verdict, and the exit status: no
p99 of held, late or acked is more than 50 ms above the healthy sink's alone (just before or after), and memory grows by no
more than the queues may hold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.elastic import alerts
from benchmarks.measure import report
from keystone.config import ElasticConfig, SinksConfig
from keystone.session_records import SESSION_SCHEMA
from keystone.sinks.base import ALERTS, SESSIONS, Answer, Document, Outcome, Refused
from keystone.sinks.documents import SessionRows
from keystone.sinks.elastic import ElasticRows
from keystone.sinks.elastic_admin import setup
from keystone.sinks.elastic_http import Nodes
from keystone.sinks.shell import BufferedSink
from tests.fault_proxy import Fault, FaultProxy
from tests.search_server import SearchServer

TURN_S = 0.01
ALERTS_A_TURN, SESSIONS_A_TURN = 2, 20
ADDED_MS_MAX = 50.0
MARK_EVERY_S = 1.0
LIMIT_S = 60.0
KINDS = (ALERTS, SESSIONS)
#: Fits of the proxy: the templates' look passes in all of them, but where the server is dead.
TROUBLES: dict[str, Fault | None] = {
    "dead": None,
    "30 s an answer": Fault("delay", delay_s=30.0),
    "503": Fault("status", status=503),
    "429 of every item": Fault("items", status=429, every=1),
    "400 of every item": Fault("items", status=400, every=1),
}


class Timed:
    """A ``RawSink`` before another: when the last alert of each offer was there."""

    def __init__(self, inner: ElasticRows) -> None:
        self.inner = inner
        self.done_s: dict[str, float] = {}

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        answers = self.inner.send_batch(documents)
        now_s = time.perf_counter()
        if documents[0].kind == ALERTS:
            self.done_s.update((one.id, now_s) for one, answer in zip(documents, answers, strict=True) if answer.outcome is Outcome.DONE)
        return answers

    def close(self) -> None:
        self.inner.close()


def proxy(upstream: str, fault: Fault, told: Connection) -> None:
    with FaultProxy(upstream) as broken:
        broken.lasting = fault
        told.send(broken.url)
        told.recv()


@contextmanager
def sick_url(server: SearchServer, trouble: str) -> Iterator[str]:
    fault = TROUBLES.get(trouble)
    if fault is None:
        yield "http://127.0.0.1:9"  # nothing listens
        return
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=proxy, args=(server.url, fault, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def sessions(first: int) -> SessionRows:
    now_ms = int(time.time() * 1_000)
    same = {one.name: 7 if pa.types.is_integer(one.type) else "played" for one in SESSION_SCHEMA if not one.nullable}
    same |= {"start_ts": now_ms, "end_ts": now_ms, "region": "eu-west", "device_type": "tv", "cdn": "cdn-a"}
    rows = [{**same, "device_id": f"device-{number}", "session_id": f"session-{number}"} for number in range(first, first + SESSIONS_A_TURN)]
    return SessionRows(pa.Table.from_pylist(rows, schema=SESSION_SCHEMA), now_ms)


@dataclass
class Figures:
    held_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    mark_ms: list[float] = field(default_factory=list)
    offered_s: dict[str, float] = field(default_factory=dict)
    waits: int = 0  # turns in which the sick one had no room
    memory_rows_max: int = 0
    rss_bytes_max: int = 0


def run(well: BufferedSink, sick: BufferedSink | None, seconds: float) -> Figures:
    figures, process = Figures(), psutil.Process()
    began_s = time.perf_counter()
    mark, marked_s = 0, 0.0
    for turn in range(int(seconds / TURN_S)):
        planned_s = began_s + turn * TURN_S
        time.sleep(max(0.0, planned_s - time.perf_counter()))
        figures.late_ms.append(1_000 * (time.perf_counter() - planned_s))
        said = alerts(turn * ALERTS_A_TURN, ALERTS_A_TURN)
        rows = [said, sessions(turn * SESSIONS_A_TURN)]
        started_s = time.perf_counter()
        if sick is not None:
            if sick.has_room():
                sick.offer(rows)
            else:
                figures.waits += 1
        well.offer(rows)
        figures.held_ms.append(1_000 * (time.perf_counter() - started_s))
        figures.offered_s[said.alerts[-1].alert_id] = started_s
        if sick is not None and mark and sick.is_kept(mark):
            figures.mark_ms.append(1_000 * (time.perf_counter() - marked_s))
            mark = 0
        if sick is not None and not mark and time.perf_counter() - marked_s > MARK_EVERY_S:
            mark, marked_s = sick.mark(), time.perf_counter()
        if turn % 20 == 0:
            figures.rss_bytes_max = max(figures.rss_bytes_max, process.memory_info().rss)
            figures.memory_rows_max = max(figures.memory_rows_max, sick.status()["only_in_memory"] if sick is not None else 0)
    return figures


def phase(server: SearchServer, trouble: str, seconds: float, folder: Path) -> dict[str, Any]:
    for row in server.call("GET", "/_cat/indices/keystone-*?format=json&h=index"):
        server.call("DELETE", f"/{row['index']}")
    refused: list[int] = []

    def count(rows: Sequence[Refused]) -> None:
        refused.append(len(rows))

    with sick_url(server, trouble) as url:
        timed = Timed(ElasticRows(Nodes(server.url, ElasticConfig())))
        well = BufferedSink("well", timed, SinksConfig(), count, kinds=KINDS)
        sick = None
        if trouble != "nobody":
            sick = BufferedSink(f"sick {trouble}", ElasticRows(Nodes(url, ElasticConfig())), SinksConfig(), count, folder / trouble, kinds=KINDS)
        run(well, sick, min(2.0, seconds / 4))  # imports, the first index, the first failures
        assert well.flush(LIMIT_S), well.status()
        rss_bytes = psutil.Process().memory_info().rss
        figures = run(well, sick, seconds)
        assert well.flush(LIMIT_S), well.status()
        acked_ms = [1_000 * (timed.done_s[name] - at_s) for name, at_s in figures.offered_s.items()]
        row = {"trouble": trouble}
        for name, values in (("held", figures.held_ms), ("late", figures.late_ms), ("acked", acked_ms)):
            row |= {f"{name} ms p50": float(np.percentile(values, 50)), f"{name} p99": float(np.percentile(values, 99)), f"{name} max": max(values)}
        row["RSS + MB"] = (figures.rss_bytes_max - rss_bytes) / 1e6
        if sick is not None:
            status = sick.status()
            row |= {
                "mark ms max": max(figures.mark_ms, default=float("nan")),
                "in memory max": figures.memory_rows_max,
                **{name: status[name] for name in ("offered", "acknowledged", "refused", "retried", "spilled")},
                "spill MB": status["spill_bytes"] / 1e6,
                "turns without room": figures.waits,
                "dropped": sum(status["dropped"].values()),
            }
            started_s = time.perf_counter()
            row["lost"] = sick.close(2.0)
            row["close s"] = time.perf_counter() - started_s
        well.close(LIMIT_S)
    return row


def judge(rows: list[dict[str, Any]]) -> list[str]:
    """Each trouble against the healthy sink alone, just before and after: the machine has other work too."""
    faults = []
    for before, row, after in zip(rows[::2], rows[1::2], rows[2::2], strict=False):
        added = {name: row[name] - max(before[name], after[name]) for name in ("held p99", "late p99", "acked p99")}
        faults += [f"{row['trouble']}: {name} is {more:.1f} ms more than alone" for name, more in added.items() if more > ADDED_MS_MAX]
        config = SinksConfig()
        room_mb = (config.queue_bytes_max * len(KINDS) + config.batch_bytes_max + config.spill_file_bytes) * 2 / 1e6
        if row["RSS + MB"] > room_mb or row["lost"]:
            faults.append(f"{row['trouble']}: {row['RSS + MB']:.0f} MB more in memory, {row['lost']} rows lost")
    return faults


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=30.0)
    arguments.add_argument("--json")
    chosen = arguments.parse_args()
    with SearchServer("opensearch") as server, tempfile.TemporaryDirectory(prefix="keystone-neighbours-") as folder:
        list(setup(Nodes(server.url, ElasticConfig())))
        rows = []
        for trouble in ("nobody", "nobody", *(part for one in TROUBLES for part in (one, "nobody"))):  # the first warms the server up
            rows.append(phase(server, trouble, chosen.seconds, Path(folder)))
            print(f"# {trouble}: done", file=sys.stderr)
        del rows[0]
    faults = judge(rows)
    verdict = "passed" if not faults else "; ".join(faults)
    report("sink_neighbours: what a sink in trouble costs", rows, chosen.json, added_ms_max=ADDED_MS_MAX, verdict=verdict)
    print(f"verdict: {verdict}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
