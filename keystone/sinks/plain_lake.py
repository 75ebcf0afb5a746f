"""The lake as plain Parquet files in folders: a segment's files are put into place by renaming them, once a checkpoint names them.

    LAKE/event_date=2026-09-21/p00003-...parquet      events
    LAKE-sessions/p00003-...parquet                   session records (never in the lake: who reads it reads every file there)
    LAKE-alerts/p00003-...parquet                     alerts
    .LAKE.staging/data/...                            in no checkpoint yet, or not put into place

A rename may be repeated: a file that is not in staging any more, and is in its place, was put there. There are no snapshots: a
reader sees a segment's files appear one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from keystone.errors import LakeDamaged, SinkBusy
from keystone.segments import DataFile, Segment


def staging_of(lake_dir: Path) -> Path:
    """Where files of a plain lake are written: beside it, on the same file system, hidden."""
    return lake_dir.with_name(f".{lake_dir.name}.staging")


class PlainLake:
    """Puts segments into place. One process at a time need do it; two at once do no harm."""

    def __init__(self, lake_dir: Path) -> None:
        self._lake_dir = lake_dir
        self._staging = staging_of(lake_dir)
        self.files = 0  # put into place by us

    def publish(self, segments: Iterable[Segment]) -> dict[int, int]:
        """By partition, the sequence behind the last segment that is in place. Raises ``LakeDamaged`` where a file is nowhere."""
        behind: dict[int, int] = {}
        for segment in sorted(segments, key=lambda one: (one.partition, one.sequence)):
            for file in segment.files:
                self._publish(file)
            behind[segment.partition] = segment.sequence + 1
        return behind

    def _publish(self, file: DataFile) -> None:
        source, target = self._staging / file.path, self._place(file)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
            self.files += 1
        except FileNotFoundError:
            if not target.exists():
                raise LakeDamaged(f"{source} is gone, and {target} is not there: a checkpoint names it") from None
        except OSError as error:
            raise SinkBusy(f"{target} cannot be put into place: {error.strerror}: free room there") from error

    def _place(self, file: DataFile) -> Path:
        below = Path(*Path(file.path).parts[2:])  # without data/TABLE
        return (self._lake_dir if file.table == "events" else self._lake_dir.with_name(f"{self._lake_dir.name}-{file.table}")) / below
