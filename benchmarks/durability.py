"""What durable state costs: a bench with checkpoints and commits, and one without, in turns.

    python benchmarks/durability.py [--eps 1000000] [--seconds 60] [--pairs 2] [--json FILE]

``without`` is the same program told to take its first checkpoint, and make its first commit, when the run is over; its log keeps everything,
so it needs room for all of it in shared memory (260 B an event). ``with`` uses the defaults. Both must pass the bench's verdict. The
columns are CPU microseconds an event: of all processes, of the threads that write checkpoints, of the committer's turns; ``parts`` is
the sum of the two. ``difference`` of the totals holds besides what both cost others (pauses, memory and caches used up), and the noise of two
runs; also that ``without`` touches fresh memory for its log to its end, while ``with`` uses memory again once its first checkpoints let go of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import report

NEVER_MS = 3_600_000
WITHOUT = f"[checkpoint]\ninterval_ms = {NEVER_MS}\n\n[lake]\ncommit_interval_ms = {NEVER_MS}\n"


def bench(arguments: argparse.Namespace, config: str, scratch: Path) -> dict[str, Any]:
    settings, found = scratch / "keystone.toml", scratch / "report.json"
    settings.write_text(config)
    words = ["--eps", str(arguments.eps), "--seconds", str(arguments.seconds), "--config", str(settings), "--json", str(found), "--out", str(scratch / "out")]
    done = subprocess.run([sys.executable, "-m", "keystone.bench", *words], check=False)
    if done.returncode:
        sys.exit(f"the bench failed ({done.returncode}): its figures say nothing")
    return json.loads(found.read_text())


def row(way: str, result: dict[str, Any]) -> dict[str, Any]:
    us = 1e6 / result["events"]
    checkpoints, commits = result["checkpoints"]["cpu_s"] * us, result["commits"].get("cpu_s", 0.0) * us
    return {
        "way": way, "total us": result["cpu_us_per_event"]["total"], "checkpoints us": round(checkpoints, 4), "commits us": round(commits, 4),
        "parts us": round(checkpoints + commits, 4), "checkpoints": result["checkpoints"]["count"], "commits": result["commits"].get("commits", 0),
        "e2e ms p99": result["latency_ms"]["end_to_end"]["p99"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="What durable state costs.")
    parser.add_argument("--eps", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(arguments.pairs):
            for way, config in (("with", ""), ("without", WITHOUT)):
                rows.append(row(way, bench(arguments, config, Path(scratch))))
    of = {way: statistics.median(r["total us"] for r in rows if r["way"] == way) for way in ("with", "without")}
    parts = statistics.median(r["parts us"] for r in rows if r["way"] == "with")
    report("durability", rows, arguments.json, parts_us=parts, difference_us=round(of["with"] - of["without"], 4))
    print(f"parts {parts:.3f} us an event, difference of the totals' medians {of['with'] - of['without']:.3f} us")


if __name__ == "__main__":
    main()
