"""The measured model of ``keystone plan``, from kept results: which figure comes from which file is written here, and nowhere else.

python tools/fit_rates.py > keystone/capacity/rates.json
"""

# ruff: noqa: INP001 - a script, not a package
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from keystone.capacity.fitting import busy_share, fit  # noqa: E402
from keystone.capacity.rates import FIGURES, SCHEMA  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
#: Two rates of each log: the highest that a search confirmed, and a quarter of it (``python -m benchmarks.plan --fit``). Speed: around both.
PAIRS = {"embedded": ("plan_embedded_low", "plan_embedded_high"), "kafka": ("plan_kafka_low", "plan_kafka_high")}
MODEL = "plan_embedded_high"  # whose machine and speed the figures are for
DIGITS = 6


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


def row(name: str, **wanted: Any) -> dict[str, Any]:
    """The one row of a benchmark that has these values."""
    (found,) = [each for each in result(name)["rows"] if all(each.get(key) == value for key, value in wanted.items())]
    return found


def figures() -> dict[str, tuple[float, str]]:
    """Every figure and the file and key it comes from."""
    found: dict[str, tuple[float, str]] = {}
    for log, (low, high) in PAIRS.items():
        for name, value in fit(at_one_speed(low), at_one_speed(high)).items():
            found[f"{log}_{name}"] = value, f"{low}.json, {high}.json: cpu_us_per_event"
        found[f"{log}_busy_share"] = busy_share(result(high)), f"{high}.json: achieved_eps x cpu_us_per_event"
    return found | traffic() | state() | index()


def speed(name: str) -> float:
    """Of a core around a result, events/s (``keystone/bench/speed.py``)."""
    return float(result(name)["speed_events_per_s"])


def at_one_speed(name: str) -> dict[str, Any]:
    """A result as it would be at the model's speed: a shared machine's speed changes from one minute to the next."""
    found, factor = result(name), speed(name) / speed(MODEL)
    return found | {"cpu_us_per_event": {part: us if us is None else us * factor for part, us in found["cpu_us_per_event"].items()}}


def traffic() -> dict[str, tuple[float, str]]:
    work, commits = result("workload"), result("bench_1m")["commits"]
    told = result("bench_1m_xeon")
    return {
        "event_bytes": (work["bytes_per_event"], "workload.json: bytes_per_event"),
        **{f"codec_ratio_{each['codec']}": (each["ratio"], "workload.json: ratio") for each in work["rows"]},
        "lake_event_bytes": (result("processor")["lake_bytes_per_row"], "processor.json: lake_bytes_per_row"),
        "files_per_checkpoint": (commits["files"] / commits["segments"], "bench_1m.json: commits.files / segments"),
        "sessions_closed_per_device_hour": (work["sessions_closed_per_device_hour"], "workload.json: sessions_closed_per_device_hour"),
        "alerts_per_device_hour": (work["alerts_per_device_hour"], "workload.json: alerts_per_device_hour"),
        "cohort_rows_per_s": (told["cohorts"]["rows"] / told["seconds"], "bench_1m_xeon.json: cohorts.rows / seconds"),
        "alert_document_bytes": (work["document_bytes"]["alert"], "workload.json: document_bytes.alert"),
        "session_document_bytes": (work["document_bytes"]["session"], "workload.json: document_bytes.session"),
    }


def state() -> dict[str, tuple[float, str]]:
    bench, small = result("bench_1m"), result("bench_kafka_20k")["memory"]
    saved = row("checkpoint", step="save", sessions=1_000_000)
    table = row("session_table", way="session table", sessions=10_000_000)
    return {
        "session_bytes": (max(bench["memory"]["bytes_per_session"], table["state_bytes_per_session"]), "bench_1m.json: memory.bytes_per_session"),
        "sessions_per_device": (bench["memory"]["sessions_active_max"] / bench["devices"], "bench_1m.json: memory.sessions_active_max / devices"),
        "checkpoint_session_bytes": (saved["MB"] * 1e6 / saved["sessions"], "checkpoint.json: save, MB / sessions"),
        "actor_base_mib": (small["rss_max_mib_by_part"]["sessions"] - small["state_mib"], "bench_kafka_20k.json: memory, sessions without state"),
        "seat_bytes": (result("simulator")["rss_bytes_per_seat"], "simulator.json: rss_bytes_per_seat"),
    }


def index() -> dict[str, tuple[float, str]]:
    found = row("elastic", what="rate, refresh 1s")
    return {
        "index_server_us": (found["server CPU us a doc"], "elastic.json: rate, refresh 1s"),
        "index_own_us": (found["our CPU us a doc"], "elastic.json: rate, refresh 1s"),
    }


def made() -> dict[str, Any]:
    """What the file holds."""
    told, high = figures(), result(MODEL)
    return {
        "schema": SCHEMA,
        "machine": high["machine"]["cpu"],
        "cores": high["machine"]["cores"],
        "speed_events_per_s": speed(MODEL),
        "figures": {name: {"value": round(told[name][0], DIGITS), "source": told[name][1]} for name in FIGURES},
    }


def text() -> str:
    return json.dumps(made(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
