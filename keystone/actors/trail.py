"""The trail of alerts that the owners of a partition leave: the alerts themselves, and when each became visible.

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

from keystone.sinks.ndjson import LineFile, alert_line, detach, is_sealed, seal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keystone.events import Alert

ALERT_ID_LETTERS = 32
#: One row an alert; moments are wall time, ms.
MOMENTS_DTYPE = np.dtype([("alert_id", f"S{ALERT_ID_LETTERS}"), ("appended", "<f8"), ("decoded", "<f8"), ("alerted", "<f8"), ("visible", "<f8")])


def alerts_path(work_dir: Path, trail: str) -> Path:
    return work_dir / f"{trail}.alerts.ndjson"


def moments_path(work_dir: Path, trail: str) -> Path:
    return work_dir / f"{trail}.moments"


def trail_name(partition: int, epoch: int) -> str:
    return f"p{partition:05d}-e{epoch:08d}"


def trail_owner(trail: str) -> tuple[int, int]:
    """Partition and epoch of a ``trail_name``."""
    partition, _, epoch = trail.partition("-")
    return int(partition.removeprefix("p")), int(epoch.removeprefix("e"))


def trail_names(work_dir: Path, partition: int | None = None) -> list[str]:
    """Of all owners of a partition, or of all partitions, oldest owner first."""
    of = "p*" if partition is None else f"p{partition:05d}"
    return sorted(path.name.removesuffix(".alerts.ndjson") for path in work_dir.glob(f"{of}-e*.alerts.ndjson"))


class AlertTrail:
    """The only writer of two files. Opening them again mends what a dead process left, and continues. ``said``: ids that others said."""

    def __init__(self, work_dir: Path, trail: str, said: frozenset[str] = frozenset()) -> None:
        alerts, moments = alerts_path(work_dir, trail), moments_path(work_dir, trail)
        self._alerts = LineFile(alerts)
        known = _ids_in(alerts)
        timed = _mend_rows(moments)
        self._moments_fd = os.open(moments, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.said = said | known
        untimed = [alert_id for alert_id in known if alert_id not in timed]
        if untimed:  # said, but its maker died before it noted when: it is visible now at the latest
            now_ms = time.time() * 1_000
            unknown = [float("nan")] * len(untimed)
            self._note(untimed, unknown, unknown, unknown, now_ms)

    def append(
        self, alerts: Sequence[Alert], *, decoded_ms: Sequence[float], alerted_ms: Sequence[float], visible_ms: Sequence[float] | None = None
    ) -> list[int]:
        """Make ``alerts`` visible, but for those that a predecessor had said already: the places of the others.

        They are visible now, unless ``visible_ms`` says when they were elsewhere, one moment an alert.
        """
        fresh = [i for i, a in enumerate(alerts) if a.alert_id not in self.said]
        if fresh:
            self._alerts.write_lines(alert_line(alerts[i]) for i in fresh)
            now_ms = time.time() * 1_000
            visible = [now_ms if visible_ms is None else visible_ms[i] for i in fresh]
            appended_ms = [float(alerts[i].append_ts_ms) for i in fresh]
            self._note([alerts[i].alert_id for i in fresh], appended_ms, [decoded_ms[i] for i in fresh], [alerted_ms[i] for i in fresh], visible)
        return fresh

    def close(self) -> None:
        self._alerts.close()
        os.close(self._moments_fd)

    def _note(self, ids: list[str], appended_ms: list[float], decoded_ms: list[float], alerted_ms: list[float], visible_ms: float | list[float]) -> None:
        rows = np.zeros(len(ids), MOMENTS_DTYPE)
        rows["alert_id"], rows["appended"] = ids, appended_ms
        rows["decoded"], rows["alerted"], rows["visible"] = decoded_ms, alerted_ms, visible_ms
        _write(self._moments_fd, rows.tobytes())


class Trails:
    """One of each partition that is owned here."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._open: dict[int, AlertTrail] = {}

    def own(self, partition: int, epoch: int) -> None:
        """Go on where earlier owners stopped: what they said is mended and known, and they can say nothing more."""
        said: set[str] = set()
        for name in trail_names(self._work_dir, partition):
            said |= _said_in(self._work_dir, name)
        self._open[partition] = AlertTrail(self._work_dir, trail_name(partition, epoch), frozenset(said))

    def disown(self, partition: int) -> None:
        self._open.pop(partition).close()

    def append(self, partition: int, alerts: Sequence[Alert], **moments: Sequence[float] | None) -> list[int]:
        """See ``AlertTrail.append``."""
        return self._open[partition].append(alerts, **moments)  # type: ignore[arg-type]

    def close(self) -> None:
        for trail in self._open.values():
            trail.close()
        self._open.clear()


def _said_in(work_dir: Path, name: str) -> frozenset[str]:
    """The ids in the trail of an earlier owner, which may be frozen, not dead, anywhere before its next write."""
    alerts, moments = alerts_path(work_dir, name), moments_path(work_dir, name)
    if is_sealed(alerts):
        return _ids_in(alerts)
    for path in (alerts, moments):
        if path.exists():
            detach(path)
    trail = AlertTrail(work_dir, name)
    trail.close()
    seal(alerts)
    return trail.said


def _ids_in(alerts: Path) -> frozenset[str]:
    return frozenset(orjson.loads(line)["alert_id"] for line in alerts.read_bytes().splitlines())


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
