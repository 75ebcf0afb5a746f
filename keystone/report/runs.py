"""Finished bench runs as they lie in their folders: the report, and one row an alert with all its stages.

A run that failed or was interrupted has a ``report.json`` too, perhaps without alerts: everything here takes empty tables.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from keystone.bench.latency import MOMENTS, STAGES
from keystone.bench.report import SCHEMA
from keystone.errors import UsageError
from keystone.partition import partitions_of_ids

REPORT: Final = "report.json"
LATENCY: Final = "latency.parquet"
ALERTS: Final = "alerts.ndjson"
#: What an alert can be told apart by, of the dimensions in ``alerts.ndjson``.
DIMENSIONS: Final = ("region", "cdn", "device_type")
UNKNOWN: Final = "unknown"
_LATENCY_SCHEMA: Final = {"alert_id": pl.String, "kind": pl.String, "device_id": pl.String, "session_id": pl.String, **dict.fromkeys(MOMENTS, pl.Float64)}


@dataclass(frozen=True, slots=True)
class Run:
    """A run. ``name``: unlike every other run's on the same page.

    ``alerts``, in order of visibility: ``alert_id kind device_id``, ``at_s`` (float64, seconds from the schedule's start to when the
    device should have sent what caused it), a column of ms for each of ``STAGES`` (null where a moment is unknown), ``partition``
    (int32) and ``DIMENSIONS`` (``unknown`` where an alert names none).
    """

    name: str
    folder: Path
    report: dict[str, Any] = field(repr=False)
    alerts: pl.DataFrame = field(repr=False)

    @property
    def seconds(self) -> float:
        """Of the schedule that were run."""
        return float(self.report.get("seconds") or 0.0)

    @property
    def span_s(self) -> float:
        """From the schedule's start to its end, or to the last alert that was due after it; at least 1."""
        last_s = self.alerts["at_s"].max() if self.alerts.height else None
        return max(self.seconds, math.ceil(last_s) if isinstance(last_s, float) else 0.0, 1.0)

    @property
    def partitions(self) -> int:
        return int(self.report.get("config", {}).get("bench", {}).get("partitions") or 1)

    @property
    def faults(self) -> list[dict[str, Any]]:
        """What was struck on purpose, in order of time; none in a run without ``--chaos``."""
        return sorted(self.report.get("chaos", {}).get("faults", []), key=lambda fault: fault["at_s"])


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs of these folders, in this order. ``UsageError`` where one holds no report that this version reads."""
    if not folders:
        raise UsageError("name at least one folder of a finished bench run")
    paths = [Path(folder) for folder in folders]
    return [load_run(path, name) for path, name in zip(paths, names_of(paths), strict=True)]


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of these paths that tell them apart; one that is given twice is numbered."""
    parts = [path.absolute().parts for path in paths]
    names = ["/".join(own[-depth:]) for own in parts for depth in (_depth(own, parts),)]
    return [name if names.count(name) == 1 else f"{name} ({names[: at + 1].count(name)})" for at, name in enumerate(names)]


def _depth(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> int:
    different = [other for other in others if other != own]
    return next((depth for depth in range(1, len(own) + 1) if all(other[-depth:] != own[-depth:] for other in different)), len(own))


def load_run(folder: Path, name: str | None = None) -> Run:
    """One run. Alerts that cannot be read are left out: the report says how many there were."""
    report = read_report(folder)
    moments = _read_moments(folder / LATENCY)
    start_ms = float(report.get("start_ms") or 0.0)
    stages = [(pl.col(end) - pl.col(begin)).alias(stage) for stage, (begin, end) in STAGES.items()]
    alerts = moments.select("alert_id", "kind", "device_id", ((pl.coalesce("intended", "appended") - start_ms) / 1_000).alias("at_s"), *stages)
    run = Run(name or folder.absolute().name, folder, report, alerts)
    partitions = pl.Series("partition", partitions_of_ids([i.encode() for i in alerts["device_id"]], run.partitions), pl.Int32)
    known = alerts.with_columns(partitions).join(_read_dimensions(folder / ALERTS), on="alert_id", how="left", maintain_order="left")
    return Run(run.name, folder, report, known.with_columns(pl.col(*DIMENSIONS).fill_null(UNKNOWN)))


def read_report(folder: Path) -> dict[str, Any]:
    """The folder's ``report.json``. ``UsageError``, in one line, where there is none that can be read."""
    path = folder / REPORT
    try:
        report = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} holds no {REPORT}: name the folder (--out) of a bench run that has ended") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA or "verdict" not in report:
        raise UsageError(f"{path} is not a bench report of schema {SCHEMA}: name the folder of a bench run of this version")
    return report


def _read_moments(path: Path) -> pl.DataFrame:
    if not path.exists():  # a run that ended before it was judged
        return pl.DataFrame(schema=_LATENCY_SCHEMA)
    try:
        return pl.read_parquet(path).select(pl.col(name).cast(kind) for name, kind in _LATENCY_SCHEMA.items())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(f"{path} is not a bench's table of latencies: {str(error).splitlines()[0]}") from error


def _read_dimensions(path: Path) -> pl.DataFrame:
    """One row an alert: alert_id and ``DIMENSIONS``; a last line that is not whole is passed over."""
    schema: dict[str, pl.DataType | type[pl.DataType]] = dict.fromkeys(("alert_id", *DIMENSIONS), pl.String)
    if not path.exists() or path.stat().st_size == 0:
        return pl.DataFrame(schema=schema)
    try:
        found = pl.read_ndjson(path, schema=schema)
    except pl.exceptions.PolarsError:
        found = _whole_lines(path, schema)
    return found.drop_nulls("alert_id").unique("alert_id", keep="first")


def _whole_lines(path: Path, schema: dict[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    """What is complete of a file whose writer was killed; nothing where more than its end is damaged."""
    text = path.read_bytes()
    try:
        return pl.read_ndjson(io.BytesIO(text[: text.rfind(b"\n") + 1]), schema=schema)
    except pl.exceptions.PolarsError:
        return pl.DataFrame(schema=schema)
