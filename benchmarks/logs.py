"""What a log record costs whoever logs it, against plain stdlib logging.

    python benchmarks/logs.py [--json FILE]

One message with three values, in each way's natural spelling: fields for ours, ``%`` arguments for stdlib. ``level off``: a
debug record where info is set. ``repeat``: a record beyond those shown of its message; stdlib has no such thing, so it
writes. ``emitted``: one that is written, to /dev/null: for stdlib a StreamHandler with time, level, name and message, called
directly or behind the stock QueueHandler and QueueListener; for ours a JSON line. The first three are CPU time of the
logging thread alone (``thread_time``); ``emitted, all threads`` is that of the process until everything is written. The
queues are emptied between bursts of 1,000 records, so that none is full and nobody waits. Best of 5 turns.
"""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import TURNS, report
from keystone import logs
from keystone.config import LogsConfig

BURST = 1_000  # a quarter of the queue
BURSTS = 20
NAME = "keystone.bench.subject"
WITHOUT_LIMIT = 1 << 40


@contextmanager
def ours(repeats_max: int) -> Iterator[Callable[[], object]]:
    """Yields what waits until everything is written."""
    handle = logs.configure(LogsConfig(format="json", repeats_max=repeats_max), path=Path(os.devnull))
    try:
        yield handle.flush
        assert handle.dropped == 0
    finally:
        handle.close()


@contextmanager
def stdlib(*, is_queued: bool) -> Iterator[Callable[[], object]]:
    logger = logging.getLogger(NAME)
    with Path(os.devnull).open("w") as stream:
        handler: logging.Handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        waiting: queue.Queue[logging.LogRecord] = queue.Queue()
        listener = logging.handlers.QueueListener(waiting, handler)
        chosen = logging.handlers.QueueHandler(waiting) if is_queued else handler
        logger.addHandler(chosen)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        listener.start()
        try:
            yield waiting.join
        finally:
            listener.stop()
            logger.removeHandler(chosen)
            logger.setLevel(logging.NOTSET)
            logger.propagate = True


def ours_off(count: int) -> None:
    log = logs.get(NAME)
    for i in range(count):
        log.debug("batch written", rows=i, file="p00001", wait_ms=1.5)


def ours_on(count: int) -> None:
    log = logs.get(NAME)
    for i in range(count):
        log.info("batch written", rows=i, file="p00001", wait_ms=1.5)


def stdlib_off(count: int) -> None:
    log = logging.getLogger(NAME)
    for i in range(count):
        log.debug("batch written: rows %d file %s wait_ms %.1f", i, "p00001", 1.5)


def stdlib_on(count: int) -> None:
    log = logging.getLogger(NAME)
    for i in range(count):
        log.info("batch written: rows %d file %s wait_ms %.1f", i, "p00001", 1.5)


def cost_ns(work: Callable[[int], None], written: Callable[[], object]) -> tuple[float, float]:
    """Of one record: CPU of this thread, and of the process until all is written."""
    caller, process = [], []
    for _ in range(TURNS + 1):  # the first warms up
        caller_s, started = 0.0, time.process_time()
        for _ in range(BURSTS):
            before = time.thread_time()
            work(BURST)
            caller_s += time.thread_time() - before
            written()
        caller.append(caller_s)
        process.append(time.process_time() - started)
    return tuple(min(seconds[1:]) / (BURST * BURSTS) * 1e9 for seconds in (caller, process))  # type: ignore[return-value]


def measure_ours() -> dict[str, float]:
    with ours(WITHOUT_LIMIT) as written:
        off, _ = cost_ns(ours_off, written)
        caller, process = cost_ns(ours_on, written)
    with ours(1) as written:
        repeat, _ = cost_ns(ours_on, written)
    return {"level off": off, "repeat": repeat, "emitted": caller, "emitted, all threads": process}


def measure_stdlib(*, is_queued: bool) -> dict[str, float]:
    with stdlib(is_queued=is_queued) as written:
        off, _ = cost_ns(stdlib_off, written)
        caller, process = cost_ns(stdlib_on, written)
    return {"level off": off, "repeat": caller, "emitted": caller, "emitted, all threads": process}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json")
    chosen = arguments.parse_args()
    ways = {
        "keystone logs": measure_ours,
        "stdlib, StreamHandler": lambda: measure_stdlib(is_queued=False),
        "stdlib, QueueHandler": lambda: measure_stdlib(is_queued=True),
    }
    rows: list[dict[str, object]] = [{"way": name, **{f"{what} ns": round(ns) for what, ns in way().items()}} for name, way in ways.items()]
    report("logs: CPU ns a record", rows, chosen.json)


if __name__ == "__main__":
    main()
