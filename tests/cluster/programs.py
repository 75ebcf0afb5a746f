"""Commands of ours that join a cluster of ``RayNodes``, and what a bench's report must say there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.cluster.ray_nodes import RayNodes
from tests.services.runs import ROOT

END_S_MAX = 240.0


class Program:
    """A command of ours; what it says goes to files and may be read while it runs."""

    def __init__(self, folder: Path, *words: str, env: dict[str, str] | None = None) -> None:
        self._out, self._err = folder / "said", folder / "complained"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *(words if words[0] == "-c" else ("-m", *words))], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT, env=env
            )

    @property
    def said(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def complained(self) -> str:
        return self._err.read_text(errors="replace")

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + END_S_MAX
        while not re.search(pattern, self.said + self.complained):
            assert self.process.poll() is None, self.said + self.complained
            assert time.monotonic() < deadline, self.said + self.complained
            time.sleep(0.1)

    def end(self) -> int:
        try:
            return self.process.wait(END_S_MAX)
        finally:
            self.process.kill()


def bench(nodes: RayNodes, folder: Path, log: str, *words: str) -> Program:
    given = ("--eps", "5000", "--devices", "5000", "--log", log, "--out", str(folder / "out"))
    return Program(folder, "keystone.bench", "--address", nodes.address, *given, *words, env=nodes.env)


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_bytes())
    return found


def is_exact(report: dict[str, Any]) -> None:
    truth, ledger = report["truth"], report["ledger"]
    assert truth["expected"] == truth["alerted"] > 0, truth
    assert (truth["missed"], truth["false"], truth["duplicate"]) == (0, 0, 0)
    assert ledger["sent"] == ledger["received"] == ledger["accepted"] == ledger["lake_rows"]
