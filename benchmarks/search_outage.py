"""A search server that is frozen for a minute, then killed, then back, under the whole chain: what detection, actions and lake notice of it.

    python benchmarks/search_outage.py [--eps 20000] [--json benchmarks/results/search_outage.json]

``make demo`` (Kafka, a run, OpenSearch, a lake on S3, all on this machine) at that rate for 110 s, twice: undisturbed, and with the search server
frozen (SIGSTOP) 15 s after the start for 60 s, then killed (SIGKILL), and started again 5 s later. *detect*: from append to the action's
acknowledgement. In the end everything is compared as the demo does: index and actions with the truth, lake with what was sent, the audit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from tests.demo import Demo, demonstrate
from tests.s3_server import gateway

FROZEN_AT_S, FROZEN_S, DEAD_S = 15.0, 60.0, 5.0
SECONDS = 110


def break_it(demo: Demo, sending: Any) -> None:  # noqa: ARG001 - the demo's
    time.sleep(FROZEN_AT_S)
    demo.search.pause()
    time.sleep(FROZEN_S)
    demo.search.kill()
    time.sleep(DEAD_S)
    demo.search.start()


def run(eps: int, folder: Path, *, has_outage: bool) -> dict[str, Any]:
    kind = "versitygw" if gateway() else "moto"
    wrong = demonstrate(folder, eps=eps, seconds=SECONDS, flavor="opensearch", kind=kind, during=break_it if has_outage else None)
    found = json.loads((folder / "report.json").read_bytes())
    detect, ledger = found["latency_ms"]["detect"], found["ledger"]
    return {
        "what": "frozen, killed, back" if has_outage else "undisturbed", "alerts": found["alerts"], "detect p50 ms": detect["p50"],
        "detect p99 ms": detect["p99"], "detect max ms": detect["max"], "within 3 s": found["within_3s"], "accepted": ledger["accepted"],
        "lake rows": ledger["lake_rows"], "lake late at most ms": found["commits"].get("age_ms_max"), "wrong": "; ".join(wrong),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eps", type=int, default=20_000)
    parser.add_argument("--json", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="outage-") as folder:
        rows = [run(given.eps, Path(folder) / str(has_outage), has_outage=has_outage) for has_outage in (False, True)]
    report("search_outage", rows, given.json)


if __name__ == "__main__":
    main()
