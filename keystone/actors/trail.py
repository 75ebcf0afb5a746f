"""The trail of alerts that one session actor leaves: the alerts themselves, and when each became visible.

An alert is visible when its line is in the file, readable by anyone from then on. Only what a predecessor said is left
out: an alert that this process raises twice is there twice, for the judge to see. Its moments follow in a file of fixed
rows, so that both outlive the process. A successor repairs a torn last line or row and learns from the file which
alerts need no second saying.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson
import polars as pl

from keystone.metrics import LatencyHistogram
from keystone.sinks.ndjson import LineFile, alert_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keystone.events import Alert

ALERT_ID_LETTERS = 32
#: One row an alert; moments are wall time, ms.
MOMENTS_DTYPE = np.dtype([("alert_id", f"S{ALERT_ID_LETTERS}"), ("appended", "<f8"), ("decoded", "<f8"), ("alerted", "<f8"), ("visible", "<f8")])


def alerts_path(work_dir: Path, actor: str) -> Path:
    return work_dir / f"{actor}.alerts.ndjson"


def moments_path(work_dir: Path, actor: str) -> Path:
    return work_dir / f"{actor}.moments"


class AlertTrail:
    """The only writer of the two files of one actor. Opening them again continues where a dead process stopped."""

    def __init__(self, work_dir: Path, actor: str) -> None:
        alerts, moments = alerts_path(work_dir, actor), moments_path(work_dir, actor)
        self._alerts = LineFile(alerts)
        known = [orjson.loads(line)["alert_id"] for line in alerts.read_bytes().splitlines()]
        timed = _mend_rows(moments)
        self._moments_fd = os.open(moments, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._said = frozenset(known)
        self.detect = LatencyHistogram()  # append to visible, of our own alerts
        self.alerts = len(known)
        untimed = [alert_id for alert_id in known if alert_id not in timed]
        if untimed:  # said, but its maker died before it noted when: it is visible now at the latest
            now_ms = time.time() * 1_000
            unknown = [float("nan")] * len(untimed)
            self._note(untimed, unknown, unknown, unknown, now_ms)

    def append(self, alerts: Sequence[Alert], *, decoded_ms: Sequence[float], alerted_ms: Sequence[float], visible_ms: Sequence[float] | None = None) -> float:
        """Make ``alerts`` visible, but for those that a dead predecessor had said already. One moment an alert.

        Returns when they became visible: now, unless ``visible_ms`` says that they were elsewhere, one moment an alert.
        """
        fresh = [i for i, a in enumerate(alerts) if a.alert_id not in self._said]
        if not fresh:
            return time.time() * 1_000
        self._alerts.write_lines(alert_line(alerts[i]) for i in fresh)
        now_ms = time.time() * 1_000
        visible = [now_ms if visible_ms is None else visible_ms[i] for i in fresh]
        appended_ms = [float(alerts[i].append_ts_ms) for i in fresh]
        self._note([alerts[i].alert_id for i in fresh], appended_ms, [decoded_ms[i] for i in fresh], [alerted_ms[i] for i in fresh], visible)
        self.detect.add(np.array(visible) - np.array(appended_ms))
        self.alerts += len(fresh)
        return now_ms

    def close(self) -> None:
        self._alerts.close()
        os.close(self._moments_fd)

    def _note(self, ids: list[str], appended_ms: list[float], decoded_ms: list[float], alerted_ms: list[float], visible_ms: float | list[float]) -> None:
        rows = np.zeros(len(ids), MOMENTS_DTYPE)
        rows["alert_id"], rows["appended"] = ids, appended_ms
        rows["decoded"], rows["alerted"], rows["visible"] = decoded_ms, alerted_ms, visible_ms
        _write(self._moments_fd, rows.tobytes())


def read_moments(path: Path) -> pl.DataFrame:
    """alert_id and four float64 moments, one row an alert; what is not known is null."""
    rows = np.frombuffer(path.read_bytes(), MOMENTS_DTYPE)
    times = {name: pl.Series(rows[name].copy(), dtype=pl.Float64).fill_nan(None) for name in ("appended", "decoded", "alerted", "visible")}
    return pl.DataFrame({"alert_id": pl.Series([i.decode() for i in rows["alert_id"].tolist()], dtype=pl.String), **times})


def _mend_rows(path: Path) -> set[str]:
    if not path.exists():
        return set()
    whole = path.stat().st_size // MOMENTS_DTYPE.itemsize * MOMENTS_DTYPE.itemsize
    os.truncate(path, whole)
    return {i.decode() for i in np.frombuffer(path.read_bytes(), MOMENTS_DTYPE)["alert_id"].tolist()}


def _write(fd: int, text: bytes) -> None:
    view = memoryview(text)
    while view:
        view = view[os.write(fd, view) :]
