"""What ``keystone plan`` says a machine sustains, against what the bench's search finds on it; and the runs that its model is fitted to.

    python -m benchmarks.plan --fit                                       # keeps results/plan_LOG_low|high.json: name them in tools/fit_rates.py
    python -m benchmarks.plan --json benchmarks/results/plan.json         # predicted against found, over both logs

``--fit`` keeps the rate that a search confirms over each log, and a quarter of it, with the machine's speed before and after. The comparison takes the
kept model at this machine's speed (what ``keystone plan`` does), and a search. Kafka's broker is started for it, on the same cores. A search probes
for 12 s and confirms for ``--seconds``: some 10 minutes a log. What other programs took meanwhile is measured, and a second prediction made for
the cores that they left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.measure import report
from keystone.bench.machine import StealMeter
from keystone.bench.speed import measure_speed
from keystone.capacity.rates import LOGS, PARTS, kept
from keystone.capacity.sustained import sustained
from keystone.run.plan_measure import here

RESULTS = Path(__file__).parent / "results"
FIT_FROM_EPS = {"embedded": 600_000, "kafka": 150_000}  # where searches begin
LOW_SHARE = 0.25  # of what a search found: a rate at which what is spent at any rate shows
SAMPLE_S = 1.0


@contextmanager
def log_url(log: str) -> Iterator[list[str]]:
    """What a bench is told of its log. A broker is started for Kafka, with its optimizing compiler."""
    if log == "embedded":
        yield []
        return
    from tests.kafka_server import THROUGHPUT, KafkaCluster

    with KafkaCluster(jvm_flags=THROUGHPUT) as brokers:
        yield ["--log", f"kafka://{brokers.servers[0]}"]


class Others:
    """Cores that other programs take while something of ours runs: what is left is what a bench can have."""

    def __enter__(self) -> Self:
        self._stop, self._ours, self._began = threading.Event(), {}, (time.monotonic(), self._busy_s())
        self._steal = StealMeter()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        wall_s, busy_s = time.monotonic() - self._began[0], self._busy_s() - self._began[1]
        self.stolen_cores = self._steal.cores()
        ours_s = sum(last - first for first, last in self._ours.values())
        self.cores = max(0.0, (busy_s - ours_s) / wall_s)

    def _watch(self) -> None:
        me = psutil.Process()
        is_first = True
        while not self._stop.wait(SAMPLE_S):
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    used_s = sum(process.cpu_times()[:2])
                    first, _ = self._ours.get(process.pid, (used_s if is_first else 0.0, 0.0))
                    self._ours[process.pid] = first, used_s
            is_first = False

    @staticmethod
    def _busy_s() -> float:
        times = psutil.cpu_times()
        return times.user + times.nice + times.system + times.softirq + times.irq


def bench(words: list[str]) -> dict[str, Any]:
    """A bench's report, whatever its verdict: a search ends with the last rate that it confirmed."""
    with tempfile.TemporaryDirectory(prefix="keystone-plan-") as scratch:
        found = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "keystone.bench", *words, "--json", str(found), "--out", str(Path(scratch) / "out")]
        running = subprocess.Popen(command, stdout=sys.stderr)
        try:
            status = running.wait()
        finally:  # whoever ends this ends the bench too, cleanly: its log is in shared memory
            if running.poll() is None:
                running.terminate()
                running.wait()
        if not found.exists():
            sys.exit(f"the bench did not run ({status})")
        return json.loads(found.read_text())


def keep(name: str, words: list[str]) -> dict[str, Any]:
    before = measure_speed()
    result = bench(words)
    speed = round((before + measure_speed()) / 2)
    if result["verdict"] != "pass":
        sys.exit(f"{name}: {result['verdict']}: {result['reasons']}: it is not kept")
    shown = ["kafka://127.0.0.1:9092" if word.startswith("kafka://") else word for word in words]
    told = {"benchmark": name, "command": " ".join(["python -m keystone.bench", *shown]), "speed_events_per_s": speed, **result}
    (RESULTS / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n")
    return result


def fit(logs: list[str], seconds: int) -> None:
    """The highest rate that a search confirms, and a low one, of each log: what ``tools/fit_rates.py`` makes the kept model of."""
    for log in logs:
        with log_url(log) as url:
            eps, told = FIT_FROM_EPS[log], ["--seconds", str(seconds)]
            words = [*url, "--search", "--eps", str(eps), *told]
            high = keep(f"plan_{log}_high", words)
            eps = round(high["achieved_eps"] * LOW_SHARE, -3)
            keep(f"plan_{log}_low", [*url, "--eps", f"{eps:.0f}", *told])


def compare(log: str, seconds: int) -> dict[str, Any]:
    rates = here(kept())
    said = sustained(rates, log)
    start = max(20_000, round(said.eps * 0.75, -4))
    with log_url(log) as url, Others() as others:
        result = bench([*url, "--search", "--eps", str(start), "--seconds", str(seconds)])
    found = result["target_eps"] if result["verdict"] == "pass" else 0.0
    left = min(said.by_loop, said.by_fleet, said.by_cores * max(0.0, rates.cores - others.cores) / rates.cores)
    return {
        "log": log, "predicted eps": round(said.eps), "found eps": found, "predicted to found": round(said.eps / found, 3) if found else None,
        "cores of others": round(others.cores, 3), "cores stolen": round(others.stolen_cores, 3), "predicted of what they left": round(left),
        "left to found": round(left / found, 3) if found else None,
        "limit": said.limit, "speed": rates.speed_events_per_s, "speed after": round(measure_speed()),
        "us an event, predicted": round(sum(rates[f"{log}_{part}_busy_us"] for part in PARTS), 3),
        "us an event, found": result["cpu_us_per_event"]["total"], "broker us, found": result["cpu_us_per_event"].get("broker"),
        "loop us, predicted": round(rates[f"{log}_loop_busy_us"], 3), "loop us, found": result["cpu_us_per_event"]["loop"],
        "load before": result["machine"]["load_average"], "probes": [(probe["eps"], probe["verdict"]) for probe in result["search"]],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="What keystone plan says against what the bench finds.")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--log", choices=LOGS, action="append")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    logs = arguments.log or list(LOGS)
    if arguments.fit:
        fit(logs, arguments.seconds)
        return
    report("plan", [compare(log, arguments.seconds) for log in logs], arguments.json, model_of=kept().machine)


if __name__ == "__main__":
    main()
