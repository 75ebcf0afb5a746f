"""How these benchmarks measure: process CPU time, the best of several turns, rivals in the same run, the machine beside it."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TURNS = 5


def cpu_seconds(work: Callable[[], object], turns: int = TURNS) -> float:
    """Least process CPU time (all threads) of ``turns`` calls: what the work costs, not what else the machine did."""
    best = float("inf")
    for _ in range(turns):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def machine() -> dict[str, Any]:
    """Processor, cores, load and Python, to stand beside every figure."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "load_1m": round(os.getloadavg()[0], 2), "python": platform.python_version(), "system": platform.system()}


def report(name: str, rows: list[dict[str, Any]], path: str | None, **more: Any) -> None:
    """Print the rows as a table; write them with the machine and the command to ``path`` where one is given."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[_text(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    print(f"# {name}: {machine()}")
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if path:
        command = " ".join(["python", *(os.path.relpath(arg) if arg.endswith(".py") else arg for arg in sys.argv)])
        Path(path).write_text(json.dumps({"benchmark": name, "command": command, "machine": machine(), "rows": rows, **more}, indent=1) + "\n")


def _text(value: object) -> str:
    return "" if value is None else f"{value:,.3f}" if isinstance(value, float) else str(value)
