"""A bench's folder with figures that are known, and a page taken apart again."""

from __future__ import annotations

import html
import json
import math
import random
import re
from pathlib import Path

import polars as pl

from tests.reference import partition_of

START_MS = 1_790_000_000_000.0
SECONDS, PARTITIONS, ALERTS = 20, 4, 3_000
REGIONS = ("eu-west", "us-east", "ap-south")
STAGES = {
    "send": ("intended", "appended"), "decode": ("appended", "decoded"), "alert": ("decoded", "alerted"), "write": ("alerted", "visible"),
    "detect": ("appended", "visible"), "end_to_end": ("intended", "visible"),
}  # fmt: skip
FAULTS = (
    {"kind": "kill:session-actor", "at_s": 5.0, "recovery_ms": [1_900.0, 2_400.0], "window_s": [5.0, 8.0], "partitions": [0, 1], "process": "session-0"},
    {"kind": "freeze:committer", "at_s": 12.0, "recovery_ms": [700.0], "window_s": [12.0, 14.5], "partitions": [], "process": "committer"},
)


def known_alerts(seed: int = 1, slower: float = 1.0) -> list[dict]:
    """One a row; those due in the first fault's window wait until its end."""
    draw = random.Random(seed)
    rows = []
    for number in range(ALERTS):
        at_s = draw.uniform(2.0, SECONDS)
        intended = START_MS + at_s * 1_000
        held_ms = (8.0 - at_s) * 1_000 if 5.0 <= at_s < 8.0 else 0.0
        appended = intended + draw.uniform(2, 12)
        decoded = appended + held_ms + draw.lognormvariate(2.7, 0.5) * slower
        alerted = decoded + draw.uniform(0.2, 3)
        visible = alerted + draw.uniform(0.1, 2)
        device = f"d-{draw.randrange(10**6):010d}"
        rows.append({
            "alert_id": f"{number:032x}", "kind": "buffering_loop", "device_id": device, "session_id": f"s-{number}", "intended": intended,
            "appended": appended, "decoded": decoded, "alerted": alerted, "visible": visible, "region": REGIONS[draw.choice((0, 0, 0, 1, 1, 2))],
        })  # fmt: skip
    return sorted(rows, key=lambda row: row["visible"])


def write_run(folder: Path, rows: list[dict], *, verdict: str = "pass", faults: tuple = FAULTS, reasons: tuple = ()) -> Path:
    """The files that a bench leaves, as far as pages read them."""
    folder.mkdir(parents=True)
    kept = ["alert_id", "kind", "device_id", "session_id", "intended", "appended", "decoded", "alerted", "visible"]
    schema = dict.fromkeys(kept[:4], pl.String) | dict.fromkeys(kept[4:], pl.Float64)
    pl.DataFrame([{name: row[name] for name in kept} for row in rows], schema=schema).write_parquet(folder / "latency.parquet")
    lines = [json.dumps({"alert_id": row["alert_id"], "region": row["region"], "cdn": "north", "device_type": "tv", "seq": 3}) for row in rows]
    (folder / "alerts.ndjson").write_text("".join(line + "\n" for line in lines))
    whole = {name: figures(stage_of(rows, name)) for name in STAGES}
    side = {"within_3s": 1.0, "end_to_end_ms": whole["end_to_end"], "send_delay_ms": whole["send"], "lag_max_events": 10}
    report = {
        "schema": 1, "verdict": verdict, "reasons": list(reasons), "notes": [], "target_eps": 100_000.0, "achieved_eps": 99_990.0, "seconds": float(SECONDS),
        "events": 2_000_000, "devices": 500_000, "sessions": 510_000, "seed": 7, "start_ms": START_MS, "latency_ms": whole, "within_3s": 0.99,
        "send_delay_ms": figures([4.0] * 990 + [60.0] * 10) | {"count": 2_000_000},
        "truth": {"expected": len(rows), "alerted": len(rows), "missed": 0, "false": 0, "duplicate": 0},
        "ledger": dict.fromkeys(("sent", "received", "accepted", "applied", "lake_rows"), 2_000_000) | {"duplicates": 0, "dead_lettered": 0},
        "machine": {"cpu": "a processor", "cores": 2, "memory_mib": 8_000, "load_average": [0.1, 0.2, 0.3], "python": "3.11.7"},
        "versions": {"keystone": "0.1.0"}, "config": {"bench": {"partitions": PARTITIONS, "fleet_actors": 1, "session_actors": 1}},
    }  # fmt: skip
    if faults:
        struck = [{"what": "", "pid": 1, "at_work_ms": 1.0, "lag_back_ms": 2_000.0, **fault} for fault in faults]
        report["chaos"] = {"spec": "random:7:3", "faults": struck, "inside": side, "outside": side}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def stage_of(rows: list[dict], name: str) -> list[float]:
    begin, end = STAGES[name]
    return [row[end] - row[begin] for row in rows if row[begin] is not None and row[end] is not None]


def rank(values: list[float], share: float) -> float:
    """Nearest rank, by its definition: the smallest value that at least ``share`` of all do not exceed."""
    return next(value for value in sorted(values) if sum(other <= value for other in values) >= share * len(values) - 1e-9)


def quick_rank(values: list[float], share: float) -> float:
    return sorted(values)[max(0, math.ceil(round(share * len(values), 9)) - 1)]


def figures(values: list[float]) -> dict:
    if not values:
        return dict.fromkeys(("p50", "p90", "p99", "p999", "max")) | {"count": 0, "negatives": 0}
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {name: quick_rank(values, share) for name, share in shares.items()} | {"count": len(values), "negatives": sum(v < 0 for v in values)}


def partition_by_reference(row: dict) -> int:
    return partition_of(row["device_id"], PARTITIONS)


# --- pages --------------------------------------------------------------------------------------------------------------
def charts_of(page: str) -> dict[str, dict]:
    """Title to specification of every chart, as the page's script will read them."""
    texts = re.findall(r'<figure class="chart"><div class="plot"></div><script type="application/json">(.*?)</script></figure>', page, re.DOTALL)
    specs = [json.loads(text) for text in texts]
    found = {spec["title"]["text"]: spec for spec in specs}
    assert len(found) == len(specs)  # a title says of which run a chart is
    return found


def rows_of(spec: dict) -> list[dict]:
    """All rows of all tables of a chart."""
    return [row for table in spec["datasets"].values() for row in table]


def words_of(page: str) -> str:
    """What a person reads in it, charts left out."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page[page.index("<body>") :], flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def loads_of(page: str) -> list[str]:
    """Addresses outside of scripts and text that a browser would fetch."""
    outside = re.sub(r"(<script\b[^>]*>).*?</script>", r"\1</script>", page, flags=re.DOTALL)
    found = re.findall(r"""(?:src|href|srcset|data|poster|action)\s*=\s*["']?([^"'\s>]+)""", outside)
    found += re.findall(r"""url\(\s*["']?([^"')]+)""", outside) + re.findall(r"""@import\s+["']?([^"';]+)""", outside)
    return [address for address in found if not address.startswith(("#", "data:"))]
