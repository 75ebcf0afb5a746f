"""The measured model: what an event, a session, a file and a document cost, each figure with where it was measured.

``rates.json`` beside this file is what ``tools/fit_rates.py`` makes of ``benchmarks/results/``. A file of a user's has the same form; figures
that it leaves out are the kept ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeGuard

from keystone.errors import UsageError

KEPT: Final = Path(__file__).parent / "rates.json"
SCHEMA: Final = 1
LOGS: Final = ("embedded", "kafka")
CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
PARTS: Final = ("fleet", "sessions", "other", "broker")

#: Of each log, by part, and of a session actor's loop alone (one thread, so part of ``sessions``): CPU us that an event more takes; the cores that
#: are taken at any rate (polls, statuses, threads that wake up); and CPU us an event, all included, near the highest rate: there polls find
#: much and are few, so what is taken at any rate is not taken on top.
CPU_FIGURES: Final = tuple(f"{log}_{part}_{kind}" for log in LOGS for part in (*PARTS, "loop") for kind in ("us", "base_cores", "busy_us"))
#: name -> (what it is, lowest, highest): a value outside is no measurement.
FIGURES: Final[dict[str, tuple[str, float, float]]] = {
    **dict.fromkeys((name for name in CPU_FIGURES if name.endswith("_us")), ("CPU us an event", 0.0, 1e4)),
    **dict.fromkeys((name for name in CPU_FIGURES if name.endswith("_cores")), ("cores at any rate", 0.0, 64.0)),
    "embedded_busy_share": ("of the cores, at the highest rate that passed", 0.1, 1.0),
    "kafka_busy_share": ("of the cores, at the highest rate that passed", 0.1, 1.0),
    "event_bytes": ("bytes of JSON an event", 1.0, 1e6),
    **dict.fromkeys((f"codec_ratio_{codec}" for codec in CODECS), ("raw bytes over packed ones on the log", 0.5, 1e3)),
    "lake_event_bytes": ("bytes of Parquet an event", 0.01, 1e6),
    "files_per_checkpoint": ("files of the lake, a partition and checkpoint", 1.0, 1e3),
    "session_bytes": ("bytes of state a session", 1.0, 1e6),
    "sessions_per_device": ("sessions open at once, a device", 0.01, 1e3),
    "checkpoint_session_bytes": ("bytes of a checkpoint, a session", 1.0, 1e6),
    "actor_base_mib": ("MiB of a session actor and its share of Ray, without state", 1.0, 1e5),
    "seat_bytes": ("bytes of a simulated device", 1.0, 1e5),
    "sessions_closed_per_device_hour": ("session records", 0.0, 3.6e6),
    "alerts_per_device_hour": ("alerts", 0.0, 3.6e6),
    "cohort_rows_per_s": ("rows of cohorts told, a second, whatever the rate", 0.0, 1e6),
    "alert_document_bytes": ("bytes of JSON", 1.0, 1e6),
    "session_document_bytes": ("bytes of JSON", 1.0, 1e6),
    "index_server_us": ("CPU us of the search server a document", 0.1, 1e6),
    "index_own_us": ("CPU us of ours a document", 0.0, 1e6),
}
SCALED: Final = (*CPU_FIGURES, "index_server_us", "index_own_us")  # by the machine's speed


@dataclass(frozen=True, slots=True)
class Rate:
    """One figure. ``source``: the file and key it comes from."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Rates:
    """All figures of FIGURES, and the machine they hold for. ``speed_events_per_s``: of one core of it (``keystone/bench/speed.py``)."""

    machine: str
    cores: int
    speed_events_per_s: float
    figures: Mapping[str, Rate]

    def __getitem__(self, name: str) -> float:
        return self.figures[name].value

    def source(self, name: str) -> str:
        return self.figures[name].source

    def with_figures(self, **values: float) -> Rates:
        """With these values in place of the kept ones."""
        return replace(self, figures={**self.figures, **{name: Rate(value, "given") for name, value in values.items()}})

    def on(self, speed_events_per_s: float, *, machine: str, cores: int) -> Rates:
        """On a machine of another speed: CPU time goes with 1 / speed, counts and bytes stay."""
        if not math.isfinite(speed_events_per_s) or speed_events_per_s <= 0:
            raise UsageError(f"{speed_events_per_s:g} events/s is no speed: measure it again (keystone plan --here)")
        factor = self.speed_events_per_s / speed_events_per_s
        scaled = {
            name: Rate(rate.value * factor, f"{rate.source}, x {factor:.3f} for speed") if name in SCALED else rate for name, rate in self.figures.items()
        }
        return Rates(machine, cores, speed_events_per_s, scaled)

    def resized(self, factor: float) -> Rates:
        """For events ``factor`` times as large: CPU an event and bytes of the lake grow with them. Smaller ones are taken for as dear."""
        if factor <= 1:
            return self
        grown = {name for name in CPU_FIGURES if name.endswith("_us")} | {"lake_event_bytes"}
        larger = {name: Rate(rate.value * factor, f"{rate.source}, x {factor:.3f} for size") for name, rate in self.figures.items() if name in grown}
        return replace(self, figures={**self.figures, **larger})

    def as_dict(self) -> dict[str, Any]:
        """What ``load`` reads."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "cores": self.cores,
            "speed_events_per_s": self.speed_events_per_s,
            "figures": {name: {"value": rate.value, "source": rate.source} for name, rate in self.figures.items()},
        }


def kept() -> Rates:
    """Those of this project's kept results."""
    return _parsed(_read(KEPT, "rates"), str(KEPT), None)


def load(path: str | None) -> Rates:
    """Of a file, over the kept ones; without one, the kept ones. ``UsageError`` names what is wrong in it."""
    return kept() if path is None else _parsed(_read(Path(path), "--rates"), f"--rates {path}", kept())


def _read(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{what} {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{what} {path}: is not JSON: {error}") from error


def _parsed(found: Any, where: str, below: Rates | None) -> Rates:
    if not isinstance(found, dict) or not isinstance(found.get("figures"), dict):
        raise UsageError(f"{where}: needs an object 'figures', as keystone plan --measure FILE writes it")
    if found.get("schema") != SCHEMA:
        raise UsageError(f"{where}: schema = {found.get('schema')!r}, this version reads {SCHEMA}: measure again")
    figures = {name: _rate(name, told, where) for name, told in found["figures"].items()}
    missing = [name for name in FIGURES if name not in figures] if below is None else []
    if missing:
        raise UsageError(f"{where}: figure {missing[0]} is missing")
    over = below.figures if below is not None else {}
    unit, cores = found.get("speed_events_per_s"), found.get("cores")
    if not _is_number(unit) or unit <= 0:
        raise UsageError(f"{where}: speed_events_per_s = {unit!r} must be events a second, above 0")
    if type(cores) is not int or not 1 <= cores <= 4_096:
        raise UsageError(f"{where}: cores = {cores!r} must be a whole number from 1 to 4,096")
    if not isinstance(found.get("machine"), str):
        raise UsageError(f"{where}: machine must name the processor")
    rates = Rates(found["machine"], cores, float(unit), {**over, **figures})
    for loop, sessions in ((f"{log}_loop_{kind}", f"{log}_sessions_{kind}") for log in LOGS for kind in ("us", "busy_us")):
        if rates[loop] > rates[sessions]:
            raise UsageError(f"{where}: {loop} is a part of {sessions} and cannot be more")
        if rates[loop] == 0:
            raise UsageError(f"{where}: {loop} must be above 0")
    return rates


def _rate(name: str, told: Any, where: str) -> Rate:
    if name not in FIGURES:
        raise UsageError(f"{where}: {name} is no figure of mine: known are {', '.join(FIGURES)}")
    value, source = (told.get("value"), told.get("source", where)) if isinstance(told, dict) else (told, where)
    what, low, high = FIGURES[name]
    if not _is_number(value) or not low <= value <= high:
        raise UsageError(f"{where}: {name} = {value!r} ({what}) must be a number from {low:g} to {high:g}")
    return Rate(float(value), str(source))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
