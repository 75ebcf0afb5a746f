"""A lake in a bucket whose server is frozen for a minute, then killed, then back: what the alerts notice of it, and what the lake has in the end.

    python benchmarks/lake_s3_outage.py [--eps 20000] [--json benchmarks/results/lake_s3_outage.json]

``keystone run`` over an embedded log, ``keystone simulate`` beside it at that rate, versitygw on the same machine (it keeps what it has acknowledged).
Twice: undisturbed, and frozen (SIGSTOP) 20 s after the start for 60 s, then killed (SIGKILL), and started again 10 s later. *detect*: from append to
visible. In the end the lake is proven against the log, by ``keystone lake verify``; its rows are those accepted. The state is on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from keystone.log.embedded import EmbeddedLog
from tests.s3_server import S3Server

FROZEN_AT_S, FROZEN_S, DEAD_S = 20.0, 60.0, 10.0
SECONDS = 120
END_S = 300
RETENTION_BYTES = 512 << 20  # of a partition: nothing is forgotten, so that the lake can be compared with all of it


def keystone(*words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "keystone", *words], text=True, **options)


def run(eps: int, folder: Path, server: S3Server, *, has_outage: bool) -> dict[str, Any]:
    log, lake, told = f"embedded:{folder / 'log'}", f"s3://{server.make_bucket(folder.name)}/lake", folder / "report.json"
    EmbeddedLog.create(folder / "log", partitions=4, segment_bytes=16 << 20, retention_bytes=RETENTION_BYTES).close()
    with (folder / "out").open("w+") as out:
        running = keystone("run", "--log", log, "--lake", lake, "--no-story", "--until-idle", "10", "--report", str(told), stdout=out, stderr=out)
        while "reading " not in (folder / "out").read_text():
            assert running.poll() is None, (folder / "out").read_text()
            time.sleep(0.1)
        devices = keystone("simulate", "--log", log, "--eps", str(eps), "--seconds", str(SECONDS), stdout=subprocess.DEVNULL)
        if has_outage:
            time.sleep(FROZEN_AT_S)
            server.pause()
            time.sleep(FROZEN_S)
            server.kill()
            time.sleep(DEAD_S)
            server.start()
        assert devices.wait(END_S) == 0
        ended = time.monotonic()
        status = running.wait(END_S)
    found = json.loads(told.read_bytes())
    proof = subprocess.run([sys.executable, "-m", "keystone", "lake", "verify", "--lake", lake, "--log", log], capture_output=True, text=True, check=False)
    detect, ledger = found["latency_ms"]["detect"], found["ledger"]
    return {
        "what": "frozen, killed, back" if has_outage else "undisturbed", "status": status, "alerts": found["alerts"], "detect p50 ms": detect["p50"],
        "detect p99 ms": detect["p99"], "detect max ms": detect["max"], "within 3 s": found["within_3s"], "accepted": ledger["accepted"],
        "lake rows": ledger["lake_rows"], "lake proven": proof.returncode == 0, "lake late at most ms": found["commits"]["age_ms_max"],
        "over s after the last event": time.monotonic() - ended, "failures": "; ".join(found["failures"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=int, default=20_000)
    parser.add_argument("--json")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name, S3Server("versitygw") as server:
        os.environ |= {**server.env(), "XDG_DATA_HOME": f"{name}/home"}
        for has_outage in (False, True):
            folder = Path(name) / f"outage-{has_outage}".lower()
            folder.mkdir()
            rows.append(run(given.eps, folder, server, has_outage=has_outage))
            print(rows[-1], flush=True)
    report("lake_s3_outage", rows, given.json, eps=given.eps, seconds=SECONDS, frozen_s=FROZEN_S, dead_s=DEAD_S)


if __name__ == "__main__":
    main()
